"""ADMM against dense solves and slow independent solvers; every linear step, shape and prior."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deconvolution import Blur, Problem, blocks, imaging_blur, observe, random_blur
from vitreous.core.errors import DivergedError
from vitreous.core.params import Optics
from vitreous.core.rotation import random_rotations
from vitreous.linop.gradient import Gradient
from vitreous.linop.operator import Identity, LinearOperator
from vitreous.linop.wavelet import Wavelet
from vitreous.optim.admm import Admm, admm
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.admm_linear_step import CirculantStep, MajorisedStep, filter_volume
from vitreous.optim.least_squares import (
    CirculantNormal,
    Convolution,
    LeastSquares,
    optimal_circulant,
)
from vitreous.optim.loop import run
from vitreous.optim.priors import (
    FeasibleSet,
    Prior,
    SquaredNorm,
    TotalVariation,
    WaveletSparsity,
)
from vitreous.physics.ctf import CTF
from vitreous.physics.kaiser_bessel.normal_equations import NormalAccumulator
from vitreous.physics.kaiser_bessel.projector import WindowProjector
from vitreous.physics.kaiser_bessel.window import KaiserBessel

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (5, 8, 6)
STEPS = ["cg", "majorised", "padded"]
FINE = {"iterations": 4000, "tolerance": 1e-9}


def dense(operator: LinearOperator) -> Tensor:
    """The operator's matrix."""
    n = torch.Size(operator.domain_shape).numel()
    columns = [operator(e.reshape(operator.domain_shape)).flatten() for e in torch.eye(n).double()]
    return torch.stack(columns, 1)


def toy(sigma: float = 0.5, shape: tuple[int, ...] = SHAPE) -> Problem:
    return observe(random_blur(shape), blocks(shape), sigma)


def mask_of(shape: tuple[int, ...]) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool)
    mask[:1] = mask[:, -2:] = False
    return mask


def test_a_circulant_problem_is_divided_by() -> None:
    stream = torch.Generator().manual_seed(1)
    data = torch.randn(SHAPE, generator=stream, dtype=torch.double)
    spectrum = torch.fft.rfftn(data.roll(2, 0)).abs() / 8
    operator = CirculantNormal(spectrum, SHAPE)
    equations = LeastSquares(operator, operator(data), float((data * operator(data)).sum()))
    config = AdmmConfig(nonnegative=False, **FINE)
    divided = Admm(equations, TotalVariation(0.05), config)
    assert isinstance(divided.linear, CirculantStep)
    by_gradients = admm(equations, TotalVariation(0.05), replace(config, linear_step="cg"))
    result = run(divided)
    assert result.converged
    assert torch.allclose(result.volume, by_gradients.volume, atol=1e-6)
    assert result.history[-1]["objective"] == pytest.approx(by_gradients.history[-1]["objective"])


def primal_dual(
    problem: Problem, strength: float, boundary: str, feasible: Callable[[Tensor], Tensor]
) -> Tensor:
    """Chambolle and Pock's method for TV, with the data's proximal map by a dense inverse."""
    gradient = Gradient(problem.truth.shape, boundary)
    n, step = problem.truth.numel(), 12**-0.5 / 1.01
    inverse = torch.linalg.inv(torch.eye(n) + step * dense(problem.equations.operator))
    x = torch.zeros_like(problem.truth)
    p, q, r = gradient(x), x.clone(), x.clone()
    ahead = x
    for _ in range(4000):
        p = p + step * gradient(ahead)
        p = p / (p.norm(dim=0) / strength).clamp_min(1)
        q = q + step * ahead
        q = q - step * feasible(q / step)
        pull = x - step * (gradient.adjoint(p) + q) + step * problem.equations.right_hand_side
        r = (inverse @ pull.flatten()).reshape(x.shape)
        ahead, x = 2 * r - x, r
    return x


