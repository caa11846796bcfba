"""(3.6) against an independent solver, its preconditioner, halves, and the methods beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vitreous.linop.gradient import Gradient
from vitreous.linop.operator import LinearOperator
from vitreous.methods.tomography.back_projection import (
    Sirt,
    fill_unscanned,
    tilt_weights,
    weighted_back_projection,
)
from vitreous.methods.tomography.inpainting import (
    choose_inpainting_strength,
    inpaint,
    two_step_search,
)
from vitreous.methods.tomography.total_variation import (
    SIMULATION_WINDOW,
    WINDOW,
    Scan,
    strength_search,
    tomography_config,
    total_variation_solver,
)
from vitreous.optim.admm import admm
from vitreous.optim.least_squares import LeastSquares
from vitreous.optim.loop import run
from vitreous.optim.priors import TotalVariation
from vitreous.physics.tomography.projector import TiltProjector, expand_slices

pytestmark = pytest.mark.usefixtures("one_thread")


def blob(shape: tuple[int, int, int], sigma: float = 2.0) -> Tensor:
    """A Gaussian off the centre, so that mirrored or shifted maps are told."""
    z, y, x = (torch.arange(n, dtype=torch.float64) - n // 2 for n in shape)
    square = (z[:, None, None] - 2) ** 2 + (y[:, None] + 1) ** 2 + (x - 4) ** 2
    return torch.exp(-square / (2 * sigma**2))


def scan_of(
    volume: Tensor, tilts: Tensor, dose: float = 1.0, sigma: float = 0.0, seed: int = 0
) -> Scan:
    draw = torch.Generator().manual_seed(seed)
    images = TiltProjector(tilts, tuple(volume.shape), SIMULATION_WINDOW)(volume)
    images = images + sigma * torch.randn(images.shape, generator=draw, dtype=images.dtype)
    scanned = torch.rand(images.shape, generator=draw) < dose if dose < 1 else images == images
    return Scan(images * scanned, tilts, scanned)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def primal_dual(scan: Scan, depth: int, strength: float) -> Tensor:
    """Chambolle and Pock's method, gradient steps of the data by Condat and Vu."""
    equations = scan.equations(depth)
    gradient = Gradient(equations.operator.domain_shape)
    x = torch.zeros_like(equations.right_hand_side)
    dual = gradient(x)
    bound = 1.2 * max_eigenvalue(equations.operator, x)
    step = 1 / (bound / 2 + 12 * bound / 24)
    for _ in range(2000):
        slope = equations.operator(x) - equations.right_hand_side
        ahead = (x - step * (slope + gradient.adjoint(dual))).clamp_min(0)
        dual = dual + bound / 24 * gradient(2 * ahead - x)
        dual = dual / (dual.norm(dim=0) / strength).clamp_min(1)
        x = ahead
    return x


def max_eigenvalue(operator: LinearOperator, like: Tensor) -> float:
    x = torch.ones_like(like)
    for _ in range(50):
        x = operator(x / x.norm())
    return float(x.norm())


@pytest.mark.slow
def test_the_problem_of_equation_3_6_is_solved() -> None:
    shape, tilts = (5, 4, 7), torch.linspace(-60, 60, 9, dtype=torch.float64)
    scan = scan_of(blob(shape), tilts, dose=0.5, sigma=0.1)
    wanted = primal_dual(scan, 5, 0.2)
    result = run(total_variation_solver(scan, 5, 0.2, iterations=1500, tolerance=1e-9))
    assert float(result.volume.min()) >= 0
    assert torch.allclose(result.volume, wanted, atol=2e-4)


def test_unscanned_pixels_and_tilts_do_not_matter() -> None:
    tilts = torch.linspace(-60, 60, 9, dtype=torch.float64)
    scan = scan_of(blob((5, 4, 7)), tilts, dose=0.5)
    kept = torch.arange(9) != 4
    without = scan[kept]
    empty = Scan(scan.images * kept[:, None, None], tilts, scan.scanned & kept[:, None, None])
    first = run(total_variation_solver(without, 5, 0.1, iterations=10)).volume
    assert torch.equal(first, run(total_variation_solver(empty, 5, 0.1, iterations=10)).volume)


