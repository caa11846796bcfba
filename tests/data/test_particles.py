"""Particles: real RELION sets, lazy reading, and rows 10 to 17 of the faults."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vitreous.core.errors import InputError, UsageError
from vitreous.core.fourier import fourier_resize
from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import euler_to_matrix
from vitreous.data.formats import read_particles_document
from vitreous.data.half_sets import assign_half_sets
from vitreous.data.particles import Particles
from vitreous.data.tables import make_document, pose_columns
from vitreous.io.mrc import MrcStackWriter, write_mrc
from vitreous.io.star import StarBlock, StarDocument, format_column, read_star, write_star

BOX = 8


def values(stack: int, count: int) -> np.ndarray:
    """Images that tell where they come from: stack * 100 + place, plus a ramp."""
    ramp = np.linspace(0, 0.5, BOX * BOX).reshape(BOX, BOX)
    return (stack * 100 + np.arange(count))[:, None, None] + ramp


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two stacks of 5 and 3 images beside a STAR file that mixes them."""
    for number, count in ((1, 5), (2, 3)):
        (tmp_path / "Extract").mkdir(exist_ok=True)
        write_mrc(tmp_path / f"Extract/s{number}.mrcs", values(number, count), 2.0, is_stack=True)
    names = [f"{i + 1:06d}@Extract/s1.mrcs" for i in range(5)]
    names += [f"{i + 1:06d}@Extract/s2.mrcs" for i in range(3)]
    names = [names[i] for i in (7, 0, 3, 5, 1, 6, 2, 4)]
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(8, 3, generator=generator, dtype=torch.float64) * 170
    document = make_document(
        names,
        Optics.uniform(8, defocus_angstrom=12000.0),
        pixel_size_angstrom=2.0,
        box_size=BOX,
        micrograph_names=["m2", "m1", "m1", "m2", "m1", "m2", "m1", "m1"],
        pose=Pose(euler_to_matrix(angles).float(), torch.randn(8, 2, generator=generator)),
        half_set=[1, 2] * 4,
    )
    write_star(tmp_path / "particles.star", document)
    return tmp_path / "particles.star"


def edit(star: Path, **columns: list[str] | None) -> Path:
    """Replace (or with None drop) columns of the particle table, or ``optics__name`` ones."""
    document = read_star(star)
    blocks = {name: dict(block.columns) for name, block in document.blocks.items()}
    for key, column in columns.items():
        block, _, name = key.rpartition("__")
        target = blocks[block or "particles"]
        if column is None:
            target.pop(name)
        else:
            target[name] = column
    write_star(star, StarDocument({k: StarBlock(v) for k, v in blocks.items()}))
    return star


def test_reads_across_stacks_in_the_order_asked_for(project: Path) -> None:
    particles = Particles.open(project)
    assert (len(particles), particles.box_size, particles.pixel_size_angstrom) == (8, BOX, 2.0)
    want = torch.tensor([202.0, 100, 103, 200, 101, 201, 102, 104])
    assert torch.equal(particles.read(slice(None))[:, 0, 0], want)
    assert torch.equal(particles.read([5, 0, 0, -1])[:, 0, 0], want[[5, 0, 0, 7]])
    assert torch.equal(particles.read(torch.tensor([2, 1]))[:, 0, 0], want[[2, 1]])
    mask = torch.tensor([True, False] * 4)
    assert torch.equal(particles.read(mask)[:, 0, 0], want[mask])
    assert particles.read([]).shape == (0, BOX, BOX)
    image = particles.read([1])
    assert image.dtype == torch.float32
    assert torch.allclose(image[0], torch.from_numpy(values(1, 1)[0]).float())
    image += 1  # a copy: the map is read-only and untouched
    assert particles.read([1])[0, 0, 0] == 100.0
    with pytest.raises(IndexError):
        particles.read([8])
    with pytest.raises(TypeError, match="whole numbers"):
        particles.read(torch.tensor([0.5]))


