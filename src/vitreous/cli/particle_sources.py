"""What ``vitreous abinit`` starts from: particles, background patches and half sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitreous.cli.common import generator, say
from vitreous.cli.progress import RunProgress
from vitreous.core.errors import InputError, UsageError
from vitreous.data.particles import Particles
from vitreous.data.sources import StackSource
from vitreous.io.mrc import open_stack, read_header
from vitreous.physics.noise import BackgroundPatches, Noise, WhiteGaussian, prepare_patches

_PIECE = 512
_FIELDS = {  # of an option, its field in ParticleFiles
    "ctf": "ctf",
    "particles_per_micrograph": "per_micrograph",
    "kv": "voltage_kv",
    "cs": "cs_mm",
    "q0": "amplitude_contrast",
    "data_root": "data_root",
    "allow_outside_root": "allow_outside_root",
    "permissive": "permissive",
}


@dataclass(frozen=True)
class ParticleFiles:
    """Where particles are, so that every process of a run can open them for itself.

    Args:
        path: a STAR or .cs file; or a stack, whose micrographs and CTF the next two give.
        ctf: CTFFIND4 results, a row for each micrograph.
        per_micrograph: how many particles each micrograph has, in the order of ``ctf``.
        voltage_kv, cs_mm, amplitude_contrast: with ``ctf``; None takes the file's or 300, 2.7, 0.1.
        apix: pixel size in Å, instead of the files' own.
        data_root, allow_outside_root: where a table's images may lie.
        passthrough: for a .cs file: files with further fields of the same particles.
        permissive: accept stacks without a valid MAP id or machine stamp.
    """

    path: Path
    ctf: Path | None = None
    per_micrograph: Path | None = None
    voltage_kv: float | None = None
    cs_mm: float | None = None
    amplitude_contrast: float | None = None
    apix: float | None = None
    data_root: Path | None = None
    allow_outside_root: bool = False
    passthrough: tuple[Path, ...] = ()
    permissive: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From all options of a command, by the names that :mod:`particle_options` gives them."""
        told = {field: options[name] for name, field in _FIELDS.items() if name in options}
        apix = options["input_apix" if "input_apix" in options else "apix"]
        passthrough = tuple(options.get("passthrough") or ())
        return cls(options["particles"], apix=apix, passthrough=passthrough, **told)

    def open(self, *, need_ctf: bool = True) -> Particles:
        """The particles; no image is read yet.

        Args:
            need_ctf: refuse particles without CTF parameters.

        Raises:
            InputError: a file is bad, or a table has no CTF.
            UsageError: a stack without CTF, or a table with one.
        """
        is_stack = self.path.suffix in (".mrcs", ".mrc")
        if is_stack and (need_ctf or self.ctf is not None or self.per_micrograph is not None):
            return self._from_stack()
        if self.ctf is not None or self.per_micrograph is not None:
            raise UsageError("--ctf and --particles-per-micrograph go with a stack, not a table")
        particles = Particles.open(
            self.path,
            passthrough=self.passthrough,
            apix=self.apix,
            data_root=self.data_root,
            allow_outside_root=self.allow_outside_root,
            permissive=self.permissive,
        )
        if need_ctf:
            _ = particles.optics  # refuse a table without CTF before anything is written
        return particles

    def _from_stack(self) -> Particles:
        if self.ctf is None or self.per_micrograph is None:
            raise UsageError(
                f"{self.path}: a stack alone has no CTF; give --ctf and "
                "--particles-per-micrograph, or a STAR or .cs table"
            )
        from vitreous.cli.sources import load_micrographs, owners

        header = read_header(self.path, permissive=self.permissive)
        count, rows, columns = header.shape
        if rows != columns:
            raise InputError(f"{self.path}: data: images of {columns} x {rows} are not square")
        micrographs = load_micrographs(
            self.ctf,
            seed=0,
            voltage_kv=self.voltage_kv,
            cs_mm=self.cs_mm,
            amplitude_contrast=self.amplitude_contrast,
        )
        owner = owners(self.per_micrograph, count)
        if int(owner.max()) >= len(micrographs.names):
            raise InputError(
                f"{self.per_micrograph}: line {int(owner.max()) + 1}: {self.ctf} has only "
                f"{len(micrographs.names)} micrographs; give the tables of the same data"
            )
        index = np.arange(count)
        return Particles(
            ctf=micrographs.optics[owner],
            pose=None,
            pixel_size_angstrom=header.pixel_size_or(self.apix),
            micrograph_id=owner,
            micrograph_names=micrographs.names,
            half_set=torch.zeros(count, dtype=torch.long),
            ids=tuple(f"{i + 1:06d}@{self.path.name}" for i in range(count)),
            _source=StackSource([header], np.zeros_like(index), index, permissive=self.permissive),
            _rows=index,
        )


