"""What ``vitreous check`` does: open, examine, print, and write page and corrected table."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from vitreous.core.errors import UsageError
from vitreous.core.random import generator
from vitreous.data.particles import Particles
from vitreous.doctor.examine import STEPS, Claims, Diagnosis, evenly_spaced, examine
from vitreous.doctor.finding import Finding
from vitreous.io.atomic import atomic_write_text
from vitreous.jobs.check.fix import Correction, fixed_path, write_fixed
from vitreous.jobs.check.page import write_check_page
from vitreous.jobs.inputs.particles import ParticleFiles
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals

OUTPUTS = ("report.html", "findings.json")
_SHARE = dict(zip(STEPS, ((0.0, 0.4), (0.4, 0.2), (0.6, 0.05), (0.65, 0.35)), strict=True))
_MARKS = {"ok": ("ok", "green"), "wrong": ("WRONG", "red"), "unclear": ("?", "yellow")}


def check(
    files: ParticleFiles,
    *,
    output: Path | None,
    fix: bool,
    sample: int | None,
    invert: bool,
    seed: int,
    overwrite: bool,
    threads: int,
    quiet: bool,
) -> tuple[str, ...]:
    """Examine particles, show what was found.

    Returns:
        short names of what is wrong.

    Raises:
        InputError: the table or a stack cannot be read at all.
        UsageError: an output is there already.
    """
    use_device("cpu", threads)
    fixed = fixed_path(files.path) if fix else None
    if fixed is not None and fixed.exists() and not overwrite:
        raise UsageError(f"{fixed}: is there already; give --overwrite to replace it")
    particles = files.open(need_ctf=False)
    if sample is not None:
        particles = particles.select(evenly_spaced(len(particles), sample))
    claims = claims_of(particles, invert=invert, ignore_header=files.apix is not None)
    settings = {"sample": sample, "invert": invert, "seed": seed}
    # entered first, so that a folder that must not be written is refused before hours of reading
    with nullcontext() if output is None else _folder(files, output, settings, overwrite) as folder:
        diagnosis = _examine(particles, claims, seed, quiet)
        typer.echo(f"{files.path}: {len(particles)} images of {particles.box_size} px")
        for finding in diagnosis.findings:
            _show(finding)
        typer.secho(summary(diagnosis), bold=True)
        if folder is not None:
            _write(folder, str(files.path), particles, diagnosis)
    if fixed is not None:
        _say_mended(fixed, write_fixed(fixed, particles, diagnosis))
    return diagnosis.faults


def _say_mended(path: Path, mending: Correction) -> None:
    for one in mending.left:
        say(f"not mended by a table: {one}")
    if mending.done:
        say(f"{path}: {'; '.join(mending.done)}")
    else:
        what = "nothing that a table can mend" if mending.left else "nothing to mend"
        say(f"{what}; {path} not written")


def _examine(particles: Particles, claims: Claims, seed: int, quiet: bool) -> Diagnosis:
    with StopSignals() as stop, RunProgress("checking", quiet=quiet) as progress:

        def notify(step: str, fraction: float) -> None:
            start, share = _SHARE[step]
            progress.update(start + share * fraction, {"stage": step})
            stop.exit_if_requested()

        return examine(particles, claims, generator(seed, "check"), notify)


def claims_of(particles: Particles, *, invert: bool, ignore_header: bool = False) -> Claims:
    """What the files, and the user, say about the images."""
    header = particles.header_pixel_size_angstrom
    stated = particles.pixel_size_angstrom
    differs = header is not None and abs(header - stated) > 0.01 * stated
    return Claims(
        pixel_size_angstrom=stated,
        header_pixel_size_angstrom=header if differs and not ignore_header else None,
        optics=particles.optics if particles.has_ctf else None,
        pose=particles.pose,
        dark=invert or particles.stated_contrast == "dark",
    )


def summary(diagnosis: Diagnosis) -> str:
    """One line on the whole."""
    wrong = [f for f in diagnosis.findings if f.verdict == "wrong"]
    if not wrong:
        return "Nothing wrong was found."
    return f"Wrong: {'; '.join(f'{f.topic} ({f.claim})' for f in wrong)}."


def _show(finding: Finding) -> None:
    mark, colour = _MARKS.get(finding.verdict, ("note", None))
    head = typer.style(f"{mark:>6}", fg=colour, bold=finding.verdict == "wrong")
    typer.echo(f"{head}  {finding.topic}: {finding.claim}")
    if finding.evidence:
        typer.echo(f"{'':8}evidence: {finding.evidence}")
    if finding.remedy:
        typer.echo(f"{'':8}remedy: {finding.remedy}")


def _folder(
    files: ParticleFiles, output: Path, settings: dict[str, Any], overwrite: bool
) -> OutputFolder:
    options = {**asdict(files), **settings}
    inputs = {"particles": files.path}
    return OutputFolder(
        output, "check", options, inputs=inputs, outputs=OUTPUTS, overwrite=overwrite
    )


def _write(folder: OutputFolder, name: str, particles: Particles, diagnosis: Diagnosis) -> None:
    told = [asdict(finding) for finding in diagnosis.findings]
    text = json.dumps({"faults": diagnosis.faults, "findings": told}, indent=1)
    atomic_write_text(folder.path("findings.json"), text + "\n")
    page = folder.path("report.html")
    write_check_page(page, name, summary(diagnosis), particles, diagnosis)
    folder.finish()
    say(f"evidence in {page}")
