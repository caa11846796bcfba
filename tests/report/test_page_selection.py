import base64
import zlib
from pathlib import Path

import numpy as np
import pytest

from vitreous.io.star import StarBlock, StarDocument, parse_star
from vitreous.report import selection
from vitreous.report.selection import ROW_COLUMNS, selection_data


def document(count):
    rng = np.random.default_rng(0)
    return StarDocument(
        {
            "particles": StarBlock(
                {
                    "rlnDefocusU": [f"{v:.3f}" for v in rng.uniform(1e4, 2e4, count)],
                    "vitreousLatent1": ["0.1"] * count,
                    "rlnImageName": [f"{i:06d}@a stack.mrcs" for i in range(1, count + 1)],
                    "rlnMicrographName": ["m 1.mrc"] * count,
                    "rlnOpticsGroup": ["1"] * count,
                    "rlnClassNumber": [str(i % 3) for i in range(count)],
                }
            ),
            "optics": StarBlock({"rlnOpticsGroup": ["1"], "rlnImagePixelSize": ["2.0"]}),
        }
    )


def unpacked(text):
    return zlib.decompress(base64.b64decode(text))


def numbers(text):
    return np.frombuffer(unpacked(text), np.uint8).reshape(2, -1).T.copy().view(">u2")[:, 0]


def saved(data, rows):
    """The file that the page's script makes of these rows."""
    columns = [(unpacked(text).decode().split("\n"), after) for text, after in data["columns"]]
    lines = ["".join(cells[i] + after for cells, after in columns) for i in rows]
    return parse_star(data["head"] + "\n".join(lines) + "\n", Path("selection.star"))


def test_rows_are_those_of_the_table_without_latents():
    table = document(7)
    data = selection_data(table, np.arange(7) % 3, None)
    read = saved(data, [2, 5])
    assert list(read.blocks) == ["optics", "particles"]
    assert read.blocks["optics"].columns == table.blocks["optics"].columns
    columns = table.blocks["particles"].columns
    expected = {name: [cells[2], cells[5]] for name, cells in columns.items()}
    del expected["vitreousLatent1"]
    assert dict(read.blocks["particles"].columns) == expected
    assert data["complete"]
    assert numbers(data["label"]).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_a_large_table_keeps_what_names_its_rows(monkeypatch):
    monkeypatch.setattr(selection, "MAX_ALL_COLUMNS", 1500)
    data = selection_data(document(500), np.full(500, 300), None)
    assert not data["complete"]
    assert list(saved(data, [499]).blocks["particles"].columns) == list(ROW_COLUMNS)
    assert saved(data, [499]).blocks["particles"].columns["rlnImageName"] == ["000500@a stack.mrcs"]
    assert set(numbers(data["label"])) == {300}


def test_coordinates_are_kept_to_16_bits():
    plane = np.random.default_rng(0).normal(size=(50, 2))
    plane[:, 1] = 3.0
    axes = selection_data(document(50), np.ones(50, int), plane)["plane"]
    for axis, values in zip(axes, plane.T, strict=True):
        near = axis["low"] + axis["step"] * numbers(axis["values"])
        np.testing.assert_allclose(near, values, atol=np.ptp(values) / 65535)


def test_other_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match=r"differ in number: \[2, 3\]"):
        selection_data(document(3), np.ones(3, int), np.zeros((2, 2)))