class WorkingImages:
    """Particle images with protein positive, as a solver reads them.

    Args:
        particles: of one half set.
        invert: whether protein is dark in the files.
    """

    def __init__(self, particles: Particles, *, invert: bool) -> None:
        self._particles, self._sign = particles, -1.0 if invert else 1.0

    @property
    def box_size(self) -> int:
        """Edge of the images in pixels, as on disk."""
        return self._particles.box_size

    def __len__(self) -> int:
        return len(self._particles)

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)`` on the CPU."""
        images = self._particles.read(indices)
        return images if self._sign > 0 else -images


class CheckedImages:
    """Images checked and hashed while they are read, for commands that read them but once.

    Args:
        images: what is read.
        names: of the images, for errors.

    Attributes:
        constant: how many images read so far had all pixels equal.
    """

    def __init__(self, images: WorkingImages, names: Sequence[str]) -> None:
        self.constant = 0
        self._images, self._names = images, names
        self._digest = hashlib.sha256()

    @property
    def box_size(self) -> int:
        """Edge of the images in pixels, as on disk."""
        return self._images.box_size

    def __len__(self) -> int:
        return len(self._images)

    @property
    def digest(self) -> str:
        """A hash of all pixels read so far."""
        return self._digest.hexdigest()[:16]

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)`` on the CPU.

        Raises:
            InputError: one of them has NaN or infinite pixels; it is named.
        """
        images = self._images.read(indices)
        self._digest.update(images.numpy().data)
        pixels = images.flatten(1).numpy()  # torch would take threads from the solver
        low, high = pixels.min(axis=1), pixels.max(axis=1)
        bad = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
        if bad.size:
            name = self._names[int(indices[bad[0]])]
            raise InputError(
                f"{name}: NaN or infinite pixels; leave such images out with --skip-bad"
            )
        self.constant += int(np.count_nonzero(low == high))
        return images


