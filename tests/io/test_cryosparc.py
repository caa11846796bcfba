"""``.cs`` files: real ones, numpy as oracle, rows 18 and 19 of the faults, passthrough files."""

from __future__ import annotations

import pickle
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitreous.core.errors import InputError
from vitreous.io.cryosparc import CsTable, join_fields, read_cs, read_cs_with_passthrough, write_cs

ROWS = np.array(
    [(11, b"a.mrc", (0.5, 1.0)), (7, b"b.mrc", (2.0, -3.0)), (9, b"", (0.0, 4.0))],
    dtype=[("uid", "<u8"), ("blob/path", "S5"), ("alignments3D/shift", "<f4", (2,))],
)


def npy(descr: Any, shape: Any = (3,), *, data: bytes = b"", fortran: bool = False) -> bytes:
    """A .npy file with any header."""
    header = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.cs"


@pytest.mark.parametrize("name", ["P12_J24_001_particles", "J2_particles_exported"])
def test_real_files_agree_with_numpy(shared_data: Path, path: Path, name: str) -> None:
    source = shared_data / "cryosparc" / f"cryosparc_{name}.cs"
    want = np.load(source, allow_pickle=False)
    table = read_cs(source)
    assert table.rows.dtype == want.dtype
    assert table.rows.tobytes() == want.tobytes()
    write_cs(path, table)
    again = np.load(path, allow_pickle=False)
    assert again.dtype == want.dtype
    assert again.tobytes() == want.tobytes()


def test_a_note_is_passed_over_by_numpy(path: Path) -> None:
    write_cs(path, CsTable(ROWS, "data_é\n"))
    assert np.load(path, allow_pickle=False).tobytes() == ROWS.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_cs(path).note == "data_é\n"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"note: .* truncated"):
        read_cs(path)
    assert [p.name for p in path.parent.iterdir()] == ["p.cs"]


def test_wide_tables_and_misuse(path: Path) -> None:
    wide = join_fields({f"field/{i:05d}": np.arange(2, dtype="<f4") for i in range(3000)})
    write_cs(path, CsTable(wide))
    assert read_cs(path).rows.tobytes() == wide.tobytes()
    for rows in (np.zeros(3), np.zeros((2, 2), ROWS.dtype), np.array([(None,)], [("a", "O")])):
        with pytest.raises(ValueError, match="named fields"):
            write_cs(path, CsTable(rows))


def test_fault_07_trailing_bytes_of_a_cs_file_warn(path: Path) -> None:
    np.save(path.with_suffix(".npy"), ROWS)
    path.write_bytes(path.with_suffix(".npy").read_bytes() + b"xyz")
    with pytest.warns(UserWarning, match="3 bytes after the data"):
        assert read_cs(path).rows.tobytes() == ROWS.tobytes()


class _Payload:
    """Would write a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_fault_18_pickled_objects_never_run(path: Path) -> None:
    ran = path.with_name("ran")
    payload = pickle.dumps(_Payload(ran))
    for content in (
        npy([("uid", "<u8"), ("a", "|O")], data=payload),
        npy("|O", data=payload),
        npy([("a", "O", (2,))], data=payload),
        payload,
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"p\.cs: .*(objects, which could run code|no numpy)"):
            read_cs(path)
    assert not ran.exists()
    pickle.loads(payload)
    assert ran.exists()  # the payload does work


@pytest.mark.parametrize("claimed", [2**42 // 8, 10**18, 2**63])
def test_fault_19_a_giant_claim_costs_no_memory(path: Path, claimed: int) -> None:
    path.write_bytes(npy([("uid", "<u8")], (claimed,), data=bytes(64)))
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"{claimed} rows of 8 bytes need .* it has \d+"):
        read_cs(path)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_fault_02_a_truncated_cs_file_states_both_sizes(path: Path) -> None:
    write_cs(path, CsTable(ROWS))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=rf"{len(whole)} bytes, it has {len(whole) - 1}"):
        read_cs(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no numpy header"),
        (b"\x93NUMPY", "no numpy header"),
        (b"\x94CSDAT12", "stream format"),
        (b"\x93NUMPY\x09\x00\x10\x00", r"format 9\.0"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "cut short"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * (1 << 20), "too long"),
        (npy("<f4"), "plain numbers"),
        (npy([]), "plain numbers"),
        (npy([("a", "<f4")], (3, 1)), "one dimension"),
        (npy([("a", "<f4")], (-3,)), "damaged"),
        (npy([("a", "<f4")], (True,)), "one dimension"),
        (npy([("a", "<f4")], fortran=True), "fortran_order"),
        (npy([("a", "<f4"), ("a", "<f4")]), "appears twice"),
        (npy([("", "<f4")]), "no name"),
        (npy([("a", [("b", "<f4")])]), "not supported"),
        (npy([("a", "<M8[s]")]), "not supported"),
        (npy([("a", "V8")]), "not supported"),
        (npy([("a", "S0")]), "not supported"),
        (npy([("a", "<f4", (0,))]), "shape"),
        (npy([("a", "<f4", (2**40, 2**40))]), "impossible"),
        (npy([("a",)]), "is no field"),
        (b"\x93NUMPY\x01\x00\x0e\x00__import__('x')", "damaged"),
        (b"\x93NUMPY\x01\x00\x40\x00" + b"(" * 64, "damaged"),
        (b"\x93NUMPY\x01\x00\x04\x00{1:2", "damaged"),
        (b"\x93NUMPY\x01\x00\x02\x00{}", "descr, fortran_order, shape"),
    ],
)
def test_damaged_headers(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_cs(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_cs(tmp_path / "absent.cs")


def test_passthrough_is_joined_by_uid(path: Path) -> None:
    write_cs(path, CsTable(ROWS, "note"))
    more = join_fields(
        {
            "uid": np.array([1, 9, 11, 7], dtype="u8"),
            "blob/path": np.array([b"no"] * 4),
            "location/micrograph_uid": np.array([10, 90, 110, 70], dtype="u8"),
        }
    )
    other = path.with_name("pass.cs")
    write_cs(other, CsTable(more))
    table = read_cs_with_passthrough(path, [other])
    assert table.fields == (*ROWS.dtype.names, "location/micrograph_uid")  # type: ignore[misc]
    assert table.rows["uid"].tolist() == [11, 7, 9]
    assert table.rows["blob/path"].tolist() == [b"a.mrc", b"b.mrc", b""]
    assert table.rows["location/micrograph_uid"].tolist() == [110, 70, 90]
    assert table.note == "note"
    write_cs(other, CsTable(more[:2]))
    with pytest.raises(InputError, match=r"pass\.cs: field uid: 2 of the 3 rows of .*p\.cs are"):
        read_cs_with_passthrough(path, [other])
    write_cs(other, CsTable(more[:0]))
    with pytest.raises(InputError, match="3 of the 3 rows"):
        read_cs_with_passthrough(path, [other])
    write_cs(other, CsTable(more[[0, 1, 2, 3, 3]]))
    with pytest.raises(InputError, match=r"pass\.cs: field uid: a number appears twice"):
        read_cs_with_passthrough(path, [other])
    write_cs(other, CsTable(join_fields({"x": np.zeros(3)})))
    with pytest.raises(InputError, match="field uid: missing"):
        read_cs_with_passthrough(path, [other])
