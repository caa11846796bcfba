"""The tilt projector: contracts, the sign of tilts, its plain twin, and the package's projector."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contracts import check_operator, random_like, relative_difference
from vitreous.optim.conjugate_gradient import conjugate_gradient
from vitreous.physics.kaiser_bessel.projector import WindowProjector
from vitreous.physics.kaiser_bessel.window import KaiserBessel
from vitreous.physics.kernels import tilt_torch
from vitreous.physics.tomography.projector import TiltProjector, expand_slices, footprint
from vitreous.physics.tomography.scan import ScanMask

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOWS = [KaiserBessel(2, 10.83, 2.0), KaiserBessel(2, 19.0, 4.0), KaiserBessel(2, 6.0, 1.3)]
TILTS = torch.tensor([-70.0, -33.3, 0.0, 10.0, 60.0, 85.0])
SHAPES = [((6, 3, 9), None), ((5, 10, 8), 11), ((16, 3, 12), 7), ((3, 2, 3), None), ((1, 1, 1), 4)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("shape", "width"), SHAPES)
def test_contracts(window: KaiserBessel, shape: tuple[int, int, int], width: int | None) -> None:
    projector = TiltProjector(TILTS, shape, window, width)
    check_operator(projector)
    draw = torch.Generator().manual_seed(4)
    scanned = torch.rand(projector.range_shape, generator=draw) < 0.4
    check_operator(ScanMask(scanned) @ projector)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("shape", "width"), SHAPES)
def test_loops_agree_with_plain_torch(
    window: KaiserBessel, shape: tuple[int, int, int], width: int | None
) -> None:
    h = TiltProjector(TILTS, shape, window, width)
    x, y = random_like(h.domain_shape, 1), random_like(h.range_shape, 2)
    common = (h._angles, h._centres)
    plain = tilt_torch.project(x, *common, h.width, h._table, 1024)
    assert relative_difference(h(x), plain) < 1e-12
    plain = tilt_torch.back_project(y, *common, (shape[0], shape[2]), h._table, 1024)
    assert relative_difference(h.adjoint(y), plain) < 1e-12


def test_a_point_is_seen_at_x_cos_plus_z_sin() -> None:
    """Equation of conventions.md: a point at +z moves to +x' as the tilt grows."""
    shape, (z, y, x) = (17, 4, 33), (13, 1, 20)
    volume = torch.zeros(shape, dtype=torch.float64)
    volume[z, y, x] = 1.0
    tilts = torch.tensor([-50.0, 0.0, 20.0, 40.0])
    images = TiltProjector(tilts, shape)(volume)
    pixels = torch.arange(33, dtype=torch.float64)
    for image, tilt in zip(images, torch.deg2rad(tilts.double()).tolist(), strict=True):
        wanted = 16 + (x - 16) * math.cos(tilt) + (z - 8) * math.sin(tilt)
        assert float((image[y] * pixels).sum()) == pytest.approx(wanted, abs=1e-2)
        assert float(image[y].sum()) == pytest.approx(1.0, abs=1e-3)
        assert float(image[:y].abs().sum() + image[y + 1 :].abs().sum()) == 0


def smooth(n: int) -> Tensor:
    """Gaussians well inside a cube."""
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    blob = torch.exp(-((z - 3) ** 2 + (y + 2) ** 2 + (x - 4) ** 2) / 8)
    return blob + 0.7 * torch.exp(-((z + 4) ** 2 + (y - 3) ** 2 + (x + 1) ** 2) / 10)


def test_it_is_the_window_projector_at_rotations_about_y() -> None:
    """Of the same smooth volume, as the bases differ: windows in slices here, in 3D there."""
    n, window = 32, KaiserBessel()
    tilts = torch.tensor([-60.0, -15.0, 0.0, 35.0])
    c, s = torch.deg2rad(tilts).cos().double(), torch.deg2rad(tilts).sin().double()
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    rotations = torch.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).reshape(-1, 3, 3)
    wanted = WindowProjector(rotations, n, window)(window.analyse(smooth(n), 1))
    solved = conjugate_gradient(lambda v: expand_slices(v, window), smooth(n), tolerance=1e-4)
    images = TiltProjector(tilts, (n, n, n), window)(solved.x)
    assert relative_difference(images, wanted) < 0.01
    mirrored = TiltProjector(-tilts, (n, n, n), window)(solved.x)
    assert relative_difference(mirrored, wanted) > 0.2


def test_a_flat_slab_is_as_thick_as_it_is() -> None:
    volume = torch.ones(12, 1, 64, dtype=torch.float64)
    images = TiltProjector(torch.tensor([0.0, 45.0]), (12, 1, 64), WINDOWS[1])(volume)
    assert float(images[0, 0, 32]) == pytest.approx(12, abs=1e-2)
    assert float(images[1, 0, 32]) == pytest.approx(12 * math.sqrt(2), rel=1e-2)


def test_expansion_projects_to_the_images() -> None:
    """Voxel sums along z of the expanded volume are its projection at 0 degrees."""
    coefficients = random_like((20, 2, 24), 3)
    coefficients[:4] = coefficients[-4:] = 0
    h = TiltProjector(torch.zeros(1), (20, 2, 24), WINDOWS[1])
    sums = expand_slices(coefficients, WINDOWS[1]).sum(0)
    assert relative_difference(sums, h(coefficients)[0]) < 1e-3


def test_threads_change_nothing() -> None:
    h = TiltProjector(TILTS, (9, 150, 20), WINDOWS[1])
    x, y = random_like(h.domain_shape, 1).float(), random_like(h.range_shape, 2).float()
    before = h(x), h.adjoint(y)
    torch.set_num_threads(2)
    assert torch.equal(h(x), before[0])
    assert torch.equal(h.adjoint(y), before[1])


def test_normal_kernel_is_the_response_to_a_point() -> None:
    h = TiltProjector(torch.tensor([-40.0, 0.0, 25.0]), (9, 1, 13), WINDOWS[1], 60)
    weights = torch.tensor([0.5, 1.0, 0.0])
    point = torch.zeros(9, 1, 13, dtype=torch.float64)
    point[4, 0, 6] = 1.0
    response = h.adjoint(weights.double()[:, None, None] * h(point))
    kernel = h.normal_kernel(weights).roll((4, 6), (0, 2))[:9, :, :13]
    assert relative_difference(kernel, response) < 1e-9


def test_the_footprint_has_unit_integral() -> None:
    for window in WINDOWS:
        table = footprint(window)
        assert float(table.sum()) / 1024 == pytest.approx(1)
        assert torch.equal(table, table.flip(0))
        assert float(table[0]) == 0 == float(table[-1])


@pytest.mark.parametrize(
    ("tilts", "shape", "match"),
    [
        (torch.tensor([90.0]), (4, 4, 4), "between -89 and 89"),
        (torch.tensor([math.nan]), (4, 4, 4), "between -89 and 89"),
        (torch.zeros(0), (4, 4, 4), "list of angles"),
        (torch.zeros(2), (4, 4), "axes"),
    ],
)
def test_what_is_refused(tilts: Tensor, shape: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TiltProjector(tilts, shape)


def test_wrong_shapes_and_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="must end in"):
        TiltProjector(TILTS, (4, 4, 4))(torch.zeros(4, 4, 5))
    with pytest.raises(ValueError, match="boolean"):
        ScanMask(torch.ones(3))
