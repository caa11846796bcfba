"""Every format through one reader: real files, variants of STAR, stacks, lists, names that move."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from vitreous.core.errors import InputError, UsageError
from vitreous.data.formats import (
    read_particles_document,
    relocated,
    select_rows,
    write_particles_document,
)
from vitreous.data.particles import Particles
from vitreous.io.cryosparc import CsTable, join_fields, write_cs
from vitreous.io.mrc import write_mrc
from vitreous.io.mrc_header import Statistics, header_bytes
from vitreous.io.star import StarBlock, StarDocument, read_star, write_star

NOT_THERE = "not found in .* or above; name the folder with `data_root`"
NO_OPTICS = "block data_optics: missing, and with it .*_rlnVoltage"
NO_PIXEL_SIZE = "pixel size: none in the header; give `pixel_size_angstrom`"
REAL = {
    "relion/FinalRefinement-OriginalParticles-PfCRT.star": (5, NOT_THERE),
    "relion/empiar_10076_7.star": (7, None),
    "relion/relion31.6opticsgroups.star": (139, NOT_THERE),
    "relion/relion31.star": (5, None),
    "relion/relion31.v2.star": (5, None),
    "relion/relion5.star": (17, NOT_THERE),
    "relion/rln_proj_64.star": (NO_OPTICS, NO_OPTICS),
    "relion/rln_proj_64_centered.star": (4, None),
    "relion/rln_proj_64_shifted.star": (4, None),
    "relion/rln_proj_65.star": (NO_OPTICS, NO_OPTICS),
    "relion/rln_proj_65_centered.star": (4, None),
    "relion/rln_proj_65_shifted.star": (4, None),
    "relion/sample_incomplete_ctf_params.star": (1, NOT_THERE),
    "relion/sample_particles_relion30.star": (17, NOT_THERE),
    "relion/sample_particles_relion31.star": (17, NOT_THERE),
    "relion/sample_relion_one_image.star": (1, NOT_THERE),
    "relion/relion31.mrcs": (5, None),
    "relion/empiar_10076_7.mrc": (7, NO_PIXEL_SIZE),
    "relion/rln_proj_64.mrcs": (5, NO_PIXEL_SIZE),
    "relion/rln_proj_64_centered.mrcs": (4, None),
    "relion/rln_proj_64_shifted.mrcs": (4, None),
    "relion/rln_proj_65.mrcs": (5, NO_PIXEL_SIZE),
    "relion/rln_proj_65_centered.mrcs": (4, None),
    "relion/rln_proj_65_shifted.mrcs": (4, None),
    "cryosparc/cryosparc_P12_J24_001_particles.cs": (2019, NOT_THERE),
    "cryosparc/cryosparc_J2_particles_exported.cs": (22, NOT_THERE),
    "cryosparc/empiar_10076_7.cs": (7, NOT_THERE),
}
"""File -> particles in it, or why it is refused; why its images cannot be opened, or None."""


@pytest.mark.parametrize("name", REAL)
@pytest.mark.filterwarnings("ignore:.*are not used")
def test_every_real_file_is_read_or_refused_for_a_reason(shared_data: Path, name: str) -> None:
    rows, refusal = REAL[name]
    if isinstance(rows, str):
        with pytest.raises(InputError, match=rows):
            read_particles_document(shared_data / name)
    else:
        document = read_particles_document(shared_data / name)
        assert len(document.blocks["particles"]) == rows
        assert "optics" in document.blocks
    if refusal is None:
        particles = Particles.open(shared_data / name)
        assert len(particles) == rows
        assert particles.read([0]).isfinite().all()
    else:
        with pytest.raises(InputError, match=refusal):
            Particles.open(shared_data / name)


def test_no_real_file_is_forgotten(shared_data: Path) -> None:
    there = {
        str(path.relative_to(shared_data))
        for folder in ("relion", "cryosparc")
        for path in (shared_data / folder).iterdir()
    }
    assert there == set(REAL)


def test_cs_and_star_of_the_same_particles_agree(shared_data: Path, tmp_path: Path) -> None:
    for name in ("empiar_10076_7.cs", "empiar_10076_7.star", "empiar_10076_7.mrc"):
        folder = "cryosparc" if name.endswith("cs") else "relion"
        (tmp_path / name).write_bytes((shared_data / folder / name).read_bytes())
    cs = Particles.open(tmp_path / "empiar_10076_7.cs")
    star = Particles.open(tmp_path / "empiar_10076_7.star")
    assert cs.read(slice(None)).equal(star.read(slice(None)))
    assert cs.optics.defocus_u_angstrom.allclose(star.optics.defocus_u_angstrom)
    assert cs.optics.defocus_angle_deg.allclose(star.optics.defocus_angle_deg)
    assert cs.optics.amplitude_contrast.allclose(star.optics.amplitude_contrast)
    assert cs.pixel_size_angstrom == pytest.approx(star.pixel_size_angstrom, rel=1e-6)
    assert cs.box_size == star.box_size == 320
    assert (cs.stated_contrast, star.stated_contrast) == ("dark", None)
    assert cs.select([1, 2]).stated_contrast == "dark"


VARIANT = """# written by hand
# version 50001

