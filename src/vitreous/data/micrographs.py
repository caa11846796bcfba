"""Micrographs of a folder or a STAR file, with the CTF of each, and tables of picks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.core.params import Optics
from vitreous.data.particle_table import ParticleTable
from vitreous.data.simulation_inputs import MicrographSet, load_micrographs
from vitreous.data.stacks import find_stack
from vitreous.data.tables import make_document, optics_table
from vitreous.io.star import StarBlock, StarDocument, format_column, read_star

_NAME = "rlnMicrographName"
_SUFFIX = ".mrc"


@dataclass(frozen=True)
class MicrographFiles:
    """Micrographs: their names in tables, files ``(n,)``, and CTF where known, fields ``(n,)``."""

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    optics: Optics | None = None

    def __len__(self) -> int:
        return len(self.names)


def find_micrographs(
    source: Path,
    ctf_file: Path | None = None,
    *,
    voltage_kv: float | None = None,
    cs_mm: float | None = None,
    amplitude_contrast: float | None = None,
) -> MicrographFiles:
    """Find micrographs and the CTF of each.

    Args:
        source: a folder of ``.mrc`` files, one of them, or a STAR file of micrographs, whose names
            are searched from its folder upwards.
        ctf_file: STAR file of micrographs, or text as :func:`vitreous.io.ctffind.read_ctffind`
            reads it; micrographs are matched by the stem of their name. Without it a ``source``
            that is a STAR file gives the CTF, if it has one.
        voltage_kv, cs_mm, amplitude_contrast: override those of a text, 300, 2.7 and 0.1.

    Raises:
        InputError: no micrographs, or one without CTF in ``ctf_file``.
    """
    table = source if source.suffix == ".star" else None
    if table is not None:
        names = list(dict.fromkeys(_micrograph_table(table).text(_NAME)))
        try:
            paths = [find_stack(name, table) for name in names]
        except InputError as error:
            raise InputError(
                f"{table}: column _{_NAME}: micrographs are not found from the table's folder "
                "upwards; give their folder instead, and the table as `ctf_file`"
            ) from error
    else:
        paths = sorted(source.glob(f"*{_SUFFIX}")) if source.is_dir() else [source]
        names = list(map(str, paths))
    if not paths:
        raise InputError(f"{source}: no {_SUFFIX} files; name the folder of the micrographs")
    known, ctf_file = None, ctf_file or table
    if ctf_file is not None and ctf_file.suffix == ".star":
        known = _star_optics(ctf_file, required=ctf_file != table)
    elif ctf_file is not None:
        known = load_micrographs(
            ctf_file,
            seed=0,
            voltage_kv=voltage_kv,
            cs_mm=cs_mm,
            amplitude_contrast=amplitude_contrast,
        )
    if known is None:
        return MicrographFiles(tuple(names), tuple(paths))
    rows = {_stem(name): row for row, name in enumerate(known.names)}
    missing = [name for name in names if _stem(name) not in rows]
    if missing:
        raise InputError(
            f"{ctf_file}: micrograph {missing[0]!r}: no row, as for {len(missing)} of {len(names)} "
            "micrographs; add them, or leave `ctf_file` out"
        )
    places = torch.tensor([rows[_stem(name)] for name in names])
    return MicrographFiles(tuple(names), tuple(paths), known.optics[places])


def _stem(name: str) -> str:
    return re.sub(r"\.(mrcs?|tiff?|eer)$", "", name.rpartition("/")[2])


def _micrograph_table(path: Path) -> ParticleTable:
    """Open the table of micrographs in a STAR file of RELION 3.0 or later."""
    blocks = read_star(path).blocks
    rows = [block for name, block in blocks.items() if name != "optics" and _NAME in block]
    if len(rows) != 1:
        raise InputError(
            f"{path}: column _{_NAME}: found in {len(rows)} blocks, expected one; is it a STAR "
            "file of micrographs?"
        )
    optics = {name: block for name, block in blocks.items() if name == "optics"}
    return ParticleTable(StarDocument({**optics, "particles": rows[0]}), path)


def _star_optics(path: Path, *, required: bool) -> MicrographSet | None:
    table = _micrograph_table(path)
    optics = table.parse_optics()
    if isinstance(optics, Optics):
        return MicrographSet(tuple(table.text(_NAME)), optics)
    if required:
        raise InputError(optics)
    return None


@dataclass(frozen=True)
class Picks:
    """Particles of one micrograph, the best first.

    ``number`` is that of the micrograph, ``centres (k, 2)`` are x and y in its pixels, ``scores``
    and ``templates (k,)`` the scores and the numbers of the templates, from 0.
    """

    number: int
    centres: NDArray[np.float64]
    scores: NDArray[np.float64]
    templates: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Any) -> Picks:
        """Select picks by a slice or mask."""
        return Picks(self.number, self.centres[rows], self.scores[rows], self.templates[rows])

    def columns(self) -> dict[str, list[str]]:
        """Return RELION's columns of coordinates."""
        return {
            "rlnCoordinateX": format_column(self.centres[:, 0], 2),
            "rlnCoordinateY": format_column(self.centres[:, 1], 2),
            "rlnAutopickFigureOfMerit": format_column(self.scores, 4),
            "rlnClassNumber": format_column(self.templates + 1),
        }


def picks_document(
    files: MicrographFiles, picks: Sequence[Picks], pixel_size_angstrom: float
) -> StarDocument:
    """Return the RELION 3.1 table of all picks, with the CTF of their micrographs where known.

    ``rlnMicrographPixelSize`` is the pixel size of the coordinates, in Å.
    """
    owner = [one.number for one in picks for _ in range(len(one))]
    columns = {_NAME: [files.names[number] for number in owner]}
    for name in picks[0].columns():
        columns[name] = [text for one in picks for text in one.columns()[name]]
    optics, columns["rlnOpticsGroup"] = optics_table(1, {}), ["1"] * len(owner)
    if files.optics is not None and owner:
        document = make_document(
            [""] * len(owner), files.optics[torch.tensor(owner)], pixel_size_angstrom=1, box_size=1
        )
        optics = document.blocks["optics"]
        columns |= document.blocks["particles"].columns
        del columns["rlnImageName"]
    kept = {name: text for name, text in optics.columns.items() if "Image" not in name}
    size = format_column([pixel_size_angstrom]) * len(optics)
    optics = StarBlock({**kept, "rlnMicrographPixelSize": size})
    return StarDocument({"optics": optics, "particles": StarBlock(columns)})
