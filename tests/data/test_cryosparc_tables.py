"""cryoSPARC and RELION tables into each other: conventions, and nothing lost on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vitreous.core.errors import InputError
from vitreous.data.cryosparc.tables import from_cryosparc, to_cryosparc
from vitreous.data.formats import read_particles_document, select_rows
from vitreous.io.cryosparc import CsTable, join_fields, read_cs
from vitreous.io.star import StarBlock, StarDocument, format_star, parse_star

HERE = Path("p.cs")


def fields(n: int = 4, **more: Any) -> dict[str, Any]:
    """A small table with poses, CTF and locations; ``group__name`` is ``group/name``."""
    rng = np.random.default_rng(5)
    made = {
        "uid": np.arange(n, dtype="<u8") + 2**63,
        "blob/path": np.array([b">J1/imported/s.mrc"] * n),
        "blob/idx": np.arange(n, dtype="<u4"),
        "blob/shape": np.full((n, 2), 64, dtype="<u4"),
        "blob/psize_A": np.full(n, 1.3099979, dtype="<f4"),
        "blob/sign": np.full(n, -1, dtype="<f4"),
        "ctf/exp_group_id": np.array([23, 4] * n, dtype="<u4")[:n],
        "ctf/accel_kv": np.full(n, 300, dtype="<f4"),
        "ctf/cs_mm": np.full(n, 2.7, dtype="<f4"),
        "ctf/amp_contrast": np.full(n, 0.07, dtype="<f4"),
        "ctf/df1_A": rng.uniform(5e3, 5e4, n).astype("<f4"),
        "ctf/df2_A": rng.uniform(5e3, 5e4, n).astype("<f4"),
        "ctf/df_angle_rad": rng.uniform(-3, 3, n).astype("<f4"),
        "ctf/phase_shift_rad": rng.uniform(0, 3, n).astype("<f4"),
        "alignments3D/split": np.array([0, 1] * n, dtype="<u4")[:n],
        "alignments3D/shift": rng.normal(0, 5, (n, 2)).astype("<f4"),
        "alignments3D/pose": rng.normal(0, 2, (n, 3)).astype("<f4"),
        "alignments3D/psize_A": np.full(n, 2.6199958, dtype="<f4"),
        "alignments3D/class": np.array([2, 0] * n, dtype="<u4")[:n],
        "location/micrograph_path": np.array([b"J2/a.mrc", b"J2/b.mrc"] * n)[:n],
        "location/micrograph_shape": np.tile(np.array([3838, 3710], dtype="<u4"), (n, 1)),
        "location/center_x_frac": rng.uniform(0, 1, n).astype("<f4"),
        "location/center_y_frac": rng.uniform(0, 1, n).astype("<f4"),
    }
    return made | {name.replace("__", "/"): values for name, values in more.items()}


def document_of(made: dict[str, Any]) -> StarDocument:
    return from_cryosparc(CsTable(join_fields(made)), HERE)


def through_text(document: StarDocument) -> StarDocument:
    return parse_star(format_star(document))


def column(document: StarDocument, name: str, block: str = "particles") -> Any:
    return document.blocks[block].numbers(name)


def assert_same_bits(table: CsTable, made: dict[str, Any]) -> None:
    want = join_fields(made)
    assert table.rows.dtype == want.dtype
    for name in made:
        assert table.rows[name].tobytes() == want[name].tobytes(), name
    assert table.note == ""


def matrices(rotvec: Any) -> Any:
    return Rotation.from_rotvec(rotvec.astype(np.float64)).inv().as_matrix()


def euler_matrices(document: StarDocument) -> Any:
    angles = [column(document, f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")]
    euler = Rotation.from_euler("ZYZ", np.stack(angles, axis=-1), degrees=True)
    return euler.inv().as_matrix()


def test_what_becomes_what() -> None:
    made = fields()
    document = document_of(made)
    assert list(document.blocks) == ["optics", "particles", "cryosparc"]
    table = document.blocks["particles"].columns
    assert table["rlnImageName"][:2] == ["000001@J1/imported/s.mrc", "000002@J1/imported/s.mrc"]
    assert np.abs(euler_matrices(document) - matrices(made["alignments3D/pose"])).max() < 1e-7
    shift = made["alignments3D/shift"].astype(np.float64) * 2.6199958324432373
    assert np.abs(column(document, "rlnOriginXAngst") - shift[:, 0]).max() < 1e-6
    assert np.abs(column(document, "rlnOriginYAngst") - shift[:, 1]).max() < 1e-6
    assert np.abs(column(document, "rlnDefocusU") - made["ctf/df1_A"]).max() < 1e-6
    assert np.abs(column(document, "rlnDefocusV") - made["ctf/df2_A"]).max() < 1e-6
    for name, field in (("DefocusAngle", "df_angle_rad"), ("PhaseShift", "phase_shift_rad")):
        degrees = np.rad2deg(made[f"ctf/{field}"].astype(np.float64))
        assert np.abs(column(document, f"rln{name}") - degrees).max() < 1e-6
    assert table["rlnRandomSubset"] == ["1", "2", "1", "2"]
    assert table["rlnClassNumber"] == ["3", "1", "3", "1"]
    assert table["rlnMicrographName"] == ["J2/a.mrc", "J2/b.mrc"] * 2
    x, y = made["location/center_x_frac"] * 3710.0, made["location/center_y_frac"] * 3838.0
    assert np.abs(column(document, "rlnCoordinateX") - x).max() < 1e-3
    assert np.abs(column(document, "rlnCoordinateY") - y).max() < 1e-3
    optics = document.blocks["optics"].columns
    assert table["rlnOpticsGroup"] == ["2", "1", "2", "1"]
    assert optics["rlnImagePixelSize"] == ["1.3099979"] * 2
    assert optics["rlnImageSize"] == ["64"] * 2
    assert [float(v) for v in optics["rlnAmplitudeContrast"]] == [0.07] * 2


def test_two_dimensional_alignments_give_no_tilt() -> None:
    made = {k: v for k, v in fields().items() if not k.startswith("alignments3D")}
    made |= {
        "alignments2D/pose": np.array([0.1, 3.0, 5.9, -2.0], dtype="<f4"),
        "alignments2D/shift": np.array([[0, 12], [1, -2], [3, 4], [5, 6]], dtype="<f4"),
        "alignments2D/psize_A": np.full(4, 1.5, dtype="<f4"),
        "alignments2D/class": np.array([4, 0, 1, 2], dtype="<u4"),
    }
    document = document_of(made)
    table = document.blocks["particles"]
    assert "rlnAngleRot" not in table
    assert "rlnAngleTilt" not in table
    assert column(document, "rlnAnglePsi") == pytest.approx(
        np.rad2deg(made["alignments2D/pose"].astype(np.float64)), abs=1e-6
    )
    assert column(document, "rlnOriginYAngst").tolist() == [18.0, -3.0, 6.0, 9.0]
    assert table.text("rlnClassNumber") == ["5", "1", "2", "3"]
    assert_same_bits(to_cryosparc(through_text(document), HERE), made)


def test_hard_rotations_survive_without_their_original() -> None:
    """Angles near pi, longer than pi, tiny; tilts of 0 and 180 degrees."""
    rng = np.random.default_rng(1)
    axes = rng.normal(size=(200, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    sizes = np.array([np.pi - 1e-7, np.pi, 3.9, 1e-8, 0.0])
    vectors = [axes * np.resize(sizes, 200)[:, None]]
    vectors += [np.array([[0, 0, 1e-3], [0, 0, 3.1], [np.pi, 0, 0], [0, np.pi, 0]])]
    vectors += [np.array([[np.pi * np.cos(a), np.pi * np.sin(a), 0.0] for a in (0.1, 2.0, 4.0)])]
    pose = np.concatenate(vectors).astype("<f4")
    made = fields(len(pose), alignments3D__pose=pose)
    document = document_of(made)
    assert np.abs(euler_matrices(document) - matrices(pose)).max() < 1e-7
    table = dict(document.blocks["particles"].columns)
    del table["cs/alignments3D/pose"]
    bare = StarDocument({**document.blocks, "particles": StarBlock(table)})
    back = to_cryosparc(bare, HERE).rows["alignments3D/pose"]
    assert np.abs(matrices(back) - matrices(pose)).max() < 1e-6


def test_the_real_round_trip(shared_data: Path) -> None:
    for name in ("cryosparc_P12_J24_001_particles", "cryosparc_J2_particles_exported"):
        path = shared_data / "cryosparc" / f"{name}.cs"
        table = read_cs(path)
        document = through_text(from_cryosparc(table, path))
        back = to_cryosparc(document, path)
        assert back.rows.dtype == table.rows.dtype
        assert back.rows.tobytes() == table.rows.tobytes()
    without = dict(document.blocks["particles"].columns)
    assert "cs/blob/sign" in without


def test_the_real_poses_and_shifts_without_their_originals(shared_data: Path) -> None:
    """What RELION's columns alone say: rotation 1e-6, shift and defocus 1e-4 Å."""
    path = shared_data / "cryosparc" / "cryosparc_P12_J24_001_particles.cs"
    rows = read_cs(path).rows
    document = from_cryosparc(CsTable(rows), path)
    known = {
        name: text
        for name, text in document.blocks["particles"].columns.items()
        if not name.startswith("cs/")
    }
    bare = StarDocument({"optics": document.blocks["optics"], "particles": StarBlock(known)})
    back = to_cryosparc(through_text(bare), path).rows
    pose = "alignments3D/pose"
    assert np.abs(matrices(back[pose]) - matrices(rows[pose])).max() < 1e-6
    for name, scale in (("alignments3D/shift", 2.95), ("ctf/df1_A", 1.0), ("ctf/df2_A", 1.0)):
        assert np.abs(back[name].astype(np.float64) - rows[name]).max() * scale < 1e-4
    assert (back["blob/idx"] == rows["blob/idx"]).all()
    assert (back["blob/path"] == rows["blob/path"]).all()


