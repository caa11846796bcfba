"""Mixed particles with known truth, made by `vitreous simulate`, and what was found in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from _against_truth import against_truth, read_map
from _public_data import RIBOSOME, RIBOSOME_APIX
from vitreous.core.fourier import fourier_resize
from vitreous.io.mrc import read_mrc, write_mrc
from vitreous.io.star import read_star

Array = NDArray[np.float64]
EDGE = 320.0  # of the box, Å
PIECES = {"quarter": ((1.0, 0.3, 0.2), 0.25), "third": ((-0.4, 0.2, 1.0), 1 / 3)}
_LEVEL = 0.15  # of the 99.9th percentile: density that counts as the molecule
_RIM, _EDGE = 2, 0.8  # voxels that go with a piece, and the softness of the cut


def without_piece(volume: Array, direction: tuple[float, float, float], share: float) -> Array:
    """A map without one connected piece that holds a share of its mass.

    The piece grows from the molecule's outermost voxel in a direction (x, y, z), neighbour by
    neighbour within the molecule, until it holds the share.
    """
    inside = volume > _LEVEL * np.quantile(volume, 0.999)
    labels, _ = ndimage.label(inside)
    inside = labels == np.bincount(labels[inside]).argmax()
    voxels = np.argwhere(inside)
    seed = voxels[(voxels[:, ::-1] @ np.asarray(direction)).argmax()]
    piece = np.zeros_like(inside)
    piece[tuple(seed)] = True
    mass = (volume * inside).sum()
    while (volume * piece).sum() < share * mass:
        piece = ndimage.binary_dilation(piece, mask=inside)
    cut = ndimage.binary_dilation(piece, iterations=_RIM) & ~(inside & ~piece)
    return np.asarray(volume * (1.0 - ndimage.gaussian_filter(cut.astype(float), _EDGE)))


def ribosomes(data: Path, folder: Path) -> list[Path]:
    """The whole ribosome and two that lack a piece, as maps; made once."""
    volume = read_mrc(data / RIBOSOME)[0].astype(np.float64)
    folder.mkdir(parents=True, exist_ok=True)
    maps = {"whole": volume}
    maps |= {name: without_piece(volume, *piece) for name, piece in PIECES.items()}
    paths = []
    for name, one in maps.items():
        paths.append(folder / f"{name}.mrc")
        write_mrc(paths[-1], one.astype(np.float32), RIBOSOME_APIX)
    return paths


def column(path: Path, name: str) -> Array:
    """A column of a table of particles."""
    return np.asarray(read_star(path).blocks["particles"].numbers(name, path), dtype=np.float64)


def maps_against_truth(
    maps: list[Path], found: Array, states: Array, truths: Path, edge: float
) -> list[dict[str, Any]]:
    """Each map against the truth that most of its particles show, at the truth's box.

    Classes count from 1; ``edge`` is the box's, Å.
    """
    rows = []
    for number, path in enumerate(maps, 1):
        mine = states[found == number].astype(int)
        shown = int(np.bincount(mine).argmax()) if len(mine) else 1
        told = map_against_truth(read_map(path), truths / f"truth{shown:02d}.mrc", edge)
        share = float((mine == shown).mean()) if len(mine) else 0.0
        rows.append(
            {"map": path.name, "particles": len(mine), "truth": shown, "share": share, **told}
        )
    return rows


def map_against_truth(volume: Tensor, truth: Path, edge: float) -> dict[str, Any]:
    """A map of any box against a truth, at the truth's box; ``edge`` is the box's, Å."""
    shown = read_map(truth)
    n = shown.shape[-1]
    return against_truth(fourier_resize(volume, n, 3), shown, edge / n)
