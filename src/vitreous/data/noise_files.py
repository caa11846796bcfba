"""Noise samplers from background files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.data.particles import Particles
from vitreous.io.mrc import MrcStack, read_header
from vitreous.physics.noise import BackgroundPatches, Noise, WhiteGaussian, prepare_patches

_PIECE = 512


@dataclass(frozen=True)
class NoiseFiles:
    """Files of the background patches that noise is drawn from.

    Args:
        path: None for white noise; a STAR table of background patches; or a stack of them, with
            its table of the same name beside it, or with ``counts``, or of any micrograph.
        apix: overrides the pixel size of the patches, Å.
        counts: file of the number of patches of each micrograph, for a stack without table.
        invert: whether protein is dark in the micrographs, as for the particles.
    """

    path: Path | None = None
    apix: float | None = None
    counts: Path | None = None
    invert: bool = False

    @property
    def table(self) -> Path | None:
        """STAR table of the patches, where there is one."""
        if self.path is None or self.path.suffix == ".star":
            return self.path
        beside = self.path.with_suffix(".star")
        return beside if beside.is_file() and self.counts is None else None

    def load(self, names: tuple[str, ...], box_size: int, pixel_size_angstrom: float) -> Noise:
        """Load the noise sampler for images of a box and pixel size.

        ``names`` are the micrographs of the particles; noise is drawn from an image's own
        micrograph.

        Raises:
            InputError: a file is bad, or the patches are smaller than the images.
        """
        if self.path is None:
            return WhiteGaussian()
        table = self.table
        if table is not None:
            stored = Particles.open(table, pixel_size_angstrom=self.apix)
            pixel, count = stored.pixel_size_angstrom, len(stored)
            read: Callable[[Tensor], Tensor] = stored.read
            owner = _match(stored, names, table)
        else:
            stack = MrcStack(self.path)
            if stack.shape[-1] != stack.shape[-2]:
                raise InputError(f"{self.path}: data: patches are not square")
            pixel, count = read_header(self.path).pixel_size_or(self.apix), len(stack)

            def read_stack(indices: Tensor) -> Tensor:
                return torch.from_numpy(stack.read(indices.numpy()))

            read = read_stack
            owner = torch.zeros(count, dtype=torch.long)
            if self.counts is not None:
                from vitreous.data.simulation_inputs import owners

                owner = owners(self.counts, count)
        old = int(read(torch.zeros(1, dtype=torch.long)).shape[-1])
        size = round(old * pixel / pixel_size_angstrom)
        if size < box_size:
            raise InputError(
                f"{self.path}: size: patches of {old * pixel:.0f} Å cannot fill images of "
                f"{box_size * pixel_size_angstrom:.0f} Å; give larger patches"
            )
        patches = torch.empty(count, size, size)
        try:
            for piece in torch.split(torch.arange(count), _PIECE):
                patches[piece] = prepare_patches(read(piece), size)
        except ValueError as error:
            raise InputError(f"{self.path}: data: {error}") from error
        return BackgroundPatches(
            -patches if self.invert else patches, owner, on_missing="any", micrograph_names=names
        )


def _match(patches: Particles, names: tuple[str, ...], where: Path) -> Tensor:
    """Return each patch's micrograph in the particles' numbering; unknown ones come after it."""
    number = {name: i for i, name in enumerate(names)}
    known = [number.get(name, len(names) + i) for i, name in enumerate(patches.micrograph_names)]
    owner = torch.tensor(known)[patches.micrograph_id]
    if not bool((owner < len(names)).any()):
        raise InputError(
            f"{where}: column _rlnMicrographName: no patch is from a micrograph of the particles "
            f"(such as {names[0]}); correct the names, or give the stack without its table"
        )
    return owner


def warn_of_bare_micrographs(noise: Noise, particles: Particles) -> None:
    """Warn of micrographs that have particles but no patch of their own."""
    if isinstance(noise, BackgroundPatches) and len(set(noise.micrograph_id.tolist())) > 1:
        bare = set(particles.micrograph_id.tolist()) - set(noise.micrograph_id.tolist())
        if bare:
            warnings.warn(
                f"{len(bare)} micrographs have no patch of their own and get any", stacklevel=2
            )