@pytest.mark.parametrize("linear_step", STEPS)
@pytest.mark.parametrize("shape", [(8, 8, 8), SHAPE])
def test_l2_against_a_dense_solve(shape: tuple[int, ...], linear_step: str) -> None:
    problem = toy(shape=shape)
    matrix = dense(problem.equations.operator) + 0.7 * torch.eye(problem.truth.numel())
    wanted = torch.linalg.solve(matrix, problem.equations.right_hand_side.flatten()).reshape(shape)
    config = AdmmConfig(nonnegative=False, linear_step=linear_step, **FINE)
    result = admm(problem.equations, SquaredNorm(0.7), config)
    assert result.converged
    assert torch.allclose(result.volume, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("boundary", "linear_step"),
    [
        *(pytest.param("periodic", s, marks=pytest.mark.slow) for s in STEPS[:-1]),
        ("periodic", STEPS[-1]),
        ("neumann", "cg"),
    ],
)
@pytest.mark.parametrize("constrained", [pytest.param(False, marks=pytest.mark.slow), True])
def test_tv_against_a_primal_dual_method(
    boundary: str, linear_step: str, constrained: bool
) -> None:
    problem, mask = toy(), mask_of(SHAPE)
    reference = primal_dual(
        problem, 0.1, boundary, lambda v: v.clamp_min(0) * mask if constrained else v
    )
    prior = TotalVariation(0.1, boundary)
    config = AdmmConfig(nonnegative=constrained, linear_step=linear_step, **FINE)
    result = admm(problem.equations, prior, config, mask=mask if constrained else None)
    tv = Gradient(SHAPE, boundary)(reference).norm(dim=0).sum()
    objective = problem.equations.misfit(reference) + 0.1 * float(tv)
    assert torch.allclose(result.volume, reference, atol=1e-5)
    assert result.history[-1]["objective"] == pytest.approx(objective, rel=1e-7)


@pytest.mark.parametrize(
    "linear_step",
    [*(pytest.param(s, marks=pytest.mark.slow) for s in ("cg", "padded")), "majorised"],
)
def test_wavelets_against_proximal_gradients(linear_step: str) -> None:
    shape = (4, 8, 6)  # every axis halves, so that volumes and coefficients are one to one
    problem, wavelet = toy(shape=shape), Wavelet(shape, "haar", 1)
    matrix, b = dense(problem.equations.operator), problem.equations.right_hand_side
    step = 1 / float(torch.linalg.matrix_norm(matrix, 2))
    threshold, w = 0.6 * step * wavelet.details(b), wavelet(0 * b)
    for _ in range(4000):
        slope = (matrix @ wavelet.adjoint(w).flatten()).reshape(shape) - b
        w = w - step * wavelet(slope)
        w = w - w.clamp(-threshold, threshold)
    config = AdmmConfig(nonnegative=False, linear_step=linear_step, **FINE)
    result = admm(problem.equations, WaveletSparsity(0.6, "haar", 1), config)
    assert torch.allclose(result.volume, wavelet.adjoint(w), atol=1e-6)


@pytest.mark.parametrize(
    "prior",
    [
        pytest.param(TotalVariation(0.3), marks=pytest.mark.slow),
        SquaredNorm(0.3),
        pytest.param(WaveletSparsity(0.3), marks=pytest.mark.slow),
        None,
    ],
)
def test_every_linear_step_finds_the_same_volume(prior: Prior | None) -> None:
    """Conditioned as projections are, with padded wavelets and odd axes."""
    shape = (5, 6, 7)
    problem = observe(imaging_blur(shape), blocks(shape), 0.3)
    config = AdmmConfig(iterations=1000, tolerance=1e-6)
    results = [admm(problem.equations, prior, replace(config, linear_step=step)) for step in STEPS]
    for result in results[1:]:
        difference = (result.volume - results[0].volume).norm() / results[0].volume.norm()
        assert difference < 5e-3
        assert result.history[-1]["objective"] == pytest.approx(
            results[0].history[-1]["objective"], rel=1e-6
        )


@pytest.mark.parametrize(("boundary", "edges"), [("neumann", 1), ("periodic", 2)])
def test_denoising_a_step(boundary: str, edges: int) -> None:
    """The two levels of a step of lengths m and n move by lambda / m and lambda / n an edge."""
    step = torch.tensor([0.0] * 4 + [3.0] * 8, dtype=torch.float64).reshape(1, 1, 12)
    equations = LeastSquares(Identity((1, 1, 12)), step, float(step.square().sum()))
    config = AdmmConfig(linear_step="cg", **FINE)
    volume = admm(equations, TotalVariation(0.8, boundary), config).volume.flatten()
    assert torch.allclose(volume[:4], torch.tensor(0.8 * edges / 4).double(), atol=1e-7)
    assert torch.allclose(volume[4:], torch.tensor(3 - 0.8 * edges / 8).double(), atol=1e-7)


