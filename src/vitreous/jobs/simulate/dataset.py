"""Draw what each particle of a data set is, image it, and write stack and tables.

This is the file side of the papers' Algorithm 2; the physics is :mod:`vitreous.physics.simulator`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitreous.core.params import Pose
from vitreous.core.random import generator
from vitreous.data.simulation_inputs import Background, MicrographSet
from vitreous.data.tables import make_document
from vitreous.io.mrc import MrcStackWriter, write_mrc
from vitreous.io.star import StarDocument, write_star
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
    """What is drawn for each particle before anything is imaged; ``state`` counts from 0."""

    pose: Pose
    micrograph_id: Tensor
    state: Tensor

    def __len__(self) -> int:
        """Number of particles."""
        return len(self.pose)


def draw_truth(
    n: int,
    micrographs: MicrographSet,
    poses: PoseSampler,
    shifts: ShiftSampler,
    seed: int,
    states: int = 1,
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
    return Truth(Pose(rotation, shift), micrograph, order % states)


class SimulationImaging:
    """The physics simulator set to make each particle of a data set.

    Args:
        volumes: ``(k, n, n, n)``, one for each state, on the device to compute on.
        truth: what each particle is.
        micrographs: optics, by ``truth.micrograph_id``.
        noise: sampler of unit variance.
        pixel_size_angstrom: Å.
    """

    def __init__(
        self,
        volumes: Tensor,
        truth: Truth,
        micrographs: MicrographSet,
        noise: Noise,
        pixel_size_angstrom: float,
    ) -> None:
        n, place = int(volumes.shape[-1]), volumes.device
        self._spectra = [oversampled_spectrum(volume) for volume in volumes]
        self._truth, self._place, self._shape = truth, place, (n, n)
        self._simulator = Simulator(
            n,
            pixel_size_angstrom,
            micrographs.optics.to(place),
            torch.arange(len(micrographs.names), device=place),
            noise=noise,
        )

    def _row(self, index: Tensor) -> Tensor:
        return self._truth.micrograph_id[index].to(self._place)

    def clean(self, index: Tensor) -> Tensor:
        """Noiseless images ``(b, n, n)`` of the particles ``index (b,)``."""
        images = torch.empty(len(index), *self._shape, device=self._place)
        state = self._truth.state[index]
        for k in sorted(set(state.tolist())):
            of = index[state == k]
            pose = self._truth.pose[of].to(self._place)
            conditions = Conditions(pose.rotation, pose.shift_angstrom, self._row(of))
            transfer = self._simulator.ctf(conditions.row)
            clean = self._simulator.clean(self._spectra[k], conditions, transfer)
            images[(state == k).to(self._place)] = clean
        return images

    def noise(self, index: Tensor, stream: torch.Generator) -> Tensor:
        """Unit-variance noise for the same particles."""
        return self._simulator.noise_like(self._row(index), generator=stream)


def chunk_size(box_size: int) -> int:
    """Images at a time: bounds the memory, depends on nothing but the box, so neither do results.

    >>> chunk_size(32), chunk_size(256)
    (256, 64)
    """
    return max(8, min(256, (1 << 22) // box_size**2))


def mean_signal_variance(imaging: SimulationImaging, n_particles: int, box_size: int) -> float:
    """Variance of a noiseless image over all its pixels, averaged over the data set.

    Beyond :data:`VARIANCE_SAMPLE` particles an evenly spaced sample of that many is taken.
    """
    count = min(n_particles, VARIANCE_SAMPLE)
    chosen = torch.linspace(0, n_particles - 1, count, dtype=torch.float64).round().long()
    variances = [
        imaging.clean(index).double().var((-2, -1), correction=0).cpu()
        for index in torch.split(chosen, chunk_size(box_size))
    ]
    return float(torch.cat(variances).mean())


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
    imaging = SimulationImaging(volumes, truth, micrographs, noise, pixel_size_angstrom)
    variance = mean_signal_variance(imaging, len(truth), n)
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
    for name, pose in (("truth.star", truth.pose), ("particles.star", None)):
        table = particle_table(
            "particles.mrcs",
            torch.arange(len(truth)),
            truth.micrograph_id,
            micrographs,
            n,
            pixel_size_angstrom,
            pose,
            truth.state + 1 if mixed and pose is not None else None,
        )
        write_star(path(name), table)
    return variance, sigma


def particle_table(
    stack: str,
    index: Tensor,
    micrograph_id: Tensor,
    micrographs: MicrographSet,
    box_size: int,
    pixel_size_angstrom: float,
    pose: Pose | None = None,
    class_number: Tensor | None = None,
) -> StarDocument:
    """Rows for the images ``index (k,)`` of a stack: micrograph, its CTF, what else is given."""
    return make_document(
        [f"{i + 1:06d}@{stack}" for i in index.tolist()],
        micrographs.optics[micrograph_id],
        pixel_size_angstrom=pixel_size_angstrom,
        box_size=box_size,
        micrograph_names=[micrographs.names[i] for i in micrograph_id.tolist()],
        pose=pose,
        class_number=None if class_number is None else class_number.tolist(),
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
        micrographs,
        patches.shape[-1],
        pixel_size_angstrom,
    )
    write_star(path("noise.star"), table)