class Plain(LinearOperator):
    """H^T S H that does not know a circulant matrix close to it."""

    def __init__(self, operator: LinearOperator) -> None:
        self.domain_shape = self.range_shape = operator.domain_shape
        self._operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self._operator(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._operator(y)


def test_the_circulant_matrix_speeds_the_solution_up() -> None:
    scan = scan_of(blob((16, 4, 24)), torch.linspace(-70, 70, 41).double(), 1.0, 0.05)
    equations = scan.equations(16)
    config = tomography_config(equations, iterations=20, tolerance=0.0)
    plain = LeastSquares(
        Plain(equations.operator), equations.right_hand_side, equations.sum_of_squares
    )
    with_it, without = (
        admm(e, TotalVariation(0.1), config).history[-1] for e in (equations, plain)
    )
    exact = admm(equations, TotalVariation(0.1), replace(config, iterations=200)).history[-1][
        "objective"
    ]
    assert with_it["objective"] - exact < 0.5 * (without["objective"] - exact)


def test_h_t_h_x_that_conjugate_gradients_keep_does_not_drift() -> None:
    scan = scan_of(blob((8, 4, 12)), torch.linspace(-70, 70, 15).double(), 0.5, 0.05)
    equations = scan.equations(8)
    config = tomography_config(equations, iterations=19, tolerance=0.0)
    result = admm(equations, TotalVariation(0.1), config)
    misfit = equations.misfit(result.state.x)
    assert result.history[-1]["misfit"] == pytest.approx(misfit, rel=1e-9)


def test_halves_share_no_measurement() -> None:
    draw = torch.Generator().manual_seed(2)
    tilts = torch.tensor([10.0, -10.0, 30.0, 0.0]).double()
    full = scan_of(blob((4, 6, 8)), tilts)
    first, second = full.halves(draw)
    assert first.tilts_degrees.tolist() == [-10.0, 10.0]
    assert second.tilts_degrees.tolist() == [0.0, 30.0]
    sparse = scan_of(blob((4, 6, 8)), tilts, dose=0.5)
    first, second = sparse.halves(draw)
    assert not bool((first.scanned & second.scanned).any())
    assert torch.equal(first.scanned | second.scanned, sparse.scanned)
    assert torch.equal(first.images + second.images, sparse.images)
    with pytest.raises(ValueError, match="halves"):
        full[torch.tensor([0])].halves(draw)


def test_the_busiest_slices() -> None:
    volume = torch.zeros(4, 20, 8, dtype=torch.float64)
    volume[2, 12:15, 4] = 1
    part = scan_of(volume, torch.zeros(2)).busiest(5)
    assert part.images.shape == (2, 5, 8)
    assert float(part.images.sum()) == pytest.approx(float(volume.sum()) * 2, rel=1e-2)


@pytest.mark.parametrize("dose", [1.0, pytest.param(0.4, marks=pytest.mark.slow)])
def test_the_chosen_strength_is_a_good_one(dose: float) -> None:
    volume = (blob((12, 6, 20)) > 0.4).double()
    tilts = torch.linspace(-70, 70, 21).double()
    scan = scan_of(volume, tilts, dose, sigma=0.5)
    truth = expand_slices(volume, SIMULATION_WINDOW)

    def error(strength: float) -> float:
        result = run(total_variation_solver(scan, 12, strength, iterations=60))
        return float((expand_slices(result.volume, WINDOW) - truth).norm())

    halves = scan.halves(torch.Generator().manual_seed(0))
    chosen = run(strength_search(halves, 12)).strength
    best = min(error(s) for s in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0))
    assert error(chosen) < 1.15 * best


def test_shapes_that_disagree_are_refused() -> None:
    images = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="must both be"):
        Scan(images, torch.zeros(2), torch.ones(2, 3, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="3 angles"):
        Scan(images, torch.zeros(3), torch.ones(2, 3, 4, dtype=torch.bool))


@pytest.mark.parametrize("dose", [1.0, 0.3])
def test_a_blob_is_found_by_every_method(dose: float) -> None:
    shape = (16, 10, 24)
    truth = expand_slices(blob(shape), SIMULATION_WINDOW)
    scan = scan_of(blob(shape), torch.linspace(-80, 80, 54).double(), dose)
    weighted = weighted_back_projection(scan, 16)
    assert correlation(weighted, truth) > 0.9
    if dose == 1:
        assert float(weighted.max()) == pytest.approx(float(truth.max()), rel=0.25)
    algebraic = expand_slices(run(Sirt(scan, 16, iterations=30)), WINDOW)
    assert correlation(algebraic, truth) > 0.9
    if dose == 1:
        assert int(weighted.argmax()) == int(algebraic.argmax()) == int(truth.argmax())


def test_weights_of_uneven_tilts_sum_to_their_range() -> None:
    tilts = torch.tensor([20.0, -30.0, 0.0, 50.0])
    assert torch.rad2deg(tilt_weights(tilts)).tolist() == pytest.approx([25, 30, 25, 30])


def test_filling_keeps_what_was_scanned_and_a_flat_image() -> None:
    scan = scan_of(blob((4, 12, 12)), torch.zeros(2), 0.2)
    filled = fill_unscanned(scan)
    assert torch.equal(filled[scan.scanned], scan.images[scan.scanned])
    flat = Scan(3.0 * scan.scanned, scan.tilts_degrees, scan.scanned)
    assert torch.allclose(fill_unscanned(flat), torch.tensor(3.0), atol=1e-3)


def test_inpainting_finds_a_step_and_leaves_full_images() -> None:
    image = torch.zeros(2, 16, 16, dtype=torch.float64)
    image[:, :, 8:] = 2.0
    draw = torch.Generator().manual_seed(0)
    scanned = torch.rand(image.shape, generator=draw) < 0.4
    scanned[1] = True
    scan = Scan(image * scanned, torch.tensor([0.0, 1.0]), scanned)
    done = inpaint(scan, 0.01)
    assert bool(done.scanned.all())
    assert torch.equal(done.images[1], image[1])
    assert float((done.images[0] - image[0]).abs().mean()) < 0.1


@pytest.mark.slow
def test_two_steps_end_in_a_map() -> None:
    shape = (12, 12, 12)
    scan = scan_of(blob(shape, 1.5), torch.linspace(-70, 70, 9).double(), 0.5, 0.1)
    draw = torch.Generator().manual_seed(0)
    mu = choose_inpainting_strength(scan, draw)
    choice = run(two_step_search(scan, 12, mu, draw))
    result = run(total_variation_solver(inpaint(scan, mu), 12, choice.strength))
    truth = expand_slices(blob(shape, 1.5), SIMULATION_WINDOW)
    assert correlation(expand_slices(result.volume, WINDOW), truth) > 0.9


def test_sirt_goes_on_bit_for_bit() -> None:
    scan = scan_of(blob((5, 4, 7)), torch.linspace(-60, 60, 9).double(), 0.5)
    whole, first, second = (Sirt(scan, 5, iterations=6) for _ in range(3))
    for _ in range(2):
        first.step()
    assert first.progress == pytest.approx(1 / 3)
    second.load_state_dict(first.state_dict())
    assert torch.equal(run(second), run(whole))
