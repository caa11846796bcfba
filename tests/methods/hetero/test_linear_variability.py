"""The linear model on planted data: subspace, places, contrasts; resume, order, memory."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from vitreous.core.grid import shell_index
from vitreous.core.images import ImagesInMemory
from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import random_rotations
from vitreous.data.phantoms import protein_phantom
from vitreous.maps.fsc import fsc
from vitreous.methods.hetero.class_maps import LatentModel
from vitreous.methods.hetero.linear_variability import LinearVariability, LinearVariabilityConfig
from vitreous.physics.simulator import simulate

pytestmark = pytest.mark.usefixtures("one_thread")
BOX, PIXEL, COUNT = 24, 8.0, 500
CONFIG = LinearVariabilityConfig(components=3, passes=12, radius=11)


@dataclass(frozen=True)
class Planted:
    maps: Tensor
    images: Tensor
    optics: Optics
    poses: Pose
    z: Tensor
    contrast: Tensor


@lru_cache(maxsize=2)
def planted(size: float = 1.0) -> Planted:
    """A mean, two small blobs that come and go, CTF, shifts, contrasts, noise as strong as all."""
    stream = torch.Generator().manual_seed(0)
    mean = protein_phantom(BOX, PIXEL, seed=1)
    blobs = [protein_phantom(BOX, PIXEL, seed=s, diameter_angstrom=70.0) for s in (2, 3)]
    first, second = blobs[0].roll((4, 0, 3), (0, 1, 2)), blobs[1].roll((0, -4, -2), (0, 1, 2))
    maps = torch.stack([mean, size * first, size * second])
    poses = Pose(
        random_rotations(COUNT, generator=stream), 4 * torch.randn(COUNT, 2, generator=stream)
    )
    u = 10000 + 10000 * torch.rand(COUNT, generator=stream)
    optics = replace(Optics.uniform(COUNT), defocus_u_angstrom=u, defocus_v_angstrom=u - 800)
    z = torch.randn(COUNT, 2, generator=stream)
    a = 1 + 0.1 * torch.randn(COUNT, generator=stream)
    seen = [simulate(m, poses.rotation, poses.shift_angstrom, optics, PIXEL) for m in maps]
    images = seen[0] + z[:, 0, None, None] * seen[1] + z[:, 1, None, None] * seen[2]
    images = images * a[:, None, None]
    images = images + images.std() * torch.randn(images.shape, generator=stream)
    return Planted(maps, images, optics, poses, z, a)


class Counted(ImagesInMemory):
    """Remembers the most images that were ever read at once."""

    most = 0

    def read(self, indices: Tensor) -> Tensor:
        self.most = max(self.most, len(indices))
        return super().read(indices)


def model(
    data: Planted, config: LinearVariabilityConfig = CONFIG, seed: int = 1
) -> LinearVariability:
    stream = torch.Generator().manual_seed(seed)
    images = ImagesInMemory(data.images)
    return LinearVariability(
        images, data.optics, data.poses, config, generator=stream, pixel_size_angstrom=PIXEL
    )


@lru_cache(maxsize=1)
def trained() -> LinearVariability:
    run = model(planted())
    while not run.done:
        run.step()
    return run


def explained(of: Tensor, by: Tensor) -> Tensor:
    """Correlation of each column with its best linear prediction."""
    design = torch.cat([by, torch.ones(len(by), 1)], 1)
    fit = design @ torch.linalg.lstsq(design, of).solution
    pairs = zip(fit.T, of.T, strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])


def test_places_and_contrasts_are_found() -> None:
    data, run = planted(), trained()
    rows = torch.arange(COUNT)
    place = run.embed(rows)
    assert place.dtype == torch.float32
    assert place.shape == (COUNT, 3)
    assert explained(data.z, place[:, :2]).min() > 0.95
    assert torch.corrcoef(torch.stack([run.latents(rows).contrast, data.contrast]))[0, 1] > 0.8


def test_components_span_what_was_planted() -> None:
    data, run = planted(), trained()
    wanted = torch.linalg.qr(data.maps[1:].flatten(1).T).Q
    found = torch.linalg.qr(run.maps[1:3].flatten(1).T).Q
    assert torch.linalg.svdvals(wanted.T @ found).min() > 0.9  # cosines of principal angles
    assert run.information[2] < 0.3 * run.information[1]


def test_maps_at_places_are_those_of_the_particles() -> None:
    data, run = planted(), trained()
    for row in (0, 1, 2):
        wanted = data.maps[0] + torch.einsum("k,kzyx->zyx", data.z[row], data.maps[1:])
        found = run.volume(run.embed(torch.tensor([row]))[0])
        assert fsc(found, wanted)[1:8].min() > 0.9
        shell = shell_index(BOX, 3)
        band = (shell >= 2) & (shell <= 8)  # CTFs pass next to nothing of less
        f, w = (torch.fft.rfftn(one)[band] for one in (found, wanted))
        assert float((f * w.conj()).real.sum() / w.abs().square().sum()) == pytest.approx(
            1, abs=0.1
        )


def test_places_have_mean_zero_and_contrasts_one() -> None:
    found = trained().latents(torch.arange(COUNT))
    torch.testing.assert_close(found.mean.mean(0), torch.zeros(3), atol=0.02, rtol=0)
    assert found.contrast.mean() == pytest.approx(1, abs=0.05)


def test_noise_is_that_of_the_images() -> None:
    data, run = planted(), trained()
    clean = [
        simulate(m, data.poses.rotation, data.poses.shift_angstrom, data.optics, PIXEL)
        for m in data.maps
    ]
    z = data.z[..., None, None]
    signal = (clean[0] + z[:, 0] * clean[1] + z[:, 1] * clean[2]) * data.contrast[:, None, None]
    power = torch.fft.rfft2(data.images - signal).abs().square().mean()
    assert (run.noise_power[2:11] / power - 1).abs().max() < 0.15


@pytest.mark.slow
def test_where_nothing_varies_nothing_is_told() -> None:
    data = planted(0.0)
    run = model(data)
    while not run.done:
        run.step()
    assert run.information.max() < 0.3 * trained().information[1]


def test_order_of_rows_is_that_of_the_answer() -> None:
    run = trained()
    rows = torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        run.embed(rows[:300]), run.embed(torch.arange(COUNT))[rows[:300]], atol=1e-3, rtol=1e-3
    )


def test_resumes_bitwise() -> None:
    data = planted()
    config = replace(CONFIG, passes=4, radius=6)
    straight, broken = model(data, config), model(data, config)
    for _ in range(2):
        straight.step()
        broken.step()
    stored = io.BytesIO()
    torch.save(broken.state_dict(), stored)
    stored.seek(0)
    resumed = model(data, config, seed=9)
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    assert resumed.progress == 0.5
    for _ in range(2):
        assert straight.step() == resumed.step()
    assert resumed.done
    assert torch.equal(straight.maps, resumed.maps)
    rows = torch.arange(COUNT)
    assert torch.equal(straight.embed(rows), resumed.embed(rows))
    other = model(data, replace(config, components=2))
    with pytest.raises(ValueError, match="resume with the components"):
        other.load_state_dict(straight.state_dict())


def test_images_are_read_in_batches_and_maps_are_of_their_box() -> None:
    data = planted()
    images = Counted(data.images.repeat(8, 1, 1))
    rows = torch.arange(COUNT).repeat(8)
    run: LatentModel = LinearVariability(
        images,
        data.optics[rows],
        data.poses[rows],
        LinearVariabilityConfig(components=1, passes=2, radius=4),
        generator=torch.Generator().manual_seed(0),
        pixel_size_angstrom=PIXEL,
    )
    run.step()
    assert images.most <= 2**21 // BOX**2
    assert images.most < len(images)
    assert run.box_size == BOX
    assert run.volume(torch.zeros(1)).shape == (BOX, BOX, BOX)
