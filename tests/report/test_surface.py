import base64
import zlib

import numpy as np
import pytest

from vitreous.report.surface import (
    LARGEST_PX,
    SMALLER_PX,
    Surface,
    default_sigma,
    shaded_picture,
    surface_data,
)


def ball(n, radius, centre=(0.0, 0.0, 0.0)):
    z, y, x = np.indices((n, n, n)) - n // 2
    distance = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
    return np.clip(radius - distance, 0, 1)


def grid_of(layer, key="values"):
    text = layer[key] if key == "values" else layer[key]["values"]
    raw = zlib.decompress(base64.b64decode(text))
    return np.frombuffer(raw, np.uint8).reshape(layer["shape"][::-1])


@pytest.mark.parametrize("n", [72, 128])
def test_a_ball_keeps_its_place_and_size(n):
    """Cropping, coarsening and padding do not move or scale the map."""
    centre, radius = (n / 9, -n / 12, n / 18), n / 8
    (layer,) = surface_data([Surface("map", ball(n, radius, centre) + 1e-6)], 2.0)
    inside = grid_of(layer) > 127
    at = [np.mean(index) for index in np.nonzero(inside)[::-1]]
    places = [f + i * s for f, i, s in zip(layer["first"], at, layer["step"], strict=True)]
    np.testing.assert_allclose(places, 2.0 * np.array(centre), atol=0.5)
    volume = inside.sum() * np.prod(layer["step"])
    assert volume == pytest.approx(4 / 3 * np.pi * (2.0 * (radius - 0.5)) ** 3, rel=0.05)
    assert max(layer["shape"]) <= LARGEST_PX + 2


def test_maps_of_a_path_share_frame_and_grey_values():
    n = 72
    path = [(1 + k) * ball(n, 14, (6 * k, 0, 0)) for k in range(3)]
    (layer,) = surface_data([Surface("along", path[1], path=path)], 2.0)
    raw = zlib.decompress(base64.b64decode(layer["values"]))
    steps = np.frombuffer(raw, np.uint8).reshape(layer["frames"], *layer["shape"][::-1])
    grids = steps.cumsum(0, dtype=np.uint8)
    assert len(grids) == 3
    peaks = layer["mean"] + grids.max((1, 2, 3)) / 255 * layer["top"] * layer["sigma"]
    np.testing.assert_allclose(peaks / peaks[0], [1, 2, 3], atol=0.05)
    for k, grid in enumerate(grids):
        at = layer["first"][0] + layer["step"][0] * np.mean(np.nonzero(grid > 40 * (1 + k))[2])
        assert at == pytest.approx(2.0 * 6 * k, abs=0.5)


def test_surfaces_are_closed_and_cropped():
    volume = np.zeros((80, 80, 80))
    volume[30:50, 30:50, 10:50] = 1.0
    (layer,) = surface_data([Surface("map", volume)], 1.0)
    grid = grid_of(layer)
    assert grid.shape[2] == SMALLER_PX + 2  # grown from 40
    edges = [grid.take(i, axis) for axis in range(3) for i in (0, -1)]
    assert all(not edge.any() for edge in edges)


def test_colours_span_the_local_resolutions():
    volume, resolution = ball(64, 20), np.zeros((64, 64, 64))
    resolution[volume > 0] = 4.0
    resolution[volume > 0] += np.indices(volume.shape)[2][volume > 0] > 32
    (layer,) = surface_data([Surface("map", volume, resolution)], 1.0)
    assert (layer["colours"]["low"], layer["colours"]["high"]) == (4.0, 5.0)
    assert set(np.unique(grid_of(layer, "colours"))) == {0, 1, 255}


def test_maps_without_density_are_left_out_and_bad_ones_refused():
    assert surface_data([Surface("map", np.zeros((8, 8, 8)))], 1.0) == []
    with_nan = ball(16, 5)
    with_nan[0, 0, 0] = np.nan
    assert len(surface_data([Surface("map", with_nan)], 1.0)) == 1
    with pytest.raises(ValueError, match="must be"):
        surface_data([Surface("map", np.zeros((8, 8)))], 1.0)


def test_the_first_level_lies_on_the_particle():
    rng = np.random.default_rng(0)
    volume = 10 * ball(48, 12) + rng.normal(size=(48, 48, 48))
    level = volume.mean() + default_sigma(volume) * volume.std()
    inside = volume > level
    assert inside[ball(48, 11) > 0].mean() > 0.45
    assert inside[ball(48, 14) == 0].mean() < 0.01


def test_the_still_picture_has_y_upwards():
    picture = shaded_picture(ball(64, 6, (0, 20, 0)))
    rows, columns = np.nonzero(picture)
    assert rows.mean() == pytest.approx(64 - 1 - 52, abs=1)
    assert columns.mean() == pytest.approx(32, abs=1)
