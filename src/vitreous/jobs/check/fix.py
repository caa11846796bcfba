"""Write the table as it should have been, beside the original."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vitreous.core.params import Optics
from vitreous.data.formats import select_rows
from vitreous.data.particles import Particles
from vitreous.data.tables import CTF_COLUMNS, OPTIONAL_CTF_COLUMNS, pose_columns
from vitreous.doctor.examine import Diagnosis
from vitreous.doctor.poses import EULER, SHIFT
from vitreous.io.star import StarBlock, StarDocument, format_column, write_star

_POSE_FAULTS = {convention.fault for convention in (*EULER, *SHIFT)} - {""}
_ROUGH_PHASE = "90 degrees more are a first value: estimate the CTF with phase shift"
BEYOND_A_TABLE = {  # faults that a new table does not correct, and why
    "contrast": "grey values are the images', and RELION's tables do not state their sign",
    "header-pixel-size": "the images do not tell which is true, or it is the header that is wrong",
    "saturated": "what was cut off is lost in the images",
    "outliers": "whether they are ice, carbon or particles is for you to judge",
    "drift": "grey values are the images'",
    "offset": "grey values are the images'",
    "band-limit": "what was filtered away is lost in the images",
    "poses-unrelated": "no convention makes them fit",
}


def fixed_path(table: Path) -> Path:
    """Return the path of the corrected table.

    >>> str(fixed_path(Path("job/particles.star")))
    'job/particles_fixed.star'
    """
    return table.with_name(f"{table.stem}_fixed.star")


@dataclass(frozen=True)
class Correction:
    """Corrections of a table."""

    done: tuple[str, ...]  # what was corrected, in words; empty where no table was written
    left: tuple[str, ...]  # what is wrong and no table can correct, and why


def write_fixed(path: Path, particles: Particles, diagnosis: Diagnosis) -> Correction:
    """Write the corrected table; nothing where there is nothing to correct.

    Raises:
        ResourceError: disk full.
        InputError: the folder cannot be written.
    """
    claims, corrected = diagnosis.claims, diagnosis.corrected
    done: list[str] = []
    columns: dict[str, list[str]] = {}
    shared: dict[str, list[str]] = {}
    changed = [f.topic for f in diagnosis.findings if f.fault in _POSE_FAULTS]
    if changed and corrected.pose is not None:
        columns |= pose_columns(corrected.pose)
        done.append(" and ".join(changed) + " corrected")
    if corrected.optics is not None and claims.optics is not None:
        changed_columns = _changed_optics(claims.optics, corrected.optics)
        for name, values in changed_columns.items():
            (shared if name == "rlnVoltage" else columns)[name] = values
        if changed_columns:
            rough = "" if "phase-shift" not in diagnosis.faults else f" ({_ROUGH_PHASE})"
            done.append(f"{', '.join(changed_columns)} corrected{rough}")
    if corrected.pixel_size_angstrom != claims.pixel_size_angstrom:
        shared["rlnImagePixelSize"] = format_column([corrected.pixel_size_angstrom])
        done.append(f"pixel size set to {corrected.pixel_size_angstrom:.4g} Å")
    left_out = set(diagnosis.suspects.unusable)
    if left_out:
        done.append(f"{len(left_out)} images left out")
    if done:
        document = particles.to_star_document(relative_to=path.parent, **columns)
        document = _with_shared(document, columns, shared)
        keep = [row for row in range(len(particles)) if row not in left_out]
        write_star(path, select_rows(document, np.array(keep, dtype=np.int64)))
    beyond = [f for f in diagnosis.findings if f.fault in BEYOND_A_TABLE]
    left = [f"{f.topic}: {f.claim}: {BEYOND_A_TABLE[f.fault]}; {f.remedy}" for f in beyond]
    return Correction(tuple(done), tuple(left))


def _changed_optics(before: Optics, after: Optics) -> dict[str, list[str]]:
    columns = {}
    for key, name in {**CTF_COLUMNS, **OPTIONAL_CTF_COLUMNS}.items():
        old, new = getattr(before, key), getattr(after, key)
        if not torch.equal(old, new):
            columns[name] = format_column(new.double().numpy())
    return columns


def _with_shared(
    document: StarDocument, columns: dict[str, list[str]], shared: dict[str, list[str]]
) -> StarDocument:
    """Give every optics group the ``shared`` values, and drop columns that new ones replace."""
    optics, particles = document.blocks["optics"], dict(document.blocks["particles"].columns)
    of_groups = {name: values for name, values in optics.columns.items() if name not in columns}
    for name, values in shared.items():
        of_groups[name] = [values[0]] * len(optics)
        particles.pop(name, None)
    blocks = {"optics": replace(optics, columns=of_groups), "particles": StarBlock(particles)}
    return StarDocument({**document.blocks, **blocks})