data_general

_rlnFinalResolution  3.2  # comment
_rlnVector [1,2,3]

data_optics\t

loop_
_rlnOpticsGroup
_rlnOpticsGroupName #2 comment
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnOddZernike #7
1 'my optics' 300 2.7 0.1 2.0 [0,0.0,0e5]

data_particles

loop_
_rlnImageName
_rlnOpticsGroup   #2
_rlnDefocusU #3
_rlnDefocusV
_rlnDefocusAngle
# between
   000001@s.mrcs            1 10000.0 9000 45   \x20
\t2@s.mrcs 1 1e4 9000 -45 # last
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_variants_of_star(tmp_path: Path, end: str) -> None:
    write_mrc(tmp_path / "s.mrcs", np.ones((2, 8, 8)), 2.0, is_stack=True)
    path = tmp_path / "p.star"
    path.write_bytes(VARIANT.replace("\n", end).encode())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        particles = Particles.open(path)
    assert particles.optics.defocus_u_angstrom.tolist() == [1e4, 1e4]
    document = particles.to_star_document()
    assert document.blocks["general"].columns["rlnVector"] == ["[1,2,3]"]
    assert document.blocks["optics"].columns["rlnOpticsGroupName"] == ["my optics"]
    path.write_bytes(VARIANT.replace("[0,0.0,0e5]", "[0,0,0,0,0,0,0.5]").encode())
    with pytest.warns(UserWarning, match="_rlnOddZernike: coefficients after the first 6 are not"):
        Particles.open(path)


def test_blank_data_block_and_origins_in_pixels_become_relion_31(tmp_path: Path) -> None:
    block = {
        "rlnImageName": ["1@s.mrcs", "2@s.mrcs", "3@s.mrcs"],
        "rlnVoltage": ["300", "200", "300.0"],
        "rlnDetectorPixelSize": ["5"] * 3,
        "rlnMagnification": ["25000", "25000", "25000.0"],
        "rlnOriginX": ["1", "-2", "0.5"],
    }
    path = tmp_path / "p.star"
    write_star(path, StarDocument({"": StarBlock(block), "zoo": StarBlock({"a": ["1"]})}))
    document = read_particles_document(path)
    assert list(document.blocks) == ["optics", "particles", "zoo"]
    particles, optics = document.blocks["particles"].columns, document.blocks["optics"].columns
    assert particles["rlnOpticsGroup"] == ["2", "1", "2"]
    assert particles["rlnOriginXAngst"] == ["2.000000", "-4.000000", "1.000000"]
    assert "rlnOriginX" not in particles
    assert optics["rlnVoltage"] == ["200.000000", "300.000000"]
    assert optics["rlnImagePixelSize"] == ["2.000000"] * 2
    assert "rlnImageSize" not in optics
    write_mrc(tmp_path / "s.mrcs", np.ones((3, 8, 8)), 2.0, is_stack=True)
    assert read_particles_document(path).blocks["optics"].columns["rlnImageSize"] == ["8"] * 2
    assert read_particles_document(path, pixel_size_angstrom=3).blocks["particles"].columns[
        "rlnOriginXAngst"
    ] == [
        "3.000000",
        "-6.000000",
        "1.500000",
    ]
    write_star(path, StarDocument({"": StarBlock({**block, "rlnMagnification": ["0"] * 3})}))
    with pytest.raises(InputError, match=r"rlnMagnification, row 1: .* `pixel_size_angstrom`"):
        read_particles_document(path)


