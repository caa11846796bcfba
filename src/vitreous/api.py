"""Functions of ``import vitreous`` that put plain arguments in front of the rooms below.

Everything else in ``vitreous.__all__`` is the object of a room itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.core.images import ImageSource
from vitreous.core.random import generator, stream_seed
from vitreous.data.particles import Particles
from vitreous.data.phantoms import protein_phantom
from vitreous.data.simulation_inputs import load_micrographs
from vitreous.doctor.examine import Diagnosis
from vitreous.doctor.examine import examine as examine_images
from vitreous.io.mrc import write_mrc
from vitreous.io.star import write_star
from vitreous.jobs.check.run import claims_of
from vitreous.jobs.simulate.dataset import (
    SimulationImaging,
    chunk_size,
    draw_truth,
)
from vitreous.maps.align import Alignment, align_maps
from vitreous.maps.postprocess import Postprocessed
from vitreous.maps.postprocess import postprocess as postprocess_halves
from vitreous.methods.cryogan import solver as cryogan
from vitreous.methods.cryogan.solver import CryoGan, CryoGanConfig
from vitreous.methods.vaegan import solver as vaegan
from vitreous.methods.vaegan.solver import VaeGan, VaeGanConfig
from vitreous.physics.noise import Noise, WhiteGaussian, noise_sigma
from vitreous.physics.poses import NoShift, PoseSampler, ShiftSampler, UniformPoses
from vitreous.physics.simulator import Simulator

_UNIFORM, _CENTRED, _WHITE = UniformPoses(), NoShift(), WhiteGaussian()


class CryoGAN(CryoGan):
    """Solver that makes a map whose simulated images look like the real ones, without any pose.

    Args:
        images: protein positive; image i belongs to row i of ``simulator.optics``.
        simulator: distributions of poses, shifts, CTF and noise, at the images' box and pixel size.
        config: settings.
        seed: of all random numbers.

    >>> particles = simulate(phantom(16, 8.0), 40, 8.0, snr_db=0, seed=1)
    >>> imaging = Simulator(16, 8.0, particles.optics, particles.micrograph_id)
    >>> config = CryoGanConfig(stages=[{"box_size": 16, "iterations": 2}], width=8, batch_size=4)
    >>> from vitreous.optim.loop import run
    >>> run(CryoGAN(particles.images(), imaging, config, seed=1)).shape
    torch.Size([16, 16, 16])
    """

    def __init__(
        self, images: ImageSource, simulator: Simulator, config: CryoGanConfig, *, seed: int = 0
    ) -> None:
        super().__init__(images, simulator, config, _streams(cryogan.STREAMS, seed, simulator))


class VaeGAN(VaeGan):
    """Solver that gives every image of a mixture a latent vector, and every latent vector a map.

    Args:
        images, simulator, config, seed: as for :class:`CryoGAN`.

    >>> particles = simulate(phantom(16, 8.0), 40, 8.0, snr_db=0, seed=1)
    >>> imaging = Simulator(16, 8.0, particles.optics, particles.micrograph_id)
    >>> config = VaeGanConfig(stages=[{"box_size": 16, "iterations": 2}], latent=3, batch_size=4)
    >>> from vitreous.optim.loop import run
    >>> model = run(VaeGAN(particles.images(), imaging, config, seed=1))
    >>> model.embed(torch.arange(2)).shape, model.volume(torch.zeros(3)).shape
    (torch.Size([2, 3]), torch.Size([16, 16, 16]))
    """

    def __init__(
        self, images: ImageSource, simulator: Simulator, config: VaeGanConfig, *, seed: int = 0
    ) -> None:
        super().__init__(images, simulator, config, _streams(vaegan.STREAMS, seed, simulator))


def _streams(names: tuple[str, ...], seed: int, simulator: Simulator) -> dict[str, torch.Generator]:
    """Return a random stream of each name on the simulator's device."""
    device = simulator.micrograph_id.device
    return {name: torch.Generator(device).manual_seed(stream_seed(seed, name)) for name in names}


def phantom(
    box_size: int, pixel_size_angstrom: float, *, seed: int = 1, symmetry: str = "C1"
) -> Tensor:
    """Return the map of a made-up protein, as ``vitreous simulate phantom:SEED`` images it.

    Args:
        box_size: edge n in voxels.
        pixel_size_angstrom: voxel size in Å.
        seed: number of the molecule.
        symmetry: point group, in RELION's axes.

    Returns:
        float32 ``(n, n, n)``, protein positive.

    >>> phantom(16, 8.0, symmetry="D2").shape
    torch.Size([16, 16, 16])
    """
    return protein_phantom(box_size, pixel_size_angstrom, seed=seed, point_group=symmetry)


def simulate(
    volume: Tensor,
    n_particles: int,
    pixel_size_angstrom: float,
    *,
    snr_db: float,
    seed: int,
    poses: PoseSampler = _UNIFORM,
    shifts: ShiftSampler = _CENTRED,
    noise: Noise = _WHITE,
) -> Particles:
    """Simulate particles of a map in memory, as ``vitreous simulate`` writes them to files.

    Args:
        volume: map ``(n, n, n)``, protein positive.
        n_particles: number of images.
        pixel_size_angstrom: pixel size of map and images in Å.
        snr_db: mean variance of the noiseless images over the noise's variance, in decibel.
        seed: of all random numbers.
        poses, shifts: samplers of orientations and of shifts in Å.
        noise: sampler of noise of unit variance.

    Returns:
        particles with their true poses, CTFs of 100 made-up micrographs, and no half sets.

    >>> particles = simulate(phantom(16, 8.0), 20, 8.0, snr_db=0, seed=1)
    >>> particles
    Particles(20 of 16 px at 8 Å, with CTF, with poses)
    """
    micrographs = load_micrographs(None, seed=seed)
    truth = draw_truth(n_particles, micrographs, poses, shifts, seed)
    imaging = SimulationImaging(volume[None], truth, noise, pixel_size_angstrom)
    n = int(volume.shape[-1])
    sigma = noise_sigma(imaging.mean_signal_variance(), snr_db=snr_db)
    stream = generator(seed, "simulate noise")
    images = [
        imaging.clean(rows) + sigma * imaging.noise(rows, stream)
        for rows in torch.split(torch.arange(n_particles), chunk_size(n))
    ]
    return Particles.from_arrays(
        torch.cat(images),
        micrographs.optics[truth.micrograph_id],
        pixel_size_angstrom=pixel_size_angstrom,
        pose=truth.pose,
        micrograph_id=truth.micrograph_id,
        micrograph_names=micrographs.names,
    )