def test_what_the_table_says(project: Path) -> None:
    particles = Particles.open(project)
    assert particles.micrograph_names == ("m2", "m1")
    assert particles.micrograph_id.tolist() == [0, 1, 1, 0, 1, 0, 1, 1]
    assert particles.half_set.tolist() == [1, 2] * 4
    assert particles.ids[0] == "000003@Extract/s2.mrcs"
    assert particles.optics.defocus_u_angstrom.tolist() == [12000.0] * 8
    assert particles.optics.cs_mm.tolist() == pytest.approx([2.7] * 8)
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(8, 3, generator=generator, dtype=torch.float64) * 170
    assert particles.pose is not None
    assert torch.allclose(particles.pose.rotation, euler_to_matrix(angles).float(), atol=1e-5)
    shifts = torch.randn(8, 2, generator=generator)
    assert torch.allclose(particles.pose.shift_angstrom, shifts, atol=1e-5)


def test_select_shares_images_and_keeps_everything_aligned(project: Path) -> None:
    whole = Particles.open(project)
    some = whole.select([6, 0, 3]).select(torch.tensor([2, 0]))
    assert len(some) == 2
    assert torch.equal(some.read([0, 1]), whole.read([3, 6]))
    assert some.ids == (whole.ids[3], whole.ids[6])
    assert torch.equal(some.micrograph_id, whole.micrograph_id[[3, 6]])
    assert torch.equal(some.half_set, whole.half_set[[3, 6]])
    assert some.pose is not None
    assert whole.pose is not None
    assert torch.equal(some.pose.rotation, whole.pose.rotation[[3, 6]])
    assert len(some.optics) == 2
    document = some.to_star_document()
    assert document.blocks["particles"].columns["rlnImageName"] == list(some.ids)
    assert len(whole.select(whole.half_set == 2)) == 4


def test_images_are_positive_cropped_and_indexable(project: Path) -> None:
    particles = Particles.open(project)
    images = particles.images(normalise=False)
    assert (len(images), images.box_size, images.pixel_size_angstrom) == (8, BOX, 2.0)
    whole = particles.read(slice(None))
    assert torch.equal(images[:], whole)
    small = particles.images(box_size=6, invert=True, normalise=False)
    assert (small.box_size, small.pixel_size_angstrom) == (6, 2.0 * BOX / 6)
    want = -fourier_resize(whole, 6, 2)
    assert torch.allclose(small[:], want)
    assert torch.allclose(small[torch.tensor([3, 0])], want[[3, 0]])
    assert torch.allclose(small.read([3, 0]), want[[3, 0]])
    assert torch.allclose(small[-1], want[-1])
    assert torch.equal(small[particles.half_set == 2], small[1::2])
    for box_size in (1, BOX + 1):
        with pytest.raises(UsageError, match=f"`box_size` {box_size}: choose from 2 to"):
            particles.images(box_size=box_size)


def test_images_overrule_the_contrast_that_the_file_states(project: Path) -> None:
    particles = replace(Particles.open(project), stated_contrast="dark")
    with pytest.warns(UserWarning, match="protein is white, although the table says otherwise"):
        images = particles.images(normalise=False)
    assert torch.equal(images[:], particles.read(slice(None)))
    white = particles.images(invert=False, normalise=False)
    assert torch.equal(white[:], particles.read(slice(None)))


def test_half_sets_are_kept_or_drawn_from_the_seed(project: Path) -> None:
    assert Particles.open(project, half_seed=1).half_set.tolist() == [1, 2] * 4
    edit(project, rlnRandomSubset=None)
    assert Particles.open(project).half_set.tolist() == [0] * 8
    drawn = Particles.open(project, half_seed=1)
    assert sorted(drawn.half_set.tolist()) == [1] * 4 + [2] * 4
    assert torch.equal(drawn.half_set, assign_half_sets(Particles.open(project).half_set, 1))
    with pytest.raises(InputError, match="half sets of 1 and 1"):
        Particles.open(project).select([0, 1]).with_half_sets(1)


