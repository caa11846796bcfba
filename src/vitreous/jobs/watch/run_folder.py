"""State of a run, from the files of its output folder; nothing is written or locked."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitreous.jobs.run.folder import CHECKPOINTS, CONFIG, PROGRESS, read_config
from vitreous.jobs.run.history import read_rows
from vitreous.jobs.run.lock import holder
from vitreous.jobs.run.progress import duration
from vitreous.jobs.run.replacement import beside, is_waiting
from vitreous.jobs.watch.pictures import (
    UNREADABLE,
    CheckpointView,
    file_picture,
    fsc_file_curves,
    newest_checkpoint,
)

HISTORY, REPORT = "history.jsonl", "report.html"
RESULTS = ("map.mrc", "start.mrc", "classes.mrcs", "class01.mrc")
ROWS, CURVES, MOST_REPORT_BYTES = 12, 8, 256 << 20
# Column of the history, title of its plot, scale of the axis; the first that a run has is drawn.
PLOTS = (
    ("resolution_angstrom", "Resolution between half maps (Å)", "angstrom"),
    ("agreeing_angstrom", "Resolution of the class averages (Å)", "angstrom"),
    ("wasserstein", "Wasserstein estimate", "linear"),
    ("objective", "Objective", "log"),
    ("told_1", "Information of the first component", "log"),
    ("band_angstrom", "Frequencies used, up to (Å)", "angstrom"),
)


class RunFolder:
    """Output folder of a run that is watched; files are read again only when they have changed.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.resolve().name
        self._read: dict[str, tuple[Any, Any]] = {}
        self._seen: dict[str, list[list[float]]] = {}  # curves of the checkpoints so far
        self._started = ""
        self.png: bytes | None = None
        self._version = 0

    @property
    def _work(self) -> Path:
        root = self.path.resolve()
        return beside(root) if is_waiting(root) else root

    def _cached(self, path: Path, read: Callable[[Path], Any]) -> Any:
        """Return what ``read`` makes of a file, as it was if it cannot be read; None without it."""
        key, (stamp, value) = path.name, self._read.get(path.name, (None, None))
        try:
            status = path.stat()
        except OSError:
            self._read.pop(key, None)
            return None
        now = (path, status.st_mtime_ns, status.st_size, status.st_ino)
        if now != stamp:
            with suppress(*UNREADABLE, RecursionError):
                value = read(path)
            self._read[key] = now, value
        return value

    def status(self) -> tuple[str, str]:
        """Return the state (running, finished, stopped, not started), and a word about it."""
        held, run = holder(self.path), self._config().get("run", {})
        if held is not None:
            return "running", held
        if not run:
            return "not started", "no run in this folder yet"
        if run.get("status") == "finished":
            return "finished", f"ended {_clock(run.get('ended'))}"
        return "stopped", "stopped or killed before its end"

    def _config(self) -> dict[str, Any]:
        return self._cached(self._work / CONFIG, read_config) or {}

    def view(self) -> dict[str, Any]:
        """Return what the page shows, as JSON can hold it; refreshes :attr:`png`."""
        state, remark = self.status()
        config, work = self._config(), self._work
        run, options = config.get("run", {}), config.get("options", {})
        if run.get("started", "") != self._started:
            self._started, self._seen = run.get("started", ""), {}
        told = self._cached(work / PROGRESS, _json) or {} if state != "finished" else {}
        rows = self._cached(work / HISTORY, read_rows) or []
        caption = self._picture(work, finished=state == "finished")
        left = _number(told.get("seconds_left")) if state == "running" else None
        return {
            "name": self.name,
            "path": str(self.path.resolve()),
            "command": str(run.get("command", "")),
            "state": state,
            "remark": remark,
            "verdict": str(run.get("verdict", "")),
            "share": _number(told.get("share")),
            "doing": " · ".join(str(v) for v in (told.get("label"), told.get("detail")) if v),
            "left": "" if left is None else duration(left),
            "elapsed": _elapsed(run, told, rows),
            "started": _clock(run.get("started")),
            "again": str(told.get("continue", "")) if state == "stopped" else "",
            "plot": progress_plot(rows),
            "fsc": self._curves(work, options, finished=state == "finished"),
            "picture": None if self.png is None else self._version,
            "caption": caption,
            "count": len(rows),
            "rows": shown_rows(rows[-ROWS:]),
            "options": {key: str(value) for key, value in options.items() if key != "solver"},
            "report": state == "finished" and (work / REPORT).is_file(),
        }

    def report(self) -> bytes | None:
        """Return the report of a finished run; None where there is none."""
        try:
            descriptor = os.open(self.path / REPORT, os.O_RDONLY | os.O_NOFOLLOW)
            with open(descriptor, "rb") as stream:
                content = stream.read(MOST_REPORT_BYTES + 1)
        except OSError:
            return None
        return content if len(content) <= MOST_REPORT_BYTES else None

    def _checkpoint(self, work: Path) -> CheckpointView | None:
        record = newest_checkpoint(work / CHECKPOINTS)
        return None if record is None else self._cached(record, CheckpointView)

    def _picture(self, work: Path, *, finished: bool) -> str:
        """Refresh the picture, and return its caption."""
        png, caption = None, ""
        checkpoint = None if finished else self._checkpoint(work)
        if checkpoint is not None:
            png, caption = checkpoint.png, checkpoint.caption
        for name in RESULTS:
            if png is None and (png := self._cached(work / name, file_picture)) is not None:
                caption = name
        if png is not self.png:
            self.png, self._version = png, self._version + 1
        return caption

    def _curves(
        self, work: Path, options: Mapping[str, Any], *, finished: bool
    ) -> dict[str, list[list[float]]]:
        """Return label to frequencies and correlations; of a run that goes on, of its rounds."""
        if finished:
            return self._cached(work / "fsc.csv", fsc_file_curves) or {}
        checkpoint = self._checkpoint(work)
        edge = _edge_angstrom(options)
        for label, curve in ({} if checkpoint is None else checkpoint.curves).items():
            self._seen.pop(label, None)
            self._seen[label] = [[shell / edge for shell in range(len(curve))], curve]
        return dict(list(self._seen.items())[-CURVES:])