@pytest.mark.parametrize(
    ("boundary", "linear_step"),
    [
        *(pytest.param("periodic", s, marks=pytest.mark.slow) for s in STEPS[:-1]),
        ("periodic", STEPS[-1]),
        ("neumann", "cg"),
    ],
)
def test_a_strong_regulariser_leaves_the_best_constant(boundary: str, linear_step: str) -> None:
    """Where the gradient vanishes altogether rho must not run away."""
    shape = (9, 10, 12)
    problem = observe(imaging_blur(shape), blocks(shape), 0.5)
    config = AdmmConfig(nonnegative=False, linear_step=linear_step, iterations=500, tolerance=1e-6)
    prior = TotalVariation(0.0, boundary)
    prior = replace(prior, strength=2 * prior.strongest(problem.equations))
    ones = torch.ones_like(problem.truth)
    level = (
        problem.equations.right_hand_side.sum() / (ones * problem.equations.operator(ones)).sum()
    )
    result = admm(problem.equations, prior, config)
    assert result.converged
    assert torch.allclose(result.volume, level * ones, atol=1e-4)
    weaker = admm(problem.equations, replace(prior, strength=prior.strength / 20), config)
    assert weaker.volume.std() > 1e-3


@pytest.mark.parametrize("linear_step", STEPS)
def test_constraints_hold_after_a_few_iterations(linear_step: str) -> None:
    problem, mask = toy(2.0), mask_of(SHAPE)
    config, prior = AdmmConfig(linear_step=linear_step, iterations=3), TotalVariation(0.1)
    volume = admm(problem.equations, prior, config, mask=mask).volume
    assert volume.min() == 0
    assert volume[~mask].abs().max() == 0
    assert volume.max() > 0.5
    free = admm(problem.equations, prior, replace(config, nonnegative=False), mask=mask).volume
    assert free.min() < 0
    assert free[~mask].abs().max() == 0


@pytest.mark.parametrize("linear_step", STEPS)
def test_the_objective_falls_after_the_first_iterations(linear_step: str) -> None:
    shape = (9, 10, 12)
    problem = observe(imaging_blur(shape), blocks(shape), 0.3)
    config = AdmmConfig(nonnegative=False, linear_step=linear_step, iterations=150)
    history = admm(problem.equations, TotalVariation(0.5), config).history
    objective = torch.tensor([stats["objective"] for stats in history], dtype=torch.float64)
    assert (objective[21:] - objective[20:-1]).max() < 1e-4 * objective[-1]
    assert objective[20] > objective[-1]
    for stats in history:
        assert stats["objective"] == pytest.approx(stats["misfit"] + stats["penalty"])


def test_adapting_rho_makes_up_for_a_bad_one() -> None:
    problem, prior = toy(), TotalVariation(0.1)
    config = AdmmConfig(rho=1e-3, iterations=300, tolerance=1e-5)
    assert admm(problem.equations, prior, config).converged
    assert not admm(problem.equations, prior, replace(config, adapt_rho=False)).converged
    good = admm(problem.equations, prior, replace(config, rho=3.0, adapt_rho=False))
    assert good.converged
    assert good.state.rho[0] == 3.0


@pytest.mark.parametrize("linear_step", STEPS)
def test_warm_starts(linear_step: str) -> None:
    problem, prior = toy(), TotalVariation(0.1)
    config = AdmmConfig(linear_step=linear_step, iterations=500, tolerance=1e-6)
    first = admm(problem.equations, prior, config)
    again = admm(problem.equations, prior, config, start=first.state)
    nearby = admm(problem.equations, TotalVariation(0.11), config, start=first.state)
    from_volume = admm(problem.equations, prior, config, start=first.volume)
    assert first.converged
    assert len(again.history) <= 3
    assert len(nearby.history) < len(first.history)
    assert torch.allclose(from_volume.volume, first.volume, atol=1e-3)


