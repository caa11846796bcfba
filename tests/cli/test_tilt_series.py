"""Particles of tomograms with known truth: ``info``, ``check``, ``reconstruct``, ``refine``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import vitreous as vt
from particle_files import columns, volume
from tilt_particle_files import PIXEL, write_tilt_set
from vitreous.core.fourier import fourier_resize
from vitreous.io.star import StarBlock, StarDocument, read_star, write_star

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


def test_tilts_that_the_table_parts_are_warned_of_on_the_page_too(vitreous, tmp_path: Path) -> None:
    made = write_tilt_set(tmp_path / "set", particles=6, tilts=5, box=16, warp=True)
    document = read_star(made.path)
    ((name, block),) = document.blocks.items()
    parted = StarBlock({**block.columns, "rlnRandomSubset": ["1", "2"] * 15})
    write_star(made.path, StarDocument({name: parted}))
    vt.write_map(tmp_path / "start.mrc", made.truth, PIXEL)
    start = ("--map", tmp_path / "start.mrc", "--start-resolution", 40, "--rounds", 1)
    out = tmp_path / "R"
    code, _, err = vitreous("refine", made.path, *start, "--threads", 1, "-q", "-o", out)
    told = "_rlnRandomSubset puts tilts of 6 particles into both half sets"
    assert (code, told in err, told in (out / "report.html").read_text()) == (0, True, True)


def test_prepared_tilts_are_no_longer_multiplied_and_still_belong_together(
    vitreous, tmp_path: Path
) -> None:
    made = write_tilt_set(tmp_path / "set", particles=4, tilts=5, premultiplied=True)
    out = tmp_path / "P"
    assert vitreous("prepare", made.path, "--box", 24, "-o", out, "-q")[0] == 0
    optics = read_star(out / "particles.star").blocks["optics"].columns
    assert "rlnCtfDataAreCtfPremultiplied" not in optics
    before, after = (vt.Particles.open(p) for p in (made.path, out / "particles.star"))
    assert after.tilt_particles == before.tilt_particles
    assert torch.equal(after.optics.exposure_e_per_angstrom2, made.optics.exposure_e_per_angstrom2)
    pair = [vt.ImagesInMemory(one.read(slice(None))) for one in (before, after)]
    scores = [fourier_resize(pair[0].read(torch.arange(20)), 24, 2), pair[1].read(torch.arange(20))]
    assert torch.corrcoef(torch.stack([one.flatten() for one in scores]))[0, 1] > 0.95
    assert vitreous("convert", made.path, tmp_path / "p.cs")[0] == 0
    assert vitreous("convert", tmp_path / "p.cs", tmp_path / "back.star")[0] == 0
    again = vt.Particles.open(tmp_path / "back.star")
    assert again.tilt_particles == before.tilt_particles
    assert torch.equal(again.optics.scale, before.optics.scale)
