"""Figures of folders that hold what commands leave, made of a few voxels."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import tomli_w
import torch
from matplotlib.image import imread

from vitreous.core.errors import InputError, UsageError
from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import random_rotations
from vitreous.data.maps import write_fsc_csv
from vitreous.data.tables import make_document, pose_columns
from vitreous.io.mrc import write_mrc
from vitreous.io.star import StarBlock, StarDocument, write_star
from vitreous.jobs.figure import drawings, run
from vitreous.jobs.figure.drawings import (
    classes_figure,
    fsc_figure,
    guinier_figure,
    surface_level,
)
from vitreous.jobs.figure.options import FigureOptions
from vitreous.jobs.figure.results import MissingDataError, RunResults
from vitreous.jobs.figure.run import figure, script_of
from vitreous.maps.fsc import fsc_resolution
from vitreous.report import print_figures

N, PIXEL = 16, 4.0
CURVE = torch.tensor([1.0, 1.0, 0.9, 0.8, 0.6, 0.3, 0.1, 0.0, 0.0])


def ball(radius=5.0, flat=1.3):
    z, y, x = np.indices((N, N, N)) - N // 2
    return np.clip(radius - np.sqrt(z**2 + (flat * y) ** 2 + x**2), 0, None).astype(np.float32)


def run_folder(folder, command="auto", **more):
    """A finished run with half maps and their FSC."""
    folder.mkdir()
    facts = {"command": command, "status": "finished", "verdict": "solved"} | more
    options = {"symmetry": "D2"}
    (folder / "config.toml").write_text(tomli_w.dumps({"run": facts, "options": options}))
    for name in ("half1", "half2", "map"):
        write_mrc(folder / f"{name}.mrc", ball(), PIXEL)
    curves = {"masked": CURVE, "corrected": CURVE * 0.99}
    write_fsc_csv(folder / "fsc.csv", curves, N, PIXEL)
    return folder


@pytest.fixture
def refined(tmp_path):
    folder = run_folder(tmp_path / "OUT", solved=True, resolution_0143_angstrom=11.0)
    local = np.where(ball() > 0, 8.0 + np.indices((N, N, N))[2] / 4, 0).astype(np.float32)
    for name, values in (
        ("sharpened", ball()),
        ("mask", ball(7).clip(0, 1)),
        ("local_resolution", local),
    ):
        write_mrc(folder / f"{name}.mrc", values, PIXEL)
    rotations = random_rotations(40, generator=torch.Generator().manual_seed(0)).float()
    columns = pose_columns(Pose(rotations, torch.zeros(40, 2)))
    names = [f"{k + 1}@stack.mrcs" for k in range(40)]
    table = make_document(names, Optics.uniform(40), pixel_size_angstrom=PIXEL, box_size=N)
    block = StarBlock({**table.blocks["particles"].columns, **columns})
    write_star(folder / "particles.star", StarDocument({**table.blocks, "particles": block}))
    return folder


@pytest.fixture
def coarse(monkeypatch):
    monkeypatch.setattr(print_figures, "DPI", 50)
    monkeypatch.setattr(print_figures, "_PANEL_PX", 150)
    monkeypatch.setattr(drawings, "_VIEW_ROWS", 60)


@pytest.fixture
def undrawn(monkeypatch):
    """Files that hold the heading of a figure instead of the figure."""

    def headed(draw, height_mm, heading):
        return {"png": heading.encode(), "pdf": heading.encode()}

    monkeypatch.setattr(run, "printed", headed)


def rows_of(path):
    return list(csv.DictReader(path.open()))


def test_a_refined_run_has_every_figure(vitreous, refined, coarse):
    before = {path.name: path.read_bytes() for path in refined.iterdir()}
    code, out, err = vitreous("figure", refined)
    assert (code, err) == (0, "")
    made = refined / "figures"
    drawn = ("fsc", "views", "surface", "slices", "local_resolution")
    for name in drawn:
        picture = imread(made / f"{name}.png")
        assert picture.shape[1] == 175  # 89 mm at 50 dpi
        assert picture[..., :3].std() > 0.02
        assert (made / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "left out: guinier: no guinier.csv; `vitreous postprocess" in out
    assert not (made / "guinier.png").exists()
    curve = [float(row["corrected"]) for row in rows_of(made / "fsc.csv")]
    assert curve == pytest.approx((CURVE * 0.99).tolist(), abs=1e-5)
    at = fsc_resolution(CURVE * 0.99, 0.143, N, PIXEL)
    assert f"{at:.1f} Å at 0.143" in out
    density = [float(row["density"]) for row in rows_of(made / "views.csv")]
    assert np.mean(density) == pytest.approx(1)
    share = [float(row["share_percent"]) for row in rows_of(made / "local_resolution.csv")]
    assert sum(share) == pytest.approx(100, abs=0.1)
    left = {path.name: path.read_bytes() for path in refined.iterdir() if path.is_file()}
    assert left == before
    code, _, err = vitreous("figure", refined)
    assert (code, "give --overwrite" in err) == (2, True)
    with pytest.raises(MissingDataError, match="no density above the level 99"):
        surface_level(RunResults(refined), 99.0)


def test_figures_have_print_size_and_fonts():
    curves = {"corrected": (np.linspace(0, 0.1, 9), CURVE.numpy())}
    files = print_figures.printed(lambda one: print_figures.draw_fsc(one, curves, {}), 60, "Words")
    picture = imread(io.BytesIO(files["png"]))
    assert picture.shape[:2] == (708, 1051)  # 60 x 89 mm at 300 dpi
    top = picture[:60, :, :3]
    assert ((top[..., 0] > 0.6) & (top[..., 1] < 0.3)).sum() > 300  # the heading, red
    assert b"/MediaBox [ 0 0 252.28" in files["pdf"]
    assert b"FontFile2" in files["pdf"]
    assert b"CreationDate" not in files["pdf"]


def test_the_script_opens_all_maps_and_colours_the_first(refined):
    options = FigureOptions(folder=refined, level=0.5, output=refined.parent / "my figures")
    script = script_of(RunResults(refined), options).splitlines()
    opened = [line.removeprefix("open ") for line in script if line.startswith("open ")]
    names = ("sharpened", "half1", "half2", "mask", "local_resolution")
    assert opened == [f"../OUT/{name}.mrc" for name in names]
    assert "volume #1 style surface step 1 level 0.5" in script
    assert [line for line in script if line.startswith("hide")] == [
        f"hide #{k} models" for k in range(2, 6)
    ]
    (colours,) = (line for line in script if line.startswith("color sample #1 map #5 palette "))
    ends = [float(part.split(",")[0]) for part in colours.split()[6].split(":")]
    assert 8 < ends[0] < ends[-1] < 12
    assert ends == sorted(ends)


def test_an_unsolved_run_is_refused_or_says_so(tmp_path, undrawn):
    folder = run_folder(tmp_path / "OUT", solved=False, resolution_0143_angstrom=11.0)
    with pytest.raises(UsageError, match="NOT SOLVED"):
        figure(FigureOptions(folder=folder))
    assert not (folder / "figures").exists()
    result = figure(FigureOptions(folder=folder, not_solved=True))
    assert result.figures == ("fsc", "slices")
    assert "11" not in result.text
    assert not (result.folder / "chimerax.cxc").exists()
    for name in result.figures:
        for suffix in ("png", "pdf"):
            assert (result.folder / f"{name}.{suffix}").read_bytes() == b"NOT SOLVED"


@pytest.mark.parametrize(
    ("facts", "solved"),
    [
        ({"resolution_0143_angstrom": 11.0}, True),
        ({"resolution_0143_angstrom": 20.0}, False),
        ({"resolution_0143_angstrom": float("inf")}, False),
    ],
)
def test_half_maps_that_share_a_few_shells_are_not_solved(tmp_path, facts, solved):
    folder = run_folder(tmp_path / "POST", "postprocess", **facts)
    assert RunResults(folder).solved is solved


def test_the_guinier_line_is_that_of_the_table(tmp_path):
    folder = run_folder(tmp_path / "POST", "postprocess")
    lines = [f"{k},{k / 100},{5 - 30 * k / 100},{int(k > 2)}" for k in range(8)]
    header = "shell,inv_d2_inv_angstrom2,ln_amplitude,fitted"
    (folder / "guinier.csv").write_text("\n".join([header, *lines]) + "\n")
    assert guinier_figure(RunResults(folder), None).shows == "B = -120 Å²"


def test_classes_are_shown(tmp_path, undrawn):
    folder = run_folder(tmp_path / "OUT", "classify2d")
    write_mrc(folder / "classes.mrcs", np.stack([ball()[8]] * 7), PIXEL, is_stack=True)
    table = {"rlnClassDistribution": ["0.4", *["0.1"] * 6], "rlnEstimatedResolution": ["9.5"] * 7}
    write_star(folder / "classes.star", StarDocument({"model_classes": StarBlock(table)}))
    result = figure(FigureOptions(folder=folder))
    assert result.figures == ("classes",)
    rows = rows_of(result.folder / "classes.csv")
    assert [row["resolution_0143_angstrom"] for row in rows] == ["9.5"] * 7


def test_classes_of_a_mixture_have_curves_shares_and_projections(tmp_path):
    folder = run_folder(tmp_path / "OUT", "hetero run", sizes=[30, 10], unsorted=10)
    noise = np.random.default_rng(0).normal(size=(2, N, N, N)).astype(np.float32)
    for k in (1, 2):
        write_mrc(folder / f"class0{k}.mrc", ball(), PIXEL)
        for half in (1, 2):  # of class 2 the halves share a sphere only
            values = noise[0] if k == 1 else 0.01 * noise[half - 1] + ball(flat=1.0)
            write_mrc(folder / f"class0{k}_half{half}.mrc", values, PIXEL)
        write_fsc_csv(folder / f"class0{k}_fsc.csv", {"corrected": CURVE}, N, PIXEL)
    results = RunResults(folder)
    columns = classes_figure(results, None).columns
    assert columns["share"] == [0.6, 0.2]
    at = fsc_resolution(CURVE, 0.143, N, PIXEL)
    assert columns["resolution_0143_angstrom"] == [pytest.approx(at, abs=1e-4), ""]
    assert {"class01", "class02"} < set(fsc_figure(results, None).columns)
    script = script_of(results, FigureOptions(folder=folder, output=folder / "figures"))
    assert "tile" in script
    assert "volume #2 style surface" in script


def test_what_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no output folder"):
        figure(FigureOptions(folder=tmp_path))
    with pytest.raises(InputError, match="'vitreous check', which has no figures"):
        figure(FigureOptions(folder=run_folder(tmp_path / "A", "check")))
    with pytest.raises(InputError, match="not finished"):
        figure(FigureOptions(folder=run_folder(tmp_path / "B", status="running")))
    empty = run_folder(tmp_path / "C", "hetero run")
    with pytest.raises(InputError, match="nothing to draw: fsc: the classes have no half maps"):
        figure(FigureOptions(folder=empty))
    assert not (empty / "figures").exists()


def test_a_damaged_table_is_named(tmp_path):
    folder = run_folder(tmp_path / "OUT", solved=True)
    (folder / "fsc.csv").write_text("shell,fsc\n0,1\n1\n")
    with pytest.raises(InputError, match=r"fsc\.csv: no table of numbers"):
        figure(FigureOptions(folder=folder))
