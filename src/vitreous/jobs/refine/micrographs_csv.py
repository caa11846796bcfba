"""What refinement found of micrographs: a table, columns for the particles, a summary."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import torch
from torch import Tensor

from vitreous.methods.em.micrograph_optics import Micrographs, OpticsRefinement

CONTRAST = "vitreousContrast"


def refined_columns(judged: OpticsRefinement | None) -> dict[str, Tensor]:
    """The particles' defocus under RELION's names, and their contrast, where it was refined."""
    columns = {}
    micrographs, single = (None, None) if judged is None else (judged.micrographs, judged.single)
    if micrographs is not None and micrographs.defocus:
        optics = micrographs.optics()
        columns["rlnDefocusU"] = optics.defocus_u_angstrom.cpu().double()
        columns["rlnDefocusV"] = optics.defocus_v_angstrom.cpu().double()
    if single is not None:
        columns[CONTRAST] = single.scale().cpu().double()
    return columns


def optics_numbers(micrographs: Micrographs) -> dict[str, str]:
    """How far defocus and contrast were changed, of micrographs or particles, for the summary."""
    found = [one for one in micrographs.found if one is not None]

    def both(name: str) -> Tensor:
        return torch.cat([getattr(one, name)[one.particles > 0] for one in found]).cpu()

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


def micrographs_csv(micrographs: Micrographs, names: Sequence[str]) -> str:
    """The text of ``micrographs.csv``: a row for every micrograph and half set."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["micrograph", "half", "particles"]
    if micrographs.defocus:
        head += ["defocus_change_angstrom", "defocus_error_angstrom"]
    if micrographs.contrast:
        head += ["scale", "scale_error"]
    writer.writerow(head)
    for which, found in enumerate(micrographs.found):
        if found is None:
            continue
        columns = [getattr(found, name).tolist() for name in head[3:]]
        for place, count in enumerate(found.particles.tolist()):
            if count > 0:
                values = [f"{column[place]:.4f}" for column in columns]
                writer.writerow([names[place], which + 1, int(count), *values])
    return text.getvalue()
