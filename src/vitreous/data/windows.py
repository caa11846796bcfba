"""Particles cut out of micrographs, at the coordinates of a table."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitreous.core.errors import InputError, UsageError
from vitreous.data.particle_table import ParticleTable
from vitreous.data.particles import Particles
from vitreous.data.picks import micrograph_pixel_size, picked_micrographs
from vitreous.data.relion31 import to_relion31
from vitreous.data.stacks import WindowSource
from vitreous.io.mrc import read_header
from vitreous.io.star import StarBlock, StarDocument

_NAME, _IMAGE = "rlnMicrographName", "rlnImageName"
_OF_IMAGES = ("rlnImagePixelSize", "rlnImageSize")


def has_images(document: StarDocument) -> bool:
    """Return whether a STAR file names images; one of coordinates does not."""
    return any(_IMAGE in block for block in document.blocks.values())


def cut_particles(
    document: StarDocument,
    star: Path,
    folder: Path,
    window: int | None,
    *,
    pixel_size_angstrom: float | None = None,
    skip_missing: bool = False,
    inside_only: bool = True,
) -> Particles:
    """Return the particles of a STAR file of coordinates as windows of micrographs.

    Windows are centred on the pixel nearest to ``rlnCoordinateX/Y``. Those that leave their
    micrograph are left out, with a warning, unless ``inside_only`` is false: then none can be read.
    Poses and half sets of the table are not used.

    Args:
        document: table with micrograph names and coordinates, of picks or of extracted particles.
        star: its file, for messages.
        folder: folder of the micrographs; see :func:`vitreous.data.picks.picked_micrographs`.
        window: edge of the windows in pixels of the micrographs.
        pixel_size_angstrom: of the micrographs, if not what the table or the files say.
        skip_missing: leave out micrographs without a file.

    Raises:
        UsageError: no window.
        InputError: the table or a micrograph is wrong, or no window lies in its micrograph.
    """
    if window is None:
        raise UsageError(
            "`window`: needed to cut particles from micrographs; give its edge in their pixels, "
            "about twice the particle's diameter"
        )
    blocks = [b for name, b in document.blocks.items() if name != "optics" and _NAME in b]
    if len(blocks) != 1:
        raise InputError(f"{star}: column _{_NAME}: found in {len(blocks)} blocks, expected one")
    micrographs = picked_micrographs(blocks[0], star, folder, skip_missing=skip_missing)
    headers = [read_header(one.path, warn=False) for one in micrographs]
    pixel = micrograph_pixel_size(document, headers[0], pixel_size_angstrom)
    rows = np.concatenate([one.rows for one in micrographs]).astype(np.int64)
    owner = np.repeat(np.arange(len(micrographs)), [len(one.rows) for one in micrographs])
    centres = np.concatenate([one.centres for one in micrographs])
    corners = np.floor(centres + 0.5).astype(np.int64) - window // 2
    edges = np.array([header.shape[:0:-1] for header in headers])[owner]  # nx, ny
    inside = ((corners >= 0) & (corners + window <= edges)).all(1)
    whole = np.asarray(inside if inside_only else np.ones_like(inside))
    if not whole.any():
        raise InputError(
            f"{star}: no window of {window} px lies in its micrograph; check `window`, and that "
            "the coordinates are pixels of these micrographs"
        )
    if not whole.all():
        warnings.warn(
            f"{(~whole).sum()} of {len(whole)} particles are left out: their windows of {window} "
            "px leave the micrograph",
            stacklevel=2,
        )
    order = np.flatnonzero(whole)[np.argsort(rows[whole], kind="stable")]
    source = WindowSource([m.path for m in micrographs], owner[order], corners[order], window)
    return _particles(document, blocks[0], star, source, rows[order], pixel)


def _particles(
    document: StarDocument,
    block: StarBlock,
    star: Path,
    source: WindowSource,
    rows: NDArray[np.int64],
    pixel_size_angstrom: float,
) -> Particles:
    """Return the rows of a table with the windows as their images."""
    columns: dict[str, Any] = {
        name: [values[row] for row in rows.tolist()]
        for name, values in block.columns.items()
        if name not in _OF_IMAGES
    }
    columns[_IMAGE] = [f"{row + 1:06d}@{columns[_NAME][i]}" for i, row in enumerate(rows.tolist())]
    optics = document.blocks.get("optics")
    kept = {}
    if optics is not None:
        shared = {k: v for k, v in optics.columns.items() if k not in _OF_IMAGES}
        shared["rlnImageSize"] = [str(source.box_size)] * len(optics)
        kept["optics"] = StarBlock(shared)
    cut = to_relion31(
        StarDocument({**kept, "particles": StarBlock(columns)}),
        star,
        pixel_size_angstrom=pixel_size_angstrom,
        box_size=source.box_size,
    )
    table = ParticleTable(cut, star)
    micrograph_id, names = table.micrographs(columns[_IMAGE])
    return Particles(
        ctf=table.parse_optics(),
        pose=None,
        pixel_size_angstrom=pixel_size_angstrom,
        micrograph_id=torch.from_numpy(micrograph_id),
        micrograph_names=names,
        half_set=torch.zeros(len(rows), dtype=torch.long),
        ids=tuple(columns[_IMAGE]),
        _source=source,
        _rows=np.arange(len(rows)),
        _table=table,
    )
