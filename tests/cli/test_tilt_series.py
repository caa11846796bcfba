"""Particles of tomograms with known truth: ``info``, ``check``, ``reconstruct``, ``refine``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vitreous as vt
from particle_files import columns, volume
from tilt_particle_files import PIXEL, write_tilt_set

FULL = {"particles": 40, "tilts": 37}


@pytest.mark.parametrize(
    ("kind", "size", "least"),
    [
        ("premultiplied", {"particles": 16, "tilts": 11}, 0.85),
        *(
            pytest.param(kind, FULL, 0.96, marks=pytest.mark.slow)
            for kind in ("plain", "premultiplied", "warp")
        ),
    ],
)
def test_tilt_series_of_known_truth(
    vitreous, tmp_path: Path, kind: str, size: dict[str, int], least: float
) -> None:
    flags = {} if kind == "plain" else {kind: True}
    made = write_tilt_set(tmp_path / "set", hidden=3, **size, **flags)
    count = size["particles"] * size["tilts"] - 3 * -(-size["particles"] // 3)
    code, said, told = vitreous("info", made.path)
    assert (code, told) == (0, "")
    assert f"tilt series   {count} images of {size['particles']} particles" in said
    code, said, _ = vitreous("check", made.path, "--threads", 1, "-q")
    assert (code, "WRONG" in said) == (0, False), said
    small = ("--threads", 1, "-q")
    rounds = () if size == FULL else ("--rounds", 2)
    vt.write_map(tmp_path / "start.mrc", made.truth, PIXEL)
    refine = ("--map", tmp_path / "start.mrc", "--start-resolution", 40, *rounds)
    for command, more in (("reconstruct", ()), ("refine", refine)):
        code, said, told = vitreous(command, made.path, "-o", tmp_path / command, *more, *small)
        assert code == 0, told
        result = volume(tmp_path / command / "map.mrc")
        score = np.corrcoef(result.flatten(), made.truth.flatten())[0, 1]
        assert score > (least if command == "reconstruct" or size == FULL else 0.7), command
        table = columns(tmp_path / command / "particles.star")
        name = "rlnGroupName" if kind == "warp" else "rlnTomoParticleName"
        pairs = set(zip(table[name], table["rlnRandomSubset"], strict=True))
        assert len(pairs) == len(set(table[name]))  # a particle's tilts in one half