ODD = {
    "big__endian": np.arange(4, dtype=">i2"),
    "tensor": np.arange(24, dtype="<f8").reshape(4, 2, 3) / 7,
    "text": np.array([b"plain", b"two words", b"it's", b"\xff\xfe"]),
    "unicode": np.array(["é", "x", "", "\n"]),
    "flag": np.array([True, False, True, False]),
    "half": np.array([0.1, np.nan, np.inf, -0.0], dtype="<f2"),
    "payload": np.array([0x7FC00001, 0xFF800000, 1, 0], dtype="<u4").view("<f4"),
    "complex": np.array([1 + 2j, 0, -1j, 3], dtype="<c8"),
    "pair": np.array([[b"a", b"b"]] * 4),
    "large": np.array([2**64 - 1, 0, 1, 2**63], dtype="<u8"),
    "signed": np.array([-(2**63), 0, 1, 2**63 - 1], dtype="<i8"),
}


def test_no_bit_of_any_field_is_lost() -> None:
    made = fields(**ODD)
    assert_same_bits(to_cryosparc(through_text(document_of(made)), HERE), made)
    shuffled = dict(sorted(made.items(), key=lambda item: item[0][::-1]))
    assert_same_bits(to_cryosparc(through_text(document_of(shuffled)), HERE), shuffled)
    bare = {name: made[name] for name in ("blob/path", "blob/idx", "large")}
    assert_same_bits(to_cryosparc(through_text(document_of(bare)), HERE), bare)


