"""Point groups against RELION, symmetrising against analytic blobs, the asymmetric unit's laws."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import torch

from vitreous.core.errors import UsageError
from vitreous.core.resample import is_signed_permutation, permute_volume, rotate_volume
from vitreous.core.rotation import axis_angle_to_matrix, random_rotations
from vitreous.core.symmetry import SymmetryMap, point_group, symmetrise

ALL = ["C1", "C2", "C3", "C4", "C7", "D1", "D2", "D3", "D4", "D7", "T", "O"]
ALL += ["I", "I1", "I2", "I3", "I4"]
EXACT = ["C2", "C4", "D1", "D2", "D4", "O"]


def _blobs(n: int, centres: torch.Tensor, weights: torch.Tensor, sigma: float) -> torch.Tensor:
    """Sum of Gaussians at (x, y, z) relative to n // 2, float64."""
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    gx, gy, gz = (torch.exp(-((axis - c[:, None]) ** 2) / (2 * sigma**2)) for c in centres.T)
    return torch.einsum("bz,by,bx,b->zyx", gz, gy, gx, weights.double())


def _random_blobs(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    centres = centres / centres.norm(dim=-1, keepdim=True) * (n / 2 - 11)
    return centres, torch.rand(5, generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("name", ALL)
def test_group_axioms(name: str) -> None:
    matrices = point_group(name).matrices
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(len(matrices)).double())
    assert torch.equal(matrices[0], torch.eye(3).double())
    products = (matrices[:, None] @ matrices)[:, :, None]
    gap = (products - matrices).abs().amax((-2, -1))
    assert gap.amin(-1).max() < 1e-12
    hits = gap.argmin(-1)
    assert torch.equal(hits.sort(-1).values, torch.arange(len(matrices)).expand_as(hits))


@pytest.mark.parametrize("name", ALL)
def test_matrices_match_relion(name: str) -> None:
    if shutil.which("relion_refine") is None:
        pytest.skip("relion_refine is not installed")
    text = subprocess.run(
        ["relion_refine", "--sym", name, "--print_symmetry_ops"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    blocks = re.findall(r"R\(\d+\)=\s*\n((?:[^\n]*\n){3})", text)
    relion = torch.tensor([[float(x) for x in b.split()] for b in blocks], dtype=torch.float64)
    relion = relion.reshape(-1, 3, 3)
    ours = point_group(name).matrices
    assert len(relion) == len(ours)
    gap = (relion[:, None] - ours).abs().amax((-2, -1))
    assert gap.amin(1).max() < 1e-4
    assert len(set(gap.argmin(1).tolist())) == len(ours)


@pytest.mark.parametrize("name", ["", "C0", "D", "CS", "C1V", "I5", "X", "C100", "D2 D2"])
def test_unknown_groups_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown point group"):
        point_group(name)


def test_exact_groups_are_known() -> None:
    assert [n for n in ALL if point_group(n).is_exact] == ["C1", *EXACT]


@pytest.mark.parametrize("n", [6, 7])
def test_permute_volume_moves_coordinates(n: int, generator: torch.Generator) -> None:
    volume = torch.randn(2, n, n, n, generator=generator)
    c = n // 2
    for matrix in point_group("O").matrices:
        for sign in (1, -1):
            out = permute_volume(volume, sign * matrix)
            for r in ([1, 2, -1], [0, 0, 1], [-2, 1, 2]):
                x, y, z = (sign * matrix @ torch.tensor(r).double()).long().tolist()
                expected = volume[:, c + z, c + y, c + x]
                assert torch.equal(out[:, c + r[2], c + r[1], c + r[0]], expected)
    with pytest.raises(ValueError, match="signed permutation"):
        permute_volume(volume, axis_angle_to_matrix(torch.tensor([0.3, 0, 0])))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("n", [6, 7])
def test_symmetrise_is_exact_on_the_grid(name: str, n: int, generator: torch.Generator) -> None:
    group = point_group(name)
    volume = torch.randn(n, n, n, generator=generator, dtype=torch.float64)
    once = symmetrise(volume, group)
    for matrix in group.matrices:
        assert torch.allclose(permute_volume(once, matrix), once, atol=1e-14)
    assert torch.allclose(symmetrise(once, group), once, atol=1e-14)
    assert torch.allclose(once.mean(), volume.mean())


@pytest.mark.parametrize(
    "name", ["C3", "D5", "D2", "T", "O", "I1", pytest.param("I3", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("n", [32, pytest.param(33, marks=pytest.mark.slow)])
def test_symmetrise_matches_analytic_blobs(name: str, n: int, generator: torch.Generator) -> None:
    group = point_group(name)
    centres, weights = _random_blobs(n, generator)
    everywhere = (centres[None] @ group.matrices.mT).reshape(-1, 3)
    truth = _blobs(n, everywhere, weights.repeat(group.order) / group.order, 1.5)
    got = symmetrise(_blobs(n, centres, weights, 1.5), group)
    assert (got - truth).abs().max() < 2e-4 * truth.max()


@pytest.mark.parametrize("n", [32, 33])
def test_rotate_volume_moves_blobs(n: int, generator: torch.Generator) -> None:
    centres, weights = _random_blobs(n, generator)
    volume = _blobs(n, centres, weights, 1.5)
    for rotation in random_rotations(3, generator=generator, dtype=torch.float64):
        shift = torch.tensor([1.3, -0.4, 0.7], dtype=torch.float64)
        for sign in (1, -1):
            truth = _blobs(n, sign * centres @ rotation.mT + shift, weights, 1.5)
            got = rotate_volume(volume, sign * rotation, shift)
            assert (got - truth).abs().max() < 3e-4 * truth.max()


@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize("name", ["C1", *EXACT])
def test_exact_unit_is_a_projection(name: str, n: int, generator: torch.Generator) -> None:
    group = point_group(name)
    unit = SymmetryMap(n, group, dtype=torch.float64)
    volume = torch.randn(2, n, n, n, generator=generator, dtype=torch.float64)
    assert torch.allclose(unit.expand(unit.extract(volume)), symmetrise(volume, group))
    free = torch.randn(2, unit.free_size, generator=generator, dtype=torch.float64)
    full = unit.expand(free)
    assert torch.allclose(unit.extract(full), free)
    assert torch.equal(full[..., unit.mask], free)
    for matrix in group.matrices:
        assert torch.equal(permute_volume(full, matrix), full)
    assert unit.free_size >= n**3 / group.order


@pytest.mark.parametrize("name", ["C1", "D2", "O", "C3", "I"])
def test_unit_gradient_is_the_adjoint(name: str, generator: torch.Generator) -> None:
    unit = SymmetryMap(9, point_group(name), dtype=torch.float64)
    free = torch.randn(2, unit.free_size, generator=generator, dtype=torch.float64)
    free.requires_grad_()
    probe = torch.randn(2, 9, 9, 9, generator=generator, dtype=torch.float64)
    direction = torch.randn(free.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((unit.expand(free) * probe).sum(), free)
    assert torch.allclose((gradient * direction).sum(), (unit.expand(direction) * probe).sum())
    (again,) = torch.autograd.grad((unit.expand(free) * probe).sum(), free)
    assert torch.equal(gradient, again)


@pytest.mark.parametrize("name", ["C3", "D5", "T", "I", "C12"])
def test_interpolated_unit_keeps_symmetric_blobs(name: str, generator: torch.Generator) -> None:
    n, group = 24, point_group(name)
    centres = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    centres = 5 * centres / centres.norm(dim=-1, keepdim=True)
    everywhere = (centres[None] @ group.matrices.mT).reshape(-1, 3)
    truth = _blobs(n, everywhere, torch.ones(len(everywhere)), 2.0)
    unit = SymmetryMap(n, group, dtype=torch.float64)
    got = unit.expand(unit.extract(truth))
    ball = (torch.arange(n).sub(n // 2).square()).double()
    ball = ball[:, None, None] + ball[:, None] + ball <= (n / 2 - 1) ** 2
    assert (got - truth)[ball].abs().max() < 0.01 * truth.max()


@pytest.mark.parametrize("name", ["C3", "D6", "T", "I", "C12", "I4"])
def test_interpolated_unit_is_symmetric_whatever_the_free_values(
    name: str, generator: torch.Generator
) -> None:
    n, group = 17, point_group(name)
    unit = SymmetryMap(n, group, dtype=torch.float64)
    free = torch.randn(unit.free_size, generator=generator, dtype=torch.float64)
    full = unit.expand(free)
    assert torch.isfinite(full).all()
    for matrix in group.matrices:
        if is_signed_permutation(matrix):
            assert torch.allclose(permute_volume(full, matrix), full, atol=1e-9)
    # Only the unit and the rim that interpolation needs is free, and the wedge is kept as it is.
    assert unit.free_size < n**3 / group.order + 6 * n**2
    kept = full[unit.mask] == free
    assert kept.sum() >= 0.8 * n**3 / group.order


def test_unit_refuses_wrong_sizes() -> None:
    unit = SymmetryMap(6, point_group("D2"))
    with pytest.raises(ValueError, match="free must end in"):
        unit.expand(torch.zeros(5))
    with pytest.raises(ValueError, match="volume must end in"):
        unit.extract(torch.zeros(7, 7, 7))


def test_symmetrise_is_differentiable_and_keeps_its_argument(generator: torch.Generator) -> None:
    volume = torch.randn(8, 8, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    before = volume.detach().clone()
    for name in ("D2", "C3"):
        group = point_group(name)
        probe = torch.randn(8, 8, 8, generator=generator, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((symmetrise(volume, group) * probe).sum(), volume)
        direction = torch.randn(8, 8, 8, generator=generator, dtype=torch.float64)
        product = (symmetrise(direction, group) * probe).sum()
        assert torch.allclose((gradient * direction).sum(), product)
    assert torch.equal(volume.detach(), before)


def test_signed_permutation_test() -> None:
    assert is_signed_permutation(torch.eye(3).flip(0))
    assert not is_signed_permutation(torch.zeros(3, 3))
    assert not is_signed_permutation(torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 0, 1]]))
