"""Maps whose shells took no part in finding the poses that they are reconstructed with.

Poses found under a map make a map like it, of noise as well ("Einstein from noise"), and two half
maps that share only their outline may keep it for many rounds: the FSC between them is high without
a structure. Shells held out show whether there is one. Poses of every image are searched under the
map of the *other* half set without a shell and its neighbours; only these shells are reconstructed
with the poses, and the one in the middle is kept. Noise in one shell is independent of noise in
others, so for noise the FSC between two such maps is zero. Where images show a structure, the other
shells give the poses, and it is not.

One dependence is left: each of the two maps is made with poses found under a map of the other's
images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitreous.core.fourier import irfft_centered, rfft_centered
from vitreous.core.grid import shell_index
from vitreous.core.images import ImagesInMemory
from vitreous.core.params import Optics
from vitreous.core.threads import parallel_map
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.expectation import ExpectationStep, images_at_once
from vitreous.methods.em.pose_posterior import PoseCandidates
from vitreous.methods.reconstruct.gridding import accumulate, half_map
from vitreous.methods.reconstruct.posed_particles import PosedParticles

PASSES = 6  # each reconstructs every sixth shell, from poses found by half of the others
_NEIGHBOURS = 1  # shells to each side that reconstruction mixes with one
_HIDDEN = 1e12  # factor of the noise power that hides a shell


@torch.no_grad()
def held_out_map(
    volume: Tensor,
    pixel_size_angstrom: float,
    images: Tensor,
    optics: Optics | None,
    noise_power: Tensor,
    config: RefinementConfig,
    *,
    progress: Callable[[float], object] = float,
) -> Tensor:
    """Return a map of the images, every shell from poses that were found without it.

    Args:
        volume: ``(n, n, n)``, of any scale, made from other images.
        pixel_size_angstrom: Å.
        images: ``(b, n, n)``, protein positive.
        optics: of each; None for none.
        noise_power: mean of ``|rfft2|^2`` of the noise by shell, ``(n // 2 + 1,)``.
        config: of the search; all poses are searched up to its ``search_radius``.
        progress: called after each pass with the share that is done.

    Returns:
        ``(n, n, n)``.
    """
    n = int(volume.shape[-1])
    radius = min(config.search_radius, (n - 1) // 2)
    shell = shell_index(n, 3, device=volume.device)
    spectra, of_image = rfft_centered(images.float(), 2), shell_index(n, 2, device=images.device)
    held = torch.zeros(shell.shape, dtype=torch.complex64, device=volume.device)
    for number in range(PASSES):
        hidden = _held_out(torch.arange(n // 2 + 1, device=noise_power.device), number)
        power = torch.where(hidden, _HIDDEN * noise_power, noise_power)
        expectation = ExpectationStep(volume, pixel_size_angstrom, [radius], power, config)
        candidates = _candidates(expectation, images, optics, volume.device)
        particles = PosedParticles(
            ImagesInMemory(irfft_centered(spectra * _held_out(of_image, number), (n, n))),
            candidates.rotation[:, 0].cpu(),
            candidates.shift_angstrom[:, 0].cpu(),
            optics,
            pixel_size_angstrom,
            torch.ones(len(images), dtype=torch.long),
        )
        sums, _ = accumulate(particles, symmetry=config.symmetry, device=volume.device)
        held += rfft_centered(half_map(sums), 3) * (shell % PASSES == number)
        progress((number + 1) / PASSES)
    return irfft_centered(held, (n, n, n))


def _held_out(shell: Tensor, number: int) -> Tensor:
    """Return whether shells are kept from the search in a pass."""
    return (shell - number + _NEIGHBOURS) % PASSES <= 2 * _NEIGHBOURS


def _candidates(
    expectation: ExpectationStep, images: Tensor, optics: Optics | None, device: torch.device
) -> PoseCandidates:
    """Return the candidate poses of all images."""
    every = torch.arange(len(images))
    batches = torch.split(every, images_at_once(device, len(every)) or len(every))

    def assign(rows: Tensor) -> PoseCandidates:
        of_rows = None if optics is None else optics[rows].to(device)
        return expectation(images[rows].to(device, torch.float32), of_rows).candidates

    return PoseCandidates.cat(list(parallel_map(assign, batches, device)))