def progress_plot(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return title, scale and series of the history's most telling column; None without one.

    A series is a list of points, number of the row and value, of one part of the run.

    >>> progress_plot([{"half": 1, "wasserstein": 2.0}, {"half": 1, "wasserstein": 1.5}])
    {'title': 'Wasserstein estimate', 'scale': 'linear', 'series': {'half 1': [[1, 2.0], [2, 1.5]]}}
    """
    numbered = list(enumerate(rows, 1))
    for key, title, scale in PLOTS:
        series: dict[str, list[list[float]]] = {}
        for place, row in numbered:
            value = _number(row.get(key))
            if value is not None and (value > 0 or scale == "linear"):
                series.setdefault(_part(row), []).append([place, value])
        if series:
            return {"title": title, "scale": scale, "series": series}
    return None


def _part(row: Mapping[str, Any]) -> str:
    """Return the part of a run that a row of the history belongs to."""
    if "start_of_half" in row:
        return f"starts of half {row['start_of_half']}, try {row.get('try', 1)}"
    if "half" in row:
        return f"half {row['half']}"
    return f"pass {row['pass']}" if "pass" in row else str(row.get("stage", "rounds"))


def shown_rows(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return rows of the history as texts, the newest first, numbers to four digits.

    >>> shown_rows([{"step": 1, "gain": 1.23456}, {"step": 2, "gain": None}])
    [{'step': '2', 'gain': ''}, {'step': '1', 'gain': '1.235'}]
    """
    return [{key: _text(value) for key, value in row.items()} for row in reversed(rows)]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)[:40]


def _number(value: Any) -> float | None:
    """Return a finite number, or None.

    >>> _number(2), _number(True), _number(float("nan")), _number("3")
    (2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: no table")
    return content


def _edge_angstrom(options: Mapping[str, Any]) -> float:
    """Return the width of the box in Å; 1 where it is unknown."""
    for prefix in ("working_", ""):
        box = _number(options.get(f"{prefix}box_size"))
        pixel = _number(options.get(f"{prefix}pixel_size_angstrom"))
        if box and pixel:
            return box * pixel
    return 1.0


def _elapsed(run: Mapping[str, Any], told: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return the time that the run has taken, interruptions left out where that is known."""
    last = rows[-1].get("seconds") if rows else None
    for value in (run.get("seconds"), told.get("seconds"), last):
        if (seconds := _number(value)) is not None:
            return duration(seconds)
    return ""


def _clock(stamp: Any) -> str:
    """Return a time of ``config.toml`` in the time zone of this machine, without the date today."""
    try:
        local = datetime.fromisoformat(str(stamp)).astimezone()
    except ValueError:
        return ""
    today = datetime.fromtimestamp(time.time(), UTC).astimezone().date() == local.date()
    return local.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")
