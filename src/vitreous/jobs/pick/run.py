"""The work of ``vitreous pick``: particles found in micrographs, written as coordinates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from vitreous.core.errors import InputError
from vitreous.core.threads import in_order, single_torch_thread
from vitreous.data.micrographs import MicrographFiles, Picks, find_micrographs, picks_document
from vitreous.data.picks import micrograph_pixel_size
from vitreous.io.mrc import read_header
from vitreous.io.mrc_header import MrcHeader
from vitreous.io.star import StarBlock, StarDocument, read_star, write_star
from vitreous.jobs.pick.options import PickOptions
from vitreous.jobs.pick.page import write_pick_page
from vitreous.jobs.pick.search import Search
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals
from vitreous.jobs.run.streaming import cores
from vitreous.jobs.run.summary import JobResult, rows_of_text
from vitreous.methods.pick.threshold import ScoreThreshold, score_threshold

TABLE, LIST, COORDINATES, REPORT = "particles.star", "autopick.star", "coordinates", "report.html"
OUTPUTS = (TABLE, LIST, COORDINATES, REPORT)
_NOISE_SAMPLE, _CONTRAST_SAMPLE = 8, 3  # micrographs
_WEAK = 1.5  # deviations that the median score of a suspect micrograph lies below that of all

Result = TypeVar("Result")


@dataclass(frozen=True)
class PickResult(JobResult):
    """Particles found: how many, in how many micrographs, above which score."""

    count: int
    micrographs: int
    threshold: float


def pick(options: PickOptions) -> PickResult:
    """Find particles in micrographs and write their coordinates.

    Raises:
        InputError: files that cannot be read, damaged micrographs, or no peak at all.
        ResourceError: the disk is full.
        SystemExit: stopped by a signal.
    """
    files = find_micrographs(
        options.micrographs,
        options.ctf_file,
        voltage_kv=options.voltage_kv,
        cs_mm=options.cs_mm,
        amplitude_contrast=options.amplitude_contrast,
    )
    table = options.micrographs.suffix == ".star"
    document = read_star(options.micrographs) if table else StarDocument({})
    override = options.micrograph_pixel_size_angstrom
    pixel = micrograph_pixel_size(document, _first_header(files, options.skip_bad), override)
    search = Search.planned(files, options, pixel)
    resolved = {"micrographs": len(files), "micrograph_pixel_size_angstrom": pixel}
    with (
        OutputFolder.of("pick", options, OUTPUTS, resolved=resolved) as folder,
        single_torch_thread(),
        StopSignals() as stop,
        RunProgress("picking", quiet=options.quiet) as bar,
    ):
        search = _with_contrast(search)
        peaks: list[Picks] = []
        for one in _each(search, search.peaks, range(len(files))):
            peaks += [one] if one is not None else []
            bar.update((len(peaks)) / (len(files) + 1))
            stop.exit_if_requested()
        limit = _threshold(search, peaks)
        picks = [one[one.scores > limit.threshold][: options.most] for one in peaks]
        _warn(files, picks, limit)
        _write_tables(folder, search, picks)
        write_pick_page(folder, search, peaks, picks, limit)
        folder.finish()
    return _result(folder.root, picks, limit)


def _first_header(files: MicrographFiles, skip_bad: bool) -> MrcHeader:
    """Return the header of the first micrograph, or of the first that is not damaged."""
    for path in files.paths[:-1] if skip_bad else ():
        with suppress(InputError):
            return read_header(path, warn=False)
    return read_header(files.paths[-1 if skip_bad else 0], warn=False)


def _each(
    search: Search, work: Callable[[int], Result], numbers: Iterable[int]
) -> Iterable[Result | None]:
    """Yield the work on each micrograph in order; None for damaged ones that are left out."""

    def guarded(number: int) -> Result | None:
        try:
            return work(number)
        except InputError as error:
            if not search.options.skip_bad:
                raise InputError(f"{error}; leave damaged ones out with `skip_bad`") from error
            warnings.warn(f"left out: {error}", stacklevel=2)
            return None

    return in_order(guarded, numbers, cores(search.options.threads))


def _spread(count: int, most: int) -> list[int]:
    """Return at most so many numbers below ``count``, evenly spread."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(most, count)).tolist()})


