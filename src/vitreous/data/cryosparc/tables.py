"""Lossless conversion of cryoSPARC tables to RELION 3.1 documents and back.

Inside the package every table is a :class:`StarDocument`. Values without a counterpart in the other
format are kept under a name of their own:

- a cryoSPARC field that the columns do not reproduce bit for bit becomes a column ``cs/FIELD``, and
  a block ``data_cryosparc`` lists the type of every field;
- a STAR column that the fields do not reproduce literally becomes a text field ``star/COLUMN``, and
  the other blocks become a note after the rows (:mod:`vitreous.io.cryosparc`).

Converting back restores an original wherever its counterpart is unchanged; where the counterpart
was edited, the edited value is converted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.data.cryosparc import aberrations, links
from vitreous.data.cryosparc.classes import BEST, with_best_class
from vitreous.data.cryosparc.codec import (
    Recorded,
    decode_column,
    encode_column,
    read_record,
    record_block,
)
from vitreous.data.cryosparc.links import OPTICS, Columns, CsFields, Fields, Link
from vitreous.data.particle_table import ParticleTable
from vitreous.data.tables import optics_groups, optics_table
from vitreous.io.cryosparc import CsTable, join_fields
from vitreous.io.star import StarBlock, StarDocument, format_star, parse_star

LINKS = (*links.LINKS, *aberrations.LINKS)
RECORD = "cryosparc"
CS_PREFIX, STAR_PREFIX = "cs/", "star/"
_LONGEST = 9999
_GROUP, _GROUP_NAME = "rlnOpticsGroup", "rlnOpticsGroupName"


def _known_document(a: CsFields) -> StarDocument:
    """Convert fields to RELION's optics and particle columns."""
    columns: Columns = {}
    a = with_best_class(a)
    for link in LINKS:
        columns |= link.to_star(a)
    if "rlnImageName" not in columns:
        raise InputError(
            f"{a.path}: field blob/path or blob/idx: missing, so there are no particle images; "
            "give the file that has them, and this one as `passthrough`"
        )
    optics, columns[_GROUP] = _optics(a)
    return StarDocument({"optics": optics, "particles": StarBlock(columns)})


def _optics(a: CsFields) -> tuple[StarBlock, list[str]]:
    """Return the optics groups (distinct sets of their columns) and each particle's group."""
    names = [name for name in OPTICS if name in a]
    keys, texts = [np.zeros(len(a.columns["blob/idx"]))], {}
    if "ctf/exp_group_id" in a:
        keys = [a.numbers("ctf/exp_group_id")]
    for name in names:
        wide = name == "blob/shape"
        values = a.numbers(name, 2)[:, 1] if wide else a.numbers(name)
        keys.append(values)
        texts[OPTICS[name]] = a.columns[name][:, 1] if wide else a.columns[name]
    keys += [one for v in aberrations.nonzero_fields(a).values() for one in v.T]
    first, group_of = optics_groups(keys)
    columns = {name: values[first].astype(str).tolist() for name, values in texts.items()}
    columns |= aberrations.aberration_columns(a, first)
    return optics_table(len(first), columns), group_of


def _known_fields(table: ParticleTable, at_hand: CsFields) -> Fields:
    """Convert RELION columns to fields."""
    fields: Fields = {}
    for link in LINKS:
        fields |= link.to_cs(table, at_hand)
    return fields


def _blend(
    mask: NDArray[np.bool_], original: NDArray[Any], computed: NDArray[Any] | None
) -> NDArray[Any] | None:
    """Return the original where ``mask``, else the computed value, in the original's type."""
    if mask.all():
        return original
    if computed is None or computed.shape != original.shape:
        return computed
    if original.dtype.kind in "SU":
        return np.where(mask, original, computed.astype(original.dtype.kind))
    mixed = computed.astype(original.dtype)
    mixed[mask] = original[mask]
    return mixed


def _equal_rows(a: NDArray[Any], b: NDArray[Any] | None) -> NDArray[np.bool_]:
    """Mask of the rows that are equal bit for bit."""
    n = len(a)
    if b is None or a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return np.zeros(n, dtype=np.bool_)
    if a.dtype.kind in "SU":
        return np.asarray((a == b).reshape(n, -1).all(axis=1))
    if a.dtype != b.dtype:
        return np.zeros(n, dtype=np.bool_)
    raw = [np.ascontiguousarray(v).view(np.uint8).reshape(n, -1) for v in (a, b)]
    return np.asarray((raw[0] == raw[1]).all(axis=1))


