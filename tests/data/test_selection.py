"""Choosing rows: the little language of --where, groups, micrographs, row lists, random draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitreous.core.errors import InputError, UsageError
from vitreous.data.particle_table import ParticleTable
from vitreous.data.selection import (
    Condition,
    from_micrograph,
    images_of,
    in_optics_group,
    rows_from_file,
    thinned,
)
from vitreous.io.mrc import write_mrc
from vitreous.io.star import StarBlock, StarDocument

TABLE = ParticleTable(
    StarDocument(
        {
            "optics": StarBlock(
                {
                    "rlnOpticsGroup": ["2", "1"],
                    "rlnOpticsGroupName": ["b side", "a"],
                    "rlnVoltage": ["200", "300"],
                }
            ),
            "particles": StarBlock(
                {
                    "rlnImageName": [f"{i}@s.mrcs" for i in range(1, 5)],
                    "rlnOpticsGroup": ["1", "2", "1", "1"],
                    "rlnDefocusU": ["10000", "2e4", "15000.5", "nan"],
                    "rlnMicrographName": ["M/a1.mrc", "M/a2.mrc", "M/b1.mrc", "N/a1.mrc"],
                    "rlnClassNumber": ["1", "2", "3", "3.000"],
                    "cs/ctf/type": ["x", "y", "x", "1"],
                }
            ),
        }
    ),
    Path("p.star"),
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("rlnDefocusU > 10000", [1, 2]),
        ("_rlnDefocusU>=10000", [0, 1, 2]),
        ("rlnDefocusU == 1.0e4", [0]),
        ("rlnDefocusU != 10000", [1, 2, 3]),
        ("rlnDefocusU<15000.5", [0]),
        ("rlnDefocusU <= 15000.5", [0, 2]),
        ("rlnVoltage == 300", [0, 2, 3]),
        ("rlnClassNumber in 1, 3", [0, 2, 3]),
        ("rlnMicrographName == M/a2.mrc", [1]),
        ("rlnMicrographName in M/a2.mrc,N/a1.mrc", [1, 3]),
        ("cs/ctf/type != x", [1, 3]),
        ("cs/ctf/type == 1", [3]),
        ("rlnDefocusU == abc", []),
    ],
)
def test_conditions(text: str, rows: list[int]) -> None:
    assert np.flatnonzero(Condition.parse(text).mask(TABLE)).tolist() == rows


@pytest.mark.parametrize(
    "text", ["", "rlnVoltage", "rlnVoltage =", "== 3", "rlnVoltage = 3", "a b == 3", "a <", "in 3"]
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(UsageError, match="expected 'COLUMN OP VALUE'"):
        Condition.parse(text)


def test_conditions_that_make_no_sense_for_the_table() -> None:
    with pytest.raises(InputError, match="column _rlnGone: missing"):
        Condition.parse("rlnGone == 1").mask(TABLE)
    with pytest.raises(InputError, match="needs numbers on both sides"):
        Condition.parse("cs/ctf/type < 3").mask(TABLE)
    with pytest.raises(InputError, match="needs numbers on both sides"):
        Condition.parse("rlnVoltage < high").mask(TABLE)


def test_groups_and_micrographs() -> None:
    assert in_optics_group(TABLE, "2").tolist() == [False, True, False, False]
    assert in_optics_group(TABLE, "b side").tolist() == [False, True, False, False]
    with pytest.raises(InputError, match=r"`optics_group` 9: .* there are 1, 2"):
        in_optics_group(TABLE, "9")
    assert from_micrograph(TABLE, "a?.mrc").tolist() == [True, True, False, True]
    assert from_micrograph(TABLE, "M/*").tolist() == [True, True, True, False]


def test_rows_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("4\n1, 2\n2\n")
    assert rows_from_file(path, 4).tolist() == [True, True, False, True]
    for bad in ("0", "5", "x", "1.5", "-1", "9" * 5000, "\u0663"):
        path.write_text(f"1 {bad}\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"rows\.txt: (entry 2|not a text file)"):
            rows_from_file(path, 4)


def test_drawing() -> None:
    mask = np.arange(1000) % 2 == 0
    drawn = thinned(mask, first=None, random=100, seed=3)
    assert drawn.sum() == 100
    assert not (drawn & ~mask).any()
    assert (drawn == thinned(mask, first=None, random=100, seed=3)).all()
    assert (drawn != thinned(mask, first=None, random=100, seed=4)).any()
    assert thinned(mask, first=None, random=5000, seed=3).sum() == 500
    assert np.flatnonzero(thinned(mask, first=3, random=None, seed=0)).tolist() == [0, 2, 4]


def images(names: list[str], path: Path) -> ParticleTable:
    return ParticleTable(StarDocument({"particles": StarBlock({"rlnImageName": names})}), path)


def test_images_that_another_table_names(tmp_path: Path) -> None:
    """Stacks are files where both are found, however they are named, else names."""
    for folder in ("run", "other"):
        (tmp_path / folder).mkdir()
        write_mrc(tmp_path / folder / "s.mrcs", np.zeros((3, 4, 4)), 1.0, is_stack=True)
    table = images(["1@run/s.mrcs", "2@run/s.mrcs", "1@gone.mrcs"], tmp_path / "p.star")
    same = images(["000002@s.mrcs"], tmp_path / "run" / "p.star")
    assert images_of(same, table).tolist() == [False, True, False]
    saved = images(["1@gone.mrcs", "1@run/s.mrcs"], Path("/nowhere/p.star"))
    assert images_of(saved, table).tolist() == [True, False, True]
    stranger = images(["2@s.mrcs", "2@run/s.mrcs"], tmp_path / "other" / "p.star")
    with pytest.warns(UserWarning, match="has no rows of 1 of the 2 images"):
        assert images_of(stranger, table).tolist() == [False, True, False]
