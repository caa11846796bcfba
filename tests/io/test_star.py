"""STAR: real files of RELION 3.0 to 5, lossless round trips, and rows 13 to 15 of the faults."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitreous.core.errors import InputError
from vitreous.io.star import (
    StarBlock,
    StarDocument,
    format_column,
    format_star,
    parse_star,
    read_star,
    write_star,
)

SMALL = "data_p\n\nloop_\n_a #1\n_b #2\n_c #3\n1 2 3\n4 5 6\n"
REAL = [
    "FinalRefinement-OriginalParticles-PfCRT.star",
    "empiar_10076_7.star",
    "relion31.6opticsgroups.star",
    "relion31.star",
    "relion31.v2.star",
    "relion5.star",
    "rln_proj_65_centered.star",
    "sample_particles_relion30.star",
]


@pytest.mark.parametrize("name", REAL)
def test_real_files_agree_with_gemmi_and_survive_a_round_trip(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    path = shared_data / "relion" / name
    document = read_star(path)
    oracle = gemmi.cif.read_file(str(path))
    assert list(document.blocks) == [block.name.strip() for block in oracle]
    for block in oracle:
        ours = document.blocks[block.name.strip()]
        for item in block:
            if item.loop is None:
                assert ours.columns[item.pair[0][1:]] == [item.pair[1]]
                continue
            assert ["_" + key for key in ours.columns] == item.loop.tags
            for key in item.loop.tags:
                assert ours.columns[key[1:]] == list(block.find_values(key))
    write_star(tmp_path / "out.star", document)
    assert read_star(tmp_path / "out.star") == document


def test_pairs_loops_quotes_comments_and_unknown_blocks() -> None:
    text = (
        "# top\n\ndata_model_general\n_rlnRef   3\n_note 'two words' # why\n\n"
        "data_odd_Block-9\nloop_ \n_x #1 \n_y\n\n'it''s' \"\" # tail\na;b  \"q r\"\n\n\ndata_\n"
    )
    document = parse_star(text)
    assert document.blocks["model_general"] == StarBlock(
        {"rlnRef": ["3"], "note": ["two words"]}, is_loop=False
    )
    assert document.blocks["odd_Block-9"].columns == {"x": ["it''s", "a;b"], "y": ["", "q r"]}
    assert parse_star(format_star(document)) == document


def test_rows_may_start_like_a_keyword() -> None:
    text = "data_p\nloop_\n_a\n_b\n_c\ndata_01.mrc 1 2\n_x.mrc 3 4\n\ndata_q\n_v 1\n"
    document = parse_star(text)
    assert document.blocks["p"].columns["a"] == ["data_01.mrc", "_x.mrc"]
    assert document.blocks["q"].columns == {"v": ["1"]}
    assert parse_star(format_star(document)) == document


def test_windows_line_ends_and_blank_lines_between_rows() -> None:
    block = parse_star(SMALL.replace("4 5 6", "\n  \n4 5 6\n").replace("\n", "\r\n")).blocks["p"]
    assert block.columns == {"a": ["1", "4"], "b": ["2", "5"], "c": ["3", "6"]}


FOREIGN = {
    "windows": lambda text: text.replace("\n", "\r\n").encode(),
    "old mac": lambda text: text.replace("\n", "\r").encode(),
    "mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "mark and windows": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "utf-16": lambda text: text.replace("\n", "\r\n").encode("utf-16"),
    "upper case": lambda text: text.replace("data_", "DATA_").replace("loop_", "LOOP_").encode(),
    "mixed case": lambda text: text.replace("data_", "Data_").replace("loop_", "Loop_").encode(),
    "indented": lambda text: "".join(f" \t{line} \n" for line in text.splitlines()).encode(),
    "tight": lambda text: re.sub(r" #\d+|\n(?=\n)", "", text).encode(),
    "quoted": lambda text: text.replace("1 2 3", "'1' \"2\" '3'").encode(),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_other_systems_and_programs(tmp_path: Path, kind: str) -> None:
    """Line ends, byte order marks, case, indentation and quotes do not change what is read."""
    text = SMALL + "\ndata_optics\n\nloop_\n_d #1\n_e #2\n7 two\n"
    path = tmp_path / "foreign.star"
    path.write_bytes(FOREIGN[kind](text))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = read_star(path)
    assert document == parse_star(text)
    write_star(path, document)
    assert b"\r" not in path.read_bytes()
    assert read_star(path) == document


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=8)] * 2),
        min_size=1,
        max_size=5,
    )
)
def test_any_text_survives_or_is_refused(rows: list[tuple[str, str]]) -> None:
    document = StarDocument(
        {"p": StarBlock({"a": [r[0] for r in rows], "b": [r[1] for r in rows]})}
    )
    try:
        text = format_star(document)
    except ValueError:
        assert any("'" in value and '"' in value for row in rows for value in row)
        return
    assert parse_star(text) == document


@pytest.mark.parametrize("bad", ["4 5", "4 5 6 7", "4 5 '6 7' 8", "4 5 # 6"])
def test_fault_13_uneven_row_names_its_line(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "p.star"
    path.write_text(SMALL.replace("4 5 6", f"{bad}\n7 8 9"))
    with pytest.raises(InputError, match=r"p\.star: line 8: . values for 3 columns"):
        read_star(path)


def test_fault_13_one_short_and_one_long_row_do_not_cancel() -> None:
    with pytest.raises(InputError, match="line 7: 2 values for 3"):
        parse_star(SMALL.replace("1 2 3\n4 5 6", "1 2\n3 4 5 6"))


def test_fault_13_cut_mid_row(tmp_path: Path) -> None:
    path = tmp_path / "p.star"
    path.write_text(SMALL[: SMALL.index("5")])
    with (
        pytest.warns(UserWarning, match="last line does not end"),
        pytest.raises(InputError, match="line 8: 1 values for 3 columns"),
    ):
        read_star(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL.replace("_b #2", "_a #2"), "line 5: column _a: appears twice"),
        (SMALL + "\n" + SMALL, "block data_p: appears twice"),
        (SMALL + "\nloop_\n_z\n1\n", "more than one table"),
        ("data_p\nloop_\n1 2\n", "without column names"),
        ("data_p\n_a\n", "needs one value"),
        ("data_p\n_a 1\n_a 2\n", "appears twice"),
        ("hello\n", "expected a data_ block"),
        ("", "no data_ block"),
        ("data_p\nloop_\n_a\n_b\n'x y\n", "never closed"),
        ("data_p\nloop_\n_a\n;x\ny\n;\n", "multi-line"),
        ("\x00\x01", "not a text file"),
    ],
)
def test_fault_14_and_malformed_files(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_star(text)


def test_binary_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "b.star").write_bytes(b"\xfe\xfe\x80data_")
    with pytest.raises(InputError, match="not a text file"):
        read_star(tmp_path / "b.star")
    with pytest.raises(InputError, match="no such file"):
        read_star(tmp_path / "absent.star")


def test_fault_15_numbers_name_column_and_row() -> None:
    block = StarBlock(
        {"d": ["1.5", "-2e3"], "bad": ["1", "x"], "nan": ["nan", "1"], "f": ["1", "1.5"]}
    )
    assert block.numbers("d").tolist() == [1.5, -2000.0]
    with pytest.raises(InputError, match=r"a\.star: column _bad, row 2: 'x' is not a finite"):
        block.numbers("bad", "a.star")
    with pytest.raises(InputError, match="column _nan, row 1"):
        block.numbers("nan")
    with pytest.raises(InputError, match="column _f, row 2"):
        block.integers("f")
    with pytest.raises(InputError, match="'1_000' is not a finite"):
        StarBlock({"u": ["1", "1_000"]}).numbers("u")
    with pytest.raises(InputError, match="column _gone: missing"):
        block.numbers("gone")


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for document in (
        StarDocument({"p": StarBlock({"a": ["1"], "b": []})}),
        StarDocument({"p": StarBlock({"a": ["1", "2"]}, is_loop=False)}),
        StarDocument({"p q": StarBlock({"a": ["1"]})}),
        StarDocument({"p": StarBlock({"a": ["x\ny"]})}),
    ):
        with pytest.raises(ValueError, match=r"block data_p|cannot be written"):
            write_star(tmp_path / "a.star", document)
    assert not list(tmp_path.iterdir())


def test_an_empty_table_survives() -> None:
    document = StarDocument({"p": StarBlock({"a": [], "b": []})})
    assert parse_star(format_star(document)) == document
    assert len(document.blocks["p"]) == 0


def test_format_column() -> None:
    assert format_column(np.array([1.25, -2.0], dtype=np.float32), 3) == ["1.250", "-2.000"]
    assert format_column(np.array([7, 8])) == ["7", "8"]
