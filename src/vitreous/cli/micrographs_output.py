"""What refinement found of micrographs: a table, columns for the particles, a summary."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import torch
from torch import Tensor

from vitreous.solvers.micrographs import Micrographs


def defocus_columns(micrographs: Micrographs | None) -> dict[str, Tensor]:
    """The particles' defocus under RELION's names, where it was refined."""
    if micrographs is None or not micrographs.config.refine_defocus:
        return {}
    optics = micrographs.optics()
    return {
        "rlnDefocusU": optics.defocus_u_angstrom.cpu().double(),
        "rlnDefocusV": optics.defocus_v_angstrom.cpu().double(),
    }


def optics_numbers(micrographs: Micrographs) -> dict[str, str]:
    """How far defocus and contrast were changed, for the summary."""
    found = [one for one in micrographs.found if one is not None]

    def both(name: str) -> Tensor:
        return torch.cat([getattr(one, name)[one.particles > 0] for one in found]).cpu()

    numbers = {}
    if micrographs.config.refine_defocus:
        change, error = both("defocus_change_angstrom"), both("defocus_error_angstrom")
        known = error[error.isfinite()]
        to = f"to {float(known.median()):.0f} Å" if len(known) else "nothing to be seen of it"
        numbers["defocus"] = f"{float(change.square().mean().sqrt()):.0f} Å rms, {to}"
    if micrographs.config.scale == "micrograph":
        scale = both("scale")
        numbers["contrast"] = f"{float(scale.min()):.2f} to {float(scale.max()):.2f}"
    return numbers


def micrographs_csv(micrographs: Micrographs, names: Sequence[str]) -> str:
    """The text of ``micrographs.csv``: a row for every micrograph and half set."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["micrograph", "half", "particles"]
    if micrographs.config.refine_defocus:
        head += ["defocus_change_angstrom", "defocus_error_angstrom"]
    if micrographs.config.scale == "micrograph":
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
