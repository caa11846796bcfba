"""Picking of simulated micrographs, and particles prepared from the picks."""

import numpy as np
import pytest
import torch

from vitreous.core.errors import InputError
from vitreous.core.fourier import fourier_resize, irfft_centered, rfft_centered
from vitreous.core.params import Optics
from vitreous.data.micrographs import find_micrographs
from vitreous.data.particles import Particles
from vitreous.io.boxes import read_coordinates
from vitreous.io.mrc import read_mrc, write_mrc
from vitreous.io.star import read_star
from vitreous.jobs.pick.options import PickOptions
from vitreous.jobs.pick.run import pick
from vitreous.jobs.pick.search import Search
from vitreous.jobs.prepare.backgrounds import backgrounds
from vitreous.jobs.prepare.options import BackgroundsOptions, PrepareOptions
from vitreous.jobs.prepare.run import prepare
from vitreous.physics.ctf import ctf_half

EDGE, PIXEL, DIAMETER = 384, 5.0, 120.0
DEFOCUS = (18000.0, 24000.0)
CTF = "micrograph defocus_u_A defocus_v_A angle_deg\n" + "".join(
    f"m{i} {defocus} {defocus} 0\n" for i, defocus in enumerate(DEFOCUS)
)


def particle(rng):
    """A lumpy ball, 48 px wide, as it is without CTF."""
    y, x = np.mgrid[:48, :48] - 24
    points = rng.normal(size=(60, 3))
    points *= (rng.uniform(size=60) ** (1 / 3) / np.linalg.norm(points, axis=1))[:, None] * 10
    return sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 8) for px, py, _ in points)


