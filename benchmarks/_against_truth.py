"""How far a map is right: aligned with the truth over rotation, shift and hand, then its FSC."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.core.grid import soft_mask
from vitreous.io.mrc import read_mrc
from vitreous.maps.align import align_maps
from vitreous.maps.fsc import fsc, fsc_resolution, solvent_mask


def read_map(path: Path) -> Tensor:
    return torch.from_numpy(read_mrc(path)[0].copy()).float()


def latest(folder: Path, pattern: str) -> tuple[int, Path | None]:
    """The file of the highest iteration (group 1), and the iteration; of complete files only."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("*"):
        match = re.fullmatch(pattern, path.name)
        if match:
            found.append((int(match[1]), path))
    for number, path in sorted(found, reverse=True):
        try:
            read_map(path)
        except Exception:  # being written when the program was stopped
            continue
        return number, path
    return 0, None


def against_truth(
    volume: Tensor,
    truth: Tensor,
    pixel: float,
    *,
    either_contrast: bool = False,
    allow_mirror: bool = True,
) -> dict[str, Any]:
    """Resolutions in Å (0.5 and 0.143) within a sphere, and within the molecule's own soft mask.

    No symmetry is known to the alignment. With ``either_contrast`` protein may be dark.
    """
    n = truth.shape[-1]
    signs = (1, -1) if either_contrast else (1,)
    found = [
        align_maps(sign * volume, truth, pixel_size_angstrom=pixel, allow_mirror=allow_mirror)
        for sign in signs
    ]
    best = max(found, key=lambda fit: fit.correlation)
    result: dict[str, Any] = {
        "correlation": round(float(best.correlation), 4),
        "mirrored": best.mirrored,
    }
    if either_contrast:
        result["protein_dark"] = best is found[-1]
    masks = {"sphere": soft_mask(n, 3, n / 2 - 4, 3.0), "molecule": solvent_mask(truth)}
    for where, mask in masks.items():
        curve = fsc(best.aligned * mask, truth * mask)
        result[where] = {
            f"fsc_{threshold}_angstrom": round(fsc_resolution(curve, threshold, n, pixel), 2)
            for threshold in (0.5, 0.143)
        }
        if where == "sphere":
            below = (curve[1:] < 0.5).nonzero().flatten()
            result["shells"] = int(below[0]) if len(below) else n // 2
    return result