def test_document_keeps_rows_unknown_columns_and_blocks(project: Path, tmp_path: Path) -> None:
    odd = [f"x {i}" for i in range(8)]
    edit(project, wandering=odd)
    before = read_star(project)
    more = StarDocument({**before.blocks, "zoo": StarBlock({"cat": ["1"]}, is_loop=False)})
    write_star(project, more)
    particles = Particles.open(project)
    assert particles.to_star_document().blocks == more.blocks
    out = tmp_path / "OUT"
    out.mkdir()
    pose = Pose(torch.eye(3).repeat(8, 1, 1), torch.tensor([[2.0, -4.0]]).repeat(8, 1))
    document = particles.to_star_document(
        relative_to=out, rlnClassNumber=torch.arange(8), **pose_columns(pose)
    )
    write_star(out / "particles.star", document)
    table = document.blocks["particles"].columns
    assert table["wandering"] == odd
    assert table["rlnClassNumber"] == [str(i) for i in range(8)]
    assert table["rlnOriginXAngst"] == ["-2.000000"] * 8
    assert table["rlnImageName"][0] == "000003@Extract/s2.mrcs"
    again = Particles.open(out / "particles.star")
    assert torch.equal(again.read(slice(None)), particles.read(slice(None)))
    assert again.pose is not None
    assert torch.allclose(again.pose.shift_angstrom, pose.shift_angstrom)
    with pytest.raises(ValueError, match="column x has 2 values"):
        particles.to_star_document(x=[1, 2])


def test_from_arrays_round_trip_through_files(tmp_path: Path) -> None:
    images = torch.randn(4, BOX, BOX, generator=torch.Generator().manual_seed(3))
    optics = Optics.uniform(4, defocus_angstrom=9000.0, phase_shift_deg=90.0)
    particles = Particles.from_arrays(
        images, optics, pixel_size_angstrom=1.5, micrograph_id=torch.tensor([0, 1, 1, 2])
    )
    assert torch.equal(particles.read([3, 1]), images[[3, 1]])
    with MrcStackWriter(tmp_path / "particles.mrcs", 1.5) as writer:
        writer.append(images)
    write_star(tmp_path / "p.star", particles.to_star_document())
    back = Particles.open(tmp_path / "p.star")
    assert torch.equal(back.read(slice(None)), images)
    assert back.pose is None
    assert back.micrograph_id.tolist() == [0, 1, 1, 2]
    assert back.optics.phase_shift_deg.tolist() == [90.0] * 4
    assert back.half_set.tolist() == [0] * 4
    with pytest.raises(ValueError, match="4 images"):
        Particles.from_arrays(images, Optics.uniform(3), pixel_size_angstrom=1.5)
    with pytest.raises(ValueError, match="pixel size"):
        Particles.from_arrays(images, optics, pixel_size_angstrom=float("nan"))
    with pytest.raises(ValueError, match=r"\(n, y, y\)"):
        Particles.from_arrays(images[:, 1:], optics, pixel_size_angstrom=1.5)


def test_job_folders_find_stacks_from_the_project_root(project: Path) -> None:
    job = project.parent / "Refine3D" / "job012"
    job.mkdir(parents=True)
    moved = job / "run_data.star"
    project.rename(moved)
    assert Particles.open(moved).read([1])[0, 0, 0] == 100.0
    with pytest.raises(InputError, match=r"not found in .*`data_root`"):
        Particles.open(moved, data_root=job)
    assert len(Particles.open(moved, data_root=project.parent / "Extract")) == 8
    with pytest.raises(InputError, match=r"`data_root` .*gone: no such folder"):
        Particles.open(moved, data_root=job / "gone")
    assert len(Particles.open(moved, data_root=project.parent)) == 8


def test_real_relion_31_and_30(shared_data: Path) -> None:
    folder = shared_data / "relion"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        particles = Particles.open(folder / "relion31.star")
    assert (len(particles), particles.box_size) == (5, 256)
    assert particles.pixel_size_angstrom == pytest.approx(2.806)
    assert particles.pose is not None
    assert particles.pose.shift_angstrom[0].tolist() == pytest.approx([-0.019324, 0.64686])
    assert particles.optics.defocus_u_angstrom[0].item() == pytest.approx(13108.082418)
    assert particles.half_set.tolist()[:1] == [1]
    empiar = Particles.open(folder / "empiar_10076_7.star")
    assert (len(empiar), empiar.box_size) == (7, 320)
    assert empiar.pixel_size_angstrom == pytest.approx(5e4 / 38168)
    assert empiar.pose is None
    assert empiar.micrograph_names == tuple("1234567")
    assert empiar.read([6]).std() > 0
    document = empiar.to_star_document()
    assert list(document.blocks) == ["optics", "particles"]
    assert document.blocks["optics"].columns["rlnVoltage"] == ["300.000000"]
    assert document.blocks["particles"].columns["rlnMagnification"] == ["38168"] * 7


