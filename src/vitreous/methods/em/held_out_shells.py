"""Half maps whose shells took no part in finding the poses that they are made with.

Poses found under a map make a map like it, of noise as well ("Einstein from noise"), and two half
maps that have only their outline in common may keep it for many rounds: the FSC between them is
high, and there is nothing. Shells held out say what is there. Every image is searched for the map
of the *other* half set, a shell and its neighbours being left out of the comparison; nothing but
these goes into a reconstruction with the poses found, of which the shell in their midst is kept.
Noise in one shell knows nothing of the noise in others, so of noise the FSC between two such maps
is zero. Where images show a structure, the other shells tell the poses, and it is not.

That is independent but for this: each map of the two was made with poses found under one that the
other's images had made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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

PASSES = 6  # each makes every sixth shell, from poses found by half of the others
_NEIGHBOURS = 1  # of a shell, which reconstruction mixes with it
_BLIND = 1e12  # times its noise, a shell says nothing


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
    """A map of the images, every shell from poses that were found without it, ``(n, n, n)``.

    Args:
        volume: ``(n, n, n)``, of any scale, made from other images.
        pixel_size_angstrom: Å.
        images: ``(b, n, n)``, protein positive.
        optics: of each; None for none.
        noise_power: mean of ``|rfft2|^2`` of the noise by shell, ``(n // 2 + 1,)``.
        config: of the search; all poses are searched up to its ``search_radius``.
        progress: told the share that is done, after each pass.
    """
    n = int(volume.shape[-1])
    radius = min(config.search_radius, (n - 1) // 2)
    shell = shell_index(n, 3, device=volume.device)
    spectra, of_image = rfft_centered(images.float(), 2), shell_index(n, 2, device=images.device)
    held = torch.zeros(shell.shape, dtype=torch.complex64, device=volume.device)
    for which in range(PASSES):
        blind = _held_out(torch.arange(n // 2 + 1, device=noise_power.device), which)
        power = torch.where(blind, _BLIND * noise_power, noise_power)
        assigner = ExpectationStep(volume, pixel_size_angstrom, [radius], power, config)
        found = _assigned(assigner, images, optics, volume.device)
        particles = PosedParticles(
            ImagesInMemory(irfft_centered(spectra * _held_out(of_image, which), (n, n))),
            found.rotation[:, 0].cpu(),
            found.shift_angstrom[:, 0].cpu(),
            optics,
            pixel_size_angstrom,
            torch.ones(len(images), dtype=torch.long),
        )
        sums, _ = accumulate(particles, symmetry=config.symmetry, device=volume.device)
        held += rfft_centered(half_map(sums), 3) * (shell % PASSES == which)
        progress((which + 1) / PASSES)
    return irfft_centered(held, (n, n, n))


def _held_out(shell: Tensor, which: int) -> Tensor:
    """Whether shells are kept from the search in a pass."""
    return (shell - which + _NEIGHBOURS) % PASSES <= 2 * _NEIGHBOURS


def _assigned(
    assigner: ExpectationStep, images: Tensor, optics: Optics | None, device: torch.device
) -> PoseCandidates:
    """Candidates of all images."""

    def batches() -> Iterator[Tensor]:
        rows = torch.arange(len(images))
        yield from torch.split(rows, images_at_once(device, len(rows)) or len(rows))

    def assign(rows: Tensor) -> PoseCandidates:
        some = None if optics is None else optics[rows].to(device)
        return assigner(images[rows].to(device, torch.float32), some).candidates

    return PoseCandidates.cat(list(parallel_map(assign, batches(), device)))
