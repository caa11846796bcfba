"""``vitreous demo``: from nothing to a report, by the same jobs that the commands call."""

from __future__ import annotations

import time
from typing import Any

import typer
from pydantic import Field

from vitreous.cli.options.command import options_command, tell
from vitreous.jobs.maps.options import AlignOptions
from vitreous.jobs.refine.options import AutoOptions
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.options import ComputeOptions
from vitreous.jobs.simulate.options import SimulateOptions

SYMMETRY = "D2"
SAMPLE: dict[str, Any] = {
    "box_size": 64,
    "pixel_size_angstrom": 3.6,
    "n_particles": 5000,
    "snr_db": -10.0,
    "shift": "triangular:14",
}


class DemoOptions(ComputeOptions):
    """Options of ``demo``."""

    seed: int = Field(default=1, ge=0, description="Seed of every random number.")


@options_command(DemoOptions)
def demo(options: DemoOptions) -> None:
    """Show what the program does: make particles of a molecule, find it again, compare.

    Does the work of three commands and shows them: `vitreous simulate` (5,000 noisy images of a
    protein-like molecule in random, unrecorded orientations), `vitreous auto` (the map from those
    images alone) and `vitreous align` (the map against the true one). Takes a minute or two without
    a GPU.

    Example: `vitreous demo -o demo`
    """
    from vitreous.jobs.maps.align import align
    from vitreous.jobs.refine.run import auto
    from vitreous.jobs.run.progress import duration
    from vitreous.jobs.simulate.run import simulate

    started = time.monotonic()
    folder = options.output
    machine = options.model_dump(include={"device", "threads"})
    shared = options.model_dump(exclude={"output"}) | {"symmetry": SYMMETRY}
    sample = SimulateOptions(source="phantom:1", output=folder / "simulated", **SAMPLE, **shared)
    say(
        f"$ vitreous simulate phantom:1 --sym {SYMMETRY} --box {sample.box_size} --apix "
        f"{sample.pixel_size_angstrom:g} --n {sample.n_particles} --snr-db={sample.snr_db:g} "
        f"--shift {sample.shift} --seed {sample.seed} -o {sample.output}"
    )
    tell(simulate(sample))
    search = AutoOptions(
        particles=sample.output / "particles.star", output=folder / "auto", **shared
    )
    say(
        f"$ vitreous auto {search.particles} --sym {SYMMETRY} --seed {search.seed} -o "
        f"{search.output}"
    )
    tell(auto(search))
    found, truth = search.output / "map.mrc", sample.output / "truth.mrc"
    aligned = folder / "aligned.mrc"
    typer.echo("\nagainst the true map:")
    say(f"$ vitreous align {found} {truth} --sym {SYMMETRY} -o {aligned}")
    files: dict[str, Any] = {"moving": found, "reference": truth, "output": aligned}
    tell(align(AlignOptions(symmetry=SYMMETRY, **files, **machine)))
    typer.echo(f"\nall of it    {duration(time.monotonic() - started)}")
    typer.echo(f"open         {search.output / 'report.html'}")