def test_single_precision_agrees() -> None:
    problem = toy()
    equations = LeastSquares(
        problem.equations.operator,
        problem.equations.right_hand_side.float(),
        problem.equations.sum_of_squares,
    )
    for linear_step in STEPS:
        config = AdmmConfig(linear_step=linear_step, tolerance=1e-5, iterations=500)
        volume = admm(equations, TotalVariation(0.1), config).volume
        assert volume.dtype == torch.float32
        wanted = admm(problem.equations, TotalVariation(0.1), config).volume
        assert torch.allclose(volume.double(), wanted, atol=2e-3)


def test_a_slightly_indefinite_kernel_is_solved_as_it_is() -> None:
    """Where only P^T C P is positive, the split of the padded volume still finds the minimum."""
    blur = random_blur(SHAPE)
    spectrum = blur.spectrum.clone()
    spectrum[spectrum < 0.05] = -0.05
    problem = observe(blur, blocks(SHAPE), 0.5)
    indefinite = Blur(SHAPE, spectrum)
    assert torch.linalg.eigvalsh(dense(indefinite)).min() > 0
    equations = LeastSquares(
        indefinite, problem.equations.right_hand_side, problem.equations.sum_of_squares
    )
    config = AdmmConfig(nonnegative=False, rho=0.02, **FINE)
    volumes = [
        admm(equations, TotalVariation(0.1), replace(config, linear_step=step)).volume
        for step in ("cg", "padded")
    ]
    assert torch.allclose(volumes[0], volumes[1], atol=1e-5)


def test_the_misfit_is_that_of_the_data() -> None:
    blur, problem = random_blur(SHAPE), toy(0.5)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(blur.padded_shape, generator=generator, dtype=torch.float64)
    b = blur.padded(blur.pad(problem.truth), 0.5) + 0.5 * noise
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    direct = 0.5 * (blur.padded(blur.pad(x), 0.5) - b).square().sum()
    assert problem.equations.misfit(x) == pytest.approx(float(direct), rel=1e-10)


