"""Examination of a data set: all tests in order, each using the results of earlier ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitreous.core.params import Optics, Pose
from vitreous.data.grey_values import GreyValues
from vitreous.data.particles import Particles
from vitreous.data.working_images import SignedImages
from vitreous.doctor import contrast, ctf, ctf_findings, poses, statistics
from vitreous.doctor.finding import Finding

CTF_BOX_SIZE = 128
CTF_SAMPLE, POSE_SAMPLE = 3000, 5000
SMALLEST_BOX = 16
FEWEST = 10  # usable images, below which conventions are not tested
FEWEST_WITH_POSES = 200
STEPS = ("images", "CTF", "contrast", "poses")
_PIECE_VALUES = 1 << 24


@dataclass(frozen=True)
class Claims:
    """Statements of a table about its images.

    Args:
        pixel_size_angstrom: pixel size in Å.
        header_pixel_size_angstrom: pixel size in the stack's header, where it differs by over 1 %.
        optics, pose: CTF parameters and pose of each image, where known.
        dark: whether protein is stated to be dark.
    """

    pixel_size_angstrom: float
    header_pixel_size_angstrom: float | None = None
    optics: Optics | None = None
    pose: Pose | None = None
    dark: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """Result of an examination: findings, tests, and corrected claims.

    Args:
        findings: in the order of the tests.
        claims: statements of the table.
        corrected: the statements with all faults corrected.
        suspects: images with faults.
        statistics, ctf, contrast, poses: the tests; None where nothing could be tested.
    """

    findings: tuple[Finding, ...]
    claims: Claims
    corrected: Claims
    suspects: statistics.Suspects
    statistics: statistics.ImageStatistics
    ctf: ctf.CtfTest | None = None
    contrast: contrast.ContrastTest | None = None
    poses: poses.PoseTest | None = None

    @property
    def faults(self) -> tuple[str, ...]:
        """Short names of all faults; empty when there are none."""
        return tuple(finding.fault for finding in self.findings if finding.verdict == "wrong")


_UNKNOWN_ANGSTROM = 1.0  # in headers of programs that do not know the pixel size
Notify = Callable[[str, float], None]


def examine(
    images: Particles,
    claims: Claims,
    generator: torch.Generator,
    notify: Notify = lambda step, fraction: None,
) -> Diagnosis:
    """Test every claim about a data set; each test uses the corrections of earlier ones.

    The generator draws half sets and random poses; ``notify`` is called with a step of
    :data:`STEPS` and its fraction done.
    """
    numbers = statistics.collect(
        images.read, len(images.ids), images.box_size, lambda f: notify("images", f)
    )
    suspects = statistics.suspects(numbers, images.micrograph_id)
    findings = statistics.findings(
        numbers, suspects, images.micrograph_id, images.half_set, images.ids
    )
    excluded = {*suspects.unusable, *suspects.clipped, *suspects.outlying}
    rows = torch.tensor([i for i in range(len(numbers)) if i not in excluded], dtype=torch.long)
    diagnosis = Diagnosis(tuple(findings), claims, claims, suspects, numbers)
    if len(rows) < FEWEST or images.box_size < SMALLEST_BOX:
        claim = f"{len(rows)} usable images of {images.box_size} px: too few or too small to test"
        unclear = Finding("contrast, pixel size, CTF, poses", "unclear", claim)
        return replace(diagnosis, findings=(*findings, *_headers(claims), unclear))
    n = min(CTF_BOX_SIZE, images.box_size)
    chosen = rows[evenly_spaced(len(rows), CTF_SAMPLE)]
    grey = GreyValues(divisor=float(numbers.deviation[rows].median()))
    sample = _read(images, chosen, n, grey)
    diagnosis = _with_ctf(diagnosis, sample, chosen, images, notify)
    diagnosis = _with_contrast(diagnosis, sample, chosen, images.box_size / n, notify)
    return _with_poses(diagnosis, images, rows, grey, generator, notify)


def evenly_spaced(count: int, most: int) -> Tensor:
    """Return at most ``most`` of the indices 0 to ``count - 1``, evenly spaced.

    >>> evenly_spaced(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).round().long()


