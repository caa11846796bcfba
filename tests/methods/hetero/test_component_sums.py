"""Several maps at once: one is direct reconstruction, two are told apart by their mixtures."""

from __future__ import annotations

import torch

from matching_case import BOX, PIXEL, case
from vitreous.core.images import ImagesInMemory
from vitreous.data.phantoms import protein_phantom
from vitreous.maps.fsc import fsc
from vitreous.methods.hetero.component_sums import ComponentSums
from vitreous.methods.reconstruct.gridding import accumulate, wiener_map
from vitreous.methods.reconstruct.posed_particles import PosedParticles
from vitreous.physics.insertion import weighted_slices
from vitreous.physics.simulator import simulate


def test_one_map_is_that_of_direct_reconstruction() -> None:
    data = case(100, noise=1.0)
    sums = ComponentSums(BOX, 1)
    values = weighted_slices(data.images, data.shift, data.optics, PIXEL)
    one = torch.ones(100, 1)
    sums.insert(values, data.rotation, one, one[..., None])
    half = torch.ones(100, dtype=torch.long)
    source = ImagesInMemory(data.images)
    particles = PosedParticles(source, data.rotation, data.shift, data.optics, PIXEL, half)
    direct = wiener_map(accumulate(particles)[0], torch.full((17,), 1e-3))
    found = sums.solve(None)[0]
    assert (found - direct).norm() < 0.02 * direct.norm()


def test_maps_are_information_apart_by_their_mixtures() -> None:
    data = case(500)
    stream = torch.Generator().manual_seed(5)
    maps = [data.volume] + [protein_phantom(BOX, PIXEL, seed=s) for s in (7, 8, 9)]
    z = torch.randn(500, 3, generator=stream)
    beta = torch.cat([torch.ones(500, 1), z], 1)
    seen = [simulate(one, data.rotation, data.shift, data.optics, PIXEL) for one in maps]
    images = (beta.T[..., None, None] * torch.stack(seen)).sum(0)
    sums = ComponentSums(BOX, 4)
    for rows in torch.split(torch.arange(500), 200):
        values = weighted_slices(images[rows], data.shift[rows], data.optics[rows], PIXEL)
        products = beta[rows, :, None] * beta[rows, None]
        sums.insert(values, data.rotation[rows], beta[rows], products)
    for found, truth in zip(sums.solve(None), maps, strict=True):
        assert fsc(found, truth)[1:12].min() > 0.97


def test_a_strong_prior_leaves_nothing() -> None:
    data = case(50)
    sums = ComponentSums(BOX, 2)
    beta = torch.ones(50, 2) * torch.tensor([1.0, 0.5])
    values = weighted_slices(data.images, data.shift, data.optics, PIXEL)
    sums.insert(values, data.rotation, beta, beta[:, :, None] * beta[:, None])
    precision = torch.zeros(2, BOX // 2 + 1)
    precision[1] = 1e9
    maps = sums.solve(precision)
    assert maps[1].norm() < 1e-4 * maps[0].norm()
