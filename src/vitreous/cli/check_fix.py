"""``vitreous check --fix``: the table as it should have been, beside the original."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vitreous.core.params import Optics
from vitreous.data.formats import select_rows
from vitreous.data.particles import Particles
from vitreous.data.tables import CTF_COLUMNS, pose_columns
from vitreous.io.star import StarBlock, StarDocument, format_column, write_star
from vitreous.metrics.checks.doctor import Diagnosis


def fixed_path(table: Path) -> Path:
    """Where the corrected table goes.

    >>> str(fixed_path(Path("job/particles.star")))
    'job/particles_fixed.star'
    """
    return table.with_name(f"{table.stem}_fixed.star")


def write_fixed(path: Path, particles: Particles, diagnosis: Diagnosis) -> list[str]:
    """Write what a diagnosis mends; nothing where it mends nothing.

    Returns:
        what was mended, in words.

    Raises:
        ResourceError: disk full.
        InputError: the folder cannot be written.
    """
    claims, mended = diagnosis.claims, diagnosis.mended
    done: list[str] = []
    columns: dict[str, list[str]] = {}
    shared: dict[str, list[str]] = {}
    if mended.pose is not claims.pose and mended.pose is not None:
        changed = [f.topic for f in diagnosis.findings if f.fault.startswith(("euler", "shift"))]
        if changed:
            columns |= pose_columns(mended.pose)
            done.append(" and ".join(changed) + " corrected")
    if mended.optics is not None and claims.optics is not None:
        changed_columns = _changed_optics(claims.optics, mended.optics)
        columns |= {n: v for n, v in changed_columns.items() if n != "rlnVoltage"}
        if "rlnVoltage" in changed_columns:
            shared["rlnVoltage"] = changed_columns["rlnVoltage"]
        if changed_columns:
            done.append(f"{', '.join(changed_columns)} corrected")
    if mended.pixel_size_angstrom != claims.pixel_size_angstrom:
        shared["rlnImagePixelSize"] = format_column([mended.pixel_size_angstrom])
        done.append(f"pixel size set to {mended.pixel_size_angstrom:.4g} Å")
    left_out = set(diagnosis.suspects.unusable)
    if left_out:
        done.append(f"{len(left_out)} images left out")
    if not done:
        return done
    document = particles.to_star_document(relative_to=path.parent, **columns)
    document = _with_shared(document, shared)
    keep = [row for row in range(len(particles)) if row not in left_out]
    write_star(path, select_rows(document, np.array(keep, dtype=np.int64)))
    return done


def _changed_optics(before: Optics, after: Optics) -> dict[str, list[str]]:
    columns = {}
    for key, name in CTF_COLUMNS.items():
        old, new = getattr(before, key), getattr(after, key)
        if not torch.equal(old, new):
            columns[name] = format_column(new.double().numpy())
    return columns


def _with_shared(document: StarDocument, shared: dict[str, list[str]]) -> StarDocument:
    """One value for every optics group; a column of the particles gives way to it."""
    optics = dict(document.blocks["optics"].columns)
    particles = dict(document.blocks["particles"].columns)
    for name, values in shared.items():
        optics[name] = [values[0]] * len(document.blocks["optics"])
        particles.pop(name, None)
    blocks = {
        **document.blocks,
        "optics": replace(document.blocks["optics"], columns=optics),
        "particles": StarBlock(particles),
    }
    return StarDocument(blocks)
