"""The CTF against its textbook form, its limits, and RELION's own program."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitreous.core.grid import frequency_grid
from vitreous.core.params import Optics
from vitreous.physics.ctf import (
    b_factor_from_nyquist_value,
    ctf,
    ctf_half,
    electron_wavelength_angstrom,
)

FIELDS = [f.name for f in dataclasses.fields(Optics) if f.name != "even_turns"]


def draw_optics(b: int, seed: int = 0, *, defocus: float = 30000.0) -> Optics:
    """Astigmatic optics with phase shift, envelope and two kinds of microscope, float64."""
    uniform = torch.rand(5, b, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kind = torch.arange(b) % 2
    return Optics(
        defocus_u_angstrom=defocus * (0.2 + 0.8 * uniform[0]),
        defocus_v_angstrom=defocus * (0.2 + 0.8 * uniform[0]) - 2000 * uniform[1],
        defocus_angle_deg=360 * uniform[2] - 180,
        phase_shift_deg=120 * uniform[3],
        voltage_kv=torch.tensor([300.0, 200.0], dtype=torch.float64)[kind],
        cs_mm=torch.tensor([2.7, 1.4], dtype=torch.float64)[kind],
        amplitude_contrast=torch.tensor([0.1, 0.07], dtype=torch.float64)[kind],
        b_factor_angstrom2=60 * uniform[4],
    )


def textbook(kx: float, ky: float, o: dict[str, float]) -> float:
    """The formula of the conventions in polar form, one frequency at a time."""
    volt = o["voltage_kv"] * 1e3
    wavelength = 12.2643247 / math.sqrt(volt * (1 + 0.978466e-6 * volt))
    k, theta = math.hypot(kx, ky), math.atan2(ky, kx)
    u, v = o["defocus_u_angstrom"], o["defocus_v_angstrom"]
    defocus = (u + v) / 2 + (u - v) / 2 * math.cos(
        2 * (theta - math.radians(o["defocus_angle_deg"]))
    )
    q = o["amplitude_contrast"]
    gamma = (
        -math.pi * wavelength * defocus * k**2
        + math.pi / 2 * o["cs_mm"] * 1e7 * wavelength**3 * k**4
        - math.radians(o["phase_shift_deg"])
        - math.atan(q / math.sqrt(1 - q * q))
    )
    return -math.sin(gamma) * math.exp(-o["b_factor_angstrom2"] * k**2 / 4)


def test_equals_the_textbook_formula() -> None:
    optics = draw_optics(4)
    kx, ky = frequency_grid(9, 1.1, dtype=torch.float64)
    values = ctf(kx, ky, optics)
    for b in range(4):
        one = {name: getattr(optics, name)[b].item() for name in FIELDS}
        expected = [[textbook(x, y, one) for x in kx[0].tolist()] for y in ky[:, 0].tolist()]
        torch.testing.assert_close(
            values[b], torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0
        )


@pytest.mark.parametrize(("kv", "angstrom"), [(100, 0.0370144), (200, 0.0250793), (300, 0.0196875)])
def test_wavelength(kv: float, angstrom: float) -> None:
    value = electron_wavelength_angstrom(torch.tensor(kv, dtype=torch.float64)).item()
    assert value == pytest.approx(angstrom, rel=1e-5)


def test_sign_protein_stays_white_at_low_resolution_under_underfocus() -> None:
    k = torch.tensor([[0.0, 0.005, 0.01]])
    value = ctf(k, torch.zeros(1, 1), Optics.uniform(1, defocus_angstrom=15000.0))[0, 0]
    assert value[0].item() == pytest.approx(0.1, abs=1e-6)
    assert (value.diff() > 0).all()


def test_a_quarter_turn_phase_plate_makes_the_origin_almost_one() -> None:
    value = ctf(torch.zeros(1, 1), torch.zeros(1, 1), Optics.uniform(1, phase_shift_deg=90.0))
    assert value.item() == pytest.approx(math.sqrt(1 - 0.01), abs=1e-6)


def test_single_precision_holds_at_high_resolution() -> None:
    optics = draw_optics(16, defocus=30000.0).to(torch.float32)
    single, double = ctf_half(128, 1.0, optics), ctf_half(128, 1.0, optics.to(torch.float64))
    assert single.dtype == torch.float32
    assert (single - double).abs().max().item() < 2e-6


@pytest.mark.parametrize("n", [8, 9])
def test_multiplier_belongs_to_a_real_kernel(n: int) -> None:
    half = ctf_half(n, 1.5, draw_optics(3))
    columns = [0] if n % 2 else [0, n // 2]
    for column in columns:
        values = half[..., column]
        torch.testing.assert_close(values, values.flip(-1).roll(1, -1), atol=1e-12, rtol=0)
    if n % 2 == 0:  # astigmatism tells the two signs of ky apart: the mean is no accident
        kx, ky = frequency_grid(n, 1.5, dtype=torch.float64)
        raw = ctf(kx, ky, draw_optics(3))[..., -1]
        assert (raw - raw.flip(-1).roll(1, -1)).abs().max() > 0.1
        expected = (raw + raw.flip(-1).roll(1, -1)) / 2
        inner = torch.arange(n) != n // 2
        torch.testing.assert_close(half[..., inner, n // 2], expected[..., inner])


@pytest.mark.parametrize("n", [8, 9])
def test_mirroring_the_image_is_mirroring_the_astigmatism(n: int) -> None:
    optics = draw_optics(3)
    image = torch.randn(3, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def filtered(x: Tensor, angle_deg: Tensor) -> Tensor:
        turned = dataclasses.replace(optics, defocus_angle_deg=angle_deg)
        return torch.fft.irfft2(torch.fft.rfft2(x) * ctf_half(n, 1.5, turned), s=(n, n))

    angle = optics.defocus_angle_deg
    expected = filtered(image, angle)
    for mirror, turned in (
        (lambda x: x.mT, 90 - angle),
        (lambda x: x.flip(-1), -angle),
        (lambda x: x.flip(-2), -angle),
    ):
        torch.testing.assert_close(
            mirror(filtered(mirror(image), turned)), expected, atol=1e-12, rtol=0
        )


def test_envelope_is_given_by_its_value_at_nyquist() -> None:
    pixel, n = 1.274, 16
    b = b_factor_from_nyquist_value(0.2, pixel)
    plain = ctf_half(n, pixel, Optics.uniform(1).to(torch.float64))
    damped = ctf_half(n, pixel, Optics.uniform(1, b_factor_angstrom2=b).to(torch.float64))
    assert (damped / plain)[0, 0, -1].item() == pytest.approx(0.2, rel=1e-6)
    assert b_factor_from_nyquist_value(1.0, pixel) == 0.0


@pytest.mark.parametrize(("value", "pixel"), [(0.0, 1.0), (1.5, 1.0), (0.5, 0.0), (math.nan, 1.0)])
def test_envelope_refuses(value: float, pixel: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        b_factor_from_nyquist_value(value, pixel)


def test_aperture_cuts_only_outside() -> None:
    optics = draw_optics(2)
    open_, cut = ctf_half(16, 2.0, optics), ctf_half(16, 2.0, optics, aperture_inv_angstrom=0.15)
    kx, ky = frequency_grid(16, 2.0, dtype=torch.float64)
    inside = (kx**2 + ky**2).sqrt() <= 0.15
    assert torch.equal(cut[:, inside], open_[:, inside])
    assert (cut[:, ~inside] == 0).all()
    assert inside.any()
    assert not inside.all()


def test_gradient_is_right_for_every_parameter() -> None:
    optics = draw_optics(2, defocus=3000.0)
    values = [getattr(optics, name).requires_grad_(True) for name in FIELDS]

    def function(*fields: Tensor) -> Tensor:
        return ctf_half(6, 4.0, Optics(*fields))

    assert torch.autograd.gradcheck(function, values, eps=1e-5, atol=1e-5)


def test_gradient_is_finite_without_astigmatism() -> None:
    optics = Optics.uniform(2).to(torch.float64)
    values = [getattr(optics, name).clone().requires_grad_(True) for name in FIELDS]
    weight = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = (ctf_half(8, 3.0, Optics(*values)) * weight).sum()
    gradients = dict(zip(FIELDS, torch.autograd.grad(loss, values), strict=True))
    assert all(g.isfinite().all() for g in gradients.values())
    assert (gradients["defocus_angle_deg"] == 0).all()
    assert (gradients["defocus_u_angstrom"] != 0).all()


def test_batch_equals_loop() -> None:
    optics = draw_optics(3)
    together = ctf_half(10, 2.0, optics)
    for b in range(3):
        torch.testing.assert_close(together[b], ctf_half(10, 2.0, optics[b]), atol=1e-12, rtol=0)


def test_frequencies_must_be_a_plane() -> None:
    with pytest.raises(ValueError, match="ny, nx"):
        ctf(torch.zeros(4), torch.zeros(4), Optics.uniform(1))


def test_equals_relion() -> None:
    if shutil.which("relion_project") is None:
        pytest.skip("relion_project not found (Debian package relion)")
    script = Path(__file__).parents[2] / "benchmarks" / "ctf_against_relion.py"
    command = [sys.executable, str(script), "--boxes", "48", "49", "--images", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(done.stdout)
    assert result["max_abs_difference"] < 1e-4
    assert all(case["compared_share"] > 0.7 for case in result["cases"])
