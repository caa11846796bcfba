"""``vitreous check``: do the images agree with what their table says?"""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.jobs.check.options import CheckOptions
from vitreous.jobs.run.messages import reworded

WRONG = 3
_MARKS = {"ok": ("ok", "green"), "wrong": ("WRONG", "red"), "unclear": ("?", "yellow")}


@options_command(CheckOptions)
def check(options: CheckOptions) -> None:
    """Test a particle table against its images: signs, units, conventions, damage.

    No map and no model is needed. Rings in the images' power spectra show whether pixel size,
    voltage and defocus are right; the particles' centres tell dark protein from white; with
    orientations, quick reconstructions of two half sets show in which convention angles and shifts
    were written. Every verdict comes with its evidence and a remedy; with -o they are kept, with
    curves, in report.html. PARTICLES is a table, or a stack (.mrcs) with --ctf and
    --particles-per-micrograph.

    Exit code 0: nothing is wrong. 3: something is; the remedy says what to do.

    Example: `vitreous check particles.star -o CHECK --fix`
    """
    from vitreous.jobs.check.run import check

    result = check(options)
    typer.echo(f"{options.particles}: {result.images} images of {result.box_size} px")
    for finding in result.findings:
        mark, colour = _MARKS.get(finding.verdict, ("note", None))
        head = typer.style(f"{mark:>6}", fg=colour, bold=finding.verdict == "wrong")
        typer.echo(f"{head}  {finding.topic}: {finding.claim}")
        if finding.evidence:
            typer.echo(f"{'':8}evidence: {finding.evidence}")
        if finding.remedy:
            typer.echo(f"{'':8}remedy: {reworded(finding.remedy)}")
    typer.secho(reworded(result.verdict), bold=True)
    for line in result.notes:
        typer.echo(reworded(line), err=True)
    if result.faults:
        raise typer.Exit(WRONG)
