"""Picks: EMAN boxes and STAR coordinates, and lines that are neither."""

from __future__ import annotations

import numpy as np
import pytest

from vitreous.core.errors import InputError
from vitreous.io.boxes import find_coordinates, parse_boxes, read_coordinates
from vitreous.io.star import StarBlock, StarDocument, write_star


def test_real_boxes_are_read(shared_data):
    paths = sorted((shared_data / "empiar10061/boxes").glob("*.box"))
    assert len(paths) == 4
    for path in paths:
        lines = path.read_text().split("\n")
        x, y, width, height = map(int, lines[0].split())
        centres = read_coordinates(path)
        assert len(centres) == sum(bool(line.strip()) for line in lines)
        assert centres[0].tolist() == [x + width / 2, y + height / 2]


def test_sizes_and_further_columns():
    rows = parse_boxes("0 0 4 6\n\n 1.5 2 3 3 -3 0.7\n")
    assert rows.tolist() == [[2, 3, 4, 6], [3, 3.5, 3, 3]]
    assert parse_boxes("").shape == (0, 4)


@pytest.mark.parametrize("line", ["1 2 3", "1 2 a 4", "1 2 0 4", "1 2 4 -4", "nan 2 4 4"])
def test_bad_lines_are_named(line):
    with pytest.raises(InputError, match=r"m\.box: line 3: "):
        parse_boxes(f"1 2 3 4\n\n{line}\n", "m.box")


def test_star_picks_and_other_files(tmp_path):
    columns = {"rlnCoordinateX": ["1.5", "2"], "rlnCoordinateY": ["3", "4"]}
    write_star(tmp_path / "a.star", StarDocument({"": StarBlock(columns)}))
    assert read_coordinates(tmp_path / "a.star").tolist() == [[1.5, 3], [2, 4]]
    write_star(tmp_path / "b.star", StarDocument({"": StarBlock({"rlnCoordinateX": ["1"]})}))
    with pytest.raises(InputError, match="_rlnCoordinateY"):
        read_coordinates(tmp_path / "b.star")
    (tmp_path / "c.txt").write_text("1 2 3 4")
    with pytest.raises(InputError, match=r"\.box and \.star"):
        read_coordinates(tmp_path / "c.txt")
    with pytest.raises(InputError, match="no such file"):
        read_coordinates(tmp_path / "missing.box")


def test_picks_are_found_by_the_micrographs_stem(tmp_path):
    for name in ("m1_autopick.star", "m1_2_autopick.star", "m3.box"):
        (tmp_path / name).touch()
    assert find_coordinates(tmp_path, "Job/m1.mrc").name == "m1_autopick.star"
    assert find_coordinates(tmp_path, "m1_2.mrc").name == "m1_2_autopick.star"
    assert find_coordinates(tmp_path, "m3.mrc").name == "m3.box"
    assert find_coordinates(tmp_path, "m.mrc") is None
    (tmp_path / "m1_manualpick.star").touch()
    with pytest.raises(InputError, match="keep one"):
        find_coordinates(tmp_path, "m1.mrc")


def test_centres_are_float(tmp_path):
    (tmp_path / "m.box").write_text("1 2 3 3\n")
    assert read_coordinates(tmp_path / "m.box").dtype == np.float64
