"""Check particles: open, examine, and write the page and the corrected table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vitreous.core.errors import UsageError
from vitreous.core.random import generator
from vitreous.data.particles import Particles
from vitreous.doctor.examine import STEPS, Claims, Diagnosis, evenly_spaced, examine
from vitreous.doctor.finding import Finding
from vitreous.io.atomic import atomic_write_text
from vitreous.jobs.check.fix import Correction, fixed_path, write_fixed
from vitreous.jobs.check.options import CheckOptions
from vitreous.jobs.check.page import write_check_page
from vitreous.jobs.inputs.particles import open_particles
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.messages import reworded
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals

OUTPUTS = ("report.html", "findings.json")
_SHARE = dict(zip(STEPS, ((0.0, 0.4), (0.4, 0.2), (0.6, 0.05), (0.65, 0.35)), strict=True))


@dataclass(frozen=True)
class CheckResult:
    """Result of a check."""

    images: int  # number of images that were examined
    box_size: int  # their edge in pixels
    findings: tuple[Finding, ...]  # one for each claim that was tested
    faults: tuple[str, ...]  # short names of what is wrong
    verdict: str  # one line on the whole
    # lines about the files that were written, and about faults that no table corrects
    notes: tuple[str, ...]
    fixed_table: Path | None  # the corrected table; None where none was written


def check(options: CheckOptions) -> CheckResult:
    """Test a particle table against its images.

    Raises:
        InputError: the table or a stack cannot be read at all.
        UsageError: an output exists already.
    """
    use_device("cpu", options.threads)
    fixed = fixed_path(options.particles) if options.fix else None
    if fixed is not None and fixed.exists() and not options.overwrite:
        raise UsageError(f"{fixed}: exists; give `overwrite` to replace it")
    particles = open_particles(options, need_ctf=False)
    if options.sample is not None:
        particles = particles.select(evenly_spaced(len(particles), options.sample))
    ignore_header = options.pixel_size_angstrom is not None
    claims = claims_of(particles, invert=options.dark, ignore_header=ignore_header)
    notes: list[str] = []
    # entered first, so that a folder that must not be written is refused before hours of reading
    with OutputFolder.if_named("check", options, OUTPUTS) as folder:
        diagnosis = _examine(particles, claims, options.seed, options.quiet)
        if folder is not None:
            _write(folder, str(options.particles), particles, diagnosis)
            notes.append(f"evidence in {folder.root / 'report.html'}")
    written = None
    if fixed is not None:
        correction = write_fixed(fixed, particles, diagnosis)
        written = fixed if correction.done else None
        notes += _notes(fixed, correction)
    return CheckResult(
        images=len(particles),
        box_size=particles.box_size,
        findings=tuple(diagnosis.findings),
        faults=diagnosis.faults,
        verdict=summary(diagnosis),
        notes=tuple(notes),
        fixed_table=written,
    )


def _notes(path: Path, correction: Correction) -> Iterator[str]:
    for fault in correction.left:
        yield f"not corrected by a table: {fault}"
    if correction.done:
        yield f"{path}: {'; '.join(correction.done)}"
    else:
        remaining = "nothing that a table can correct" if correction.left else "nothing to correct"
        yield f"{remaining}; {path} not written"


def _examine(particles: Particles, claims: Claims, seed: int, quiet: bool) -> Diagnosis:
    with StopSignals() as stop, RunProgress("checking", quiet=quiet) as progress:

        def notify(step: str, fraction: float) -> None:
            start, share = _SHARE[step]
            progress.update(start + share * fraction, {"stage": step})
            stop.exit_if_requested()

        return examine(particles, claims, generator(seed, "check"), notify)


def claims_of(particles: Particles, *, invert: bool | None, ignore_header: bool = False) -> Claims:
    """Return what the files, and the user, state about the images."""
    header = particles.header_pixel_size_angstrom
    stated = particles.pixel_size_angstrom
    differs = header is not None and abs(header - stated) > 0.01 * stated
    return Claims(
        pixel_size_angstrom=stated,
        header_pixel_size_angstrom=header if differs and not ignore_header else None,
        optics=particles.optics if particles.has_ctf else None,
        pose=particles.pose,
        dark=particles.stated_contrast == "dark" if invert is None else invert,
    )


def summary(diagnosis: Diagnosis) -> str:
    """Return one line on the whole."""
    wrong = [f for f in diagnosis.findings if f.verdict == "wrong"]
    if not wrong:
        unclear = [f.topic for f in diagnosis.findings if f.verdict == "unclear"]
        untested = f"; no verdict on {', '.join(unclear)}" if unclear else ""
        return f"Nothing wrong was found{untested}."
    return f"Wrong: {'; '.join(f'{f.topic} ({f.claim})' for f in wrong)}."


def _write(folder: OutputFolder, name: str, particles: Particles, diagnosis: Diagnosis) -> None:
    findings = [asdict(finding) for finding in diagnosis.findings]
    text = json.dumps({"faults": diagnosis.faults, "findings": findings}, indent=1)
    atomic_write_text(folder.path("findings.json"), text + "\n")
    path = folder.path("report.html")
    with_flags = tuple(replace(f, remedy=reworded(f.remedy)) for f in diagnosis.findings)
    diagnosis = replace(diagnosis, findings=with_flags)
    write_check_page(path, name, reworded(summary(diagnosis)), particles, diagnosis)
    folder.finish()
