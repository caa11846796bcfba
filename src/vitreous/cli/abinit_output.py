"""What ``vitreous abinit`` writes: history while it runs, then maps, tables and the report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import torch

from vitreous.cli.common import generator
from vitreous.cli.half_worker import Outcome
from vitreous.cli.maps import shell_frequencies, write_fsc_csv
from vitreous.cli.output import OutputFolder, plain
from vitreous.cli.progress import duration
from vitreous.data.particles import Particles
from vitreous.io.mrc import write_mrc
from vitreous.io.star import write_star
from vitreous.metrics.halves import HalvesResult, combine_halves
from vitreous.report.html import ReportData, Resolution, write_report

OUTPUTS = (
    "half1.mrc",
    "half2.mrc",
    "map.mrc",
    "particles.star",
    "fsc.csv",
    "history.jsonl",
    "report.html",
)


class HistoryFile:
    """``history.jsonl``, a row appended as it comes; NaN becomes null.

    Args:
        path: the file; begun anew, as the halves repeat their rows when they go on.
        keep: keep the earlier run's rows about both halves.
    """

    def __init__(self, path: Path, *, keep: bool) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path = path
        if keep and path.is_file():
            self.rows = [row for row in _read_rows(path) if "half" not in row]
        self._stream: TextIO | None = None

    def __enter__(self) -> Self:
        """Open and write what was kept."""
        self._stream = self._path.open("w", encoding="utf-8")
        for row in self.rows:
            self._write(row)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        if self._stream is not None:
            self._stream.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        clean = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        self.rows.append(clean)
        self._write(clean)

    def _write(self, row: Mapping[str, Any]) -> None:
        assert self._stream is not None
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run; a line cut by a kill is left out."""
    rows = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


@dataclass(frozen=True)
class Run:
    """What the outputs of a finished run are made from."""

    particles: Particles
    half_set: torch.Tensor
    outcomes: Mapping[int, Outcome]
    pixel_size_angstrom: float
    symmetry: str
    seed: int
    history: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    title: str
    device: torch.device

    @property
    def seconds(self) -> float:
        """Wall time of the slower half, interruptions left out."""
        return max(outcome.seconds for outcome in self.outcomes.values())


def write_results(folder: OutputFolder, run: Run) -> HalvesResult:
    """Join the halves and write every output but the checkpoints and the history.

    Raises:
        ResourceError: the disk is full.
    """
    pixel = run.pixel_size_angstrom
    half1, half2 = (torch.from_numpy(run.outcomes[h].volume).to(run.device) for h in (1, 2))
    result = combine_halves(
        half1,
        half2,
        pixel_size_angstrom=pixel,
        symmetry=run.symmetry,
        n_particles=len(run.particles),
        generator=generator(run.seed, "combine"),
    )
    maps = {"half1.mrc": half1, "half2.mrc": result.half2, "map.mrc": result.average}
    for name, volume in maps.items():
        write_mrc(folder.path(name), volume.cpu().float().numpy(), pixel)
    document = run.particles.to_star_document(
        relative_to=folder.root, rlnRandomSubset=run.half_set.numpy()
    )
    write_star(folder.path("particles.star"), document)
    curves = {
        "corrected": result.curves.corrected,
        "unmasked": result.curves.unmasked,
        "masked": result.curves.masked,
        "phase_randomised": result.curves.randomised,
    }
    write_fsc_csv(folder.path("fsc.csv"), curves, len(half1), pixel)
    write_report(folder.path("report.html"), _report(run, result, curves))
    folder.config["run"] |= {
        "verdict": result.verdict,
        "solved": result.solved,
        "seconds": round(run.seconds, 1),
        "resolution_0143_angstrom": result.resolution_0143_angstrom,
        "resolution_05_angstrom": result.resolution_05_angstrom,
        "chance_angstrom": result.chance_angstrom,
    }
    return result


def _report(run: Run, result: HalvesResult, curves: Mapping[str, torch.Tensor]) -> ReportData:
    n = int(result.average.shape[-1])
    pixel = run.pixel_size_angstrom
    frequency = shell_frequencies(n, pixel).numpy()
    sizes = [int((run.half_set == half).sum()) for half in (1, 2)]
    settings = {name: str(plain(value)) for name, value in run.settings.items()}
    rows = (
        (
            "within a soft mask, corrected",
            result.resolution_0143_angstrom,
            result.resolution_05_angstrom,
        ),
        ("without mask", result.unmasked_0143_angstrom, result.unmasked_05_angstrom),
    )
    return ReportData(
        title=run.title,
        subtitle=f"vitreous abinit, {datetime.now(UTC).strftime('%Y-%m-%d %H:%M')} UTC",
        verdict=result.verdict[0].upper() + result.verdict[1:] + ".",
        warnings=() if result.solved else (result.verdict + ".",),
        pixel_size_angstrom=pixel,
        key_numbers={
            "resolution at 0.143": angstrom(result.resolution_0143_angstrom),
            "resolution at 0.5": angstrom(result.resolution_05_angstrom),
            "chance alone": angstrom(result.chance_angstrom),
            "particles per half": f"{sizes[0]:,} and {sizes[1]:,}",
            "symmetry": run.symmetry,
            "time": duration(run.seconds),
        },
        settings=settings,
        volume=result.average.cpu().numpy(),
        fsc_curves={
            name.replace("_", " "): (frequency, curve.cpu().numpy())
            for name, curve in curves.items()
        },
        resolutions=[Resolution(*row) for row in rows],
        history=run.history,
        **run.outcomes[1].examples,
    )


def angstrom(value: float) -> str:
    """A resolution for a person.

    >>> angstrom(7.25), angstrom(float("inf"))
    ('7.2 Å', 'none')
    """
    return f"{value:.1f} Å" if math.isfinite(value) else "none"


def summary(result: HalvesResult, folder: Path, seconds: float) -> str:
    """The lines for the person who waited, to follow the verdict."""
    lines = (
        f"resolution   {angstrom(result.resolution_0143_angstrom)} at 0.143, "
        f"{angstrom(result.resolution_05_angstrom)} at 0.5 (masked, corrected); "
        f"{angstrom(result.unmasked_0143_angstrom)} and {angstrom(result.unmasked_05_angstrom)} "
        f"without mask{'' if result.solved else '; they mean little while it is not solved'}",
        f"time         {duration(seconds)}",
        f"map          {folder / 'map.mrc'} (halves: half1.mrc, half2.mrc)",
        f"report       {folder / 'report.html'}",
    )
    return "\n".join(lines)
