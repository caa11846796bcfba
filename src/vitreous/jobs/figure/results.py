"""Results of a finished run, read from its output folder when they are asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vitreous.core.errors import InputError, UsageError
from vitreous.data.maps import read_map
from vitreous.data.particle_table import ParticleTable
from vitreous.io.csv_columns import read_columns
from vitreous.io.mrc import read_header
from vitreous.io.star import read_star
from vitreous.jobs.run.class_tables import class_name
from vitreous.jobs.run.folder import CONFIG, read_config
from vitreous.maps.fsc import CUTOFF, fsc_resolution
from vitreous.maps.fsc_warnings import OUTLINE_ONLY, outline_only
from vitreous.maps.half_maps import FEWEST_SHELLS
from vitreous.report.figures import Array

MAP_COMMANDS = ("auto", "refine", "abinit", "reconstruct", "postprocess")
HETERO, CLASSIFY2D = "hetero run", "classify2d"
FREQUENCY, CORRECTED = "frequency_inv_angstrom", "corrected"
_HEADLINES = (CORRECTED, "confirmed")  # curves that resolutions are quoted from


class MissingDataError(Exception):
    """The folder has not what a figure needs; the text says what, without full stop."""


class RunResults:
    """Results of a finished run.

    Args:
        folder: its output folder.

    Attributes:
        command: of the run.
        run, options: tables of its ``config.toml``.

    Raises:
        InputError: no output folder, one of another command, or an unfinished run.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / CONFIG).is_file():
            raise InputError(
                f"{folder}: has no {CONFIG}, so it is no output folder; give that of a run"
            )
        config = read_config(folder / CONFIG, "give another folder")
        self.folder, self.run, self.options = folder, config["run"], config["options"]
        self.command = str(self.run.get("command"))
        known = (*MAP_COMMANDS, HETERO, CLASSIFY2D)
        if self.command not in known:
            raise InputError(
                f"{folder}: holds the output of 'vitreous {self.command}', which has no figures; "
                f"give that of {', '.join(known)}"
            )
        if self.run.get("status") != "finished":
            raise InputError(f"{folder}: the run is not finished; continue it to its end first")

    @cached_property
    def solved(self) -> bool:
        """Whether half maps agree on a structure; True where that is no question."""
        if "solved" in self.run:
            return bool(self.run["solved"])
        at = self.run.get("resolution_0143_angstrom")
        if at is None:
            return True
        first_shell = float(self.table("fsc.csv", FREQUENCY)[FREQUENCY][1])
        return self.run.get("verdict") != OUTLINE_ONLY and 1 / first_shell / at >= FEWEST_SHELLS

    def file(self, name: str) -> Path:
        """Return the path of a file of the folder.

        Raises:
            MissingDataError: there is none.
        """
        path = self.folder / name
        if not path.is_file():
            raise MissingDataError(f"no {name}")
        return path

    def table(self, name: str, *needed: str) -> dict[str, Array]:
        """Return the columns of a CSV file.

        Raises:
            MissingDataError: there is none.
            InputError: it is damaged, or lacks a column that is needed.
        """
        path = self.file(name)
        columns = read_columns(path)
        for one in needed:
            if one not in columns:
                raise InputError(f"{path}: column {one}: missing; make the file again")
        return dict(columns)

    def map(self, name: str) -> tuple[Array, float]:
        """Return a map ``(z, y, x)`` and its pixel size in Å; MissingDataError without it."""
        volume, pixel = read_map(self.file(name))
        return volume.numpy(), pixel

    @cached_property
    def shown_map(self) -> tuple[str, Array, float]:
        """The map to show: its file, ``(z, y, x)`` within its mask, and its pixel size in Å."""
        names = ("sharpened_masked.mrc", "sharpened.mrc", "map.mrc")
        name = next((one for one in names if (self.folder / one).is_file()), names[-1])
        volume, pixel = self.map(name)
        if name == names[1]:
            volume = volume * self.map("mask.mrc")[0]
        return name, volume, pixel

    @cached_property
    def local_resolution(self) -> Array | None:
        """The local resolution in Å, 0 where unknown; None where it is unknown everywhere."""
        try:
            resolution, _ = self.map("local_resolution.mrc")
        except MissingDataError:
            return None
        return resolution if (resolution > 0).any() else None

    def resolutions(self, curve: Array, map_name: str) -> tuple[float, float]:
        """Return the resolutions, Å, of a curve at 0.143 and 0.5; ``map_name`` has the grid."""
        header = read_header(self.file(map_name))
        n, pixel = header.shape[-1], header.pixel_size_or(None)
        values = torch.from_numpy(curve)
        first, second = (fsc_resolution(values, at, n, pixel) for at in (CUTOFF, 0.5))
        return first, second

    def headline(self) -> tuple[str, dict[str, Array]]:
        """Return the name of the curve that resolutions are quoted from, and ``fsc.csv``."""
        table = self.table("fsc.csv", FREQUENCY)
        best = next((name for name in _HEADLINES if name in table), None)
        if best is None:
            raise MissingDataError(f"fsc.csv has no curve {' or '.join(_HEADLINES)}")
        return best, table

    def rotations(self) -> Tensor:
        """Return the rotations of the particles, ``(b, 3, 3)``.

        Raises:
            MissingDataError: no table, or none with angles.
        """
        path = self.file("particles.star")
        pose = ParticleTable(read_star(path), path).parse_pose(1.0)
        if pose is None:
            raise MissingDataError("particles.star has no angles")
        return pose.rotation

    @property
    def classes(self) -> list[int]:
        """Numbers of the classes of ``hetero`` that have a map."""
        sizes = self.run.get("sizes", [])
        return [
            k for k in range(1, len(sizes) + 1) if (self.folder / f"{class_name(k)}.mrc").is_file()
        ]

    def class_resolutions(self, number: int) -> tuple[float, float] | None:
        """Return the resolutions of a class, Å; None without half maps or of an outline alone."""
        name = class_name(number)
        try:
            curve = self.table(f"{name}_fsc.csv", CORRECTED)[CORRECTED]
            half1, pixel = self.map(f"{name}_half1.mrc")
            half2, _ = self.map(f"{name}_half2.mrc")
        except MissingDataError:
            return None
        at = self.resolutions(curve, f"{name}.mrc")
        halves = torch.from_numpy(half1), torch.from_numpy(half2)
        return None if outline_only(*halves, at[0], pixel) else at

    def require_solved(self, *, allowed: bool) -> None:
        """Refuse a run that is not solved, unless ``allowed``.

        Raises:
            UsageError: it is not.
        """
        if not (self.solved or allowed):
            raise UsageError(
                f"{self.folder}: NOT SOLVED: the half maps agree on no structure, so figures of it "
                "would mislead; `not_solved` draws them all the same, and writes so in each"
            )
