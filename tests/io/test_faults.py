"""The faults of files and circumstances: each must have its test, found by its number."""

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
    20: "malicious .pt",
    21: "checkpoint truncated, forged or a bit flipped",
    22: "SIGKILL at any stage of a save",
    23: "SIGTERM, SIGUSR1, SIGINT, SIGHUP",
    24: "resume against uninterrupted",
    25: "resume with changed config or data",
    26: "disk full",
    27: "out of memory",
    28: "NaN loss or gradient",
    29: "one of several processes dies",
    30: "two runs, one output folder",
    31: "half-set leakage",
    32: "atomic model empty, NaN, unknown element, larger than the box",
    33: "hostile strings in names",
    34: "finite but absurd values",
    35: "settings out of bounds",
    36: "a worker killed or stopped",
    37: "compiled cache truncated, empty, unwritable",
    38: "pedestal, contrast, identical halves, mask of another scale",
    39: "overwriting, then a refused input, a full disk, a signal or a kill",
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