def scattered(rng, count, margin):
    """Places 1.1 diameters or more apart."""
    places = []
    while len(places) < count:
        one = rng.uniform(margin, EDGE - margin, 2)
        if all(np.hypot(*(one - other)) > 1.1 * DIAMETER / PIXEL for other in places):
            places.append(one)
    return np.array(places)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two micrographs with 40 dark particles each and an ice crystal; where they are."""
    folder, rng, truth = tmp_path_factory.mktemp("pick"), np.random.default_rng(7), []
    (folder / "Mic").mkdir()
    for number, defocus in enumerate(DEFOCUS):
        places = scattered(rng, 40, 20)
        clean = torch.zeros(EDGE, EDGE)
        for x, y in np.round(places).astype(int).tolist():
            cut = np.s_[max(0, y - 24) : y + 24, max(0, x - 24) : x + 24]
            part = particle(rng)[max(0, 24 - y) :, max(0, 24 - x) :]
            clean[cut] += torch.from_numpy(part[: EDGE - y + 24, : EDGE - x + 24]).float()
        spectrum = rfft_centered(clean[None], 2)
        spectrum = spectrum * ctf_half(EDGE, PIXEL, Optics.uniform(1, defocus_angstrom=defocus))
        clean = irfft_centered(spectrum, (EDGE, EDGE))[0].numpy()
        image = 50 - clean / clean.std() + rng.normal(0, 1.5, (EDGE, EDGE))
        image[:30, 100:130] -= 10
        write_mrc(folder / "Mic" / f"m{number}.mrc", image.astype(np.float32), PIXEL)
        truth.append(np.round(places))
    (folder / "ctf.tsv").write_text(CTF)
    return folder, truth


def pairs(picks, places, limit=5.0):
    """Number of picks that lie at a place."""
    distance = np.linalg.norm(picks[:, None] - places, axis=-1).min(1)
    return int((distance < limit).sum())


def options_of(project, name, **more):
    more = {"ctf_file": project[0] / "ctf.tsv", **more}
    common = {"diameter_angstrom": DIAMETER, "threads": 1, "quiet": True}
    return PickOptions(micrographs=project[0] / "Mic", output=project[0] / name, **(common | more))


@pytest.fixture(scope="module")
def picked(project):
    return pick(options_of(project, "OUT"))


def found(project, name):
    """Right and wrong picks, and particles within the edges."""
    right = wrong = count = 0
    for number, places in enumerate(project[1]):
        picks = read_coordinates(project[0] / name / "coordinates" / f"m{number}_autopick.star")
        right += pairs(picks, places)
        wrong += len(picks) - pairs(picks, places)
        count += int(((places > 15) & (places < EDGE - 15)).all(1).sum())
    return right, wrong, count


def test_most_particles_and_little_else(project, picked):
    right, wrong, count = found(project, "OUT")
    assert right > 0.9 * count
    assert wrong < 0.1 * count
    assert picked.count == right + wrong
    assert (picked.folder / "report.html").stat().st_size > 10000
    for number in range(2):
        picks = read_coordinates(project[0] / f"OUT/coordinates/m{number}_autopick.star")
        assert not pairs(picks, np.array([[115.0, 15.0]]), 20)
        assert ((picks >= 12) & (picks <= EDGE - 13)).all()


@pytest.mark.parametrize("avoid", [True, False])
def test_no_peak_in_an_ice_crystal(project, avoid):
    options = options_of(project, "ICE", avoid_bad_regions=avoid, edge_angstrom=0, invert="yes")
    files = find_micrographs(options.micrographs, options.ctf_file)
    centres = Search.planned(files, options, PIXEL).peaks(0).centres
    inside = (centres[:, 0] > 105) & (centres[:, 0] < 125) & (centres[:, 1] < 25)
    assert inside.any() != avoid


def test_tables_of_relion(project, picked):
    document = read_star(picked.folder / "particles.star")
    table, optics = document.blocks["particles"], document.blocks["optics"]
    assert optics.columns["rlnMicrographPixelSize"] == ["5.000000"]
    defocus = dict(zip(table.text("rlnMicrographName"), table.numbers("rlnDefocusU"), strict=True))
    assert sorted(defocus.values()) == list(DEFOCUS)
    lines = read_star(picked.folder / "autopick.star").blocks["coordinate_files"]
    assert lines.text("rlnMicrographName") == [str(project[0] / f"Mic/m{i}.mrc") for i in (0, 1)]
    joined = np.stack([table.numbers(f"rlnCoordinate{axis}") for axis in "XY"], -1)
    apart = [read_coordinates(path) for path in lines.text("rlnMicrographCoordinates")]
    assert np.allclose(np.concatenate(apart), joined)
    scores = table.numbers("rlnAutopickFigureOfMerit")
    assert (scores > picked.threshold - 1e-4).all()


def test_prepare_cuts_what_was_picked(project, picked):
    with pytest.warns(UserWarning, match="are left out: their windows of 48 px"):
        result = prepare(
            PrepareOptions(
                particles=picked.folder / "particles.star",
                micrographs=project[0] / "Mic",
                output=project[0] / "PREPARED",
                window=48,
                box_size=24,
                invert=True,
                threads=1,
                quiet=True,
            )
        )
    particles = Particles.open(result.folder / "particles.star")
    assert (particles.box_size, particles.pixel_size_angstrom) == (24, 10.0)
    assert particles.has_ctf
    mean = particles.read(torch.arange(len(particles))).mean(0)
    radius = torch.hypot(*torch.meshgrid(*[torch.arange(24.0) - 12] * 2, indexing="ij"))
    assert mean[radius < 5].mean() > mean[radius > 9].mean() + 0.5
    table = read_star(result.folder / "particles.star").blocks["particles"]
    x, y = (int(np.floor(table.numbers(f"rlnCoordinate{axis}")[3] + 0.5)) for axis in "XY")
    number = int(table.text("rlnMicrographName")[3].endswith("m1.mrc"))
    image = read_mrc(project[0] / f"Mic/m{number}.mrc")[0].reshape(EDGE, EDGE)
    window = torch.from_numpy(image[y - 24 : y + 24, x - 24 : x + 24].copy())
    coarse = -fourier_resize(window[None], 24, 2)[0]
    pair = torch.stack([coarse.flatten(), particles.read([3])[0].flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.999


def test_backgrounds_keep_away_from_picks(project, picked):
    result = backgrounds(
        BackgroundsOptions(
            particles=picked.folder / "particles.star",
            micrographs=project[0] / "Mic",
            output=project[0] / "NOISE",
            window=40,
            particle_diameter_angstrom=80,
            threads=1,
            quiet=True,
        )
    )
    assert result.count > 10
    table = read_star(result.folder / "backgrounds.star").blocks["particles"]
    windows = np.stack([table.numbers(f"rlnCoordinate{axis}") for axis in "XY"], -1)
    for number, name in enumerate(f"m{i}_autopick.star" for i in (0, 1)):
        own = windows[[one.endswith(f"m{number}.mrc") for one in table.text("rlnMicrographName")]]
        picks = read_coordinates(picked.folder / "coordinates" / name)
        assert np.abs(own[:, None] - picks).max(-1).min() > 20


@pytest.mark.parametrize(
    ("more", "least"),
    [({"ctf_file": None}, 0.5), ({"invert": "no"}, 0.0), ({"threshold": 0.2, "most": 3}, 0.0)],
)
@pytest.mark.slow
def test_other_ways(project, more, least):
    pick(options_of(project, "OTHER", overwrite=True, **more))
    right, wrong, count = found(project, "OTHER")
    assert right >= least * count
    assert wrong < 0.2 * count or "invert" in more
    assert "most" not in more or right + wrong <= 6


def test_class_averages_as_templates(project):
    """Class averages of another box and pixel size find the particles too."""
    rng = np.random.default_rng(8)
    images = np.stack([particle(rng) for _ in range(2)]).astype(np.float32)
    averages = fourier_resize(torch.from_numpy(images), 40, 2).numpy()
    write_mrc(project[0] / "classes.mrcs", averages, 6.0, is_stack=True)
    more = {"templates": project[0] / "classes.mrcs", "angle_step_degrees": 90}
    pick(options_of(project, "AVERAGES", **more))
    right, wrong, count = found(project, "AVERAGES")
    assert right > 0.85 * count
    assert wrong < 0.15 * count


def test_noise_holds_few_particles(tmp_path):
    (tmp_path / "Mic").mkdir()
    rng = np.random.default_rng(9)
    for number in range(2):
        noise = rng.normal(0, 1, (EDGE, EDGE)).astype(np.float32)
        write_mrc(tmp_path / "Mic" / f"m{number}.mrc", noise, PIXEL)
    with pytest.warns(UserWarning, match="do not part"):
        result = pick(options_of((tmp_path, []), "OUT", ctf_file=None))
    assert result.count < 10


def test_micrographs_smaller_than_a_particle(project):
    with pytest.raises(InputError, match="too few for particles of 900 Å"):
        pick(options_of(project, "SMALL", diameter_angstrom=900.0))
