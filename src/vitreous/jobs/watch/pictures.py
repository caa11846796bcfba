"""Picture of the map, and Fourier shell correlations, from a run's files as they are.

Needs no torch: the newest checkpoint's file is opened for the few tensors that are shown.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from vitreous.core.errors import InputError
from vitreous.io.csv_columns import read_columns
from vitreous.io.mrc import read_mrc
from vitreous.report.figures import (
    Array,
    central_slices,
    enlarge,
    montage,
    png_bytes,
    projections,
    to_gray,
)

# Names of tensors to show, the preferred first; of those that the group tells apart, the last.
_MAPS = (
    r"(stage\.solver\.)references\.\d+",
    r"(stage\.solver\.halves\.\d+\.runs\.\d+\.)references\.\d+",
    r"(stage\.solver\.)(?:maps|halves)\.\d+",
    r"(stage\.solver\.)(?:maps|averages)",
    r"(kept\.[^.]+\.)half[12]",
    r"(kept\.[^.]+\.)(?:maps|averages)",
)
_CURVES = r"stage\.solver\.(?:halves\.(\d+)\.runs\.(\d+)\.)?(?:fsc|frc)"
_FSC_COLUMNS = ("corrected", "confirmed", "masked", "unmasked", "fsc")
TILE, MOST_IMAGES, MOST_BYTES = 150, 24, 4 << 30
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, InputError, SafetensorError)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the record of the newest checkpoint of a folder; None where there is none."""
    records = [path for path in folder.glob("step_*.json") if path.stem[5:].isdecimal()]
    return max(records, key=lambda path: int(path.stem[5:]), default=None)


class CheckpointView:
    """What a checkpoint shows: round, picture and curves.

    Args:
        record: its JSON file.

    Attributes:
        name: stage and round, such as "refinement, round 3".
        curves: label to correlation of each shell.
        png: picture of the map or class averages; None where it holds none.
        caption: of the picture.

    Raises:
        one of ``UNREADABLE``: no checkpoint.
    """

    def __init__(self, record: Path) -> None:
        content = json.loads(record.read_bytes())
        stage = content["meta"]["tree"].get("stage") or {"name": "", "solver": {}}
        number = stage["solver"].get("round")
        self.name = str(stage["name"]).replace("_", " ") + (f", round {number}" if number else "")
        file = record.with_name(Path(content["tensors"]).name)
        if file.stat().st_size > MOST_BYTES:
            raise ValueError("too large to be shown")
        with safe_open(file, framework="numpy") as tensors:
            names = sorted(tensors.keys(), key=_natural)
            self.curves = self._curves(tensors, names)
            self.png, self.caption = self._picture(tensors, names)

    def _curves(self, tensors: Any, names: list[str]) -> dict[str, list[float]]:
        curves = {}
        for name in names:
            if (match := re.fullmatch(_CURVES, name)) is None:
                continue
            values = np.atleast_2d(tensors.get_tensor(name))
            half, run = (None if one is None else int(one) + 1 for one in match.groups())
            label = self.name if half is None else f"half {half}, start {run}"
            for k, curve in enumerate(values, 1):
                extra = f"class {k}" if len(values) > 1 else label
                curves[extra] = [round(float(v), 4) for v in curve]
        return curves

    def _picture(self, tensors: Any, names: list[str]) -> tuple[bytes | None, str]:
        for pattern in _MAPS:
            found = [m for name in names if (m := re.fullmatch(pattern, name))]
            group = [m[0] for m in found if m[1] == found[-1][1]]
            if not group:
                continue
            values = np.asarray(tensors.get_tensor(group[0]), np.float32)
            if "averages" in group[0]:
                return image_gallery(values), f"Class averages, {self.name}"
            for name in group[1:]:
                values = values + tensors.get_tensor(name)
            values = values[0] if values.ndim == 4 else values
            what = self.name or group[0].split(".")[1].replace("_", " ")  # of a stage that ended
            if run := re.search(r"halves\.(\d+)\.runs\.(\d+)", group[0]):
                what += f", half {int(run[1]) + 1}, start {int(run[2]) + 1}"
            return map_picture(values), f"Map, {what}"
        return None, ""


def map_picture(volume: Array) -> bytes:
    """Return a PNG of a map ``(z, y, x)``: three central slices, each beside its projection.

    Raises:
        ValueError: it has not three axes.
    """
    if volume.ndim != 3 or not volume.size:
        raise ValueError(f"map must be (z, y, x), got {volume.shape}")
    pairs = zip(central_slices(volume).values(), projections(volume).values(), strict=True)
    return _sheet([_tile(plane) for pair in pairs for plane in pair], 2)


def image_gallery(images: Array) -> bytes:
    """Return a PNG of images ``(k, n, n)``, at most the first 24, in rows of six."""
    if images.ndim != 3:
        raise ValueError(f"images must be (k, n, n), got {images.shape}")
    return _sheet([_tile(image) for image in images[:MOST_IMAGES]], min(6, len(images)))


def _tile(image: Array) -> Array:
    step = -(-max(image.shape) // (2 * TILE))
    image = image[::step, ::step]
    return to_gray(enlarge(np.nan_to_num(image), TILE)).astype(np.float32)


def _sheet(tiles: list[Array], columns: int) -> bytes:
    size = max(max(tile.shape) for tile in tiles)
    square = np.full((len(tiles), size, size), np.nan, np.float32)
    for place, tile in zip(square, tiles, strict=True):
        top, left = ((size - edge) // 2 for edge in tile.shape)
        place[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return png_bytes(to_gray(montage(square, columns, gap_px=3), (0.0, 255.0)))


def file_picture(path: Path) -> bytes:
    """Return the picture of a map file, or of a stack of class averages."""
    volume = read_mrc(path)[0]
    return image_gallery(volume) if path.suffix == ".mrcs" else map_picture(volume)


def fsc_file_curves(path: Path) -> dict[str, list[list[float]]]:
    """Return the curves of a table ``fsc.csv``: label to frequencies in 1/Å and correlations."""
    columns = read_columns(path)
    x = columns["frequency_inv_angstrom"].tolist()
    return {name: [x, columns[name].tolist()] for name in _FSC_COLUMNS if name in columns}


def _natural(name: str) -> list[Any]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
