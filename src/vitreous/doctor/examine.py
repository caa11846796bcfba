"""All tests of a data set, in the order in which one needs the answer of another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.params import Optics, Pose
from vitreous.doctor import contrast, ctf, ctf_findings, poses, statistics
from vitreous.doctor.finding import Finding

CTF_BOX_SIZE = 128
CTF_SAMPLE, POSE_SAMPLE = 3000, 5000
SMALLEST_BOX = 16
FEWEST = 10  # usable images, below which nothing is said about conventions
FEWEST_WITH_POSES = 200
STEPS = ("images", "CTF", "contrast", "poses")
_PIECE_VALUES = 1 << 24


class Images(Protocol):
    """Images with names and micrographs, read a batch at a time."""

    @property
    def box_size(self) -> int:
        """Edge in pixels."""
        ...

    @property
    def ids(self) -> tuple[str, ...]:
        """Names."""
        ...

    @property
    def micrograph_id(self) -> Tensor:
        """Micrograph of each image."""
        ...

    def read(self, indices: Tensor) -> Tensor:
        """Images ``(b, n, n)``."""
        ...


@dataclass(frozen=True)
class Claims:
    """What a table says about its images.

    Args:
        pixel_size_angstrom: Å.
        header_pixel_size_angstrom: what the stack's header says, where it differs by over 1 %.
        optics, pose: of each image, where known.
        dark: whether protein is said to be dark.
    """

    pixel_size_angstrom: float
    header_pixel_size_angstrom: float | None = None
    optics: Optics | None = None
    pose: Pose | None = None
    dark: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """Findings, the tests behind them, and the claims as they should have been.

    Args:
        findings: in the order of the tests.
        claims: what the table says.
        mended: the same, corrected.
        suspects: images with something wrong.
        statistics, ctf, contrast, poses: the tests; None where there was nothing to test.
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
        """Short names of what is wrong; empty when all is right."""
        return tuple(finding.fault for finding in self.findings if finding.verdict == "wrong")


Notify = Callable[[str, float], None]


def examine(
    images: Images,
    claims: Claims,
    generator: torch.Generator,
    notify: Notify = lambda step, fraction: None,
) -> Diagnosis:
    """Test every claim; each test takes as true what the ones before it have found.

    Args:
        images: all images of the set.
        claims: what is said about them.
        generator: for half sets and random poses.
        notify: told a step of :data:`STEPS` and its fraction done.
    """
    found = statistics.collect(
        images.read, len(images.ids), images.box_size, lambda f: notify("images", f)
    )
    odd = statistics.suspects(found, images.micrograph_id)
    told = statistics.findings(found, odd, images.micrograph_id, images.ids)
    left_out = {*odd.unusable, *odd.clipped, *odd.outlying}
    rows = torch.tensor([i for i in range(len(found)) if i not in left_out], dtype=torch.long)
    diagnosis = Diagnosis(tuple(told), claims, claims, odd, found)
    if len(rows) < FEWEST or images.box_size < SMALLEST_BOX:
        what = f"{len(rows)} usable images of {images.box_size} px are too few or too small to tell"
        few = Finding("conventions", "unclear", what)
        return replace(diagnosis, findings=(*told, *_headers(claims), few))
    n = min(CTF_BOX_SIZE, images.box_size)
    chosen = rows[evenly_spaced(len(rows), CTF_SAMPLE)]
    sample = _read(images, chosen, n)
    diagnosis = _with_ctf(diagnosis, sample, chosen, images, notify)
    diagnosis = _with_contrast(diagnosis, sample, chosen, images.box_size / n, notify)
    return _with_poses(diagnosis, images, rows, generator, notify)


def evenly_spaced(count: int, most: int) -> Tensor:
    """At most so many of the places 0 to ``count - 1``, evenly spaced.

    >>> evenly_spaced(10, 4).tolist()
    [0, 3, 6, 9]
    """
    places = torch.linspace(0, count - 1, min(most, count), dtype=torch.float64)
    return places.round().long()