def test_relion_30_origins_in_pixels(project: Path) -> None:
    document = read_star(project)
    table = dict(document.blocks["particles"].columns)
    for name in ("rlnOpticsGroup", "rlnOriginXAngst", "rlnOriginYAngst"):
        del table[name]
    table |= {"rlnOriginX": ["1.5"] * 8, "rlnOriginY": ["-2"] * 8, "rlnVoltage": ["300"] * 8}
    table |= {"rlnSphericalAberration": ["2.7"] * 8, "rlnAmplitudeContrast": ["0.1"] * 8}
    table |= {"rlnMagnification": ["25000"] * 8, "rlnDetectorPixelSize": ["5"] * 8}
    write_star(project, StarDocument({"": StarBlock(table)}))
    particles = Particles.open(project)
    assert particles.pixel_size_angstrom == 2.0
    assert particles.pose is not None
    assert particles.pose.shift_angstrom.tolist() == [[-3.0, 4.0]] * 8
    write_star(project, particles.to_star_document())
    again = Particles.open(project)
    assert again.pose is not None
    assert again.pose.shift_angstrom.tolist() == [[-3.0, 4.0]] * 8


def test_several_optics_groups_are_joined(project: Path) -> None:
    edit(
        project,
        optics__rlnOpticsGroup=["7", "3"],
        optics__rlnVoltage=["200", "300"],
        optics__rlnOpticsGroupName=["a", "b"],
        **{
            f"optics__{name}": [value] * 2
            for name, value in {
                "rlnSphericalAberration": "2.7",
                "rlnAmplitudeContrast": "0.1",
                "rlnImagePixelSize": "2.0",
                "rlnImageSize": str(BOX),
                "rlnImageDimensionality": "2",
            }.items()
        },
        rlnOpticsGroup=["3", "7"] * 4,
    )
    assert Particles.open(project).optics.voltage_kv.tolist() == [300.0, 200.0] * 4
    edit(project, optics__rlnImagePixelSize=["2.0", "1.5"])
    with pytest.warns(UserWarning, match=r"8 px at 1\.5 Å; 8 px at 2 Å.*brought to 6 px at 2 Å"):
        Particles.open(project)
    edit(project, optics__rlnImagePixelSize=["2", "2"], optics__rlnImageSize=["16", str(BOX)])
    with pytest.raises(InputError, match=r"16 px in optics group 7.*images have 8 px.*correct"):
        Particles.open(project)
    edit(project, rlnOpticsGroup=["3", "4"] * 4)
    with pytest.raises(InputError, match=r"row 2: group 4 is not in data_optics"):
        Particles.open(project)
    edit(project, optics__rlnOpticsGroup=["3", "3"])
    with pytest.raises(InputError, match="appears twice"):
        Particles.open(project)


def test_sizes_that_contradict_the_table_and_oblong_images_are_named(project: Path) -> None:
    write_mrc(project.parent / "Extract/s2.mrcs", np.ones((3, 10, 10)), 2.0, is_stack=True)
    with pytest.raises(InputError, match=r"8 px in optics group 1, but.*10 px in"):
        Particles.open(project)
    write_mrc(project.parent / "Extract/s2.mrcs", np.ones((3, 10, 8)), 2.0, is_stack=True)
    with pytest.raises(InputError, match=r"square, found 8 x 10 in .*s2\.mrcs"):
        Particles.open(project)


