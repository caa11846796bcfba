"""cryoSPARC projects: job folders, groups, classes, and tables for RELION, moved and linked."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest

from vitreous.core.errors import InputError
from vitreous.data.particles import Particles
from vitreous.io.cryosparc import CsTable, join_fields, read_cs, write_cs
from vitreous.io.cryosparc_jobs import particle_files, read_csg
from vitreous.io.mrc import write_mrc
from vitreous.io.star import read_star

GROUP = """created: 2026-11-02 10:11:12
group:
  description: All particles, with classes
  name: particles
  title: Particles
  type: {kind}
results:
  alignments3D:
    metafile: '>J42_particles.cs'
    num_items: 6
    type: particle.alignments3D
  blob:
    metafile: '>J42_passthrough_particles.cs'
    num_items: 6
    type: particle.blob
  ctf:
    metafile: ">J42_passthrough_particles.cs"
    num_items: 6
    type: particle.ctf
version: v4.4
"""
UID = np.arange(6, dtype="u8") + 100


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project: stacks of equal name in J3 and J4, poses in J42, the rest in its passthrough."""
    root = tmp_path / "P1"
    (root / "J42").mkdir(parents=True)
    for number in (3, 4):
        (root / f"J{number}" / "extract").mkdir(parents=True)
        images = np.random.default_rng(number).normal(size=(3, 16, 16)).astype("f4")
        write_mrc(root / f"J{number}/extract/m.mrc", images, 2.0, is_stack=True)
    rng = np.random.default_rng(0)
    own = {
        "uid": UID,
        "alignments3D/pose": rng.normal(size=(6, 3)).astype("f4"),
        "alignments3D/shift": rng.normal(size=(6, 2)).astype("f4"),
        "alignments3D/psize_A": np.full(6, 2.0, "f4"),
        "ctf/df1_A": np.zeros(6, "f4"),  # stale: the group takes the CTF from the passthrough
    }
    rest = {
        "uid": UID[::-1].copy(),
        "blob/path": np.array([b">J4/extract/m.mrc"] * 3 + [b">J3/extract/m.mrc"] * 3),
        "blob/idx": np.array([2, 1, 0] * 2, "u4"),
        "blob/psize_A": np.full(6, 2.0, "f4"),
        "blob/shape": np.full((6, 2), 16, "u4"),
        "blob/sign": np.full(6, 1, "f4"),
        "ctf/accel_kv": np.full(6, 300, "f4"),
        "ctf/cs_mm": np.full(6, 2.7, "f4"),
        "ctf/amp_contrast": np.full(6, 0.1, "f4"),
        "ctf/df1_A": np.linspace(2e4, 1e4, 6).astype("f4"),
        "ctf/df2_A": np.linspace(2e4, 1e4, 6).astype("f4"),
        "ctf/df_angle_rad": np.zeros(6, "f4"),
        "alignments3D/pose": np.zeros((6, 3), "f4"),  # stale as well
    }
    write_cs(root / "J42/J42_particles.cs", CsTable(join_fields(own)))
    write_cs(root / "J42/J42_passthrough_particles.cs", CsTable(join_fields(rest)))
    (root / "J42/J42_particles.csg").write_text(GROUP.format(kind="particle"))
    return root


def test_a_group_takes_each_result_from_its_file(project: Path) -> None:
    table = read_csg(project / "J42/J42_particles.csg")
    own = read_cs(project / "J42/J42_particles.cs").rows
    assert table.rows["uid"].tolist() == UID.tolist()
    assert table.rows["alignments3D/pose"].tobytes() == own["alignments3D/pose"].tobytes()
    assert table.rows["ctf/df1_A"].tolist() == np.linspace(1e4, 2e4, 6).astype("f4").tolist()


@pytest.mark.parametrize("way", ["csg", "folder", "folder without csg", "linked", "moved"])
def test_a_job_is_opened_by_group_or_folder(project: Path, way: str) -> None:
    given = project / "J42"
    want = np.concatenate(
        [np.random.default_rng(k).normal(size=(3, 16, 16)).astype("f4") for k in (3, 4)]
    )
    if way == "csg":
        given = given / "J42_particles.csg"
    elif way == "folder without csg":
        (given / "J42_particles.csg").unlink()
    elif way == "linked":
        given = project.parent / "link"
        given.symlink_to(project / "J42")
        project = project.rename(project.parent / "P2")
        given.unlink()
        given.symlink_to(project / "J42")
    elif way == "moved":
        given = project.rename(project.parent / "P2") / "J42"
    root = project if way == "linked" else None
    particles = Particles.open(given, data_root=root)
    assert np.array_equal(particles.read(slice(None)).numpy(), want)
    assert particles.has_ctf
    assert particles.pose is not None


def test_info_describes_a_job(vitreous, project: Path) -> None:
    for given in (project / "J42", project / "J42" / "J42_particles.csg"):
        code, text, _ = vitreous("info", given)
        assert code == 0
        assert "cryoSPARC table" in text
        assert "6" in next(line for line in text.splitlines() if line.startswith("particles"))
    code, _, err = vitreous("info", project)
    assert (code, "a folder without particles" in err) == (3, True)


