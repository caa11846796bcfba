"""Draw what each particle of a data set is, image it, and write stack and tables.

This is the file side of the papers' Algorithm 2; the physics is :mod:`vitreous.physics.simulator`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.core.params import Optics, Pose
from vitreous.core.random import generator
from vitreous.data.aberrations import TILT, tilt_factors, tilt_polynomial
from vitreous.data.simulation_inputs import Background, MicrographSet
from vitreous.data.tables import make_document
from vitreous.io.mrc import MrcStackWriter, write_mrc
from vitreous.io.star import StarDocument, write_star
from vitreous.jobs.simulate.imperfections import (
    BACKGROUND,
    CONTAMINATION,
    OVERLAP,
    PARTICLE,
    Imperfections,
    Junk,
)
from vitreous.physics.aberrations import undo_distortion
from vitreous.physics.noise import Noise, WhiteGaussian, noise_sigma
from vitreous.physics.poses import PoseSampler, ShiftSampler
from vitreous.physics.projector import oversampled_spectrum
from vitreous.physics.simulator import Conditions, Simulator

OUTPUTS = (
    "particles.mrcs",
    "particles.star",
    "truth.mrc",
    "truth.star",
    "noise.mrcs",
    "noise.star",
    *(f"truth{state:02d}.mrc" for state in range(1, 100)),
)
MOST_STATES = 99
VARIANCE_SAMPLE = 2000


@dataclass(frozen=True)
class Truth:
    """What is drawn for each particle before anything is imaged; ``state`` counts from 0.

    ``optics`` are the true CTF parameters of each particle, with its contrast as their scale.
    """

    pose: Pose
    micrograph_id: Tensor
    state: Tensor
    optics: Optics
    junk: Junk
    imperfections: Imperfections

    def __len__(self) -> int:
        """Number of particles."""
        return len(self.pose)

    @property
    def odd_phase(self) -> Tensor | None:
        """Coefficients ``(6,)`` of the odd phase by the beam tilt; None without."""
        tilt = torch.tensor([self.imperfections.beam_tilt_mrad], dtype=torch.float64)
        if not tilt.any():
            return None
        factor = tilt_factors(self.optics.cs_mm[:1], self.optics.voltage_kv[:1])
        return torch.from_numpy(tilt_polynomial(tilt.numpy(), factor))[0]

    def columns(self) -> dict[str, Tensor]:
        """Return columns of the imperfections in use: contrast, junk, beam tilt."""
        used, n = self.imperfections, len(self)
        columns = {}
        if used.ice_micrographs or used.ice_particles:
            columns["vitreousContrast"] = self.optics.scale.double()
        if used.junk:
            columns["vitreousJunk"] = self.junk.kind
        if self.odd_phase is not None:
            columns |= {
                name: torch.full((n,), tilt, dtype=torch.float64)
                for name, tilt in zip(TILT, used.beam_tilt_mrad, strict=True)
            }
        return columns


def draw_truth(
    n: int,
    micrographs: MicrographSet,
    poses: PoseSampler,
    shifts: ShiftSampler,
    seed: int,
    states: int = 1,
    imperfections: Imperfections = Imperfections(),  # noqa: B008  # frozen
) -> Truth:
    """Draw micrograph, orientation, shift and state of every particle, each from its own stream.

    Particles are sorted by micrograph, as picked ones are. States are shared out evenly (within
    one), in random order.
    """
    draw = generator(seed, "simulate micrographs")
    micrograph = torch.randint(len(micrographs.names), (n,), generator=draw).sort().values
    rotation = poses.sample(n, generator=generator(seed, "simulate poses"))
    shift = shifts.sample(n, generator=generator(seed, "simulate shifts"))
    order = torch.randperm(n, generator=generator(seed, "simulate states"))
    optics = imperfections.optics(micrographs.optics, micrograph, seed)
    junk = Junk.draw(n, imperfections.junk, seed)
    return Truth(Pose(rotation, shift), micrograph, order % states, optics, junk, imperfections)


class SimulationImaging:
    """The physics simulator set to make each particle of a data set.

    Args:
        volumes: ``(k, n, n, n)``, one for each state, on the device to compute on.
        truth: what each particle is.
        noise: sampler of unit variance.
        pixel_size_angstrom: Å.
    """

    def __init__(
        self,
        volumes: Tensor,
        truth: Truth,
        noise: Noise,
        pixel_size_angstrom: float,
    ) -> None:
        n, place = int(volumes.shape[-1]), volumes.device
        self._spectra = [oversampled_spectrum(volume) for volume in volumes]
        self._truth, self._place, self._shape = truth, place, (n, n)
        self._simulator = Simulator(
            n,
            pixel_size_angstrom,
            truth.optics.to(place),
            truth.micrograph_id.to(place),
            noise=noise,
        )

    def particles(self, index: Tensor, pose: Pose | None = None) -> Tensor:
        """Noiseless images ``(b, n, n)`` of the particles ``index (b,)``, in other poses if given.

        Junk is not shown.
        """
        images = torch.empty(len(index), *self._shape, device=self._place)
        pose, state = self._truth.pose[index] if pose is None else pose, self._truth.state[index]
        for k in sorted(set(state.tolist())):
            of = state == k
            here = pose[of].to(self._place)
            row = index[of].to(self._place)
            conditions = Conditions(here.rotation, here.shift_angstrom, row)
            transfer = self._simulator.ctf(row)
            clean = self._simulator.clean(self._spectra[k], conditions, transfer)
            images[of.to(self._place)] = clean
        odd_phase = self._truth.odd_phase
        if odd_phase is None:
            return images
        pixel = self._simulator.pixel_size_angstrom
        return undo_distortion(images, torch.eye(2), -odd_phase.to(self._place), pixel)

    def clean(self, index: Tensor) -> Tensor:
        """Noiseless images ``(b, n, n)`` of the particles ``index (b,)``, or of junk instead."""
        images, junk = self.particles(index), self._truth.junk
        kind = junk.kind[index]
        for one in (BACKGROUND, CONTAMINATION, OVERLAP):
            rows = (kind == one).nonzero().flatten()
            if len(rows) == 0:
                continue
            of, here = index[rows], rows.to(self._place)
            if one == BACKGROUND:
                images[here] = 0
            elif one == CONTAMINATION:
                images[here] = junk.blobs(of, images[here])
            else:
                edge = self._shape[0] * self._simulator.pixel_size_angstrom
                other = Pose(junk.rotation[of], junk.offset[of] * edge)
                images[here] += self.particles(of, other)
        return images

    def noise(self, index: Tensor, stream: torch.Generator) -> Tensor:
        """Unit-variance noise for the same particles."""
        return self._simulator.noise_like(index.to(self._place), generator=stream)

    def mean_signal_variance(self) -> float:
        """Variance of a particle's noiseless image over all its pixels, averaged over the data set.

        Beyond :data:`VARIANCE_SAMPLE` particles an evenly spaced sample of that many is taken.
        """
        rows = (self._truth.junk.kind == PARTICLE).nonzero().flatten()
        count = min(len(rows), VARIANCE_SAMPLE)
        chosen = torch.linspace(0, len(rows) - 1, count, dtype=torch.float64).round().long()
        variances = [
            self.particles(index).double().var((-2, -1), correction=0).cpu()
            for index in torch.split(rows[chosen], chunk_size(self._shape[0]))
        ]
        return float(torch.cat(variances).mean())


def chunk_size(box_size: int) -> int:
    """Images at a time: bounds the memory, depends on nothing but the box, so neither do results.

    >>> chunk_size(32), chunk_size(256)
    (256, 64)
    """
    return max(8, min(256, (1 << 22) // box_size**2))


def write_dataset(
    path: Callable[[str], Path],
    volumes: Tensor,
    truth: Truth,
    micrographs: MicrographSet,
    *,
    pixel_size_angstrom: float,
    snr_db: float,
    seed: int,
    background: Background | None = None,
    notify: Callable[[float], None] = lambda fraction: None,
) -> tuple[float, float]:
    """Write images, tables and true maps; return the signal variance and the noise deviation.

    Args:
        path: name to path, such as ``OutputFolder.path``.
        volumes: ``(k, n, n, n)``, one for each state, on the device to compute on.
        truth: from :func:`draw_truth`.
        micrographs: the names for the tables.
        pixel_size_angstrom: Å, of volume and images.
        snr_db: mean signal variance over noise variance, in dB.
        seed: the run's seed; noise has its own stream.
        background: real noise patches; white Gaussian noise without.
        notify: told the fraction done after each chunk; may raise to stop.

    Raises:
        ResourceError: the disk is full.
    """
    n = int(volumes.shape[-1])
    noise = WhiteGaussian() if background is None else background.sampler(micrographs.names)
    imaging = SimulationImaging(volumes, truth, noise, pixel_size_angstrom)
    variance = imaging.mean_signal_variance()
    sigma = noise_sigma(variance, snr_db=snr_db)
    stream = generator(seed, "simulate noise")
    done = 0
    with MrcStackWriter(path("particles.mrcs"), pixel_size_angstrom) as stack:
        for index in torch.split(torch.arange(len(truth)), chunk_size(n)):
            images = imaging.clean(index) + sigma * imaging.noise(index, stream)
            stack.append(images.cpu().numpy())
            done += len(index)
            notify(done / len(truth))
    mixed = len(volumes) > 1
    for k, volume in enumerate(volumes, 1):
        name = f"truth{k:02d}.mrc" if mixed else "truth.mrc"
        write_mrc(path(name), volume.cpu().numpy(), pixel_size_angstrom)
    if background is not None:
        _write_background(path, background, micrographs, pixel_size_angstrom)
    _write_tables(path, truth, micrographs, box_size=n, pixel_size_angstrom=pixel_size_angstrom)
    return variance, sigma


def _write_tables(
    path: Callable[[str], Path], truth: Truth, micrographs: MicrographSet, **grid: Any
) -> None:
    """Write truth.star and particles.star; ``grid`` is box and pixel size."""
    classes = {"rlnClassNumber": truth.state + 1} if bool(truth.state.any()) else {}
    more = {**classes, **truth.columns()}
    optics, known = truth.optics, micrographs.optics[truth.micrograph_id]
    for name, columns in (
        ("truth.star", {"optics": optics, "pose": truth.pose, "more": more}),
        ("particles.star", {"optics": known}),
    ):
        table = particle_table(
            "particles.mrcs",
            torch.arange(len(truth)),
            truth.micrograph_id,
            micrographs.names,
            **grid,
            **columns,
        )
        write_star(path(name), table)


def particle_table(
    stack: str,
    index: Tensor,
    micrograph_id: Tensor,
    micrograph_names: Sequence[str],
    **columns: Any,
) -> StarDocument:
    """Rows for the images ``index (k,)`` of a stack: micrograph, and arguments of make_document."""
    return make_document(
        [f"{i + 1:06d}@{stack}" for i in index.tolist()],
        micrograph_names=[micrograph_names[i] for i in micrograph_id.tolist()],
        **columns,
    )


def _write_background(
    path: Callable[[str], Path],
    background: Background,
    micrographs: MicrographSet,
    pixel_size_angstrom: float,
) -> None:
    """The patches as ``noise.mrcs``, whole, and their micrographs.

    Particles got random windows of them; who simulates against these particles must draw windows
    too, or a critic learns the few fixed ones by heart.
    """
    patches = background.patches.numpy()
    write_mrc(path("noise.mrcs"), patches, pixel_size_angstrom, is_stack=True)
    table = particle_table(
        "noise.mrcs",
        background.patch_index,
        background.micrograph_id,
        micrographs.names,
        optics=micrographs.optics[background.micrograph_id],
        box_size=patches.shape[-1],
        pixel_size_angstrom=pixel_size_angstrom,
    )
    write_star(path("noise.star"), table)
