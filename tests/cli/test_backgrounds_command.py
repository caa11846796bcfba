"""``vitreous backgrounds``: files, pairing with particles, picks, interruption."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch

from vitreous.core.fourier import fourier_resize
from vitreous.core.params import Optics
from vitreous.data.noise_files import NoiseFiles
from vitreous.data.particles import Particles
from vitreous.data.prepare import Preparation, Preparer
from vitreous.data.tables import make_document
from vitreous.io import star
from vitreous.io.mrc import MrcStack, read_header, write_mrc
from vitreous.io.star import StarBlock, StarDocument, read_star, write_star
from vitreous.jobs.run import streaming

BOX, PIXEL, EDGE = 24, 2.0, 256
COUNTS = (4, 7, 2)
WINDOW = 48  # the box's 48 Å in micrographs of 1 Å/px
NAMES = tuple(f"Mic/m{i}.mrc" for i in range(len(COUNTS)))


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def project(tmp_path):
    """Three micrographs of 1 Å/px, particles of 2 Å/px, defocus by micrograph."""
    rng = np.random.default_rng(1)
    (tmp_path / "Mic").mkdir()
    owner = np.repeat(np.arange(len(COUNTS)), COUNTS)
    for name in NAMES:
        write_mrc(tmp_path / name, rng.normal(20, 3, (EDGE, EDGE)).astype(np.float32), 1.0)
    write_mrc(tmp_path / "p.mrcs", rng.normal(0, 1, (len(owner), BOX, BOX)), PIXEL, is_stack=True)
    optics = Optics.uniform(len(owner))
    optics.defocus_u_angstrom[:] = torch.from_numpy(10000.0 + 1000 * owner)
    document = make_document(
        [f"{i + 1:06d}@p.mrcs" for i in range(len(owner))],
        optics,
        pixel_size_angstrom=PIXEL,
        box_size=BOX,
        micrograph_names=[NAMES[i] for i in owner],
    )
    places = rng.uniform(10, EDGE - 10, (len(owner), 2)).round(2)
    columns = dict(document.blocks["particles"].columns)
    columns |= {"rlnCoordinateX": [f"{x}" for x in places[:, 0]]}
    columns |= {"rlnCoordinateY": [f"{y}" for y in places[:, 1]]}
    write_star(
        tmp_path / "p.star", StarDocument({**document.blocks, "particles": StarBlock(columns)})
    )
    return tmp_path


def drop(star, *columns, block="particles", **more):
    document = read_star(star)
    old = document.blocks[block]
    table = {name: values for name, values in old.columns.items() if name not in columns}
    table |= {name: [value] * len(old) for name, value in more.items()}
    changed = StarBlock(table, is_loop=old.is_loop)
    write_star(star, StarDocument({**document.blocks, block: changed}))


def run(vitreous, project, *options):
    call = ("backgrounds", project / "p.star", "--micrographs", project, "-o", project / "OUT")
    return vitreous(*call, *options)


def rows_of(project):
    return read_star(project / "OUT/backgrounds.star").blocks["particles"]


def corners_of(rows):
    axes = [rows.numbers(f"rlnCoordinate{axis}") for axis in "XY"]
    return np.stack(axes, -1).astype(int) - WINDOW // 2


def test_windows_are_cut_and_prepared_as_particles_are(vitreous, project):
    code, printed, _ = run(vitreous, project, "--box", 16, "--invert", "--ramp")
    assert code == 0
    assert "13 backgrounds of 3 micrographs" in printed
    assert "windows of 48 px of 1 Å" in printed
    rows = rows_of(project)
    assert rows.columns["rlnMicrographName"] == [NAMES[i] for i in np.repeat([0, 1, 2], COUNTS)]
    assert [float(u) for u in rows.columns["rlnDefocusU"]] == [
        10000.0 + 1000 * i for i in np.repeat([0, 1, 2], COUNTS)
    ]
    patches = []
    for (x, y), name in zip(corners_of(rows), rows.columns["rlnMicrographName"], strict=True):
        image = MrcStack(project / name).read([0])[0]
        patches.append(image[y : y + WINDOW, x : x + WINDOW])
    recipe = Preparation(box_size=16, invert=True, ramp=True)
    particles = fourier_resize(torch.from_numpy(np.stack(patches)), BOX, 2)
    expected, _ = Preparer(recipe, recipe.plan(BOX, PIXEL))(particles)
    written = MrcStack(project / "OUT/backgrounds.mrcs")
    assert np.allclose(written.read(slice(None)), expected.numpy(), atol=1e-4)
    assert written.pixel_size_angstrom == pytest.approx(3.0)


@pytest.mark.parametrize("options", [(), ("--window", WINDOW, "--micrograph-apix", 1)])
def test_the_table_is_parsed_once(vitreous, project, monkeypatch, options):
    if options:
        drop(project / "p.star", "rlnImageName")
    parsed, parse = [], star.parse_star
    monkeypatch.setattr(star, "parse_star", lambda *a: parsed.append(a) or parse(*a))
    code, _, said = run(vitreous, project, *options, "-q")
    assert (code, len(parsed)) == (0, 1), said


def test_windows_keep_away_from_particles(vitreous, project):
    assert run(vitreous, project, "--particle-diameter", 30, "-q")[0] == 0
    particles = read_star(project / "p.star").blocks["particles"]
    rows = rows_of(project)
    centres = np.stack([particles.numbers(f"rlnCoordinate{axis}") for axis in "XY"], -1)
    gaps = []
    for (x, y), name in zip(corners_of(rows), rows.columns["rlnMicrographName"], strict=True):
        mine = centres[[n == name for n in particles.columns["rlnMicrographName"]]]
        nearest = np.clip(mine, (x, y), (x + WINDOW - 1, y + WINDOW - 1))
        gaps.append(np.hypot(*(mine - nearest).T).min())
    assert min(gaps) > 15
    assert min(gaps) < 40  # the table's pixels are taken for what they are


def test_abinit_finds_them(vitreous, project):
    """Each micrograph is given its own, at the pixel size that was asked for."""
    assert run(vitreous, project, "-q")[0] == 0
    assert vitreous("prepare", project / "p.star", "-o", project / "P", "-q")[0] == 0
    particles = Particles.open(project / "P/particles.star")
    noise = NoiseFiles(project / "OUT/backgrounds.star").load(particles.micrograph_names, 12, 4.0)
    assert noise.patches.shape == (sum(COUNTS), 12, 12)
    assert torch.equal(noise.micrograph_id, particles.micrograph_id)


def test_picks_from_files(vitreous, project):
    drop(project / "p.star", "rlnCoordinateX", "rlnCoordinateY")
    code, _, said = run(vitreous, project)
    assert (code, "--coordinates" in said) == (3, True)
    folder = project / "picks"
    folder.mkdir()
    (folder / "m0.box").write_text("0 0 256 128\n")
    picks = {"rlnCoordinateX": ["128"], "rlnCoordinateY": ["64"]}
    write_star(folder / "m1_autopick.star", StarDocument({"": StarBlock(picks)}))
    code, _, said = run(vitreous, project, "--coordinates", folder)
    assert (code, "'Mic/m2.mrc'" in said) == (3, True)
    assert not (project / "OUT").exists()
    (folder / "m2.box").write_text("")
    options = ("--coordinates", folder, "--particle-diameter", 120, "-q")
    assert run(vitreous, project, *options)[0] == 0
    corners, names = corners_of(rows_of(project)), rows_of(project).columns["rlnMicrographName"]
    for (x, y), name in zip(corners, names, strict=True):
        nearest = np.clip((128, 64), (x, y), (x + WINDOW - 1, y + WINDOW - 1))
        assert name == NAMES[2] or np.hypot(*(nearest - (128, 64))) > 60


def test_pixel_size_of_micrographs(vitreous, project):
    """Option, then table, then file."""
    drop(project / "p.star", block="optics", rlnMicrographOriginalPixelSize="0.8")
    code, printed, said = run(vitreous, project)
    assert (code, "windows of 60 px of 0.8 Å" in printed) == (0, True)
    assert "says 1 Å" in said
    printed = run(vitreous, project, "--micrograph-apix", 1.2, "--overwrite")[1]
    assert "windows of 40 px of 1.2 Å" in printed


def test_missing_and_damaged_micrographs(vitreous, project):
    (project / NAMES[1]).unlink()
    code, _, said = run(vitreous, project)
    assert (code, "1 of 3 micrographs, 'Mic/m1.mrc' first" in said) == (3, True)
    image = MrcStack(project / NAMES[0]).read([0])[0]
    image[100, 100] = np.nan
    write_mrc(project / NAMES[0], image, 1.0)
    code, _, said = run(vitreous, project, "--skip-missing")
    assert (code, "m0.mrc: data: NaN" in said) == (3, True)
    assert not (project / "OUT").exists()
    code, _, said = run(vitreous, project, "--skip-missing", "--skip-bad")
    assert (code, "warning: left out" in said) == (0, True)
    assert set(rows_of(project).columns["rlnMicrographName"]) == {NAMES[2]}


def test_crowded_micrographs(vitreous, project):
    code, _, said = run(vitreous, project, "--particle-diameter", 230)
    assert (code, "2 micrographs have no room for a window" in said) == (0, True)
    assert set(rows_of(project).columns["rlnMicrographName"]) == {NAMES[2]}
    code, _, said = run(vitreous, project, "--particle-diameter", 100, "--overwrite")
    assert (code, "overlap others" in said) == (0, True)


def test_coordinates_of_another_binning(vitreous, project):
    drop(project / "p.star", rlnCoordinateX="2000")
    code, _, said = run(vitreous, project)
    assert (code, "x = 2000" in said, "unbinned" in said) == (3, True, True)


def test_names_that_lead_out_of_the_folder_are_read(vitreous, project):
    (project / "other").mkdir()
    for k, (name, folder) in enumerate(
        [(str(project / NAMES[0]), "Mic"), (f"../{NAMES[0]}", "Mic"), (f"../{NAMES[0]}", "other")]
    ):
        drop(project / "p.star", rlnMicrographName=name)
        call = ("backgrounds", project / "p.star", "--micrographs", project / folder, "-q")
        code, _, said = vitreous(*call, "-o", project / f"OUT{k}")
        assert code == 0, said
        assert read_header(project / f"OUT{k}/backgrounds.mrcs").shape[0] == sum(COUNTS)


def test_stopped_and_continued_equals_left_alone(vitreous, project, monkeypatch):
    show = streaming.RunProgress.update

    def update(self, fraction, stats=None):
        if 0 < fraction < 0.5:
            signal.raise_signal(signal.SIGINT)
        show(self, fraction, stats)

    assert run(vitreous, project, "--seed", 3, "-q")[0] == 0
    kept = [(project / "OUT" / f"backgrounds.{kind}").read_bytes() for kind in ("mrcs", "star")]
    with monkeypatch.context() as patch:
        patch.setattr(streaming.RunProgress, "update", update)
        options = ("--seed", 3, "--threads", 1, "--overwrite", "-q")
        code, _, said = run(vitreous, project, *options)
    again = said.partition("go on with: vitreous backgrounds ")[2]
    assert (code, again.endswith("--seed 3 --threads 1 -q --continue\n")) == (130, True)
    assert (project / "OUT/backgrounds.mrcs").read_bytes() == kept[0]  # until the new are whole
    assert run(vitreous, project, "--seed", 3, "--threads", 2, "--continue", "-q")[0] == 0
    for kind, bytes_before in zip(("mrcs", "star"), kept, strict=True):
        assert (project / "OUT" / f"backgrounds.{kind}").read_bytes() == bytes_before
    assert run(vitreous, project, "--seed", 4, "--overwrite", "-q")[0] == 0
    assert (project / "OUT/backgrounds.star").read_bytes() != kept[1]
