"""Direct reconstruction against the truth, RELION's images, and its own laws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitreous.core import images as solver_images
from vitreous.core.fourier import fourier_resize, rfft_centered
from vitreous.core.grid import shell_index, soft_mask
from vitreous.core.params import Optics
from vitreous.core.rotation import euler_to_matrix, random_rotations
from vitreous.core.symmetry import point_group, symmetrise
from vitreous.data.particles import Particles
from vitreous.io.mrc import MrcStack
from vitreous.io.star import read_star
from vitreous.maps.fsc import fsc, hermitian_weight
from vitreous.methods.reconstruct import gridding as direct
from vitreous.methods.reconstruct.gridding import (
    accumulate,
    half_map,
    noise_to_signal,
    reconstruct_halves,
    wiener_map,
)
from vitreous.methods.reconstruct.posed_particles import PosedParticles
from vitreous.physics.projector import project
from vitreous.physics.shift import shift_phases
from vitreous.physics.simulator import simulate

PIXEL = 3.0


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def molecule(n: int, blobs: int = 12, seed: int = 1) -> Tensor:
    """Blobs, those far out kept off the edge of the sphere."""
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    centres = torch.randn(blobs, 3, generator=stream(seed), dtype=torch.float64)
    centres = 0.3 * n * centres / centres.norm(dim=1, keepdim=True).clamp_min(1.0)
    x, y, z = (torch.exp(-((axis - centres[:, i, None]) ** 2) / 4.5) for i in range(3))
    return torch.einsum("bz,by,bx->zyx", z, y, x).float()


def imaged(
    volume: Tensor, b: int, *, shifted: bool = True, noise: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Optics, Tensor]:
    rotations = random_rotations(b, generator=stream(2))
    shift = shifted * 4 * torch.randn(b, 2, generator=stream(3))
    u = 8000 + 12000 * torch.rand(b, generator=stream(4))
    optics = replace(
        Optics.uniform(b),
        defocus_u_angstrom=u,
        defocus_v_angstrom=u - 900,
        defocus_angle_deg=180 * torch.rand(b, generator=stream(5)),
    )
    images = simulate(volume, rotations, shift, optics, PIXEL)
    images = images + noise * images.std() * torch.randn(images.shape, generator=stream(6))
    return images, rotations, shift, optics, torch.arange(b) % 2 + 1


def amplitude(found: Tensor, truth: Tensor) -> Tensor:
    """Least-squares factor between two maps, shell by shell."""
    n = truth.shape[-1]
    a, b = rfft_centered(found.double(), 3), rfft_centered(truth.double(), 3)
    shell, weight = shell_index(n, 3).flatten(), hermitian_weight(n)
    cross = ((a * b.conj()).real * weight).flatten()
    power = (b.abs().square() * weight).flatten()
    sums = torch.zeros(2, int(shell.max()) + 1, dtype=torch.float64)
    sums.index_add_(1, shell, torch.stack([cross, power]))
    return (sums[0] / sums[1])[: n // 2 + 1]


@pytest.mark.parametrize("n", [32, 33])
def test_noiseless_images_give_back_the_map(n: int) -> None:
    truth = molecule(n)
    images, rotations, shift, optics, half = imaged(truth, 1500)
    for found in reconstruct_halves(images, rotations, shift, optics, PIXEL, half):
        assert (found - truth).norm() < 0.055 * truth.norm()
        upper = int(0.8 * n / 2)
        assert fsc(found, truth)[1:upper].min() > 0.99
        assert (amplitude(found, truth)[2:upper] - 1).abs().max() < 0.03


def test_shifts_and_ctf_matter() -> None:
    truth = molecule(24)
    images, rotations, shift, optics, half = imaged(truth, 400)

    def error(*changed: object) -> float:
        found, _ = reconstruct_halves(images, *changed, PIXEL, half)  # type: ignore[arg-type]
        return float((found - truth).norm() / truth.norm())

    right = error(rotations, shift, optics)
    assert right < 0.1
    for wrong in (
        (rotations, -shift, optics),
        (rotations, None, optics),
        (rotations.mT, shift, optics),
        (rotations, shift, None),
    ):
        assert error(*wrong) > 3 * right


def test_images_without_ctf_and_shift() -> None:
    truth = molecule(32)
    rotations = random_rotations(800, generator=stream(1))
    half = torch.ones(800).long()
    found, empty = reconstruct_halves(project(truth, rotations), rotations, None, None, PIXEL, half)
    assert (found - truth).norm() < 0.05 * truth.norm()
    assert not empty.any()


def test_a_smaller_box_gives_the_cropped_map() -> None:
    truth = molecule(32)
    images, rotations, shift, optics, half = imaged(truth, 1000)
    source = Particles.from_arrays(images, optics, pixel_size_angstrom=PIXEL)
    sums = accumulate(PosedParticles(source, rotations, shift, optics, PIXEL, half), box_size=21)
    expected = fourier_resize(truth, 21, 3) * soft_mask(21, 3, 7.5, 3)
    assert (half_map(sums[0]) - expected).norm() < 0.06 * expected.norm()


@pytest.mark.parametrize("name", ["D2", "C3"])
def test_symmetry_makes_up_for_images(name: str) -> None:
    group = point_group(name)
    truth = symmetrise(molecule(24), group)
    images, rotations, shift, optics, half = imaged(truth, 100, noise=3.0)
    plain, _ = reconstruct_halves(images, rotations, shift, optics, PIXEL, half)
    found, _ = reconstruct_halves(images, rotations, shift, optics, PIXEL, half, symmetry=name)
    assert (found - truth).norm() < 0.6 * (plain - truth).norm()
    if group.is_exact:
        assert (symmetrise(found, group) - found).norm() < 1e-5 * found.norm()


def test_halves_are_independent() -> None:
    images, rotations, shift, optics, half = imaged(molecule(16), 60, noise=1.0)
    before, _ = reconstruct_halves(images, rotations, shift, optics, PIXEL, half)
    second = half == 2
    images = torch.where(second[:, None, None], 5 * images.flip(0), images)
    rotations = torch.where(second[:, None, None], rotations.mT, rotations)
    after, other = reconstruct_halves(images, rotations, shift, optics, PIXEL, half)
    assert torch.equal(before, after)
    assert not torch.equal(before, other)


def test_pure_noise_agrees_in_nothing() -> None:
    images, rotations, shift, optics, half = imaged(torch.zeros(24, 24, 24), 1000)
    images = torch.randn(images.shape, generator=stream(9))
    curve = fsc(*reconstruct_halves(images, rotations, shift, optics, PIXEL, half))
    assert curve[4:].abs().max() < 0.2
    assert curve[4:].mean().abs() < 0.05


def test_batches_spans_and_threads_change_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    images, rotations, shift, optics, half = imaged(molecule(16), 90, noise=1.0)

    def run() -> Tensor:
        return reconstruct_halves(images, rotations, shift, optics, PIXEL, half)[0]

    before, reference = torch.get_num_threads(), run()
    monkeypatch.setattr(solver_images, "BATCH_BYTES", 7 * 4 * 16 * 16)
    assert torch.allclose(run(), reference, atol=1e-5 * float(reference.abs().max()))
    monkeypatch.setattr(direct, "_SPAN", 40)
    assert torch.allclose(run(), reference, atol=1e-5 * float(reference.abs().max()))
    try:
        torch.set_num_threads(6)
        assert torch.allclose(run(), reference, atol=1e-5 * float(reference.abs().max()))
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)


def test_weights_count_images() -> None:
    images, rotations, shift, optics, half = imaged(molecule(16), 60, noise=1.0)
    source = Particles.from_arrays(images, optics, pixel_size_angstrom=PIXEL)
    weight = torch.where(torch.arange(60) < 40, 1.0, 0.0)
    some = accumulate(
        PosedParticles(source, rotations, shift, optics, PIXEL, half), weight=2 * weight
    )
    half = torch.where(weight > 0, half, 0)
    same = accumulate(PosedParticles(source, rotations, shift, optics, PIXEL, half))
    assert torch.allclose(some[0].numerator, 2 * same[0].numerator, rtol=1e-4, atol=1e-3)
    assert torch.allclose(some[1].weight, 2 * same[1].weight, rtol=1e-4, atol=1e-4)


def test_the_regularised_map_is_nearest_to_the_truth() -> None:
    truth = molecule(32)
    images, rotations, shift, optics, half = imaged(truth, 600, noise=6.0)
    source = Particles.from_arrays(images, optics, pixel_size_angstrom=PIXEL)
    sums = accumulate(PosedParticles(source, rotations, shift, optics, PIXEL, half))
    curve = fsc(half_map(sums[0]), half_map(sums[1]))
    both = sums[0] + sums[1]

    def error(ratio: Tensor) -> float:
        return float((wiener_map(both, ratio) - truth).norm() / truth.norm())

    best = error(noise_to_signal(curve))
    assert best < 0.8 * error(torch.zeros(17))
    assert best < error(20 * noise_to_signal(curve))
    assert best < error(noise_to_signal(curve) / 20)


def test_without_regularisation_the_wiener_map_is_unfiltered() -> None:
    images, rotations, shift, optics, half = imaged(molecule(16), 80)
    source = Particles.from_arrays(images, optics, pixel_size_angstrom=PIXEL)
    sums = accumulate(PosedParticles(source, rotations, shift, optics, PIXEL, half))
    assert torch.equal(wiener_map(sums[0], torch.zeros(9)), half_map(sums[0]))


def test_signs_are_those_of_relion(shared_data: Path) -> None:
    """Four images of RELION's, shifted: the map from them projects back onto them."""
    folder = shared_data / "relion"
    rows = read_star(folder / "rln_proj_64_shifted.star").blocks["particles"].columns
    images = torch.from_numpy(MrcStack(folder / "rln_proj_64_shifted.mrcs").read(slice(None)))

    def column(name: str) -> Tensor:
        return torch.tensor([float(value) for value in rows[name]])

    angles = [column(f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")]
    rotations = euler_to_matrix(torch.stack(angles, -1))
    shift = -torch.stack([column(f"rlnOrigin{axis}") for axis in "XY"], -1)

    def lowest(rotations: Tensor, shift: Tensor) -> float:
        half = torch.ones(len(images)).long()
        volume, _ = reconstruct_halves(images, rotations, shift, None, 1.0, half)
        back = project(volume, rotations, shift_phases(64, shift, 1.0))
        pairs = torch.stack([back.flatten(1), images.flatten(1)], 1)
        return min(float(torch.corrcoef(pair)[0, 1]) for pair in pairs)

    assert lowest(rotations, shift) > 0.9
    assert lowest(rotations, -shift) < 0.8
    assert lowest(rotations.mT, shift) < 0.9


def test_wrong_arguments_are_named() -> None:
    images, rotations, shift, optics, half = imaged(molecule(16), 4)
    with pytest.raises(ValueError, match=r"4 images, but \{'rotations': 3\}"):
        reconstruct_halves(images, rotations[:3], shift, optics, PIXEL, half)
    source = Particles.from_arrays(images, optics, pixel_size_angstrom=PIXEL)
    with pytest.raises(ValueError, match="box_size must be from 2 to the images' 16, got 20"):
        accumulate(PosedParticles(source, rotations, shift, optics, PIXEL, half), box_size=20)
    with pytest.raises(ValueError, match="no images"):
        reconstruct_halves(images[:0], rotations[:0], shift[:0], None, PIXEL, half[:0])
