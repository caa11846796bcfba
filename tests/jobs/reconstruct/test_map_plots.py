from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vitreous.core.rotation import random_rotations
from vitreous.jobs.reconstruct.map_plots import directional_plot, histogram, view_plot


def rotations(count):
    return random_rotations(count, generator=torch.Generator().manual_seed(0))


def points_of(plot):
    return plot.data[-1]


def test_uniform_views_fill_the_sphere_without_warning():
    plot, warnings = view_plot(rotations(4000), "C1")
    points = points_of(plot)
    assert warnings == []
    assert len(points["x"]) > 780
    assert np.mean(points["marker"]["color"]) == pytest.approx(1.0, abs=0.03)
    assert max(np.abs(points["x"])) <= 2 * np.sqrt(2)
    assert max(np.abs(points["y"])) <= np.sqrt(2)


def test_views_along_one_axis_lie_at_the_pole_and_are_warned_of():
    plot, warnings = view_plot(torch.eye(3).expand(500, 3, 3), "C1")
    points = points_of(plot)
    assert len(points["x"]) == 1
    assert points["y"][0] == pytest.approx(np.sqrt(2), abs=0.1)  # tilt 0 is at the top
    assert warnings[0].startswith("Views are missing: 9")


def test_symmetry_adds_views():
    one, _ = view_plot(torch.eye(3).expand(500, 3, 3), "C1")
    both, _ = view_plot(torch.eye(3).expand(500, 3, 3), "D2")
    assert (len(points_of(one)["x"]), len(points_of(both)["x"])) == (1, 2)


def test_few_views_are_not_warned_of():
    assert view_plot(rotations(20), "C1")[1] == []


def test_histogram_shares_add_up():
    plot = histogram("defocus", "Defocus", "", torch.linspace(1, 2, 100), "µm", "particles")
    assert sum(plot.data[0]["y"]) == pytest.approx(100, abs=0.01)
    assert plot.layout["xaxis"]["title"]["text"] == "defocus (µm)"


def test_fsc_by_direction_is_drawn_as_a_spread():
    common, *own = torch.randn(3, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    halves = SimpleNamespace(half1=common + own[0], half2=common + own[1])
    plot = directional_plot(halves, torch.ones(16, 16, 16), 2.0)
    assert plot.key == "directions"
    median, high, low = (np.array(trace["y"]) for trace in plot.data)
    assert (low <= median).all()
    assert (median <= high).all()
    assert low[4] < high[4]
    assert "in cones of 20° about 300 directions" in plot.caption
