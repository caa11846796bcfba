"""Particles of a cryoSPARC job: its folder, and the group files (``.csg``) of its outputs.

A group file is YAML of which only one kind of line matters: under ``results``, each result
(``blob``, ``ctf``, ``alignments3D``) names the ``.cs`` file that holds it, ``>`` for the folder of
the group file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vitreous.core.errors import InputError
from vitreous.io.cryosparc import CsTable, join_fields, joined_by_uid, read_cs
from vitreous.io.inflate import read_text

_RESULT = re.compile(r"^ {2}([\w.]+):\s*$")
_FILE = re.compile(r"^\s+metafile:\s*(['\"]?)>?(.+?)\1\s*$")
_TYPE = re.compile(r"^ {2}type:\s*(['\"]?)(\w+)\1\s*$")
_CLASS = re.compile(r"_class_(\d+)")
_GROUP_BYTES = 1 << 20


def read_csg(path: Path | str) -> CsTable:
    """Read the particles of a group file, each result from the file that the group names.

    Raises:
        InputError: no group of particles, or a file that is missing, bad or of other particles.
    """
    path = Path(path)
    files = _results(path)
    names = list(dict.fromkeys(files.values()))
    names.sort(key=lambda name: "passthrough" in name)  # stable: the job's own output first
    table = None
    for name in names:
        part = read_cs(path.parent / name)
        wanted = {slot for slot, file in files.items() if file == name}
        kept = ["uid", *(field for field in part.fields if field.partition("/")[0] in wanted)]
        if table is None:
            table, first = part, name
            others = set(files) - wanted
            kept = [field for field in part.fields if field.partition("/")[0] not in others]
            table = CsTable(join_fields({field: part.rows[field] for field in kept}), part.note)
            continue
        if "uid" in part.fields:
            part = CsTable(join_fields({field: part.rows[field] for field in kept}))
        table = joined_by_uid(path.parent / first, table, path.parent / name, part)
    if table is None:
        raise InputError(f"{path}: results: no file is named (metafile); export the job again")
    return table


def _results(path: Path) -> dict[str, str]:
    """Return the file of each result of a group of particles."""
    kind, result, files = "", "", {}
    for line in read_text(path, "expected a group file of cryoSPARC", _GROUP_BYTES).splitlines():
        if match := _TYPE.match(line):
            kind = match[2]
        elif match := _RESULT.match(line):
            result = match[1]
        elif (match := _FILE.match(line)) and result:
            files[result] = match[2]
    if kind != "particle":
        raise InputError(
            f"{path}: group type: {kind or 'missing'}; give the group of the job's particles"
        )
    return files


def particle_files(
    path: Path | str, passthrough: Sequence[Path | str] = ()
) -> tuple[Path, tuple[Path, ...]]:
    """Return the particle file of a job's folder with its passthrough files; files as they are.

    In the folder of a cryoSPARC job it is the one group file of particles, or that of all classes,
    or else the ``.cs`` file of the last iteration with the passthrough files of its class.

    Raises:
        InputError: a folder without particles, or with several outputs of them (all are named).
    """
    path, given = Path(path), tuple(map(Path, passthrough))
    if not path.is_dir():
        return path, given
    groups = sorted(file for file in path.glob("*.csg") if "particles" in file.name)
    whole = [file for file in groups if not _CLASS.search(file.name) and "excl" not in file.name]
    whole = [file for file in whole if "all_classes" in file.name] or whole
    if len(whole) == 1 or len(groups) == 1:
        return (whole or groups)[0], given
    tables = sorted(file for file in path.glob("*.cs") if "particles" in file.name)
    own = [file for file in tables if "passthrough" not in file.name]
    classes = {match[1] if (match := _CLASS.search(file.name)) else "" for file in own}
    if groups or len(classes) > 1:
        listed = ", ".join(file.name for file in groups or own)
        raise InputError(f"{path}: several outputs of particles; give one of them: {listed}")
    if not own:
        raise InputError(
            f"{path}: a folder without particles (*particles*.csg or *particles*.cs); give the "
            "folder of a cryoSPARC job, or a particle table"
        )
    last = max(own, key=lambda file: [int(number) for number in re.findall(r"\d+", file.name)])
    return last, (*given, *(file for file in tables if "passthrough" in file.name))
