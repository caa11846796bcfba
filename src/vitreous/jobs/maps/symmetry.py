"""Find the point group of two half maps, and write them with its axes where RELION has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vitreous.core.random import generator
from vitreous.core.rotation import matrix_to_euler
from vitreous.data.maps import read_pair
from vitreous.io.atomic import atomic_write_text
from vitreous.jobs.maps.fsc import columns
from vitreous.jobs.maps.options import SymmetryOptions
from vitreous.jobs.reconstruct.output import write_maps
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.folder import OutputFolder
from vitreous.maps.symmetry_search import SymmetrySearch, find_symmetry, to_standard

FILES = ("half1.mrc", "half2.mrc", "map.mrc", "symmetry.csv")
_HEADS = "group,holds,agreement,worst,chance,Å,rot,tilt,psi,x,y,z"


@dataclass(frozen=True)
class SymmetryResult:
    """Outcome of a search for symmetry."""

    group: str  # the largest point group that holds; C1 if none does
    search: SymmetrySearch  # all candidates
    verdict: str  # one sentence
    text: str  # the candidates as a table, and where the maps are
    folder: Path | None  # where the maps in standard axes are; None where none was named


def find(options: SymmetryOptions) -> SymmetryResult:
    """Find the point group of a map that was reconstructed without one.

    Raises:
        UsageError: the folder holds something else.
        InputError: maps that cannot be read or compared.
    """
    use_device("cpu", options.threads)
    half1, half2, pixel = read_pair(
        options.half1, options.half2, options.pixel_size_angstrom, different=True
    )
    with OutputFolder.if_named("symmetry", options, FILES) as folder:
        search = find_symmetry(
            half1,
            half2,
            pixel_size_angstrom=pixel,
            generator=generator(options.seed, "symmetry"),
            box_size=options.box_size,
        )
        lines = [columns(candidates_csv(search))] if search.candidates else []
        if folder is not None:
            _write(folder, search, (half1, half2), pixel)
            if search.best is not None:
                place = f"{search.group}'s standard axes: {folder.root}"
                lines.append(f"half maps and map in {place}")
    root = None if folder is None else folder.root
    return SymmetryResult(search.group, search, search.verdict, "\n".join(lines), root)


def candidates_csv(search: SymmetrySearch) -> str:
    """Return the candidates as CSV text, those that hold first."""
    lines = [_HEADS]
    for one in search.candidates:
        angles = [f"{value:.1f}" for value in matrix_to_euler(one.rotation).tolist()]
        shift = [f"{value:.1f}" for value in one.shift_angstrom.tolist()]
        shares = [f"{value:.2f}" for value in (one.agreement, one.weakest, one.chance)]
        holds = "yes" if one.holds else "no"
        lines.append(
            ",".join([one.name, holds, *shares, f"{one.resolution_angstrom:.1f}", *angles, *shift])
        )
    return "\n".join(lines) + "\n"


def _write(
    folder: OutputFolder, search: SymmetrySearch, halves: tuple[Tensor, Tensor], pixel: float
) -> None:
    atomic_write_text(folder.path("symmetry.csv"), candidates_csv(search))
    if search.best is not None:
        first, second = (to_standard(half, search.best, pixel) for half in halves)
        maps = {"half1.mrc": first, "half2.mrc": second, "map.mrc": 0.5 * (first + second)}
        write_maps(folder, maps, pixel)
    folder.config["run"] |= {"group": search.group, "verdict": search.verdict}
    folder.finish()
