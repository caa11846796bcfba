"""The physics simulator: the forward model equals its steps, and Algorithm 2 draws what it says."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.core.rotation import random_rotations
from vitreous.physics.ctf import CTF, ctf_half
from vitreous.physics.noise import BackgroundPatches
from vitreous.physics.poses import TriangularShift, UniformPoses
from vitreous.physics.projector import Projector, oversampled_spectrum, project
from vitreous.physics.shift import Shift
from vitreous.physics.simulator import Conditions, Simulator, simulate

PIXEL = 3.0


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def matrices(b: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return random_rotations(b, generator=torch.Generator().manual_seed(4), dtype=dtype)


def optics(b: int, dtype: torch.dtype = torch.float64) -> Optics:
    plain = Optics.uniform(b, b_factor_angstrom2=60.0).to(dtype)
    spread = torch.linspace(9000, 21000, b, dtype=dtype)
    return dataclasses.replace(
        plain,
        defocus_u_angstrom=spread,
        defocus_v_angstrom=spread - 700,
        defocus_angle_deg=torch.linspace(0, 90, b, dtype=dtype),
    )


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def simulator(n: int = 16, rows: int = 5, **changes: object) -> Simulator:
    plain = Simulator(n, PIXEL, optics(rows, torch.float32), torch.arange(rows) % 3)
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize("n", [16, 17])
def test_simulate_is_project_shift_ctf_in_that_order(n: int) -> None:
    volume, r, t, o = noise(n, n, n), matrices(3), 4 * noise(3, 2), optics(3)
    images = simulate(volume, r, t, o, PIXEL)
    steps = CTF(o, n, PIXEL)(Shift(t, n, PIXEL)(project(volume, r)))
    torch.testing.assert_close(images, steps, rtol=1e-9, atol=1e-9)
    model = CTF(o, n, PIXEL) @ Shift(t, n, PIXEL) @ Projector(r, n)
    torch.testing.assert_close(images, model(volume), rtol=1e-9, atol=1e-9)


def test_shift_moves_the_image_along_x_then_y() -> None:
    volume, flat = torch.zeros(16, 16, 16, dtype=torch.float64), matrices(1)
    volume[8, 8, 8] = 1.0
    weak = Optics.uniform(1, defocus_angstrom=0.0, amplitude_contrast=0.99).to(torch.float64)
    weak = dataclasses.replace(weak, cs_mm=torch.zeros(1, dtype=torch.float64))
    t = torch.tensor([[2 * PIXEL, -3 * PIXEL]], dtype=torch.float64)
    image = simulate(volume, flat, t, weak, PIXEL)[0]
    assert divmod(int(image.abs().argmax()), 16) == (8 - 3, 8 + 2)


@pytest.mark.parametrize("n", [12, 13])
@pytest.mark.parametrize("which", ["volume", "rotations", "shifts"])
def test_gradients_against_finite_differences(n: int, which: str) -> None:
    arguments = {"volume": noise(n, n, n), "rotations": matrices(3), "shifts": 4 * noise(3, 2)}
    direction = noise(*arguments[which].shape, seed=6)
    upstream, o = noise(3, n, n, seed=7), optics(3)

    def loss(step: Tensor) -> Tensor:
        moved = {**arguments, which: arguments[which] + step * direction}
        images = simulate(moved["volume"], moved["rotations"] * 0.9, moved["shifts"], o, PIXEL)
        return (images * upstream).sum()

    at = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(at), at)
    h = 1e-6
    with torch.no_grad():
        difference = (loss(torch.tensor(h)) - loss(torch.tensor(-h))) / (2 * h)
    assert abs(gradient.item() / difference.item() - 1) < 1e-5


def test_draw_repeats_from_the_same_streams_and_only_from_them() -> None:
    s = simulator(shifts=TriangularShift(9.0))
    p, o = streams(1, 2)
    first = s.draw(50, poses=p, optics=o)
    p, o = streams(1, 2)
    again = s.draw(50, poses=p, optics=o)
    p, o = streams(1, 99)
    other_rows = s.draw(50, poses=p, optics=o)
    assert torch.equal(first.rotations, again.rotations)
    assert torch.equal(first.row, again.row)
    assert first.shift_angstrom is not None
    assert again.shift_angstrom is not None
    assert torch.equal(first.shift_angstrom, again.shift_angstrom)
    assert torch.equal(first.rotations, other_rows.rotations), "rows must not touch the poses"
    assert not torch.equal(first.row, other_rows.row)


def test_draw_uses_every_row_equally_and_rotations_are_rotations() -> None:
    p, o = streams(1, 2)
    drawn = simulator(rows=4).draw(4000, poses=p, optics=o)
    counts = torch.bincount(drawn.row, minlength=4)
    assert counts.min() > 850  # 1000 each, standard deviation 27
    identity = drawn.rotations @ drawn.rotations.mT
    torch.testing.assert_close(identity, torch.eye(3).expand_as(identity), atol=1e-5, rtol=0)
    assert drawn.shift_angstrom is None


@pytest.mark.parametrize("n", [16, 17])
def test_clean_images_are_those_of_simulate(n: int) -> None:
    s = simulator(n, shifts=TriangularShift(9.0))
    p, o = streams(1, 2)
    drawn = s.draw(6, poses=p, optics=o)
    volume = noise(n, n, n, dtype=torch.float32)
    images = s.clean(oversampled_spectrum(volume), drawn, s.ctf(drawn.row))
    assert drawn.shift_angstrom is not None
    expected = simulate(volume, drawn.rotations, drawn.shift_angstrom, s.optics[drawn.row], PIXEL)
    torch.testing.assert_close(images, expected)
    still = Conditions(drawn.rotations, None, drawn.row)
    centred = s.clean(oversampled_spectrum(volume), still, s.ctf(still.row))
    assert not torch.allclose(centred, images, atol=1e-2)


def test_transfer_is_the_ctf_of_the_drawn_rows() -> None:
    s = simulator()
    drawn = Conditions(matrices(3, torch.float32), None, torch.tensor([4, 0, 4]))
    expected = ctf_half(16, PIXEL, s.optics)
    torch.testing.assert_close(s.ctf(drawn.row), expected[[4, 0, 4]])


def test_noise_comes_from_the_micrograph_of_each_ctf() -> None:
    """Patches of micrograph m are waves of m cycles: each noise image must carry its own."""
    waves = torch.stack(
        [torch.cos(2 * torch.pi * (m + 1) * torch.arange(16) / 16).expand(16, 16) for m in range(3)]
    )
    s = simulator(noise=BackgroundPatches(waves, torch.arange(3)))
    p, o = streams(1, 2)
    drawn = s.draw(40, poses=p, optics=o)
    images = s.noise_like(drawn.row, generator=streams(3)[0])
    assert images.shape == (40, 16, 16)
    power = torch.fft.rfft2(images).abs()
    # The patches may be turned and mirrored; their frequency stays.
    cycles = torch.maximum(power[:, 0, :9].argmax(-1), power[:, :9, 0].argmax(-1))
    assert torch.equal(cycles, s.micrograph_id[drawn.row] + 1)


def test_white_noise_has_unit_variance_and_repeats() -> None:
    s = simulator(32, poses=UniformPoses())
    p, o = streams(1, 2)
    drawn = s.draw(30, poses=p, optics=o)
    images = s.noise_like(drawn.row, generator=streams(3)[0])
    assert abs(images.var().item() - 1) < 0.03
    assert torch.equal(images, s.noise_like(drawn.row, generator=streams(3)[0]))
