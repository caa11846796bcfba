"""``vitreous demo``: from nothing to a report, by the same commands that a user types."""

from __future__ import annotations

import shlex
import time

import typer

from vitreous.cli.options.common import Device, Output, Overwrite, Quiet, Seed, Threads
from vitreous.jobs.run.messages import say

SYMMETRY = "D2"
SAMPLE = ("--box", "64", "--apix", "3.6", "--n", "5000", "--snr-db=-10")
SHIFT = ("--shift", "triangular:14")


def command(
    output: Output,
    seed: Seed = 1,
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """Show what the program does: make particles of a molecule, find it again, compare.

    Runs three commands and shows them: `vitreous simulate` (5,000 noisy images of a protein-like
    molecule in random, unrecorded orientations), `vitreous auto` (the map from those images alone)
    and `vitreous align` (the map against the true one). Takes a minute or two without a GPU.

    Example: `vitreous demo -o demo`
    """
    started = time.monotonic()
    made, found = output / "simulated", output / "auto"
    again = ["--overwrite"] if overwrite else []
    machine = ["--device", device, "--threads", str(threads)]
    hush = ["--quiet"] if quiet else []
    sample = ["simulate", "phantom:1", "--sym", SYMMETRY, *SAMPLE, *SHIFT, "--seed", str(seed)]
    search = ["auto", str(made / "particles.star"), "--sym", SYMMETRY, "--seed", str(seed)]
    compare = ["align", str(found / "map.mrc"), str(made / "truth.mrc"), "--sym", SYMMETRY]
    _run([*sample, "-o", str(made), *again], machine + hush)
    _run([*search, "-o", str(found), *again], machine + hush)
    typer.echo("\nagainst the true map:")
    _run([*compare, "-o", str(output / "aligned.mrc")], machine)

    from vitreous.jobs.run.progress import duration

    typer.echo(f"\nall of it    {duration(time.monotonic() - started)}")
    typer.echo(f"open         {found / 'report.html'}")


def _run(call: list[str], more: list[str]) -> None:
    """A command of the program, shown, then run in this process."""
    from vitreous.cli.main import app

    say(f"$ vitreous {shlex.join(call)}")
    app([*call, *more], standalone_mode=False)
