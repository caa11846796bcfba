"""Refined optics: a table of micrographs, columns of the particles, a summary."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vitreous.data.aberrations import TILT, aberration_columns, tilt_factors
from vitreous.data.particles import Particles
from vitreous.methods.em.micrograph_optics import Micrographs, OpticsRefinement

CONTRAST = "vitreousContrast"
_MOST_GROUPS = 4  # optics groups in the summary


def refined_columns(optics: OpticsRefinement, particles: Particles) -> dict[str, Any]:
    """Return refined defocus and aberrations of particles by RELION's names, and their contrast."""
    columns: dict[str, Any] = {}
    refined = optics.optics()
    if refined is None:
        return columns
    if optics.defocus_change() is not None:
        columns["rlnDefocusU"] = refined.defocus_u_angstrom.cpu().double().numpy()
        columns["rlnDefocusV"] = refined.defocus_v_angstrom.cpu().double().numpy()
    if optics.particles is not None and optics.particles.contrast:
        columns[CONTRAST] = optics.particles.scale().cpu().double().numpy()
    if optics.aberrations is not None and optics.aberrations.estimated:
        assert refined.even_turns is not None
        odd = particles.odd_phase + optics.aberrations.odd[optics.aberrations.group_of]
        factors = tilt_factors(refined.cs_mm.cpu(), refined.voltage_kv.cpu())
        columns |= aberration_columns(odd.numpy(), refined.even_turns.cpu().numpy(), factors)
    return columns


def aberration_numbers(columns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the beam tilt of each optics group, of columns that have one."""
    if not set(TILT) <= set(columns):
        return {}
    tilts = sorted(set(zip(*(columns[name] for name in TILT), strict=True)))
    shown = "; ".join(f"{float(x):.2f}, {float(y):.2f}" for x, y in tilts[:_MOST_GROUPS])
    return {"beam tilt": f"{shown}{' ...' * (len(tilts) > _MOST_GROUPS)} mrad"}


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
        of = " of particles" * micrographs.single
        numbers[f"defocus{of}"] = f"{float(change.square().mean().sqrt()):.0f} Å rms, {to}"
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
