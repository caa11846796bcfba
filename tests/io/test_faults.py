"""The faults of input files, row by row: each must have its test, found by its number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FAULTS = {
    1: "MRC header shorter than 1024 bytes",
    2: "MRC data truncated",
    3: "header claims 100000^3",
    4: "negative or zero dimensions",
    5: "impossible extended header",
    6: "unknown MRC mode",
    7: "trailing bytes",
    8: "bad MAP id or machine stamp: read with one warning where size and mode fit",
    9: "gzip truncated, or expanding past its header",
    10: "pixel size 0 or NaN, or MRC differs from STAR",
    11: "NaN or infinity in particles",
    12: "constant image",
    13: "STAR row too short or long",
    14: "missing or duplicate column or block",
    15: "non-numeric, NaN angle or defocus",
    16: "image index 0 or past the stack",
    17: "names that leave the data root: read; nothing is written outside the output folder",
    18: ".cs with object dtype or pickle payload",
    19: ".npy claiming 4 TiB",
}


def _numbers() -> set[int]:
    found: set[int] = set()
    for path in Path(__file__).resolve().parents[1].rglob("test_*.py"):
        for name in re.findall(r"^def test_faults?_(\d+(?:_and_\d+)*)", path.read_text(), re.M):
            found |= {int(number) for number in name.split("_and_")}
    return found


@pytest.mark.parametrize("number", FAULTS)
def test_every_fault_has_its_test(number: int) -> None:
    assert number in _numbers(), FAULTS[number]