def test_rows_can_be_chosen_on_the_way() -> None:
    made = fields(**ODD)
    some = select_rows(document_of(made), np.array([3, 1]))
    assert_same_bits(to_cryosparc(some, HERE), {k: v[[3, 1]] for k, v in made.items()})


def edited(document: StarDocument, row: int, **values: str) -> StarDocument:
    columns = {k: list(v) for k, v in document.blocks["particles"].columns.items()}
    for name, value in values.items():
        columns[name][row] = value
    return StarDocument({**document.blocks, "particles": StarBlock(columns)})


def test_an_edit_wins_over_the_original_in_its_row_only() -> None:
    made = fields()
    document = document_of(made)
    changed = edited(
        document,
        2,
        rlnAngleTilt="91.5",
        rlnOriginXAngst="2.5",
        rlnImageName="000009@moved/s.mrc",
        rlnCoordinateX="371",
        rlnClassNumber="7",
    )
    rows = to_cryosparc(changed, HERE).rows
    want = {k: v.copy() for k, v in made.items()}
    assert np.abs(matrices(rows["alignments3D/pose"]) - euler_matrices(changed)).max() < 1e-6
    assert rows["alignments3D/shift"][2, 0] == pytest.approx(2.5 / 2.6199958, rel=1e-6)
    assert rows["blob/path"].tolist() == [
        *made["blob/path"][:2],
        b"moved/s.mrc",
        b">J1/imported/s.mrc",
    ]
    assert rows["blob/idx"].tolist() == [0, 1, 8, 3]
    assert rows["location/center_x_frac"][2] == pytest.approx(0.1)
    assert rows["alignments3D/class"].tolist() == [2, 0, 6, 0]
    for name in want:
        keep = [0, 1, 3]
        assert rows[name][keep].tobytes() == want[name][keep].tobytes(), name
    assert (rows["uid"] == want["uid"]).all()