@pytest.mark.parametrize("shape", [(4, 6, 5), (3, 4, 8)])
def test_the_nearest_circulant_matrix(shape: tuple[int, ...]) -> None:
    """Its eigenvalues are the diagonal of H^T H between Fourier modes."""
    blur = imaging_blur(shape)
    n = torch.Size(shape).numel()
    modes = torch.stack(
        [torch.fft.fftn(e.reshape(shape)).flatten() for e in torch.eye(n).double()], 1
    )
    wanted = torch.einsum("ki,ij,kj->k", modes, dense(blur).to(modes), modes.conj()).real / n
    spectrum = optimal_circulant(blur, shape)
    assert torch.allclose(spectrum, wanted.reshape(shape)[..., : shape[2] // 2 + 1], atol=1e-10)


def test_callbacks_are_called_and_stop() -> None:
    problem, calls = toy(), []

    def stop(step: int, stats: dict[str, float]) -> bool:
        calls.append((step, stats["objective"]))
        return step == 4

    result = admm(problem.equations, TotalVariation(0.1), callbacks=[stop])
    assert [step for step, _ in calls] == [0, 1, 2, 3, 4]
    assert [stats["objective"] for stats in result.history] == [value for _, value in calls]
    assert not result.converged


def test_auto_takes_the_convolution_where_there_is_one() -> None:
    problem = toy()
    config, neumann = AdmmConfig(iterations=5), TotalVariation(0.1, "neumann")
    assert admm(problem.equations, TotalVariation(0.1), config).state.rho[2] is not None
    assert admm(problem.equations, neumann, config).state.rho[2] is None


def test_wrong_arguments_are_named() -> None:
    problem = toy()
    with pytest.raises(ValueError, match=r"takes \(5, 8, 6\), but H\^T b is \(5, 8, 5\)"):
        LeastSquares(problem.equations.operator, problem.truth[..., 1:], 1.0)
    plain = LeastSquares(Identity(SHAPE), problem.truth, 1.0)
    with pytest.raises(ValueError, match="needs H\\^T H as a convolution, got Identity"):
        admm(plain, TotalVariation(1.0), AdmmConfig(linear_step="padded"))
    with pytest.raises(ValueError, match="diagonal in Fourier space, got TotalVariation"):
        admm(plain, TotalVariation(1.0, "neumann"), AdmmConfig(linear_step="majorised"))
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        TotalVariation(-1.0)
    with pytest.raises(DivergedError, match="not finite"):
        admm(LeastSquares(Identity(SHAPE), problem.truth * torch.nan, 1.0), TotalVariation(1.0))
    with pytest.raises(ValueError, match="got none for Identity; give"):
        admm(Identity(SHAPE), TotalVariation(1.0))
    with pytest.raises(ValueError, match="got some for LeastSquares; give"):
        admm(plain, TotalVariation(1.0), data=problem.truth)


@pytest.mark.slow
def test_any_normal_operator_will_do() -> None:
    """Where H^T H is no convolution: conjugate gradients, and algorithm 6."""
    generator = torch.Generator().manual_seed(5)
    n = torch.Size(SHAPE).numel()
    h = torch.randn(2 * n, n, generator=generator, dtype=torch.float64) / n**0.5
    b = h @ blocks(SHAPE).flatten()

    class Matrix(LinearOperator):
        domain_shape = range_shape = SHAPE

        def forward(self, x: Tensor) -> Tensor:
            return (h.mT @ (h @ x.flatten())).reshape(SHAPE)

        def adjoint(self, y: Tensor) -> Tensor:
            return self.forward(y)

    equations = LeastSquares(Matrix(), (h.mT @ b).reshape(SHAPE), float(b.square().sum()))
    config = AdmmConfig(iterations=1000, tolerance=1e-5)
    for linear_step in ("auto", "majorised"):
        result = admm(equations, TotalVariation(1e-4), replace(config, linear_step=linear_step))
        assert torch.allclose(result.volume, blocks(SHAPE), atol=2e-3)
        assert result.converged


def few_images(n: int, b: int) -> LeastSquares:
    """Normal equations of noise images at random orientations."""
    generator = torch.Generator().manual_seed(4)
    sums = NormalAccumulator(n, KaiserBessel())
    images = torch.randn(b, n, n, generator=generator)
    sums.insert(images, random_rotations(b, generator=generator), None, None, 1.0)
    return LeastSquares.of_images(sums.equations())


@pytest.mark.parametrize("equations", [few_images(9, 3), few_images(8, 30)])
def test_the_majorant_lies_above_and_close(equations: LeastSquares) -> None:
    matrix = dense(equations.operator)
    x = torch.zeros(equations.operator.domain_shape, dtype=torch.float64)
    traces = []
    for circulant in (True, False):
        step = MajorisedStep(equations, x, circulant=circulant)
        basis = torch.eye(x.numel()).double().reshape(-1, *x.shape)
        a = torch.stack([filter_volume(step._bound, e).flatten() for e in basis], 1)
        gap = torch.linalg.eigvalsh(a - matrix)
        assert gap.min() >= -1e-3 * gap.max()
        traces.append(float(a.trace()))
    assert traces[0] < 0.8 * traces[1]


def test_images_with_known_poses() -> None:
    """The convolution that images sum to, cut at its longest lag: indefinite on the padded grid."""
    n, b = 12, 60
    generator = torch.Generator().manual_seed(2)
    rotations, optics = random_rotations(b, generator=generator), Optics.uniform(b)
    truth = torch.zeros(n, n, n)
    truth[4:8, 4:9, 5:8] = 1.0
    clean = (CTF(optics, n, 3.0) @ WindowProjector(rotations, n, KaiserBessel()))(truth)
    sums = NormalAccumulator(n, KaiserBessel())
    noise = clean.std() * torch.randn(clean.shape, generator=generator)
    sums.insert(clean + noise, rotations, None, optics, 3.0)
    equations = LeastSquares.of_images(sums.equations())
    assert isinstance(equations.operator, Convolution)
    x = torch.randn(n, n, n, generator=generator)
    assert torch.equal(equations.operator.crop(equations.operator.pad(x)), x)
    config, prior = AdmmConfig(iterations=300, tolerance=1e-5), TotalVariation(30.0)
    steps = (*STEPS, "auto")
    results = [admm(equations, prior, replace(config, linear_step=step)) for step in steps]
    for result in results:
        assert (result.volume - results[0].volume).norm() < 0.03 * results[0].volume.norm()
        assert (result.volume - truth).norm() < 0.5 * truth.norm()
        assert equations.misfit(result.volume) < equations.misfit(0 * truth)


class Sparsity:
    """A user's prior: the summed magnitude of voxels beyond a width."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, z: Tensor) -> float:
        return self.strength * float(z.abs().sum())

    def prox(self, z: Tensor, step: float) -> Tensor:
        return z.sign() * (z.abs() - self.strength * step).clamp_min(0)


@pytest.mark.parametrize("linear_step", STEPS)
def test_a_prior_of_the_user_s_own_against_brute_force(linear_step: str) -> None:
    """Soft thresholds on 8^3 against proximal gradients with the dense matrix."""
    shape = (8, 8, 8)
    problem, prior = toy(shape=shape), Sparsity(0.4)
    matrix, b = dense(problem.equations.operator), problem.equations.right_hand_side.flatten()
    step = 1 / float(torch.linalg.matrix_norm(matrix, 2))
    x = 0 * b
    for _ in range(4000):
        x = prior.prox(x - step * (matrix @ x - b), step)
    assert isinstance(prior, Prior)
    config = AdmmConfig(nonnegative=False, linear_step=linear_step, **FINE)
    result = admm(problem.equations, prior, config)
    assert torch.allclose(result.volume.flatten(), x, atol=1e-6)
    assert 0.1 < float((x == 0).double().mean()) < 0.9
    objective = problem.equations.misfit(x.reshape(shape)) + prior(x)
    assert result.history[-1]["objective"] == pytest.approx(objective, rel=1e-7)


class Roughness(Sparsity):
    """A user's prior on differences along x, by an operator that knows no spectrum."""

    def operator(self, shape: tuple[int, ...]) -> LinearOperator:
        class Differences(LinearOperator):
            domain_shape = range_shape = shape

            def forward(self, x: Tensor) -> Tensor:
                return torch.roll(x, -1, -1) - x

            def adjoint(self, y: Tensor) -> Tensor:
                return torch.roll(y, 1, -1) - y

        return Differences()


def test_a_prior_with_an_operator_of_the_user_s_own() -> None:
    """A step of lengths 4 and 8: its levels move by 2 lambda over their lengths."""
    step = torch.tensor([0.0] * 4 + [3.0] * 8, dtype=torch.float64).reshape(1, 1, 12)
    config = AdmmConfig(**FINE)
    volume = admm(Identity((1, 1, 12)), Roughness(0.8), config, data=step).volume.flatten()
    assert torch.allclose(volume[:4], torch.tensor(0.8 * 2 / 4).double(), atol=1e-7)
    assert torch.allclose(volume[4:], torch.tensor(3 - 0.8 * 2 / 8).double(), atol=1e-7)
    with pytest.raises(ValueError, match="diagonal in Fourier space"):
        admm(Identity((1, 1, 12)), Roughness(0.8), AdmmConfig(linear_step="majorised"), data=step)


def test_feasible_sets_are_priors() -> None:
    problem, mask = toy(2.0), mask_of(SHAPE)
    free = AdmmConfig(nonnegative=False, **FINE)
    by_prior = admm(problem.equations, FeasibleSet(True, mask), free).volume
    by_config = admm(problem.equations, None, AdmmConfig(**FINE), mask=mask).volume
    assert torch.allclose(by_prior, by_config, atol=1e-6)


@pytest.mark.parametrize("linear_step", STEPS)
@pytest.mark.parametrize("steps", [1, 25])
def test_a_solver_goes_on_bit_for_bit(linear_step: str, steps: int) -> None:
    """Beyond 20 iterations conjugate gradients compute H^T H x afresh, and rho is adapted."""
    problem = toy()
    config = AdmmConfig(linear_step=linear_step, iterations=60, tolerance=0.0, rho=0.1)

    def solver() -> Admm:
        return Admm(problem.equations, TotalVariation(0.1), config, mask=mask_of(SHAPE))

    whole, first, second = solver(), solver(), solver()
    for _ in range(steps):
        first.step()
    second.load_state_dict(deepcopy(first.state_dict()))
    while not whole.done:
        whole.step()
    while not second.done:
        second.step()
    assert second.progress == whole.progress == 1.0
    assert second.result().history == whole.result().history
    assert torch.equal(second.result().volume, whole.result().volume)
    assert second.result().state.rho == whole.result().state.rho