def _read(images: Images, rows: Tensor, n: int) -> Tensor:
    piece = max(1, _PIECE_VALUES // images.box_size**2)
    parts = [fourier_resize(images.read(part), n, 2) for part in torch.split(rows, piece)]
    return torch.cat(parts)


def _with_ctf(
    so_far: Diagnosis, sample: Tensor, chosen: Tensor, images: Images, notify: Notify
) -> Diagnosis:
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
    return _settled(so_far, replace(test, hypotheses=tried), len(so_far.findings))


def _settled(so_far: Diagnosis, test: ctf.CtfTest, place: int) -> Diagnosis:
    """With the outcome of a test of the CTF: its findings from this place on, claims mended."""
    best = test.hypotheses[test.best]
    told = _with_header(ctf_findings.findings(test), test, so_far.claims)
    return replace(
        so_far,
        findings=(*so_far.findings[:place], *told, *so_far.findings[place:]),
        corrected=replace(
            so_far.corrected, optics=best.optics, pixel_size_angstrom=best.pixel_size_angstrom
        ),
        ctf=test,
    )


def _with_header(told: Sequence[Finding], test: ctf.CtfTest, claims: Claims) -> list[Finding]:
    """The verdict on the pixel size, where the stack's header says otherwise."""
    header, stated = claims.header_pixel_size_angstrom, claims.pixel_size_angstrom
    settled = any(finding.fault == "pixel-size" for finding in told)
    if header is None or settled:
        return list(told)
    sizes = [h.pixel_size_angstrom for h in test.hypotheses]
    disagreement = _headers(claims)[0]
    if test.best == 0 and test.beats(0, sizes.index(header)):
        claim = f"the stack's header says {header:.4g} Å, but {stated:.4g} Å fits the rings"
        remedy = "correct the header (the table's value is used)"
        disagreement = replace(disagreement, claim=claim, remedy=remedy)
    disagreement = replace(disagreement, evidence=told[0].evidence)
    return [disagreement, *(finding for finding in told if finding.topic != "pixel size")]


def _headers(claims: Claims) -> list[Finding]:
    """Where table and stack differ in pixel size, and nothing tells which is right."""
    header = claims.header_pixel_size_angstrom
    if header is None:
        return []
    claim = f"the table says {claims.pixel_size_angstrom:.4g} Å, the stack's header {header:.4g} Å"
    remedy = "find out which is true, and give it with --apix"
    return [Finding("pixel size", "wrong", claim, "", remedy, "header-pixel-size")]


def _with_contrast(
    so_far: Diagnosis, sample: Tensor, chosen: Tensor, scale: float, notify: Notify
) -> Diagnosis:
    corrected = so_far.corrected
    optics = None if corrected.optics is None else corrected.optics[chosen]
    pixel = corrected.pixel_size_angstrom * scale
    test = contrast.measure(sample, optics, pixel)
    told = contrast.findings(test, dark_expected=corrected.dark, pixel_size_angstrom=pixel)
    if so_far.ctf is not None and so_far.ctf.snr > 0:
        told += _noise(so_far.ctf)
    notify("contrast", 1.0)
    if any(finding.fault == "contrast" for finding in told):
        corrected = replace(corrected, dark=not corrected.dark)
    return replace(so_far, findings=(*so_far.findings, *told), corrected=corrected, contrast=test)


def _noise(test: ctf.CtfTest) -> list[Finding]:
    """Strength of the signal against the noise, and the noise's colour, as the rings tell them."""
    signal = Finding(
        "signal",
        "note",
        f"signal over noise about {10 * math.log10(test.snr):.0f} dB",
        "from the rings in the power spectra; rings of ice and carbon count as signal",
    )
    colour = statistics.whiteness(torch.cat([test.noise[:1].expand(ctf.FIRST_SHELL), test.noise]))
    return [signal] if colour is None else [signal, colour]


def _with_poses(
    so_far: Diagnosis, images: Images, rows: Tensor, generator: torch.Generator, notify: Notify
) -> Diagnosis:
    corrected = so_far.corrected
    if corrected.pose is None:
        absent = Finding("poses", "note", "the table has no orientations")
        return replace(so_far, findings=(*so_far.findings, absent))
    if len(rows) < FEWEST_WITH_POSES:
        few = Finding("poses", "unclear", f"{len(rows)} images are too few to test orientations")
        return replace(so_far, findings=(*so_far.findings, few))
    chosen = rows[evenly_spaced(len(rows), POSE_SAMPLE)]
    n = min(poses.BOX_SIZE, images.box_size)
    scale = images.box_size / n
    sample = _read(images, chosen, n)
    test = poses.compare(
        sample,
        corrected.pose[chosen],
        None if corrected.optics is None else corrected.optics[chosen],
        corrected.pixel_size_angstrom * scale,
        corrected.pixel_size_angstrom,
        generator,
        lambda f: notify("poses", 0.6 * f),
    )
    told = poses.findings(test)
    if all(finding.fault != "poses-unrelated" for finding in told):
        pose = poses.apply(test.euler, test.shift, corrected.pose, corrected.pixel_size_angstrom)
        corrected = replace(corrected, pose=pose)
        so_far = _with_ctf_by_halves(
            replace(so_far, corrected=corrected), sample, chosen, scale, generator, notify
        )
    return replace(so_far, findings=(*so_far.findings, *told), poses=test)


def _with_ctf_by_halves(
    so_far: Diagnosis,
    sample: Tensor,
    chosen: Tensor,
    scale: float,
    generator: torch.Generator,
    notify: Notify,
) -> Diagnosis:
    """Settle by half maps what rings leave open about the CTF."""
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
    about = [f.topic in ("CTF", "pixel size") for f in so_far.findings]
    others = [f for f, ours in zip(so_far.findings, about, strict=True) if not ours]
    so_far = replace(so_far, findings=tuple(others))
    return _settled(so_far, replace(test, shared=shared), about.index(True))
