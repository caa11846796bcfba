"""``join``, ``select --unique`` and ``--min-distance``, ``resample``, and ``info`` on tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from particle_files import columns
from vitreous.core.params import Optics
from vitreous.data.tables import make_document
from vitreous.io.mrc import read_header, write_mrc
from vitreous.io.star import StarBlock, StarDocument, read_star, write_star


def table(folder: Path, stack: str, count: int, box: int, pixel: float, **more: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    images = np.random.default_rng(box).normal(size=(count, box, box)).astype(np.float32)
    write_mrc(folder / stack, images, pixel, is_stack=True)
    names = [f"{i + 1:06d}@{stack}" for i in range(count)]
    document = make_document(
        names,
        Optics.uniform(count),
        pixel_size_angstrom=pixel,
        box_size=box,
        micrograph_names=[f"m{i % 2}.mrc" for i in range(count)],
    )
    particles = StarBlock({**document.blocks["particles"].columns, **more})
    path = folder / f"{Path(stack).stem}.star"
    write_star(path, StarDocument({**document.blocks, "particles": particles}))
    return path


def test_join_brings_tables_together_that_every_command_reads(vitreous, tmp_path) -> None:
    a = table(tmp_path / "one", "a.mrcs", 4, 24, 4.0, rlnClassNumber=["1"] * 4)
    b = table(tmp_path / "two", "b.mrcs", 6, 32, 3.0)
    c = table(tmp_path / "two", "c.mrcs", 2, 24, 4.0)
    out = tmp_path / "all.star"
    code, said, told = vitreous("join", a, b, c, "-o", out)
    assert (code, said.strip()) == (0, f"12 particles in {out}; optics groups: 2")
    assert "left out: _rlnClassNumber" in told
    found = columns(out)
    assert found["rlnImageName"][4] == "000001@two/b.mrcs"
    assert found["rlnOpticsGroup"] == ["1"] * 4 + ["2"] * 6 + ["1"] * 2
    optics = read_star(out).blocks["optics"].columns
    assert [float(size) for size in optics["rlnImagePixelSize"]] == [4.0, 3.0]
    code, said, told = vitreous("prepare", out, "--box", 24, "-o", tmp_path / "P", "-q")
    assert code == 0, told
    assert "several grids (24 px at 4 Å; 32 px at 3 Å) are brought to 24 px at 4 Å" in told
    assert read_header(tmp_path / "P/particles.mrcs").shape == (12, 24, 24)
    code, said, _ = vitreous("info", out)
    assert "pixel size    3 Å, 4 Å" in said
    assert "box           24 px, 32 px" in said
    assert vitreous("join", a, b, "-o", out)[0] == 2  # exists
    assert vitreous("join", a, "-o", tmp_path / "x.star")[0] == 2  # one table
    assert vitreous("join", a, b, "-o", a, "--overwrite")[0] == 2  # an input
    code, _, told = vitreous("join", a, tmp_path / "none.star", "-o", tmp_path / "x.star")
    assert code == 3
    assert "none.star" in told


def test_select_leaves_out_copies_and_particles_too_near(vitreous, tmp_path) -> None:
    # on m0: at 0, 50, 120 and 1000 px; on m1: at 0, 10 and 500 px; 1.2 Å a pixel
    x = ["0", "0", "50", "10", "120", "500", "1000"]
    place = {"rlnCoordinateX": x, "rlnCoordinateY": ["7"] * 7}
    origin = {"rlnOriginXAngst": ["0"] * 7, "rlnOriginYAngst": ["0"] * 7}
    a = table(tmp_path, "a.mrcs", 7, 8, 4.0, **place, **origin)
    document = read_star(a)
    optics = {**document.blocks["optics"].columns, "rlnMicrographOriginalPixelSize": ["1.2"]}
    write_star(a, StarDocument({**document.blocks, "optics": StarBlock(optics)}))
    out = tmp_path / "apart.star"
    code, said, _ = vitreous("select", a, out, "--min-distance", 80)
    assert code == 0
    assert "kept 5 of 7" in said
    assert "_rlnMicrographOriginalPixelSize" in said
    assert columns(out)["rlnCoordinateX"] == ["0", "0", "120", "500", "1000"]
    both = tmp_path / "both.star"
    assert vitreous("join", a, out, "-o", both)[0] == 0
    code, said, _ = vitreous("select", both, tmp_path / "unique.star", "--unique")
    assert "kept 7 of 12" in said
    assert columns(tmp_path / "unique.star")["rlnImageName"] == columns(a)["rlnImageName"]
    code, said, _ = vitreous("select", both, tmp_path / "copies.star", "--unique", "--invert")
    assert "kept 5 of 12" in said
    (tmp_path / "a.mrcs").unlink()
    code, said, told = vitreous("select", both, tmp_path / "names.star", "--unique")
    assert "kept 7 of 12" in said
    assert "only image names are compared" in told
    code, _, told = vitreous("select", tmp_path / "b.star", out, "--min-distance", 80)
    assert code == 3
    b = table(tmp_path, "b.mrcs", 3, 8, 4.0)
    code, _, told = vitreous("select", b, tmp_path / "d.star", "--min-distance", 80)
    assert code == 3
    assert "_rlnCoordinateX, _rlnCoordinateY: missing; --min-distance needs positions" in told


@pytest.mark.parametrize(
    ("flags", "box", "pixel"),
    [
        (("--apix", 4), 24, 4.0),
        (("--box", 16), 16, 6.0),
        (("--apix", 2.5, "--box", 20), 20, 2.5),
        (("--apix", 2.7, "--input-apix", 2.7), 32, 2.7),
    ],
)
def test_resample_a_map(vitreous, tmp_path, flags, box, pixel) -> None:
    axis = (np.arange(32) - 16) * 3.0

    def ball(axis: np.ndarray, grey: float = 128.0) -> np.ndarray:
        z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
        return np.exp(-((x - 6) ** 2 + y**2 + (z + 4) ** 2) / grey)

    write_mrc(tmp_path / "map.mrc", ball(axis).astype(np.float32), 3.0)
    code, said, _ = vitreous("resample", tmp_path / "map.mrc", "-o", tmp_path / "new.mrc", *flags)
    assert code == 0
    header = read_header(tmp_path / "new.mrc")
    assert header.shape == (box,) * 3
    assert header.pixel_size_angstrom == pytest.approx(pixel)
    values = np.fromfile(tmp_path / "new.mrc", np.float32, offset=1024).reshape(header.shape)
    if "--input-apix" not in flags:
        assert np.abs(values - ball((np.arange(box) - box // 2) * pixel)).max() < 5e-3
    assert f"{box} px at {pixel:.5g} Å" in said
    code, _, told = vitreous("resample", tmp_path / "map.mrc", "-o", tmp_path / "new.mrc")
    assert (code, "give --apix, --box, or both" in told) == (2, True)


def test_info_on_a_table_says_what_it_holds(vitreous, tmp_path) -> None:
    halves = {"rlnRandomSubset": ["1", "2", "1", "2"]}
    a = table(tmp_path, "a.mrcs", 4, 8, 4.0, **halves)
    facts = dict((line[:14].strip(), line[14:]) for line in vitreous("info", a)[1].splitlines())
    assert (
        facts.items()
        >= {
            "particles": "4",
            "half sets": "2 and 2 images",
            "contrast": "not stated; `vitreous check` tests it",
            "pixel size": "4 Å",
            "box": "8 px",
            "stacks": "1, all found",
        }.items()
    )
    document = read_star(a)
    optics = {**document.blocks["optics"].columns, "rlnCtfDataAreCtfPremultiplied": ["1"]}
    names = {**document.blocks["particles"].columns, "rlnImageName": ["1@a.mrcs"] * 4}
    write_star(a, StarDocument({"optics": StarBlock(optics), "particles": StarBlock(names)}))
    said = vitreous("info", a)[1]
    assert "half sets     2 and 2 images; 1 times copies of an image are in both" in said
    assert "multiplied by the CTF; undone where the images are used" in said
    (tmp_path / "a.mrcs").unlink()
    assert "'a.mrcs': not found" in vitreous("info", a)[1]