def test_fault_10_pixel_sizes(project: Path) -> None:
    with pytest.warns(UserWarning, match=r"pixel size 2\.1 Å is used.*says 2 Å"):
        assert Particles.open(edit(project, optics__rlnImagePixelSize=["2.1"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Particles.open(edit(project, optics__rlnImagePixelSize=["2.01"]))
    edit(project, optics__rlnImagePixelSize=["0"])
    with pytest.raises(InputError, match="`pixel_size_angstrom`"):
        Particles.open(project)
    particles = Particles.open(project, pixel_size_angstrom=3.0)
    assert particles.pixel_size_angstrom == 3.0
    written = particles.to_star_document().blocks["optics"].columns
    assert written["rlnImagePixelSize"] == ["3.000000"]
    with pytest.raises(InputError, match="must be positive"):
        Particles.open(project, pixel_size_angstrom=0.0)
    edit(project, optics__rlnImagePixelSize=None)
    assert Particles.open(project).pixel_size_angstrom == 2.0  # from the stack


@pytest.fixture
def spoiled(project: Path) -> Path:
    """Row 2 (place 1) holds a NaN, row 6 (place 5) an infinity, row 3 (place 2) is constant."""
    first, second = values(1, 5), values(2, 3)
    first[0, 4, 4] = np.nan
    first[3] = 7.5
    second[1, 0, 0] = np.inf
    write_mrc(project.parent / "Extract/s1.mrcs", first, 2.0, is_stack=True)
    write_mrc(project.parent / "Extract/s2.mrcs", second, 2.0, is_stack=True)
    return project


def test_faults_11_and_12_bad_images(spoiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitreous.data.bad_images._SCAN_BYTES", 3 * 4 * BOX * BOX)
    particles = Particles.open(spoiled)
    seen: list[tuple[int, int]] = []
    bad = particles.find_bad_images(lambda done, total: seen.append((done, total)))
    assert bad.non_finite == (1, 5)
    assert bad.constant == (2,)
    assert seen == [(3, 8), (6, 8), (8, 8)]
    with pytest.raises(InputError, match=r"images 2 \(000001@Extract/s1.mrcs\), 6 .*`skip_bad`"):
        particles.without_bad()
    with pytest.warns(UserWarning, match="1 constant images and 2 with NaN"):
        good = Particles.open(spoiled, skip_bad=True)
    assert len(good) == 5
    assert good.excluded["constant"] == ("000004@Extract/s1.mrcs",)
    assert len(good.excluded["non_finite"]) == 2
    assert good.read(slice(None)).isfinite().all()
    assert not good.find_bad_images()
    assert good.without_bad() is good
    with pytest.raises(InputError, match="all 1 are constant"):
        particles.select([2]).without_bad()


def test_fault_14_missing_columns_and_blocks_are_named(project: Path) -> None:
    document = read_star(project)
    edit(project, rlnDefocusV=None, optics__rlnVoltage=None)
    bare = Particles.open(project)
    assert not bare.has_ctf
    assert bare.select([3, 1]).read([0])[0, 0, 0] == 200.0
    for particles in (bare, bare.select([0])):
        with pytest.raises(InputError, match=r"_rlnDefocusV, _rlnVoltage missing; estimate"):
            _ = particles.optics
    particles, optics = document.blocks["particles"], document.blocks["optics"]
    write_star(project, StarDocument({"particles": particles}))
    with pytest.raises(InputError, match="block data_optics: missing"):
        Particles.open(project)
    write_star(project, StarDocument({"optics": optics}))
    with pytest.raises(InputError, match="block data_particles: missing"):
        Particles.open(project)
    names = StarBlock({k: v for k, v in particles.columns.items() if k != "rlnImageName"})
    write_star(project, StarDocument({"optics": optics, "particles": names}))
    with pytest.raises(InputError, match="column _rlnImageName: missing"):
        Particles.open(project)
    write_star(project, StarDocument({"optics": optics, "particles": StarBlock({"a": []})}))
    with pytest.raises(InputError, match="has no rows"):
        Particles.open(project)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("sample_incomplete_ctf_params.star", "_rlnVoltage"),
        ("FinalRefinement-OriginalParticles-PfCRT.star", "_rlnAmplitudeContrast"),
    ],
)
def test_fault_14_incomplete_real_ctf(
    shared_data: Path, tmp_path: Path, name: str, missing: str
) -> None:
    document = read_particles_document(shared_data / "relion" / name)
    write_star(tmp_path / "p.star", document)
    for stack in {n.partition("@")[2] for n in document.blocks["particles"].text("rlnImageName")}:
        (tmp_path / stack).parent.mkdir(parents=True, exist_ok=True)
        write_mrc(tmp_path / stack, values(1, 200), 1.0, is_stack=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        particles = Particles.open(tmp_path / "p.star")
    assert not particles.has_ctf
    assert particles.pose is not None
    with pytest.raises(InputError, match=f"CTF parameters: {missing} missing"):
        _ = particles.optics


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("rlnDefocusU", "nan"),
        ("rlnDefocusAngle", "inf"),
        ("rlnAngleTilt", "north"),
        ("rlnOriginXAngst", "NaN"),
        ("rlnRandomSubset", "3"),
        ("rlnRandomSubset", "1.5"),
        ("rlnOpticsGroup", "one"),
    ],
)
def test_fault_15_values_name_their_row(project: Path, column: str, value: str) -> None:
    table = read_star(project).blocks["particles"].columns[column]
    edit(project, **{column: [*table[:4], value, *table[5:]]})
    with pytest.raises(InputError, match=rf"particles\.star: column _{column}, row 5"):
        Particles.open(project)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rlnVoltage", 0, "must be from 1 to 10000"),
        ("rlnAmplitudeContrast", "1", r"in \[0, 1\)"),
        ("rlnImageDimensionality", "3", "3 is not supported"),
    ],
)
def test_impossible_optics(project: Path, name: str, value: str, message: str) -> None:
    edit(project, **{f"optics__{name}": [value]})
    with pytest.raises(InputError, match=message):
        Particles.open(project)