def test_relion_s_rounding_is_no_edit_and_its_loss_of_blocks_is_borne() -> None:
    """relion_refine writes five or six decimals, keeps unknown columns, drops unknown blocks."""
    made = fields()
    document = document_of(made)
    columns = dict(document.blocks["particles"].columns)
    for name in ("rlnAngleRot", "rlnAnglePsi", "rlnOriginXAngst"):
        columns[name] = [f"{float(value):.5f}" for value in columns[name]]
    kept = {"optics": document.blocks["optics"], "particles": StarBlock(columns)}
    rows = to_cryosparc(StarDocument(kept), HERE).rows
    for name in ("uid", "blob/sign", "alignments3D/pose", "alignments3D/shift", "blob/path"):
        assert rows[name].dtype == made[name].dtype or name == "blob/path"
        assert (rows[name] == made[name]).all(), name


def test_optics_edits_and_groups() -> None:
    made = fields()
    document = document_of(made)
    assert to_cryosparc(document, HERE).rows["ctf/exp_group_id"].tolist() == [23, 4, 23, 4]
    merged = edited(document, 0, rlnOpticsGroup="1")
    assert to_cryosparc(merged, HERE).rows["ctf/exp_group_id"].tolist() == [1, 1, 2, 1]
    optics = dict(document.blocks["optics"].columns) | {"rlnVoltage": ["200", "300"]}
    blocks = {**document.blocks, "optics": replace(document.blocks["optics"], columns=optics)}
    rows = to_cryosparc(StarDocument(blocks), HERE).rows
    assert rows["ctf/accel_kv"].tolist() == [300, 200, 300, 200]
    assert rows["ctf/exp_group_id"].tolist() == [23, 4, 23, 4]


STAR = """
data_job

_rlnJobTypeLabel   relion.refine3d
_note              'two words'

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnMtfFileName #3
_rlnVoltage #4
_rlnImagePixelSize #5
_rlnSphericalAberration #6
_rlnAmplitudeContrast #7
_rlnOddZernike #8
7 "odd one" mtf.star 300.0 1.4000 2.7 0.1 [0.1,-2,0]
3 second "" 2e2 1.4 2.70 0.10 [0,0,0]

data_particles

loop_
_wander #1
_rlnImageName #2
_rlnOpticsGroup #3
_rlnAngleRot #4
_rlnAngleTilt #5
_rlnAnglePsi #6
_rlnOriginXAngst #7
_rlnOriginYAngst #8
_rlnDefocusU #9
_rlnDefocusV #10
_rlnDefocusAngle #11
_rlnRandomSubset #12
_rlnClassNumber #13
_rlnCoordinateX #14
"" 3@s.mrcs 7 1.0 2 -0.50 1e-3 .5 12000.123456789 12000 +1 1 0 10
"a b" 000001@t.mrcs 3 179.99999 180 0 0 0.0 9000 8000 -1 2 1 20.50
é 2@s.mrcs 7 1.0 2 -0.50 1e-3 .5 12000.1 12000 +1 1 3 x

data_zoo

loop_
_cat
1
'2 3'
"""


def test_star_to_cs_to_star_gives_back_every_letter(tmp_path: Path) -> None:
    document = parse_star(STAR)
    table = to_cryosparc(document, HERE)
    assert from_cryosparc(table, HERE) == document
    assert list(from_cryosparc(table, HERE).blocks) == list(document.blocks)
    assert len(set(table.rows["uid"].tolist())) == 3
    again = to_cryosparc(document, HERE)
    assert (again.rows["uid"] == table.rows["uid"]).all()


