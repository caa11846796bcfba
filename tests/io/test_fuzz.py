"""Damaged files: whatever the bytes, a reader gives a table or an InputError, in bounded memory.

``VITREOUS_FUZZ=20000`` tries more examples than the suite does.
"""

from __future__ import annotations

import contextlib
import os
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitreous.core.errors import InputError
from vitreous.data.formats import read_particles_document, write_particles_document
from vitreous.io.cryosparc import CsTable, join_fields, read_cs, write_cs
from vitreous.io.cryosparc_jobs import read_csg
from vitreous.io.ctffind import read_ctffind
from vitreous.io.mrc import MrcStack, read_mrc, write_mrc
from vitreous.io.star import parse_star

EXAMPLES = int(os.environ.get("VITREOUS_FUZZ", "150"))
FEW_AND_MANY = [min(50, EXAMPLES), pytest.param(EXAMPLES, marks=pytest.mark.slow)]
PEAK_BYTES = 2e7
HOSTILE = settings(
    deadline=None,
    derandomize="VITREOUS_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)

STAR = b"""
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
1 "one group" 300 2.7 0.1 1.5
2 two 200 2.7 0.1 1.5

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnAngleRot #3
_rlnAngleTilt #4
_rlnAnglePsi #5
_rlnOriginXAngst #6
_rlnOriginYAngst #7
_rlnDefocusU #8
_rlnRandomSubset #9
_cs/uid #10
_cs/ctf/tilt_A #11
000001@s.mrcs 1 10.5 20 -30 1 -2 12000.5 1 77 [0.5,0]
000002@s.mrcs 2 10.5 20 -30 1 -2 12000.5 2 78 [0.5,1]

data_cryosparc

loop_
_csField #1
_csType #2
_csShape #3
_csStored #4
uid <u8 scalar text
ctf/tilt_A <f4 2 text
"""
CTFFIND = b"""# Input file: mic.mrc ; Number of micrographs: 1
# Pixel size: 0.885 Angstroms ; acceleration voltage: 200.0 keV
1.000000 10792.5 10645.25 -37.5 1.570796 0.182 inf
"""
GROUP = b"""group:
  type: particle
results:
  blob:
    metafile: '>a.cs'
  alignments3D:
    metafile: '>a.cs'
"""


def _mrc(folder: Path) -> bytes:
    write_mrc(folder / "a.mrcs", np.arange(32.0).reshape(2, 4, 4), 1.5, is_stack=True)
    return (folder / "a.mrcs").read_bytes()


def _cs(folder: Path) -> bytes:
    fields = {
        "uid": np.array([3, 2**63], dtype="u8"),
        "blob/path": np.array([b">a.mrc", b"b.mrc"]),
        "blob/idx": np.array([0, 1], dtype="u4"),
        "blob/psize_A": np.array([1.5, 1.5], dtype="f4"),
        "alignments3D/pose": np.array([[1, 2, 3], [0, 0, 0]], dtype="f4"),
        "alignments3D/shift": np.array([[1, 2], [0, 0]], dtype="f4"),
        "star/rlnVoltage": np.array([b"300", b"200"]),
    }
    note = "data_optics\n\n_rlnOpticsGroup 1\n\ndata_particles\nloop_\n_rlnImageName\n"
    write_cs(folder / "a.cs", CsTable(join_fields(fields), note))
    return (folder / "a.cs").read_bytes()


def _group(folder: Path) -> bytes:
    _cs(folder)
    return GROUP


def _read_star(path: Path) -> None:
    parse_star(path.read_bytes().decode("latin-1"), path)


def _convert(path: Path) -> None:
    """Read, write in both formats and read again."""
    document = read_particles_document(path)
    for suffix in (".cs", ".star"):
        write_particles_document(path.with_name(f"out{suffix}"), document)
        read_particles_document(path.with_name(f"out{suffix}"))


READERS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], bytes]]] = {
    "read.mrcs": (read_mrc, _mrc),
    "map.mrcs": (lambda path: MrcStack(path).read([0]), _mrc),
    "text.star": (_read_star, lambda _: STAR),
    "table.star": (_convert, lambda _: STAR),
    "c.txt": (read_ctffind, lambda _: CTFFIND),
    "plain.cs": (read_cs, _cs),
    "p.csg": (read_csg, _group),
    "table.cs": (_convert, _cs),
}

NUMBERS = [0, 1, -1, 127, 255, 2**15, 2**31 - 1, -(2**31), 2**32 - 1]
WORDS = [b"nan", b"-1", b"1e400", b"99999999999999999999", b"'", b'"', b"#", b"[", b"data_", b"\n"]
WORDS += [b"loop_\n", b"_x\n", b"|O", b"S9999", b"<f8", b"(", b"\xff", b"\x00", b"0@", b"x" * 99]
CHANGE = st.tuples(
    st.floats(0, 1, exclude_max=True),
    st.one_of(
        st.integers(0, 255).map(lambda v: bytes([v])),
        st.sampled_from(NUMBERS).map(lambda v: (v % 2**32).to_bytes(4, "little")),
        st.sampled_from(WORDS),
    ),
    st.booleans(),
)


def mutated(valid: bytes, changes: list[tuple[float, bytes, bool]], cut: float) -> bytes:
    """Overwrite or insert at places given as fractions, then cut the end off."""
    content = bytearray(valid)
    for where, what, insert in changes:
        place = int(where * len(content))
        content[place : place + (0 if insert else len(what))] = what
    return bytes(content[: len(content) - int(cut * len(content))])


def assert_read_or_refused(read: Callable[[Path], Any], path: Path, content: bytes) -> None:
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with warnings.catch_warnings(), contextlib.suppress(InputError):
            warnings.simplefilter("ignore")
            read(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < PEAK_BYTES + 100 * len(content)


@pytest.mark.parametrize("examples", FEW_AND_MANY)
@pytest.mark.parametrize("name", READERS)
def test_mutations_of_valid_files(tmp_path: Path, name: str, examples: int) -> None:
    read, make = READERS[name]
    valid = make(tmp_path)
    read_first = tmp_path / name
    assert_read_or_refused(read, read_first, valid)
    read(read_first)

    @settings(HOSTILE, max_examples=examples)
    @given(st.lists(CHANGE, max_size=4), st.sampled_from([0, 0, 0.01, 0.3, 0.9]))
    def fuzz(changes: list[tuple[float, bytes, bool]], cut: float) -> None:
        assert_read_or_refused(read, tmp_path / name, mutated(valid, changes, cut))

    fuzz()


@pytest.mark.parametrize("examples", FEW_AND_MANY)
@pytest.mark.parametrize("name", READERS)
def test_any_bytes(tmp_path: Path, name: str, examples: int) -> None:
    read, make = READERS[name]
    start = make(tmp_path)[:16]

    @settings(HOSTILE, max_examples=examples)
    @given(st.binary(max_size=2000), st.booleans())
    def fuzz(content: bytes, with_start: bool) -> None:
        assert_read_or_refused(read, tmp_path / name, (start if with_start else b"") + content)

    fuzz()