def to_cryosparc(document: StarDocument, path: Path) -> CsTable:
    """Convert a RELION 3.1 document, read from ``path``, to a ``.cs`` table without loss.

    Raises:
        InputError: values that are no numbers, or that ``.cs`` cannot hold; the text names the row.
    """
    plain, record, stored = _split(document, path)
    plain = _without_empty_groups(plain) if record else plain
    table = ParticleTable(plain, path)
    aberrations.warn_of_terms_without_field(table)
    present = [name for name, field in record.items() if field.is_present]
    computed = _known_fields(table, CsFields(path, stored, [*present, *stored]))
    computed = {
        name: record[name].cast(values) if name in record else values
        for name, values in computed.items()
        if name not in record or record[name].is_present
    }
    fields = _restored_fields(table, stored, computed)
    ordered = [name for name in record if name in fields]
    fields = {name: fields[name] for name in dict.fromkeys([*ordered, *fields])}
    restored = _known_document(CsFields(path, fields, fields.keys()))
    columns = restored.blocks["particles"].columns
    for name, column in plain.blocks["particles"].columns.items():
        if name not in columns or columns[name] != column:
            fields[STAR_PREFIX + name] = _text_field(column, f"{path}: column _{name}")
    return CsTable(join_fields(fields), _note(plain, restored))


def _split(document: StarDocument, path: Path) -> tuple[StarDocument, dict[str, Recorded], Fields]:
    """Split off the record of cryoSPARC's fields and the fields stored as columns."""
    blocks = dict(document.blocks)
    record = read_record(blocks.pop(RECORD), path) if RECORD in blocks else {}
    columns, stored = {}, {}
    for name, column in blocks["particles"].columns.items():
        if name.startswith(CS_PREFIX):
            field = name[len(CS_PREFIX) :]
            stored[field] = decode_column(column, record.get(field), f"{path}: column _{name}")
        else:
            columns[name] = column
    blocks["particles"] = StarBlock(columns)
    return StarDocument(blocks), record, stored


def _without_empty_groups(document: StarDocument) -> StarDocument:
    """Remove optics groups without particles and renumber, as in a table made from ``.cs``."""
    optics, particles = document.blocks["optics"], document.blocks["particles"]
    group_of = particles.text(_GROUP)
    used = set(group_of)
    rows = [i for i, group in enumerate(optics.text(_GROUP)) if group in used]
    if len(rows) == len(optics) or len(rows) != len(used):
        return document
    columns = {name: [values[i] for i in rows] for name, values in optics.columns.items()}
    numbers = {old: str(i + 1) for i, old in enumerate(columns[_GROUP])}
    columns[_GROUP] = list(numbers.values())
    columns[_GROUP_NAME] = [f"opticsGroup{number}" for number in numbers.values()]
    renumbered = {**particles.columns, _GROUP: [numbers[group] for group in group_of]}
    blocks = {"optics": StarBlock(columns), "particles": StarBlock(renumbered)}
    return StarDocument({**document.blocks, **blocks})


def _restored_fields(table: ParticleTable, stored: Fields, computed: Fields) -> Fields:
    """Return stored originals where the table is unchanged, else the table's values."""
    fields = computed | stored
    touched = [link for link in LINKS if any(name in stored for name in link.fields)]
    if not touched:
        return fields
    originals = CsFields(table.path, fields, fields.keys())
    then = ParticleTable(_known_document(originals), table.path)
    for link in touched:
        if not any(column in then or column in table for column in link.columns):
            continue
        mask = link.unchanged(table, then, link)
        for name in link.fields:
            if name in stored:
                kept = _blend(mask, stored[name], computed.get(name))
                if kept is None:
                    del fields[name]
                else:
                    fields[name] = kept
    return fields


def _text_field(column: list[str], where: str) -> NDArray[np.bytes_]:
    encoded = [value.encode("utf-8") for value in column]
    width = max(1, *map(len, encoded))
    if width > _LONGEST:
        raise InputError(f"{where}: a value of {width} bytes; a .cs file holds up to {_LONGEST}")
    return np.array(encoded, dtype=f"S{width}")


def _note(document: StarDocument, restored: StarDocument) -> str:
    """Return the blocks and orders that the fields do not give back, as STAR text without rows."""
    names, restored_names = (list(d.blocks["particles"].columns) for d in (document, restored))
    others, restored_others = (
        {name: block for name, block in d.blocks.items() if name != "particles"}
        for d in (document, restored)
    )
    same_order = list(document.blocks) == list(restored.blocks) and names == restored_names
    if same_order and others == restored_others:
        return ""
    emptied = StarBlock({name: [] for name in names})
    return format_star(StarDocument({**document.blocks, "particles": emptied}))