def test_what_a_folder_does_not_say_is_asked_for(project: Path, tmp_path: Path) -> None:
    job = project / "J42"
    (job / "J42_particles.csg").unlink()
    for name in ("J42_class_00_00010_particles.cs", "J42_class_01_00010_particles.cs"):
        shutil.copy(job / "J42_particles.cs", job / name)
    with pytest.raises(InputError, match=r"several outputs .*class_00.*class_01"):
        particle_files(job)
    (job / "J42_particles_all_classes.csg").write_text(GROUP.format(kind="particle"))
    assert particle_files(job)[0].name == "J42_particles_all_classes.csg"
    (job / "m.csg").write_text(GROUP.format(kind="exposure"))
    with pytest.raises(InputError, match="group type: exposure"):
        read_csg(job / "m.csg")
    with pytest.raises(InputError, match="a folder without particles"):
        particle_files(tmp_path)


@pytest.mark.parametrize("last", ["J7_009_particles.cs", "J7_010_particles.cs"])
def test_the_last_iteration_of_a_job_is_taken(tmp_path: Path, last: str) -> None:
    for name in ("J7_002_particles.cs", last, "J7_passthrough_particles.cs", "J7_exposures.cs"):
        (tmp_path / name).touch()
    file, passthrough = particle_files(tmp_path)
    assert file.name == last
    assert [path.name for path in passthrough] == ["J7_passthrough_particles.cs"]