def test_a_stack_and_a_list_of_stacks(tmp_path: Path) -> None:
    for i, (count, pixel) in enumerate(((2, 2.0), (3, 2.0), (1, 2.001))):
        images = np.full((count, 8, 8), i) + np.eye(8)
        write_mrc(tmp_path / f"{i}.mrcs", images, pixel, is_stack=True)
    stack = Particles.open(tmp_path / "1.mrcs")
    assert stack.ids == ("000001@1.mrcs", "000002@1.mrcs", "000003@1.mrcs")
    assert (stack.has_ctf, stack.pose, stack.pixel_size_angstrom) == (False, None, 2.0)
    assert repr(stack) == "Particles(3 of 8 px at 2 Å, without CTF, without poses)"
    with pytest.raises(InputError, match=r"CTF parameters: .*_rlnDefocusU"):
        _ = stack.optics
    listed = tmp_path / "all.txt"
    listed.write_text("# all\n2.mrcs\n\n 0.mrcs \n1.mrcs\n")
    particles = Particles.open(listed)
    assert len(particles) == 6
    assert particles.pixel_size_angstrom == pytest.approx(2.001)  # within 0.1 % of each other
    assert particles.read(slice(None))[:, 0, 1].tolist() == [2, 0, 0, 1, 1, 1]
    assert Particles.open(listed, pixel_size_angstrom=5.0).pixel_size_angstrom == 5.0
    listed.write_text("0.mrcs\n../x.star\n")
    with pytest.raises(InputError, match=r"entry 2: '../x\.star' is no stack"):
        read_particles_document(listed)
    listed.write_text("#LST\n0\t0.mrcs\n")
    with pytest.raises(InputError, match="EMAN"):
        read_particles_document(listed)
    listed.write_text("# nothing\n")
    with pytest.raises(InputError, match="names no stack"):
        read_particles_document(listed)
    listed.write_text("absent.mrcs\n")
    with pytest.raises(InputError, match="not found"):
        read_particles_document(listed)


def test_stacks_of_different_pixel_size_are_brought_to_the_coarser(tmp_path: Path) -> None:
    for name, pixel in (("a", 2.0), ("b", 2.1)):
        write_mrc(tmp_path / f"{name}.mrcs", np.ones((1, 8, 8)), pixel, is_stack=True)
    (tmp_path / "p.lst").write_text("a.mrcs\nb.mrcs\n")
    with pytest.warns(
        UserWarning, match=r"8 px at 2 Å; 8 px at 2\.1 Å.*select` and `optics_group`"
    ):
        particles = Particles.open(tmp_path / "p.lst")
    assert (particles.box_size, round(particles.pixel_size_angstrom, 4)) == (8, 2.1)


def test_an_enormous_stack_opens_at_once(tmp_path: Path) -> None:
    """60 GB of nothing: a sparse file."""
    count, box = 230_000, 256
    with (tmp_path / "s.mrcs").open("wb") as stream:
        statistics = Statistics(1, 0.0, 0.0, 0.0, 0.0)
        stream.write(header_bytes((count, box, box), 2, 1.0, True, statistics))
        stream.truncate(1024 + 4 * count * box**2)
    particles = Particles.open(tmp_path / "s.mrcs")
    assert len(particles) == count
    assert particles.read([count - 1]).abs().max() == 0


