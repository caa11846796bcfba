from pathlib import Path

import numpy as np
import pytest

from vitreous.data.particles import Particles
from vitreous.io.cryosparc import CsTable, join_fields, write_cs
from vitreous.io.mrc import write_mrc
from vitreous.io.star import read_star


@pytest.fixture
def project(tmp_path):
    """A cryoSPARC project: particles in J24, their stack in J19, CTF in a passthrough file."""
    for folder in ("J19/extract", "J24", "out"):
        (tmp_path / folder).mkdir(parents=True)
    images = np.arange(6)[:, None, None] + np.eye(8)
    write_mrc(tmp_path / "J19/extract/s.mrc", images, 2.0, is_stack=True)
    rng = np.random.default_rng(0)
    uid = np.arange(6, dtype="u8") + 100
    main = {
        "uid": uid,
        "blob/path": np.array([b">J19/extract/s.mrc"] * 6),
        "blob/idx": np.arange(6, dtype="u4")[::-1].copy(),
        "blob/psize_A": np.full(6, 2.0, dtype="f4"),
        "blob/shape": np.full((6, 2), 8, dtype="u4"),
        "blob/sign": np.full(6, -1, dtype="f4"),
        "alignments3D/pose": rng.normal(size=(6, 3)).astype("f4"),
        "alignments3D/split": np.array([0, 1] * 3, dtype="u4"),
    }
    ctf = {
        "uid": uid,
        "ctf/accel_kv": np.full(6, 300, dtype="f4"),
        "ctf/cs_mm": np.full(6, 2.7, dtype="f4"),
        "ctf/amp_contrast": np.full(6, 0.1, dtype="f4"),
        "ctf/df1_A": np.linspace(1e4, 2e4, 6).astype("f4"),
        "ctf/df2_A": np.linspace(1e4, 2e4, 6).astype("f4"),
        "ctf/df_angle_rad": np.zeros(6, dtype="f4"),
    }
    write_cs(tmp_path / "J24/particles.cs", CsTable(join_fields(main)))
    write_cs(tmp_path / "J24/passthrough.cs", CsTable(join_fields(ctf)))
    return tmp_path


@pytest.fixture
def star(vitreous, project):
    both = ("J24/particles.cs", "out/p.star", "--passthrough", "J24/passthrough.cs")
    arguments = [a if a.startswith("--") else project / a for a in both]
    text = f"6 particles in {project / 'out/p.star'}\n"
    assert vitreous("convert", *arguments)[:2] == (0, text)
    return project / "out" / "p.star"


def test_there_and_back(vitreous, project, star):
    particles = Particles.open(star)
    assert particles.has_ctf
    assert particles.stated_contrast == "dark"
    assert particles.read([0])[0, 0, 1] == 5.0
    back = project / "back.cs"
    assert vitreous("convert", star, back)[0] == 0
    given = [np.load(project / "J24" / f"{name}.cs") for name in ("particles", "passthrough")]
    rows = np.load(back)
    names = dict.fromkeys([*given[0].dtype.names, *given[1].dtype.names])
    assert rows.dtype.names == tuple(names)
    for table in given:
        for name in table.dtype.names:
            assert rows[name].tobytes() == table[name].tobytes()
    assert Particles.open(back).read([1])[0, 0, 1] == 4.0
    opened = Particles.open(back)  # as abinit does
    assert opened.optics.defocus_u_angstrom.tolist() == pytest.approx(np.linspace(1e4, 2e4, 6))


@pytest.mark.filterwarnings("ignore:.*pixel size 3.5")
def test_apix_and_lists(vitreous, project):
    (project / "stacks.txt").write_text("J19/extract/s.mrc\n")
    out = project / "out" / "x.star"
    assert vitreous("convert", project / "stacks.txt", out, "--apix", "3.5")[0] == 0
    assert read_star(out).blocks["optics"].columns["rlnImagePixelSize"] == ["3.500000"]
    assert Particles.open(out).pixel_size_angstrom == 3.5


def test_data_root(vitreous, project, star):
    (project / "J19/extract/s.mrc").rename(project / "out/elsewhere.mrcs")
    listed = project / "J24" / "all.lst"
    listed.write_text("elsewhere.mrcs\n")
    out = project / "x.star"
    code, _, err = vitreous("convert", listed, out)
    assert code == 3
    assert "--data-root" in err
    assert vitreous("convert", listed, out, "--data-root", project / "out")[0] == 0
    assert Particles.open(out).ids[0] == "000001@out/elsewhere.mrcs"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--half", "1"], [0, 2, 4]),
        (["--half", "1", "--invert"], [1, 3, 5]),
        (["--where", "rlnDefocusU > 1.1e4", "--where", "cs/uid in 102,103,100"], [2, 3]),
        (["--first", "2"], [0, 1]),
        (["--rows", "rows.txt"], [1, 5]),
        (["--rows", "rows.txt", "--invert", "--half", "2"], [0, 2, 3, 4]),
        (["--optics-group", "1", "--first", "1"], [0]),
    ],
)
def test_select(vitreous, project, star, monkeypatch, options, kept):
    monkeypatch.chdir(project)
    Path("rows.txt").write_text("6 2\n")
    code, out, err = vitreous("select", star, "J24/some.cs", *options)
    assert (code, out, err) == (0, f"kept {len(kept)} of 6 particles in J24/some.cs\n", "")
    some = Particles.open(project / "J24/some.cs")
    assert some.read(slice(None))[:, 0, 1].tolist() == [5.0 - i for i in kept]
    rows = np.load("J24/some.cs")
    assert rows["uid"].tolist() == [100 + i for i in kept]
    assert set(rows["blob/path"].tolist()) == {b">J19/extract/s.mrc"}