@pytest.mark.parametrize("kind", ["alignments_class_{}", "alignments_class3D_{}", "multi"])
def test_several_references_give_the_best_class(project: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    pose = rng.normal(size=(6, 3, 3)).astype("f4")
    shift = rng.normal(size=(6, 3, 2)).astype("f4")
    best = np.array([0, 1, 2, 2, 1, 0])
    posterior = np.eye(3, dtype="f4")[best] * 0.8 + 0.1
    path = project / "J42/J42_passthrough_particles.cs"
    old = read_cs(path).rows
    columns = {n: old[n][::-1] for n in old.dtype.names if not n.startswith("alignments3D")}
    size = np.full((6, 3), 2.0, "f4")
    parts = {"pose": pose, "shift": shift, "class_posterior": posterior, "psize_A": size}
    for name, values in parts.items():
        if kind == "multi":
            columns[f"alignments3D_multi/{name}"] = values
        else:
            columns |= {f"{kind.format(k)}/{name}": values[:, k].copy() for k in range(3)}
    target = project / "J42/multi.cs"
    table = CsTable(join_fields(columns))
    write_cs(target, table)
    particles = Particles.open(target)
    assert particles.pose is not None
    want = 0.0 - shift[np.arange(6), best] * 2.0
    assert np.allclose(particles.pose.shift_angstrom.numpy(), want, atol=1e-5)
    document = particles.to_star_document()
    assert document.blocks["particles"].columns["rlnClassNumber"] == [str(k + 1) for k in best]


def test_several_references_survive_a_round_trip(vitreous, project: Path) -> None:
    test_several_references_give_the_best_class(project, "multi")
    source, star, back = (project / "J42" / name for name in ("multi.cs", "m.star", "back.cs"))
    assert vitreous("convert", source, star)[0] == 0
    assert vitreous("convert", star, back)[0] == 0
    before, after = read_cs(source).rows, read_cs(back).rows
    for name in before.dtype.names:
        if name != "blob/path":
            assert before[name].tobytes() == after[name].tobytes(), name
    assert "alignments3D/pose" in after.dtype.names


# ----------------------------------------------------------------------------- for RELION


def linked(vitreous, project: Path, out: Path) -> tuple[int, str, str]:
    out.mkdir(exist_ok=True)
    return vitreous("convert", project / "J42", out / "particles.star", "--link", "--overwrite")


def test_links_for_relion(vitreous, project: Path) -> None:
    """Stacks of one name get links of two; the images are the same through them."""
    out = project / "relion"
    code, text, err = linked(vitreous, project, out)
    assert (code, err) == (0, "")
    assert f"start RELION in {out}" in text
    block = read_star(out / "particles.star").blocks["particles"]
    stacks = list(dict.fromkeys(n.partition("@")[2] for n in block.columns["rlnImageName"]))
    assert stacks == ["particles_stacks/m.mrcs", "particles_stacks/m_2.mrcs"]
    assert set(block.columns["rlnMicrographName"]) == {"J3/extract/m.mrc", "J4/extract/m.mrc"}
    want = Particles.open(project / "J42").read(slice(None))
    assert Particles.open(out / "particles.star").read(slice(None)).equal(want)
    assert linked(vitreous, project, out)[0] == 0  # again, over its own links
    moved = project.rename(project.parent / "elsewhere")  # links go with the project
    assert Particles.open(moved / "relion/particles.star").read(slice(None)).equal(want)
    (moved / "relion/particles_stacks/m.mrcs").unlink()
    (moved / "relion/particles_stacks/m.mrcs").write_text("mine")
    code, _, err = linked(vitreous, moved, moved / "relion")
    assert (code, "in the place of a link" in err) == (3, True)
    assert (moved / "relion/particles_stacks/m.mrcs").read_text() == "mine"


def test_stacks_elsewhere_are_linked_too(vitreous, tmp_path: Path) -> None:
    """All names hold in the folder of the table, where RELION is started."""
    (tmp_path / "proj/Extract").mkdir(parents=True)
    (tmp_path / "back/own").mkdir(parents=True)
    for name in ("proj/Extract/s.mrcs", "back/own/s.mrcs"):
        write_mrc(tmp_path / name, np.ones((1, 16, 16), "f4"), 2.0, is_stack=True)
    star = tmp_path / "p.star"
    star.write_text("data_\nloop_\n_rlnImageName\n1@proj/Extract/s.mrcs\n1@back/own/s.mrcs\n")
    assert vitreous("convert", star, tmp_path / "back/p.star", "--link")[0] == 0
    names = read_star(tmp_path / "back/p.star").blocks["particles"].columns["rlnImageName"]
    assert names == ["000001@p_stacks/s.mrcs", "000001@own/s.mrcs"]


def test_what_relion_would_miss_is_said(vitreous, project: Path) -> None:
    code, _, err = vitreous("convert", project / "J42", project / "plain.star")
    assert code == 0
    assert "by the suffix .mrcs only, and 2 here end otherwise" in err
    assert "_rlnMicrographName; --link names micrographs after the stacks" in err
    assert len(Particles.open(project / "plain.star")) == 6
    assert "dark" not in err
    path = project / "J42/J42_passthrough_particles.cs"
    rows = read_cs(path).rows.copy()
    rows["blob/sign"] = -1
    write_cs(path, CsTable(rows))
    code, _, err = vitreous("convert", project / "J42", project / "dark.star", "--link")
    assert (code, "protein is dark" in err) == (0, True)
    code, _, err = vitreous("convert", project / "J42", project / "plain.cs", "--link")
    assert (code, "give an output that ends in .star" in err) == (2, True)


@pytest.mark.slow
def test_relion_runs_on_what_was_written(vitreous, project: Path) -> None:
    if shutil.which("relion_reconstruct") is None:
        pytest.skip("relion is not installed")
    out = project / "relion"
    assert linked(vitreous, project, out)[0] == 0
    command = ["relion_reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf"]
    subprocess.run(command, cwd=out, check=True, capture_output=True, timeout=120)
    assert (out / "map.mrc").is_file()


@pytest.mark.parametrize("way", ["link to a file", "absolute", "above", "link to a folder"])
def test_reading_follows_names_out_of_the_project(tmp_path: Path, way: str) -> None:
    storage, project = tmp_path / "storage", tmp_path / "project" / "J1" / "imported"
    storage.mkdir()
    project.mkdir(parents=True)
    images = np.random.default_rng(0).normal(size=(2, 16, 16)).astype("f4")
    write_mrc(storage / "grid.mrcs", images, 2.0, is_stack=True)
    name = {
        "link to a file": "J1/imported/000_grid.mrcs",
        "absolute": str(storage / "grid.mrcs"),
        "above": "../storage/grid.mrcs",
        "link to a folder": "J1/imported/all/grid.mrcs",
    }[way]
    (project / "000_grid.mrcs").symlink_to(storage / "grid.mrcs")
    (project / "all").symlink_to(storage)
    star = tmp_path / "project" / "p.star"
    star.write_text(f"data_\nloop_\n_rlnImageName\n1@{name}\n2@{name}\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        particles = Particles.open(star)
    assert np.array_equal(particles.read(slice(None)).numpy(), images)


def test_what_is_unusual_about_many_stacks_is_said_once(tmp_path: Path) -> None:
    names = []
    for number in range(3):
        path = tmp_path / f"{number}.mrcs"
        write_mrc(path, np.zeros((1, 16, 16), "f4"), 2.0, is_stack=True)
        raw = bytearray(path.read_bytes())
        raw[208:216] = bytes(8)
        path.write_bytes(raw)
        names.append(f"1@{path.name}")
    star = tmp_path / "p.star"
    star.write_text("data_\nloop_\n_rlnImageName\n" + "\n".join(names) + "\n")
    with pytest.warns(UserWarning, match="and 2 more files: MAP id") as caught:
        Particles.open(star).read(slice(None))
    assert len(caught) == 1


def test_a_group_that_names_a_file_with_a_null_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.csg"
    path.write_text("group:\n  type: particle\nresults:\n  blob:\n    metafile: '>a\0.cs'\n")
    with pytest.raises(InputError, match="not a text file; expected a group file"):
        Particles.open(path)


def test_an_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.cs").write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(InputError, match="zip archive; unpack it"):
        read_cs(tmp_path / "a.cs")