def from_cryosparc(table: CsTable, path: Path) -> StarDocument:
    """Convert a ``.cs`` table, read from ``path``, to a RELION 3.1 document without loss.

    Raises:
        InputError: no particle images, or values that do not fit their field.
    """
    if not len(table):
        raise InputError(f"{path}: has no rows")
    columns = {name: table.rows[name] for name in table.fields}
    texts = {
        name[len(STAR_PREFIX) :]: CsFields(path, columns).text(name)
        for name in columns
        if name.startswith(STAR_PREFIX)
    }
    own = {name: v for name, v in columns.items() if not name.startswith(STAR_PREFIX)}
    fields = CsFields(path, own, own.keys())
    document = _known_document(fields)
    if texts or table.note:
        note = parse_star(table.note, path) if table.note else StarDocument()
        document = _restored_document(document, texts, note, fields)
    return _with_unconverted(document, fields)


def _restored_document(
    known: StarDocument, texts: Columns, note: StarDocument, fields: CsFields
) -> StarDocument:
    """Restore original texts and blocks where the fields are unchanged."""
    columns = dict(known.blocks["particles"].columns)
    blocks = {name: block for name, block in note.blocks.items() if name != "particles"}
    optics = _noted_optics(known, texts, note, fields)
    if optics is None:
        texts = {name: column for name, column in texts.items() if name != _GROUP}
    blocks["optics"] = optics or known.blocks["optics"]
    columns |= texts
    draft = StarDocument({"optics": blocks["optics"], "particles": StarBlock(columns)})
    converted = _known_fields(ParticleTable(draft, fields.path), fields)
    for link in LINKS:
        if not any(name in texts for name in link.columns):
            continue
        _revert_edited(link, columns, known.blocks["particles"].columns, converted, fields)
    order = list(note.blocks["particles"].columns) if "particles" in note.blocks else []
    names = dict.fromkeys([*(name for name in order if name in columns), *columns])
    blocks["particles"] = StarBlock({name: columns[name] for name in names})
    order = list(dict.fromkeys([*note.blocks, *known.blocks]))
    return StarDocument({name: blocks[name] for name in order})


def _revert_edited(
    link: Link, columns: Columns, known: Any, converted: Fields, fields: CsFields
) -> None:
    """Put the fields' values into rows whose original text no longer agrees with them."""
    present = [name for name in link.fields if name in fields]
    mask = np.ones(len(columns["rlnImageName"]), dtype=np.bool_)
    for name in present:
        mask &= _equal_rows(fields.columns[name], converted.get(name))
    for name in link.columns:
        if name in known and name in columns and not mask.all():
            rows = zip(mask.tolist(), columns[name], known[name], strict=True)
            columns[name] = [text if keep else new for keep, text, new in rows]


def _noted_optics(
    known: StarDocument, texts: Columns, note: StarDocument, fields: CsFields
) -> StarBlock | None:
    """Return the note's optics table, if it agrees with the fields."""
    if "optics" not in note.blocks:
        return None
    group = texts.get(_GROUP, known.blocks["particles"].text(_GROUP))
    images = known.blocks["particles"].text("rlnImageName")
    draft = StarBlock({"rlnImageName": images, _GROUP: group})
    try:
        table = ParticleTable(
            StarDocument({"optics": note.blocks["optics"], "particles": draft}), fields.path
        )
        converted = _known_fields(table, fields)
    except InputError:
        return None
    for name in (*OPTICS, *aberrations.WIDTHS, "ctf/exp_group_id"):
        if name in fields and not _equal_rows(fields.columns[name], converted.get(name)).all():
            return None
    return note.blocks["optics"]


def _with_unconverted(document: StarDocument, fields: CsFields) -> StarDocument:
    """Add the fields that the document does not reproduce as columns, and the record of all."""
    converted = _known_fields(
        ParticleTable(document, fields.path), CsFields(fields.path, {}, fields.names)
    )
    extra: Columns = {}
    record: dict[str, Recorded] = {}
    for name, values in fields.columns.items():
        shape = values.shape[1:]
        back = converted.get(name)
        if back is not None and back.shape == values.shape and back.dtype.kind == values.dtype.kind:
            back = back.astype(values.dtype)
        if _equal_rows(values, back).all():
            record[name] = Recorded(values.dtype, shape, "relion")
            continue
        encoding, extra[CS_PREFIX + name] = encode_column(values)
        record[name] = Recorded(values.dtype, shape, encoding)
    types, converted_types = (
        [(name, v.dtype, v.shape[1:]) for name, v in each.items()]
        for each in (fields.columns, converted)
    )
    if not extra and types == converted_types:
        return document
    single = with_best_class(fields) is fields  # else edited poses get fields of their own
    for name, values in converted.items():
        if name not in fields and (single or not name.startswith(f"{BEST}/")):
            record[name] = Recorded(values.dtype, values.shape[1:], "absent")
    particles = {**document.blocks["particles"].columns, **extra}
    blocks = {**document.blocks, "particles": StarBlock(particles)}
    return StarDocument({**blocks, RECORD: record_block(record)})
