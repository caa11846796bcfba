"""Particle tables joined to one, with one list of optics groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitreous.io.star import StarBlock, StarDocument

_GROUP, _NAME = "rlnOpticsGroup", "rlnOpticsGroupName"
_ABSENT = {  # value of columns where a table lacks them
    **dict.fromkeys(("rlnPhaseShift", "rlnCtfBfactor", "rlnBeamTiltX", "rlnBeamTiltY"), "0.0"),
    **dict.fromkeys(("rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped"), "0"),
    "rlnCtfScalefactor": "1.0",
}


def joined_document(documents: Sequence[StarDocument]) -> tuple[StarDocument, list[str]]:
    """Join RELION 3.1 documents; rows keep their order, and other blocks are the first one's.

    Optics groups of equal values become one, all are numbered anew. A column that some tables lack
    is filled where its absence has a meaning (no phase shift, no B factor ...), else left out.

    Returns:
        the document, and the names of the columns that were left out.

    >>> one = {"optics": StarBlock({"rlnOpticsGroup": ["1"], "rlnVoltage": ["300"]})}
    >>> two = {"optics": StarBlock({"rlnOpticsGroup": ["7"], "rlnVoltage": ["200"]})}
    >>> rows = [StarBlock({"rlnOpticsGroup": [group]}) for group in "17"]
    >>> tables = [StarDocument({**o, "particles": p}) for o, p in zip((one, two), rows)]
    >>> joined_document(tables)[0].blocks["particles"].columns["rlnOpticsGroup"]
    ['1', '2']
    """
    optics, left_out = _stacked([document.blocks["optics"] for document in documents])
    particles, more = _stacked([document.blocks["particles"] for document in documents])
    values = [name for name in optics if name not in (_GROUP, _NAME)]
    keys = list(zip(*(optics[name] for name in values), strict=True)) or [()] * len(optics[_GROUP])
    number: dict[tuple[str, ...], int] = {}
    new = [number.setdefault(key, len(number) + 1) for key in keys]
    first = [new.index(n) for n in number.values()]
    groups = {name: [column[i] for i in first] for name, column in optics.items()}
    groups[_GROUP] = [str(n) for n in number.values()]
    names = groups.get(_NAME, [])
    if len(set(names)) < len(names):
        groups[_NAME] = [f"opticsGroup{n}" for n in groups[_GROUP]]
    of_row: list[str] = []
    start = 0
    for document in documents:
        old = document.blocks["optics"].columns[_GROUP]
        renamed = {group: str(new[start + i]) for i, group in enumerate(old)}
        of_row += [renamed[group] for group in document.blocks["particles"].columns[_GROUP]]
        start += len(old)
    particles[_GROUP] = of_row
    blocks = dict(documents[0].blocks)
    blocks["optics"] = replace(blocks["optics"], columns=groups)
    blocks["particles"] = StarBlock(particles)
    return StarDocument(blocks), left_out + more


def _stacked(blocks: Sequence[StarBlock]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the rows of all blocks, and the columns that cannot be kept."""
    names = dict.fromkeys(name for block in blocks for name in block.columns)
    kept = [n for n in names if n in _ABSENT or all(n in block for block in blocks)]
    columns: dict[str, list[str]] = {name: [] for name in kept}
    for block in blocks:
        for name in kept:
            absent = [_ABSENT.get(name, "")] * len(block)
            columns[name] += block.columns[name] if name in block else absent
    return columns, [name for name in names if name not in kept]