def examine(
    particles: Particles,
    *,
    invert: bool | None = None,
    seed: int = 0,
    progress: Callable[[str, float], None] = lambda step, share: None,
) -> Diagnosis:
    """Check from the images whether CTF, pixel size, contrast and poses of particles are right.

    Args:
        particles: with what their file says about them.
        invert: whether protein is said to be dark in the images; None: as the file says.
        seed: of half sets and random poses.
        progress: called with the name of a test and the share of it that is done.

    Returns:
        findings with their evidence; ``faults`` names what is wrong.

    >>> particles = simulate(phantom(16, 8.0), 50, 8.0, snr_db=0, seed=1)
    >>> examine(particles).faults
    ()
    """
    claims = claims_of(particles, invert=invert)
    return examine_images(particles, claims, generator(seed, "check"), progress)


def align(
    moving: Tensor,
    reference: Tensor,
    pixel_size_angstrom: float,
    *,
    symmetry: str = "C1",
    mirror: bool = True,
) -> Alignment:
    """Bring a map onto another one by rotation, shift and, where that fits better, mirroring.

    No start is needed: all rotations and shifts are searched.

    Args:
        moving, reference: ``(n, n, n)`` of one box and pixel size.
        pixel_size_angstrom: voxel size in Å.
        symmetry: point group that both maps have about the same axes.
        mirror: whether the other hand is tried.

    Returns:
        ``aligned``, the moving map brought onto the reference, with ``rotation``,
        ``shift_angstrom``, ``mirrored`` and ``correlation``.

    Raises:
        ValueError: boxes differ, or a map is not cubic or not finite.

    >>> reference = phantom(16, 8.0, symmetry="D2")
    >>> quarter_turn = reference.rot90(dims=(1, 2)).roll(1, 1)  # about z
    >>> align(quarter_turn, reference, 8.0, symmetry="D2", mirror=False).correlation > 0.98
    True
    """
    return align_maps(
        moving,
        reference,
        pixel_size_angstrom=pixel_size_angstrom,
        point_group=symmetry,
        allow_mirror=mirror,
    )


def postprocess(
    half1: Tensor,
    half2: Tensor,
    pixel_size_angstrom: float,
    *,
    mask: Tensor | None = None,
    symmetry: str = "C1",
    b_factor_angstrom2: float | None = None,
    local_resolution: bool = True,
    seed: int = 0,
) -> Postprocessed:
    """Mask, FSC, sharpened map and local resolution of two independent half maps.

    Args:
        half1, half2: unfiltered half maps ``(n, n, n)``, in one frame.
        pixel_size_angstrom: voxel size in Å.
        mask: ``(n, n, n)`` from 0 to 1; made from the maps by default.
        symmetry: point group that both are averaged over first.
        b_factor_angstrom2: B factor to apply; fitted by default.
        local_resolution: whether to work out the resolution at every voxel, most of the work.
        seed: of the random phases by which the FSC is corrected for the mask.

    Raises:
        ValueError: boxes differ.

    >>> molecule = phantom(24, 6.0)
    >>> halves = [molecule + 0.01 * torch.randn(24, 24, 24) for _ in (1, 2)]
    >>> postprocess(*halves, 6.0, local_resolution=False).sharpened.map.shape
    torch.Size([24, 24, 24])
    """
    return postprocess_halves(
        half1,
        half2,
        pixel_size_angstrom=pixel_size_angstrom,
        generator=generator(seed, "phases"),
        mask=mask,
        symmetry=symmetry,
        b_factor_angstrom2=b_factor_angstrom2,
        local=local_resolution,
    )


def write_map(path: Path | str, volume: Tensor, pixel_size_angstrom: float) -> None:
    """Write a map as an MRC file.

    Args:
        path: file to write; replaced if there is one.
        volume: ``(z, y, x)``.
        pixel_size_angstrom: voxel size in Å.

    Raises:
        ResourceError: the disk is full.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_map(f"{folder}/map.mrc", torch.zeros(4, 4, 4), 2.0)
    """
    write_mrc(path, volume.detach().cpu().float().numpy(), pixel_size_angstrom)


def write_particles(path: Path | str, particles: Particles, **columns: Any) -> None:
    """Write the table of particles as a RELION 3.1 STAR file; images stay where they are.

    Args:
        path: file to write; names of images are made relative to its folder or one above it.
        particles: rows in order; unknown columns of the file that they come from are kept.
        columns: values ``(n,)`` of further columns by name, such as ``rlnClassNumber=labels``.

    Raises:
        ValueError: a column of the wrong length.
        ResourceError: the disk is full.

    >>> import tempfile
    >>> particles = simulate(phantom(16, 8.0), 20, 8.0, snr_db=0, seed=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_particles(f"{folder}/particles.star", particles, rlnClassNumber=torch.ones(20))
    """
    folder = Path(path).parent
    write_star(path, particles.to_star_document(relative_to=folder, **columns))