def _read(images: Particles, rows: Tensor, n: int, grey: GreyValues) -> Tensor:
    piece = max(1, _PIECE_VALUES // images.box_size**2)
    read = SignedImages(images, grey, box_size=n).read
    return torch.cat([read(part) for part in torch.split(rows, piece)])


def _with_ctf(
    so_far: Diagnosis, sample: Tensor, chosen: Tensor, images: Particles, notify: Notify
) -> Diagnosis:
    """Test the CTF parameters on a sample of the images, rows ``chosen``."""
    claims, scale = so_far.corrected, images.box_size / sample.shape[-1]
    if claims.optics is None:
        missing = Finding("CTF", "note", "the table has no CTF parameters", "", "estimate the CTF")
        return replace(so_far, findings=(*so_far.findings, *_headers(claims), missing))
    header = claims.header_pixel_size_angstrom
    tried = ctf.hypotheses(
        claims.optics, claims.pixel_size_angstrom, () if header is None else (header,)
    )
    sampled = [
        replace(h, optics=h.optics[chosen], pixel_size_angstrom=h.pixel_size_angstrom * scale)
        for h in tried
    ]
    test = ctf.compare(sample, sampled, images.micrograph_id[chosen], lambda f: notify("CTF", f))
    return _with_ctf_findings(so_far, replace(test, hypotheses=tried), len(so_far.findings))


def _with_ctf_findings(so_far: Diagnosis, test: ctf.CtfTest, position: int) -> Diagnosis:
    """Insert the findings of a test of the CTF and correct the claims."""
    best = test.hypotheses[test.best]
    findings = _with_header(ctf_findings.findings(test), test, so_far.claims)
    return replace(
        so_far,
        findings=(*so_far.findings[:position], *findings, *so_far.findings[position:]),
        corrected=replace(
            so_far.corrected, optics=best.optics, pixel_size_angstrom=best.pixel_size_angstrom
        ),
        ctf=test,
    )


def _with_header(findings: Sequence[Finding], test: ctf.CtfTest, claims: Claims) -> list[Finding]:
    """Replace the finding on the pixel size where the stack's header disagrees with the table."""
    header, stated = claims.header_pixel_size_angstrom, claims.pixel_size_angstrom
    if header is None or any(finding.fault == "pixel-size" for finding in findings):
        return list(findings)
    if header == _UNKNOWN_ANGSTROM:
        return [*findings, *_headers(claims)]
    sizes = [h.pixel_size_angstrom for h in test.hypotheses]
    disagreement = _headers(claims)[0]
    if test.best == 0 and test.beats(0, sizes.index(header)):
        claim = f"the stack's header says {header:.4g} Å, but {stated:.4g} Å fits the rings"
        remedy = "correct the header (the table's value is used)"
        disagreement = replace(disagreement, claim=claim, remedy=remedy)
    disagreement = replace(disagreement, evidence=findings[0].evidence)
    return [disagreement, *(finding for finding in findings if finding.topic != "pixel size")]


def _headers(claims: Claims) -> list[Finding]:
    """Return the finding that table and stack differ in pixel size, if they do."""
    header = claims.header_pixel_size_angstrom
    if header is None:
        return []
    if header == _UNKNOWN_ANGSTROM:
        claim = (
            "the stack's header says 1 Å, as of programs that do not know it; the table's is used"
        )
        return [Finding("pixel size", "note", claim)]
    claim = f"the table says {claims.pixel_size_angstrom:.4g} Å, the stack's header {header:.4g} Å"
    remedy = "find out which is true, and give it as `pixel_size_angstrom`"
    return [Finding("pixel size", "wrong", claim, "", remedy, "header-pixel-size")]


def _with_contrast(
    so_far: Diagnosis, sample: Tensor, chosen: Tensor, scale: float, notify: Notify
) -> Diagnosis:
    """Test contrast, particle size and noise."""
    corrected = so_far.corrected
    optics = None if corrected.optics is None else corrected.optics[chosen]
    pixel = corrected.pixel_size_angstrom * scale
    test = contrast.measure(sample, optics, pixel)
    findings = contrast.findings(test, dark_expected=corrected.dark, pixel_size_angstrom=pixel)
    if so_far.ctf is not None and so_far.ctf.snr > 0:
        findings += _noise(so_far.ctf)
    notify("contrast", 1.0)
    if any(finding.fault == "contrast" for finding in findings):
        corrected = replace(corrected, dark=not corrected.dark)
    findings = [*so_far.findings, *findings]
    return replace(so_far, findings=tuple(findings), corrected=corrected, contrast=test)


def _noise(test: ctf.CtfTest) -> list[Finding]:
    """Return the signal-to-noise ratio and the whiteness of the noise, from the Thon rings."""
    signal = Finding(
        "signal",
        "note",
        f"signal-to-noise ratio about {10 * math.log10(test.snr):.0f} dB",
        "from the Thon rings in the power spectra; rings of ice and carbon count as signal",
    )
    colour = statistics.whiteness(torch.cat([test.noise[:1].expand(ctf.FIRST_SHELL), test.noise]))
    return [signal] if colour is None else [signal, colour]


def _with_poses(
    so_far: Diagnosis,
    images: Particles,
    rows: Tensor,
    grey: GreyValues,
    generator: torch.Generator,
    notify: Notify,
) -> Diagnosis:
    """Test orientations and shifts, then the CTF parameters that the rings leave open."""
    corrected = so_far.corrected
    if corrected.pose is None:
        untested = Finding("poses", "note", "the table has no orientations")
        return replace(so_far, findings=(*so_far.findings, untested))
    if len(rows) < FEWEST_WITH_POSES:
        claim = f"{len(rows)} images are too few to test orientations"
        return replace(so_far, findings=(*so_far.findings, Finding("poses", "unclear", claim)))
    chosen = rows[evenly_spaced(len(rows), POSE_SAMPLE)]
    n = min(poses.BOX_SIZE, images.box_size)
    scale = images.box_size / n
    sample = _read(images, chosen, n, grey)
    test = poses.compare(
        sample,
        corrected.pose[chosen],
        None if corrected.optics is None else corrected.optics[chosen],
        corrected.pixel_size_angstrom * scale,
        corrected.pixel_size_angstrom,
        generator,
        lambda f: notify("poses", 0.6 * f),
    )
    findings = poses.findings(test)
    if all(finding.fault != "poses-unrelated" for finding in findings):
        pose = poses.apply(test.euler, test.shift, corrected.pose, corrected.pixel_size_angstrom)
        corrected = replace(corrected, pose=pose)
        so_far = _with_ctf_by_halves(
            replace(so_far, corrected=corrected), sample, chosen, scale, generator, notify
        )
    return replace(so_far, findings=(*so_far.findings, *findings), poses=test)


def _with_ctf_by_halves(
    so_far: Diagnosis,
    sample: Tensor,
    chosen: Tensor,
    scale: float,
    generator: torch.Generator,
    notify: Notify,
) -> Diagnosis:
    """Decide between CTF parameters that the rings do not separate by the half maps."""
    test, corrected = so_far.ctf, so_far.corrected
    if test is None or corrected.pose is None:
        return so_far
    measured = sorted({*test.contenders, 0})
    if len(measured) == 1:
        return so_far
    tried = [test.hypotheses[i] for i in measured]
    shared = test.shared.clone()
    shared[measured] = poses.shared_under(
        sample,
        corrected.pose[chosen],
        [(h.optics[chosen], h.pixel_size_angstrom * scale) for h in tried],
        ctf.SPLITS,
        generator,
        lambda f: notify("poses", 0.6 + 0.4 * f),
    )
    replaced = [f.topic in ("CTF", "pixel size") for f in so_far.findings]
    kept = [f for f, old in zip(so_far.findings, replaced, strict=True) if not old]
    so_far = replace(so_far, findings=tuple(kept))
    return _with_ctf_findings(so_far, replace(test, shared=shared), replaced.index(True))