def assign_halves(particles: Particles, seed: int) -> Tensor:
    """Half set 1 or 2 of every particle: ``rlnRandomSubset`` where given, else at random.

    Returns:
        long ``(n,)``.

    Raises:
        InputError: fewer than two particles in a half.
    """
    half = particles.half_set.clone()
    free = (half == 0).nonzero().flatten()
    order = free[torch.randperm(len(free), generator=generator(seed, "abinit halves"))]
    lacking = max(0, min(len(free), len(half) // 2 - int((half == 1).sum())))
    half[order[:lacking]] = 1
    half[order[lacking:]] = 2
    sizes = [int((half == h).sum()) for h in (1, 2)]
    if min(sizes) < 2:
        raise InputError(
            f"particles: half sets of {sizes[0]} and {sizes[1]}: two independent halves need at "
            "least two particles each; check _rlnRandomSubset"
        )
    return half


@dataclass(frozen=True)
class Checked:
    """Particles whose images were all looked at.

    Args:
        particles: those whose images can be used.
        rows: their places among those that were looked at, ``(n,)``.
        digest: a hash of all their pixels, to tell changed data by.
    """

    particles: Particles
    rows: NDArray[np.int64]
    digest: str


def check_images(particles: Particles, *, skip_bad: bool, quiet: bool) -> Checked:
    """Read every image once, with progress shown.

    Args:
        particles: to be checked.
        skip_bad: leave out images that are not finite, as constant ones always are.
        quiet: show no progress.

    Raises:
        InputError: bad images that are not to be left out, or none left.
    """
    hashes: list[bytes] = []

    def look(images: Tensor) -> None:
        pixels = np.ascontiguousarray(images.numpy())
        hashes.extend(hashlib.blake2b(one, digest_size=16).digest() for one in pixels)

    with RunProgress("checking the images", quiet=quiet) as bar:
        kept = particles.without_bad(
            skip_bad=skip_bad, progress=lambda done, total: bar.update(done / total), look=look
        )
    rows = np.arange(len(particles), dtype=np.int64)
    if len(kept) < len(particles):
        names = set(kept.ids)
        rows = np.array([i for i, name in enumerate(particles.ids) if name in names], np.int64)
    digest = hashlib.sha256(b"".join(hashes[i] for i in rows)).hexdigest()[:16]
    return Checked(kept, rows, digest)


@dataclass(frozen=True)
class NoiseFiles:
    """Where noise comes from.

    Args:
        path: None for white noise; a STAR table of background patches; or a stack of them, with
            its table of the same name beside it, or with ``counts``, or of any micrograph.
        apix: pixel size of the patches in Å, instead of their own.
        counts: how many patches each micrograph has, for a stack without table.
        invert: as of the particles.
    """

    path: Path | None = None
    apix: float | None = None
    counts: Path | None = None
    invert: bool = False

    @property
    def table(self) -> Path | None:
        """The patches' STAR table, where there is one."""
        if self.path is None or self.path.suffix == ".star":
            return self.path
        beside = self.path.with_suffix(".star")
        return beside if beside.is_file() and self.counts is None else None

    def load(self, names: tuple[str, ...], box_size: int, pixel_size_angstrom: float) -> Noise:
        """The sampler for images of this box and pixel size.

        Args:
            names: the particles' micrographs; each image's noise comes from its own.
            box_size: pixels.
            pixel_size_angstrom: Å.

        Raises:
            InputError: a file is bad, or the patches are smaller than the images.
        """
        if self.path is None:
            return WhiteGaussian()
        table = self.table
        if table is not None:
            found = Particles.from_star(table, apix=self.apix)
            pixel, count = found.pixel_size_angstrom, len(found)
            read: Callable[[Tensor], Tensor] = found.read
            owner = _match(found, names, table)
        else:
            stack = open_stack(self.path)
            if stack.shape[-1] != stack.shape[-2]:
                raise InputError(f"{self.path}: data: patches are not square")
            pixel, count = read_header(self.path).pixel_size_or(self.apix), len(stack)

            def read_stack(indices: Tensor) -> Tensor:
                return torch.from_numpy(stack.read(indices.numpy()))

            read = read_stack
            owner = torch.zeros(count, dtype=torch.long)
            if self.counts is not None:
                from vitreous.cli.sources import owners

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
            -patches if self.invert else patches,
            owner,
            on_missing="any",
            micrograph_names=names,
        )


def _match(patches: Particles, names: tuple[str, ...], where: Path) -> Tensor:
    """Each patch's micrograph in the particles' numbering; unknown ones get numbers beyond it."""
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
    """Say how many micrographs have particles but no patch of their own."""
    if isinstance(noise, BackgroundPatches) and len(set(noise.micrograph_id.tolist())) > 1:
        bare = set(particles.micrograph_id.tolist()) - set(noise.micrograph_id.tolist())
        if bare:
            say(f"warning: {len(bare)} micrographs have no patch of their own and are given any")