@pytest.mark.parametrize(
    "name",
    [
        "000000@Extract/s2.mrcs",
        "4@Extract/s2.mrcs",
        "-1@Extract/s2.mrcs",
        "x@Extract/s2.mrcs",
        "1.0@Extract/s2.mrcs",
        "99999999999999999999@Extract/s2.mrcs",
        "9" * 5000 + "@Extract/s2.mrcs",
        "1@",
    ],
)
def test_fault_16_image_numbers(project: Path, name: str) -> None:
    table = read_star(project).blocks["particles"].columns["rlnImageName"]
    edit(project, rlnImageName=[*table[:2], name, *table[3:]])
    with pytest.raises(InputError, match=r"column _rlnImageName, row 3"):
        Particles.open(project)


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outside") / "secret.mrcs"
    write_mrc(path, values(9, 8), 2.0, is_stack=True)
    return path


@pytest.mark.parametrize("way", ["parent", "absolute", "symlink", "folder symlink"])
def test_fault_17_reading_follows_links_and_absolute_names(
    project: Path, outside: Path, way: str
) -> None:
    root = project.parent
    if way == "parent":
        name = f"../{outside.parent.name}/secret.mrcs"
        assert (root / name).is_file()
    elif way == "absolute":
        name = str(outside)
    elif way == "symlink":
        (root / "link.mrcs").symlink_to(outside)
        name = "link.mrcs"
    else:
        (root / "folder").symlink_to(outside.parent)
        name = "folder/secret.mrcs"
    edit(project, rlnImageName=[f"{i + 1}@{name}" for i in range(8)])
    for data_root in (None, root):
        assert Particles.open(project, data_root=data_root).read([0])[0, 0, 0] == 900.0


def test_fault_17_an_absolute_name_inside_the_root_is_fine(project: Path) -> None:
    stack = project.parent / "Extract" / "s1.mrcs"
    edit(project, rlnImageName=[f"1@{stack}"] * 8)
    assert len(Particles.open(project)) == 8
    with pytest.raises(InputError, match="not found"):
        Particles.open(edit(project, rlnImageName=["1@/no/such.mrcs"] * 8))


def test_many_stacks_do_not_exhaust_open_files(tmp_path: Path) -> None:
    for i in range(100):
        write_mrc(tmp_path / f"{i}.mrcs", values(i, 1), 2.0, is_stack=True)
    names = [f"1@{i}.mrcs" for i in range(100)]
    document = make_document(names, Optics.uniform(100), pixel_size_angstrom=2.0, box_size=BOX)
    write_star(tmp_path / "p.star", document)
    particles = Particles.open(tmp_path / "p.star")
    assert particles.read(slice(None))[:, 0, 0].tolist() == [100.0 * i for i in range(100)]
    assert len(particles._source._open) <= 64  # type: ignore[attr-defined]  # a StackSource
    assert particles.micrograph_names[:2] == ("0.mrcs", "1.mrcs")


def test_a_missing_stack(project: Path) -> None:
    (project.parent / "Extract/s2.mrcs").unlink()
    with pytest.raises(InputError, match=r"'Extract/s2\.mrcs': not found"):
        Particles.open(project)


def test_format_of_made_documents() -> None:
    optics = Optics.uniform(3)
    document = make_document(["1@a"] * 3, optics, pixel_size_angstrom=1.3, box_size=4)
    assert document.blocks["optics"].columns["rlnSphericalAberration"] == ["2.700000"]
    assert document.blocks["particles"].columns["rlnOpticsGroup"] == format_column([1, 1, 1])
    with pytest.raises(ValueError, match="different length"):
        make_document(["1@a"] * 2, optics, pixel_size_angstrom=1.3, box_size=4)