def test_passthrough_files_and_unknown_kinds(tmp_path: Path) -> None:
    fields = {
        "uid": np.array([5, 6], dtype="u8"),
        "blob/path": np.array([b"s.mrc"] * 2),
        "blob/idx": np.array([0, 1], dtype="u4"),
    }
    write_cs(tmp_path / "p.cs", CsTable(join_fields(fields)))
    more = {"uid": fields["uid"][::-1], "ctf/df1_A": np.array([2e4, 1e4], dtype="f4")}
    write_cs(tmp_path / "more.cs", CsTable(join_fields(more)))
    document = read_particles_document(tmp_path / "p.cs", passthrough=[tmp_path / "more.cs"])
    assert document.blocks["particles"].numbers("rlnDefocusU").tolist() == [1e4, 2e4]
    with pytest.raises(InputError, match="blob/path or blob/idx: missing"):
        read_particles_document(tmp_path / "more.cs")
    with pytest.raises(UsageError, match=r"`passthrough` goes with a \.cs"):
        read_particles_document(tmp_path / "p.star", passthrough=[tmp_path / "more.cs"])
    with pytest.raises(InputError, match=r"unknown kind .* \.star \.cs"):
        read_particles_document(tmp_path / "p.xyz")
    with pytest.raises(UsageError, match="change the suffix"):
        write_particles_document(tmp_path / "p.mrcs", document)


def test_names_follow_the_table(tmp_path: Path) -> None:
    """A table in another folder finds the same stacks; what already works stays as it is."""
    project = tmp_path / "project"
    (project / "Extract" / "job1").mkdir(parents=True)
    (project / "Select").mkdir()
    for place in ("Extract/s.mrcs", "Extract/job1/t.mrcs"):
        write_mrc(project / place, np.ones((2, 8, 8)), 2.0, is_stack=True)
    absolute = str(project / "Extract" / "s.mrcs")
    names = ["1@Extract/s.mrcs", "2@t.mrcs", f"1@{absolute}", "7@gone.mrcs"]
    document = StarDocument(
        {
            "optics": StarBlock({"rlnOpticsGroup": ["1"]}),
            "particles": StarBlock({"rlnImageName": names, "rlnOpticsGroup": ["1"] * 4}),
        }
    )
    source = project / "Extract" / "job1" / "p.star"
    moved, missing = relocated(document, source, project / "Select")
    assert moved.blocks["particles"].columns["rlnImageName"] == [
        "1@Extract/s.mrcs",
        "2@Extract/job1/t.mrcs",
        f"1@{absolute}",
        "7@gone.mrcs",
    ]
    assert missing == 1
    far, _ = relocated(document, source, tmp_path / "elsewhere")
    assert far.blocks["particles"].columns["rlnImageName"][0] == "1@project/Extract/s.mrcs"


def test_values_that_a_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    document = StarDocument(
        {
            "optics": StarBlock({"rlnOpticsGroup": ["1"]}),
            "particles": StarBlock({"rlnImageName": ["1@a\nb.mrcs"], "rlnOpticsGroup": ["1"]}),
        }
    )
    with pytest.raises(InputError, match="cannot be written"):
        write_particles_document(tmp_path / "p.star", document)
    long = StarBlock({**document.blocks["particles"].columns, "x": ["y" * 10_000]})
    long = StarBlock({**long.columns, "rlnImageName": ["1@a.mrcs"]})
    with pytest.raises(InputError, match="column _x: a value of 10000 bytes"):
        write_particles_document(
            tmp_path / "p.cs", StarDocument({**document.blocks, "particles": long})
        )
    assert not list(tmp_path.iterdir())


def test_rows_keep_their_order_and_large_tables_are_read_lazily(tmp_path: Path) -> None:
    n = 5000  # more than one piece of lines
    names = [f"{i + 1:06d}@s.mrcs" for i in range(n)]
    numbers = [f"{i * 1.5:.6f}" for i in range(n)]
    block = StarBlock({"rlnImageName": names, "x": numbers, "y": ["a"] * (n - 1) + ["1_000"]})
    write_star(tmp_path / "p.star", StarDocument({"particles": block}))
    read = read_star(tmp_path / "p.star").blocks["particles"]
    read.load(numbers=["x", "y", "gone"], text=["rlnImageName"])
    assert len(read) == n
    assert read.numbers("x").tolist() == [i * 1.5 for i in range(n)]
    with pytest.raises(InputError, match="column _y, row 1: 'a'"):
        read.numbers("y")
    assert read.numbers_or_none("y") is None
    assert read.text("rlnImageName") == names
    assert read == block
    some = select_rows(StarDocument({"particles": read}), np.array([4999, 0]))
    assert some.blocks["particles"].columns["y"] == ["1_000", "a"]
    with pytest.raises(KeyError):
        _ = read.columns["gone"]