def test_an_edit_in_the_cs_wins_over_the_text() -> None:
    table = to_cryosparc(parse_star(STAR), HERE)
    rows = table.rows.copy()
    rows["ctf/df1_A"][1] = 7777.5
    document = from_cryosparc(CsTable(rows, table.note), HERE)
    text = document.blocks["particles"].text("rlnDefocusU")
    assert text == ["12000.123456789", "7777.500000", "12000.1"]
    rows["ctf/accel_kv"][1] = 120
    document = from_cryosparc(CsTable(rows, table.note), HERE)
    voltages = document.blocks["optics"].numbers("rlnVoltage")
    groups = document.blocks["particles"].integers("rlnOpticsGroup")
    assert voltages[groups - 1].tolist() == [300, 120, 300]


def test_rows_taken_by_another_program_keep_their_columns() -> None:
    """A subset saved by numpy: the note is gone, the fields are there."""
    table = to_cryosparc(parse_star(STAR), HERE)
    document = from_cryosparc(CsTable(table.rows[[2, 1]]), HERE)
    columns = document.blocks["particles"].columns
    assert columns["wander"] == ["é", "a b"]
    assert columns["rlnCoordinateX"] == ["x", "20.50"]
    assert columns["rlnImageName"] == ["2@s.mrcs", "000001@t.mrcs"]


def test_equal_image_names_get_different_uids() -> None:
    document = parse_star(STAR.replace("3@s.mrcs", "2@s.mrcs"))
    assert len(set(to_cryosparc(document, HERE).rows["uid"].tolist())) == 3


@pytest.mark.parametrize(
    "name", ["relion31.6opticsgroups", "relion5", "relion31", "relion31.v2", "rln_proj_65_centered"]
)
def test_real_star_files_survive_cs(shared_data: Path, name: str) -> None:
    document = read_particles_document(shared_data / "relion" / f"{name}.star")
    assert from_cryosparc(to_cryosparc(document, HERE), HERE) == document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blob/path": None}, "field blob/path or blob/idx: missing"),
        ({"blob/idx": np.full(4, -1, dtype="<i4")}, "blob/idx: -1"),
        ({"blob/path": np.arange(4)}, "text expected"),
        ({"blob/path": np.array([b"a\nb"] * 4)}, "row 1: .* is no name"),
        ({"blob/path": np.array([b"\xff"] * 4)}, "UTF-8"),
        (
            {"alignments3D/pose": np.full((4, 3), np.nan)},
            r"alignments3D/pose, row 1: .* not finite",
        ),
        ({"alignments3D/pose": np.zeros((4, 2))}, r"3 number\(s\) per row expected"),
        ({"ctf/df1_A": np.array([b"x"] * 4)}, "ctf/df1_A: 1 number"),
    ],
)
def test_bad_fields_are_named(change: dict[str, Any], message: str) -> None:
    made = {name: values for name, values in (fields() | change).items() if values is not None}
    with pytest.raises(InputError, match=message):
        document_of(made)


def test_bad_records_and_columns_are_named() -> None:
    document = document_of(fields())
    for name, value in (("csType", "|O"), ("csShape", "99999999"), ("csStored", "what")):
        record = {k: list(v) for k, v in document.blocks["cryosparc"].columns.items()}
        record[name][0] = value
        blocks = {**document.blocks, "cryosparc": StarBlock(record)}
        with pytest.raises(InputError, match=r"field 'uid': .* damaged"):
            to_cryosparc(StarDocument(blocks), HERE)
    columns = dict(document.blocks["particles"].columns)
    for value in ("-1", "x", "18446744073709551616", "1.5"):
        bad = StarBlock({**columns, "cs/uid": [value] * 4})
        with pytest.raises(InputError, match="cs/uid: does not match"):
            to_cryosparc(StarDocument({**document.blocks, "particles": bad}), HERE)
    huge = StarBlock({**columns, "rlnDefocusU": ["1e300"] * 4})
    with pytest.raises(InputError, match="_rlnDefocusU, row 1: must be from"):
        to_cryosparc(StarDocument({**document.blocks, "particles": huge}), HERE)
    with pytest.raises(InputError, match="no rows"):
        from_cryosparc(CsTable(join_fields(fields())[:0]), HERE)
