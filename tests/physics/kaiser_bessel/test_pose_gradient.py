"""Theorem 3 against autograd through exact sums, through the projector, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from closed_form_pose_gradient import PoseGradient, pose_gradient
from contracts import random_like
from vitreous.core.grid import frequency_grid, nyquist_disc
from vitreous.core.params import Optics
from vitreous.core.rotation import euler_to_matrix
from vitreous.physics.ctf import ctf_half
from vitreous.physics.kaiser_bessel.projector import WindowProjector, window_transfer
from vitreous.physics.kaiser_bessel.window import KaiserBessel, lattice_size
from vitreous.physics.shift import shift_phases

pytestmark = pytest.mark.usefixtures("one_thread")
PIXEL = 2.0
EULER_DEG = torch.tensor([30.0, 50.0, -70.0], dtype=torch.float64)
SHIFT_PX = torch.tensor([0.7, -1.2], dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    n: int
    scale: int

    @property
    def window(self) -> KaiserBessel:
        return KaiserBessel()

    @property
    def coefficients(self) -> Tensor:
        return random_like((lattice_size(self.n, self.scale),) * 3, 1)

    @property
    def image(self) -> Tensor:
        return 10 * random_like((self.n, self.n), 2)

    @property
    def transfer(self) -> Tensor:
        """An astigmatic CTF that turns its sign within the band."""
        optics = replace(
            Optics.uniform(1, defocus_angstrom=3000.0),
            defocus_v_angstrom=torch.tensor([2000.0]),
            defocus_angle_deg=torch.tensor([20.0]),
        )
        return ctf_half(self.n, PIXEL, optics.to(torch.float64))[0]

    def theorem(self, rotation: Tensor, shift_px: Tensor, finer: int = 4) -> PoseGradient:
        given = (self.coefficients, self.image, rotation, shift_px, self.transfer)
        return pose_gradient(*given, self.window, self.scale, finer=finer)

    def exact(self, rotation: Tensor, shift_px: Tensor) -> Tensor:
        """J_p from the spectrum of every coefficient at every frequency."""
        n, c = self.n, self.coefficients
        axis = (torch.arange(len(c), dtype=torch.float64) - len(c) // 2) * self.scale
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        points = torch.stack([x, y, z], -1).reshape(-1, 3) @ rotation[:2].mT + shift_px
        q = torch.stack(torch.broadcast_tensors(*frequency_grid(n, dtype=torch.float64)), -1)
        phases = torch.exp(-2j * math.pi * (q @ (points + n // 2).mT))
        spectrum = phases @ c.flatten().to(torch.complex128) * nyquist_disc(n)
        spectrum = (
            spectrum
            * self.transfer
            * window_transfer(n, self.window, self.scale, dtype=torch.float64)
        )
        return 0.5 * (torch.fft.irfft2(spectrum, s=(n, n)) - self.image).square().sum()

    def projected(self, rotation: Tensor, shift_px: Tensor) -> Tensor:
        """J_p through the one projector."""
        multiplier = self.transfer * shift_phases(self.n, PIXEL * shift_px[None], PIXEL)
        h = WindowProjector(rotation[None], self.n, self.window, self.scale, multiplier)
        return 0.5 * (h(self.coefficients)[0] - self.image).square().sum()


def autograd(misfit: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    rotation, shift = euler_to_matrix(EULER_DEG).requires_grad_(), SHIFT_PX.clone().requires_grad_()
    value = misfit(rotation, shift)
    return value.detach(), *torch.autograd.grad(value, [rotation, shift])


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def euler_gradient(to_rotation: Tensor) -> Tensor:
    """Chain rule to (rot, tilt, psi), per degree."""
    slopes = torch.autograd.functional.jacobian(euler_to_matrix, EULER_DEG)
    return torch.einsum("ij,ijv->v", to_rotation, slopes)


def differences(misfit: Callable[[Tensor, Tensor], Tensor], step: float) -> Tensor:
    """Central differences over the Euler angles in degrees and the shift in pixels."""
    found = []
    for variable in range(5):
        ends = []
        for sign in (1, -1):
            move = torch.zeros(5, dtype=torch.float64)
            move[variable] = sign * step
            ends.append(misfit(euler_to_matrix(EULER_DEG + move[:3]), SHIFT_PX + move[3:]))
        found.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(found)


@pytest.mark.parametrize(
    "case",
    [
        Case(8, 1),
        *(pytest.param(case, marks=pytest.mark.slow) for case in (Case(11, 2), Case(12, 3))),
    ],
)
def test_theorem_is_the_gradient_of_the_exact_misfit(case: Case) -> None:
    value, to_rotation, to_shift = autograd(case.exact)
    found = case.theorem(euler_to_matrix(EULER_DEG), SHIFT_PX)
    torch.testing.assert_close(found.value, value, rtol=1e-7, atol=0)
    assert apart(found.rotation, to_rotation) < 1e-5
    assert apart(found.shift_px, to_shift) < 1e-5


def test_theorem_is_the_slope_of_its_own_value() -> None:
    case = Case(8, 2)
    found = case.theorem(euler_to_matrix(EULER_DEG), SHIFT_PX, 1)  # holds on any pixels
    numeric = differences(lambda r, t: case.theorem(r, t, 1).value, 1e-3)
    assert apart(euler_gradient(found.rotation), numeric[:3]) < 1e-5
    assert apart(found.shift_px, numeric[3:]) < 1e-5


@pytest.mark.parametrize("case", [Case(16, 1), Case(16, 2), Case(17, 3)])
def test_autograd_through_the_projector_is_the_slope_of_what_it_computes(case: Case) -> None:
    _, to_rotation, to_shift = autograd(case.projected)
    numeric = differences(case.projected, 1e-4)
    assert apart(euler_gradient(to_rotation), numeric[:3]) < 1e-5
    assert apart(to_shift, numeric[3:]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", [Case(12, 2)])
def test_projector_and_theorem_differ_by_the_projectors_interpolation(case: Case) -> None:
    """5e-4 of the images for white coefficients; derivatives, of high frequencies, suffer more."""
    value, to_rotation, to_shift = autograd(case.projected)
    found = case.theorem(euler_to_matrix(EULER_DEG), SHIFT_PX)
    torch.testing.assert_close(found.value, value, rtol=5e-4, atol=0)
    assert apart(to_rotation, found.rotation) < 0.015
    assert apart(to_shift, found.shift_px) < 0.002


def test_without_a_ctf() -> None:
    case = Case(8, 2)
    ones = torch.ones_like(case.transfer)
    given = (case.coefficients, case.image, euler_to_matrix(EULER_DEG), SHIFT_PX)
    one, other = (pose_gradient(*given, h, case.window, 2, finer=1) for h in (ones, None))
    torch.testing.assert_close(one.rotation, other.rotation)
    assert one.rotation[2].abs().max() == 0
