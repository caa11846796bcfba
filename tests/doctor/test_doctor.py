"""The doctor names what was planted, and nothing else; each test by itself on a solvable case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from vitreous.core.grid import radius_grid, shell_index
from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import euler_to_matrix, matrix_to_euler, random_rotations
from vitreous.data.particles import Particles
from vitreous.data.phantoms import protein_phantom
from vitreous.doctor import contrast, ctf, poses, statistics
from vitreous.doctor.examine import Claims, Diagnosis, examine
from vitreous.physics.noise import noise_sigma
from vitreous.physics.shift import shift_phases
from vitreous.physics.simulator import simulate

BOX, PIXEL, COUNT, MICROGRAPHS = 32, 6.0, 900, 30


@dataclass(frozen=True)
class Case:
    images: Tensor
    claims: Claims
    micrograph: Tensor


@pytest.fixture(scope="module")
def clean() -> Case:
    return _case(8000, 14000, 0.1)


def _case(least_defocus: float, span: float, astigmatism: float) -> Case:
    """Images of a table without faults."""
    g = torch.Generator().manual_seed(5)
    volume = protein_phantom(BOX, PIXEL, seed=21)
    mean = least_defocus + span * torch.rand(MICROGRAPHS, generator=g)
    split = astigmatism * mean * torch.rand(MICROGRAPHS, generator=g)
    micrograph = torch.arange(COUNT) * MICROGRAPHS // COUNT
    optics = replace(
        Optics.uniform(MICROGRAPHS),
        defocus_u_angstrom=mean + split,
        defocus_v_angstrom=mean - split,
        defocus_angle_deg=180 * torch.rand(MICROGRAPHS, generator=g),
    )[micrograph]
    pose = Pose(random_rotations(COUNT, generator=g), 12 * torch.randn(COUNT, 2, generator=g))
    pieces = torch.split(torch.arange(COUNT), 300)
    exact = torch.cat(
        [
            simulate(volume, pose.rotation[r], pose.shift_angstrom[r], optics[r], PIXEL)
            for r in pieces
        ]
    )
    sigma = noise_sigma(float(exact.var((1, 2)).mean()), snr_db=-4)
    images = exact / sigma + torch.randn(exact.shape, generator=g)
    return Case(images, Claims(PIXEL, None, optics, pose), micrograph)


def _examined(case: Case) -> Diagnosis:
    particles = Particles.from_arrays(
        case.images, Optics.uniform(COUNT), pixel_size_angstrom=PIXEL, micrograph_id=case.micrograph
    )
    return examine(particles, case.claims, torch.Generator().manual_seed(0))


def _faults(case: Case) -> tuple[str, ...]:
    return _examined(case).faults


def _optics(change: Callable[[Optics], Optics]) -> Callable[[Case], Case]:
    def plant(case: Case) -> Case:
        assert case.claims.optics is not None
        return replace(case, claims=replace(case.claims, optics=change(case.claims.optics)))

    return plant


def _defocus(factor: float) -> Callable[[Case], Case]:
    return _optics(
        lambda o: replace(
            o,
            defocus_u_angstrom=factor * o.defocus_u_angstrom,
            defocus_v_angstrom=factor * o.defocus_v_angstrom,
        )
    )


def _pose(
    angles: Callable[[Tensor], Tensor] = lambda e: e,
    shift: Callable[[Tensor], Tensor] = lambda t: t,
) -> Callable[[Case], Case]:
    def plant(case: Case) -> Case:
        assert case.claims.pose is not None
        pose = case.claims.pose
        rotation = euler_to_matrix(angles(matrix_to_euler(pose.rotation.double()))).float()
        changed = Pose(rotation, shift(pose.shift_angstrom))
        return replace(case, claims=replace(case.claims, pose=changed))

    return plant


def _images(change: Callable[[Tensor], Tensor]) -> Callable[[Case], Case]:
    return lambda case: replace(case, images=change(case.images.clone()))


def _set(places: slice, value: float) -> Callable[[Tensor], Tensor]:
    def change(images: Tensor) -> Tensor:
        images[places] = value
        return images

    return change


def _nan(images: Tensor) -> Tensor:
    images[7, 3, 3] = float("nan")
    return images


def _clip(images: Tensor) -> Tensor:
    images[100:130] = images[100:130].clamp(-2, 2)
    return images


def _copy(images: Tensor) -> Tensor:
    images[40:45] = images[340:345]
    return images


def _ice(images: Tensor) -> Tensor:
    images[200:220] += 30 * (radius_grid(BOX, 2) < 4)
    return images


def _blur(images: Tensor) -> Tensor:
    spectra = torch.fft.rfft2(images) * (shell_index(BOX, 2) < 11)
    return torch.fft.irfft2(spectra, s=(BOX, BOX))


def _drift(images: Tensor) -> Tensor:
    level = torch.linspace(-1, 1, MICROGRAPHS)[torch.arange(COUNT) * MICROGRAPHS // COUNT]
    return images + level[:, None, None]


def _centred(case: Case) -> Tensor:
    assert case.claims.pose is not None
    phases = shift_phases(BOX, -case.claims.pose.shift_angstrom, PIXEL)
    return torch.fft.irfft2(torch.fft.rfft2(case.images) * phases, s=(BOX, BOX))


PLANTED: dict[str, Callable[[Case], Case]] = {
    "": lambda case: case,
    "contrast": _images(lambda images: -images),
    "pixel-size": lambda case: replace(
        case, claims=replace(case.claims, pixel_size_angstrom=2 * PIXEL)
    ),
    "header-pixel-size": lambda case: replace(
        case, claims=replace(case.claims, header_pixel_size_angstrom=1.5 * PIXEL)
    ),
    "defocus-axes": _optics(
        lambda o: replace(
            o,
            defocus_u_angstrom=o.defocus_v_angstrom,
            defocus_v_angstrom=o.defocus_u_angstrom,
        )
    ),
    "defocus-angle-sign": _optics(lambda o: replace(o, defocus_angle_deg=-o.defocus_angle_deg)),
    "defocus-sign": _defocus(-1),
    "defocus-unit": _defocus(0.1),
    "voltage": _optics(lambda o: replace(o, voltage_kv=torch.full_like(o.voltage_kv, 200.0))),
    "euler-inverse": _pose(lambda e: -e.flip(-1)),
    "euler-order": _pose(lambda e: e.flip(-1)),
    "euler-psi-sign": _pose(lambda e: e * e.new_tensor([1, 1, -1])),
    "euler-rot-sign": _pose(lambda e: e * e.new_tensor([-1, 1, 1])),
    "images-mirrored": _pose(lambda e: e * e.new_tensor([-1, 1, -1])),
    "euler-radians": _pose(torch.deg2rad),
    "shift-sign": _pose(shift=lambda t: -t),
    "shift-unit": _pose(shift=lambda t: t / PIXEL),
    "shift-axes": _pose(shift=lambda t: t.flip(-1)),
    "shift-ignored": lambda case: replace(case, images=_centred(case)),
    "poses-unrelated": _pose(lambda e: e.roll(1, 0)),
    "non-finite": _images(_nan),
    "constant": _images(_set(slice(3, 9), 1.0)),
    "saturated": _images(_clip),
    "duplicates": _images(_copy),
    "outliers": _images(_ice),
    "band-limit": _images(_blur),
    "drift": _images(_drift),
}


FAST = (
    "",
    "contrast",
    "voltage",
    "defocus-axes",
    "euler-inverse",
    "shift-sign",
    "constant",
    "drift",
)


@pytest.mark.parametrize(
    "fault",
    [fault if fault in FAST else pytest.param(fault, marks=pytest.mark.slow) for fault in PLANTED],
)
def test_names_the_planted_fault_and_no_other(clean: Case, fault: str) -> None:
    torch.manual_seed(0)
    assert _faults(PLANTED[fault](clean)) == ((fault,) if fault else ())


@pytest.mark.slow
def test_two_faults_at_once_are_both_named(clean: Case) -> None:
    both = PLANTED["shift-sign"](PLANTED["voltage"](PLANTED["contrast"](clean)))
    assert _faults(both) == ("voltage", "contrast", "shift-sign")


@pytest.mark.slow
def test_mended_claims_are_the_true_ones(clean: Case) -> None:
    corrected = _examined(PLANTED["euler-inverse"](PLANTED["defocus-axes"](clean))).corrected
    true = clean.claims
    assert corrected.pose is not None
    assert true.pose is not None
    assert corrected.optics is not None
    assert true.optics is not None
    assert torch.allclose(corrected.pose.rotation, true.pose.rotation, atol=1e-5)
    assert torch.equal(corrected.optics.defocus_u_angstrom, true.optics.defocus_u_angstrom)


@pytest.mark.slow
def test_defoci_that_are_alike_do_not_tell_the_ctf() -> None:
    """Half maps share more under a wrong CTF that all images have in common."""
    diagnosis = _examined(_case(9000, 700, 0.0))
    ctf_finding = next(f for f in diagnosis.findings if f.topic == "CTF")
    assert (diagnosis.faults, ctf_finding.verdict) == ((), "unclear")
    assert "cannot be told" in ctf_finding.claim
    assert "cannot be excluded: " in ctf_finding.evidence


@pytest.mark.parametrize("box", [32, 33])
def test_pure_noise_raises_no_alarm_about_ctf_and_contrast(box: int) -> None:
    noise = torch.randn(400, box, box, generator=torch.Generator().manual_seed(3))
    particles = Particles.from_arrays(noise, Optics.uniform(400), pixel_size_angstrom=4.0)
    found = examine(particles, Claims(4.0, None, Optics.uniform(400)), torch.Generator())
    assert found.faults == ()
    told = {finding.topic: finding.verdict for finding in found.findings}
    assert told["CTF"] == told["contrast"] == "unclear"


@pytest.mark.parametrize(
    "images",
    [torch.zeros(30, 16, 16), torch.full((30, 16, 16), torch.nan), torch.randn(30, 4, 4)],
)
def test_nothing_usable_is_said_not_raised(images: Tensor) -> None:
    particles = Particles.from_arrays(images, Optics.uniform(30), pixel_size_angstrom=4.0)
    found = examine(particles, Claims(4.0, None, Optics.uniform(30)), torch.Generator())
    assert "unclear" in {finding.verdict for finding in found.findings}


def test_whittle_fit_recovers_signal_and_noise() -> None:
    g = torch.Generator().manual_seed(2)
    count, n = 800, 32
    shell = shell_index(n, 2)
    optics = replace(Optics.uniform(count), defocus_u_angstrom=torch.linspace(8e3, 2e4, count))
    optics = replace(optics, defocus_v_angstrom=optics.defocus_u_angstrom)
    square = ctf.ctf_half(n, 5.0, optics).square()
    strength = 2.0 * torch.exp(-shell / 6.0)
    white = torch.fft.rfft2(torch.randn(count, n, n, generator=g))
    images = torch.fft.irfft2(white * (1 + strength * square).sqrt(), s=(n, n))
    tried = ctf.hypotheses(optics, 5.0)
    test = ctf.compare(images, tried, torch.arange(count) % 50)
    assert test.best == 0
    wanted = 2.0 * torch.exp(-torch.arange(2, n // 2) / 6.0)
    # in the innermost shells CTF^2 hardly varies, so there S and N cannot be told apart well
    assert torch.allclose((test.signal / test.noise)[5:], wanted[5:], atol=0.07)


def test_information_grows_with_correlation() -> None:
    n = 16
    low, high = torch.full((n // 2 + 1,), 0.3), torch.full((n // 2 + 1,), 0.9)
    assert 0 < poses.information(low, n) < poses.information(high, n)


def test_contrast_and_diameter_of_discs() -> None:
    g = torch.Generator().manual_seed(1)
    disc = (radius_grid(64, 2) < 16).float() * torch.randn(500, 1, 1, generator=g).abs()
    images = disc + torch.randn(500, 64, 64, generator=g)
    white = contrast.measure(images, None, 3.0)
    dark = contrast.measure(-images, None, 3.0)
    assert white.z > 20
    assert dark.z < -20
    assert white.diameter_px == pytest.approx(32, abs=6)


def test_statistics_do_not_depend_on_batches() -> None:
    images = torch.randn(20, 16, 16, generator=torch.Generator().manual_seed(4))
    images[3] = images[11]
    whole = statistics.collect(lambda rows: images[rows], 20, 16)
    piecewise = statistics.StatisticsOf(16)
    for part in torch.split(images, 6):
        piecewise.add(part)
    parts = piecewise.result()
    assert whole.digest == parts.digest
    assert torch.allclose(whole.power, parts.power)
    odd = statistics.suspects(whole, torch.zeros(20, dtype=torch.long))
    assert odd.repeated == (11,)


def test_copies_in_both_half_sets_are_named() -> None:
    images = torch.randn(20, 16, 16, generator=torch.Generator().manual_seed(4))
    images[11], images[12], images[15:17] = images[3], images[5], 0.0
    numbers, one = statistics.collect(lambda rows: images[rows], 20, 16), torch.zeros(20).long()
    halves = 1 + torch.arange(20) % 2  # copies of 5 and the constant images are in both
    for half_set, split in ((one, False), (halves, True)):
        odd, names = statistics.suspects(numbers, one), [str(i) for i in range(20)]
        findings = statistics.findings(numbers, odd, one, half_set, names)
        claim = next(f.claim for f in findings if f.fault == "duplicates")
        assert claim.startswith("2 of 20 images are copies of others")
        assert ("puts copies of 1 images into both half sets" in claim) == split


def test_headers_that_differ_are_said_even_where_nothing_can_tell_who_is_right() -> None:
    noise = torch.randn(400, 16, 16, generator=torch.Generator().manual_seed(3))
    for count, optics in ((5, None), (400, None), (400, Optics.uniform(400))):
        particles = Particles.from_arrays(
            noise[:count], Optics.uniform(count), pixel_size_angstrom=4.0
        )
        found = examine(particles, Claims(4.0, 1.5, optics), torch.Generator())
        assert found.faults == ("header-pixel-size",)
