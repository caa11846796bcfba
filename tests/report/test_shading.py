import json
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest

from vitreous.report import print_figures
from vitreous.report.shading import looked_along, seen_surface
from vitreous.report.surface import PALETTE

N = 24


def distance(centre):
    index = np.stack(np.indices((N, N, N)), -1) - N // 2 - np.array(centre)
    return np.sqrt((index**2).sum(-1))


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_a_ball_is_a_bright_disc_where_it_is(axis):
    centre, radius = (4.0, -3.0, 2.0), 6.0
    density = looked_along((radius - distance(centre)).astype(np.float32), axis)
    seen = seen_surface(density, 0.0, (2 * N, 2 * N))
    assert seen.hit.sum() == pytest.approx(4 * np.pi * radius**2, rel=0.03)
    z, y, x = centre
    up, right, away = {"z": (y, x, -z - 1), "y": (z, x, y), "x": (z, y, -x - 1)}[axis]
    row, column = ((index.mean() + 0.5) / 2 - 0.5 for index in np.nonzero(seen.hit))
    assert (row, column) == pytest.approx((N / 2 - 1 - up, N / 2 + right), abs=0.3)
    assert seen.position[0].min() == pytest.approx(N / 2 + away - radius, abs=0.2)
    assert seen.light.max() > 0.7
    assert seen.light.min() < 0.5


def test_colours_are_those_at_the_surface():
    density = looked_along((6.0 - distance((0, 0, 0))).astype(np.float32), "z")
    values = looked_along(np.where(distance((0, 0, 0)) < 8, 5.0, 0.0), "z")
    seen = seen_surface(density, 0.0, (N, N))
    np.testing.assert_allclose(seen.sampled(values), 5.0, rtol=1e-5)
    assert not seen.sampled(np.zeros_like(values)).any()


def test_three_sides_stand_beside_one_another_to_scale(monkeypatch):
    monkeypatch.setattr(print_figures, "_PANEL_PX", 300)
    volume = np.zeros((N, N, N))
    volume[4:20, 8:14, 6:18] = 1.0
    sheet, centres, scale = print_figures.surface_sheet(volume, 0.5, None)
    dark = (sheet < 0.999).any(-1)
    cuts = [round((a + b) / 2 * dark.shape[1]) for a, b in pairwise(centres)]
    heights = [np.ptp(np.nonzero(part.any(1))[0]) for part in np.split(dark, cuts, 1)]
    assert centres == sorted(centres)
    ratios = np.array(heights) / scale
    assert ratios == pytest.approx([6, 16, 16], abs=1.0)


def test_the_pages_use_the_same_palette():
    script = resources.files("vitreous.report").joinpath("templates/surface.js").read_text()
    assert f"PALETTE = {json.dumps(PALETTE)}" in script
