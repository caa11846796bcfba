"""Refined defocus and contrast of micrographs: a table, columns of the particles, a summary."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import torch
from torch import Tensor

from vitreous.methods.em.micrograph_optics import Micrographs, OpticsRefinement

CONTRAST = "vitreousContrast"


def refined_columns(optics: OpticsRefinement) -> dict[str, Tensor]:
    """Return the particles' refined defocus under RELION's names, and their refined contrast."""
    columns = {}
    if optics.micrographs is not None and optics.micrographs.defocus:
        refined = optics.micrographs.optics()
        columns["rlnDefocusU"] = refined.defocus_u_angstrom.cpu().double()
        columns["rlnDefocusV"] = refined.defocus_v_angstrom.cpu().double()
    if optics.particles is not None:
        columns[CONTRAST] = optics.particles.scale().cpu().double()
    return columns


def optics_numbers(micrographs: Micrographs) -> dict[str, str]:
    """Return how far defocus and contrast of micrographs or particles were changed."""
    estimates = [one for one in micrographs.estimates if one is not None]

    def both(name: str) -> Tensor:
        return torch.cat([getattr(one, name)[one.particles > 0] for one in estimates]).cpu()

    numbers = {}
    if micrographs.defocus:
        change, error = both("defocus_change_angstrom"), both("defocus_error_angstrom")
        known = error[error.isfinite()]
        to = f"to {float(known.median()):.0f} Å" if len(known) else "nothing to be seen of it"
        numbers["defocus"] = f"{float(change.square().mean().sqrt()):.0f} Å rms, {to}"
    if micrographs.contrast:
        scale = both("scale")
        numbers["contrast"] = f"{float(scale.min()):.2f} to {float(scale.max()):.2f}"
    return numbers


def cell(text: str) -> str:
    """Return a text as a cell that no spreadsheet takes for a formula.

    >>> cell("=1+1"), cell("mic.mrc")
    ("'=1+1", 'mic.mrc')
    """
    return f"'{text}" if text[:1] in ("=", "@", "+", "-", "\t", "\r") else text


def micrographs_csv(micrographs: Micrographs, names: Sequence[str]) -> str:
    """Return the text of ``micrographs.csv``: a row for every micrograph and half set."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["micrograph", "half", "particles"]
    if micrographs.defocus:
        head += ["defocus_change_angstrom", "defocus_error_angstrom"]
    if micrographs.contrast:
        head += ["scale", "scale_error"]
    writer.writerow(head)
    for half, estimate in enumerate(micrographs.estimates, start=1):
        if estimate is None:
            continue
        columns = [getattr(estimate, name).tolist() for name in head[3:]]
        for number, count in enumerate(estimate.particles.tolist()):
            if count > 0:
                values = [f"{column[number]:.4f}" for column in columns]
                writer.writerow([cell(names[number]), half, int(count), *values])
    return text.getvalue()