def _with_contrast(search: Search) -> Search:
    """Return the search with the contrast that is told, or whose best scores are higher."""
    dark = search.options.dark
    if dark is None:
        sample = _spread(len(search.files), _CONTRAST_SAMPLE)
        dark_score, light_score = (
            sum(s for s in _each(search, replace(search, dark=one).contrast, sample) if s)
            for one in (True, False)
        )
        dark = dark_score >= light_score
        found = "dark" if dark else "light"
        say(
            f"protein is {found}: mean of the best scores {dark_score / len(sample):.2f} if dark, "
            f"{light_score / len(sample):.2f} if light; `invert` decides otherwise"
        )
    return replace(search, dark=dark)


def _threshold(search: Search, peaks: list[Picks]) -> ScoreThreshold:
    """Return the threshold of all micrographs' scores: the one told, or where noise ends."""
    scores = np.concatenate([one.scores for one in peaks]) if peaks else np.empty(0)
    if not len(scores):
        raise InputError(
            f"{search.options.micrographs}: no peak at all; check `diameter_angstrom` and "
            "`micrograph_pixel_size_angstrom`"
        )
    sample = [peaks[place].number for place in _spread(len(peaks), _NOISE_SAMPLE)]
    noise = [one for one in _each(search, search.noise_scores, sample) if one is not None]
    limit = score_threshold(scores, np.concatenate(noise))
    told = search.options.threshold
    if told is not None:
        return replace(limit, threshold=told)
    if not limit.clear:
        warnings.warn(
            "scores of particles and noise do not part; only those above all noise are kept; look "
            "at the report, check `diameter_angstrom` and `invert`, or set `threshold`",
            stacklevel=2,
        )
    return limit


def _warn(files: MicrographFiles, picks: list[Picks], limit: ScoreThreshold) -> None:
    """Warn of micrographs whose particles score much lower than those of the others."""
    level = limit.mean - _WEAK * limit.deviation
    weak = [files.names[one.number] for one in picks if len(one) and np.median(one.scores) < level]
    if limit.clear and weak:
        warnings.warn(
            f"{len(weak)} of {len(picks)} micrographs score low ({weak[0]} ...): drift, no "
            "particles, or a wrong CTF; look at them before you use their particles",
            stacklevel=2,
        )


def _write_tables(folder: OutputFolder, search: Search, picks: list[Picks]) -> None:
    """Write the joined table, a STAR file for each micrograph, and RELION's list of them."""
    files, pixel = search.files, search.pixel_size_angstrom
    write_star(folder.path(TABLE), picks_document(files, picks, pixel))
    listed: dict[str, list[str]] = {"rlnMicrographName": [], "rlnMicrographCoordinates": []}
    for one in picks:
        name = f"{Path(files.names[one.number]).stem}_autopick.star"
        write_star(folder.path(COORDINATES, name), StarDocument({"": StarBlock(one.columns())}))
        listed["rlnMicrographName"].append(files.names[one.number])
        listed["rlnMicrographCoordinates"].append(str(folder.root / COORDINATES / name))
    write_star(folder.path(LIST), StarDocument({"coordinate_files": StarBlock(listed)}))


def _result(folder: Path, picks: list[Picks], limit: ScoreThreshold) -> PickResult:
    count = sum(map(len, picks))
    text = {
        "particles": f"{count:,} in {len(picks)} micrographs, scores above {limit.threshold:.3f}",
        "table": str(folder / TABLE),
        "by micrograph": f"{folder / COORDINATES}, listed in {folder / LIST}",
        "report": str(folder / REPORT),
    }
    return PickResult(None, "", rows_of_text(text), folder, count, len(picks), limit.threshold)