def test_rows_that_another_table_names(vitreous, project, star):
    some, same, others = (project / name for name in ("J24/some.cs", "a.star", "b.star"))
    assert vitreous("select", star, some, "--half", "2")[0] == 0
    assert vitreous("select", star, same, "--images", some)[0] == 0
    assert Particles.open(same).half_set.tolist() == [2, 2, 2]
    assert vitreous("select", star, others, "--images", same, "--invert")[0] == 0
    assert Particles.open(others).half_set.tolist() == [1, 1, 1]


def test_random_selection_follows_its_seed(vitreous, project, star):
    drawn = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = project / f"{name}.star"
        vitreous("select", star, out, "--random", "3", "--seed", seed)
        drawn[name] = read_star(out).blocks["particles"].columns["cs/uid"]
    assert drawn["a"] == drawn["b"] != drawn["c"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["convert", "out/p.star", "out/p.star"], 2, "is also an input"),
        (["convert", "out/p.star", "J24/particles.cs"], 2, "exists; give --overwrite"),
        (["convert", "out/p.star", "x.txt"], 2, ".star or .cs"),
        (["convert", "gone.star", "x.cs"], 3, "no such file"),
        (["convert", "out/p.star", "gone/x.cs"], 3, "cannot be written"),
        (["convert", "J24/passthrough.cs", "x.star"], 3, "blob/path or blob/idx: missing"),
        (["convert", "out/p.star", "x.cs", "--passthrough", "J24/passthrough.cs"], 2, "goes with"),
        (["select", "out/p.star", "x.star", "--where", "rlnDefocusU > 1e9"], 3, "none of 6"),
        (["select", "out/p.star", "x.star", "--where", "rlnDefocusU"], 2, "where"),
        (["select", "out/p.star", "x.star", "--first", "1", "--random", "1"], 2, "exclude"),
        (["select", "out/p.star", "x.star", "--micrograph", "*"], 3, "_rlnMicrographName: missing"),
        (["select", "out/p.star", "x.star", "--class", "1"], 3, "_rlnClassNumber: missing"),
        (["abinit", "J24/particles.cs", "-o", "OUT"], 3, "_rlnDefocusU"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    vitreous, project, star, monkeypatch, arguments, code, message
):
    monkeypatch.chdir(project)
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    got, out, err = vitreous(*arguments)
    assert (got, out) == (code, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file()} == before


def test_fault_15_names_the_input_of_a_conversion(vitreous, project, star):
    text = star.read_text().replace("14000.000000 14000.000000", "nan 14000.000000", 1)
    assert "nan" in text
    star.write_text(text)
    code, _, err = vitreous("convert", star, project / "x.cs")
    assert (code, err.count("\n")) == (3, 1)
    assert "out/p.star: column _rlnDefocusU, row 3: 'nan' is not a finite number" in err
    assert not (project / "x.cs").exists()


def test_overwrite(vitreous, project, star):
    target = project / "J24" / "particles.cs"
    assert vitreous("convert", star, target, "--overwrite")[0] == 0
    assert "ctf/df1_A" in np.load(target).dtype.names


def test_a_link_to_the_input_is_the_input(vitreous, project, star):
    (project / "link.star").symlink_to(star)
    code, _, err = vitreous("select", star, project / "link.star", "--first", "1", "--overwrite")
    assert code == 2
    assert "is also an input" in err


def test_missing_stacks_are_said_and_do_not_matter(vitreous, project, star):
    (project / "J19/extract/s.mrc").unlink()
    code, _, err = vitreous("convert", star, project / "x.cs")
    assert code == 0
    assert "warning: 1 image stack(s) were not found" in err


def test_info_shows_cs_files(vitreous, project):
    code, out, _ = vitreous("info", project / "J24/particles.cs")
    assert code == 0
    assert "cryoSPARC table" in out
    assert "6, fields uid, blob/path" in out
    assert "orientations  given" in out
    assert "protein dark" in out
    code, out, _ = vitreous("info", project / "J24/passthrough.cs")
    assert code == 0
    assert "none (a passthrough file?)" in out
    (project / "bad.cs").write_bytes(b"\x93NUMPY")
    code, out, err = vitreous("info", project / "bad.cs")
    assert (code, out, err.count("\n")) == (3, "", 1)
