"""The projector against its laws, analytic blobs, RELION, and its own second implementation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import check_operator
from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import frequency_grid
from vitreous.core.params import Optics
from vitreous.core.rotation import axis_angle_to_matrix, euler_to_matrix, random_rotations
from vitreous.io.mrc import MrcStack, read_mrc
from vitreous.io.star import read_star
from vitreous.linop.operator import FourierFilter
from vitreous.physics import projector
from vitreous.physics.ctf import CTF
from vitreous.physics.kernels import slice_torch
from vitreous.physics.projector import (
    Projector,
    central_slices,
    oversampled_spectrum,
    padded_size,
    project,
    project_spectrum,
)
from vitreous.physics.shift import Shift, shift_phases

BLOBS = 6
SIGMA_PX = 1.8


def rotations(b: int, dtype: torch.dtype = torch.float64, seed: int = 5) -> Tensor:
    return random_rotations(b, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def blob_parameters(n: int) -> tuple[Tensor, Tensor]:
    """Centres (x, y, z) within 0.35 box of the middle, in px, and amplitudes of both signs."""
    g = torch.Generator().manual_seed(n)
    centres = torch.randn(BLOBS, 3, generator=g, dtype=torch.float64)
    radii = 0.35 * n * torch.rand(BLOBS, 1, generator=g, dtype=torch.float64) ** (1 / 3)
    weights = torch.linspace(-0.6, 1.0, BLOBS, dtype=torch.float64)
    return centres / centres.norm(dim=1, keepdim=True) * radii, weights


def blob_volume(n: int) -> Tensor:
    centres, weights = blob_parameters(n)
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    x, y, z = (
        torch.exp(-((axis - centres[:, i, None]) ** 2) / (2 * SIGMA_PX**2)) for i in range(3)
    )
    return torch.einsum("b,bz,by,bx->zyx", weights, z, y, x)


def blob_images(n: int, matrices: Tensor) -> Tensor:
    """Line integrals along each particle's z of the same blobs, moved by R."""
    centres, weights = blob_parameters(n)
    moved = torch.einsum("rij,bj->rbi", matrices.double(), centres)
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    x, y = (torch.exp(-((axis - moved[..., i, None]) ** 2) / (2 * SIGMA_PX**2)) for i in range(2))
    return SIGMA_PX * math.sqrt(2 * math.pi) * torch.einsum("b,rby,rbx->ryx", weights, y, x)


def relative_error(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def optics(b: int) -> Optics:
    plain = Optics.uniform(b, defocus_angstrom=9000.0, b_factor_angstrom2=40.0).to(torch.float64)
    spread = torch.linspace(0.8, 1.3, b, dtype=torch.float64)
    return Optics(
        **{
            **vars(plain),
            "defocus_u_angstrom": 9000 * spread,
            "defocus_v_angstrom": 8200 * spread,
            "defocus_angle_deg": 70 * spread,
        }
    )


@pytest.mark.parametrize("n", [2, 3, 8, 9, 16, 21])
def test_projector_obeys_the_laws(n: int) -> None:
    check_operator(Projector(rotations(3), n), rtol=1e-10)


@pytest.mark.parametrize("n", [12, 13])
def test_fused_forward_model_obeys_the_laws_and_equals_its_parts(n: int) -> None:
    plain = Projector(rotations(3), n)
    shift = Shift(3 * noise(3, 2), n, 2.0)
    ctf = CTF(optics(3), n, 2.0)
    model = ctf @ shift @ plain
    assert isinstance(model, Projector), "the filters did not fuse into the projector"
    check_operator(model, rtol=1e-10)
    volume = noise(n, n, n)
    steps = ctf(shift(plain(volume)))
    torch.testing.assert_close(model(volume), steps, rtol=1e-9, atol=1e-9)
    one_by_one = ctf @ (shift @ plain)
    assert isinstance(one_by_one, Projector)
    torch.testing.assert_close(one_by_one(volume), steps, rtol=1e-9, atol=1e-9)


def test_other_operators_do_not_fuse() -> None:
    """A filter of another kind stays outside; the same filter object keeps its own values."""
    plain = Projector(rotations(2), 8)
    lowpass = FourierFilter(torch.full((8, 5), 0.5, dtype=torch.float64), 8)
    volume = noise(8, 8, 8)
    torch.testing.assert_close((lowpass @ plain)(volume), 0.5 * plain(volume))
    assert plain.multiplier is None


@pytest.mark.parametrize("n", [32, 33, 48, 64, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_analytic_blobs(n: int, dtype: torch.dtype) -> None:
    matrices = rotations(12, dtype)
    images = project(blob_volume(n).to(dtype), matrices)
    assert images.dtype == dtype
    assert relative_error(images, blob_images(n, matrices)) < 3e-3


def test_identity_and_quarter_turns_are_sums_along_axes() -> None:
    """R = 1 integrates along z, and a turn about y by 90 degrees along the volume's x."""
    volume = blob_volume(32)
    quarter = torch.tensor([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]], dtype=torch.float64)
    images = project(volume, torch.stack([torch.eye(3, dtype=torch.float64), quarter]))
    assert relative_error(images[0], volume.sum(0)) < 2e-3
    along_x = volume.sum(2)  # (z, y); particle x is minus the volume's z, index 32 - z
    assert relative_error(images[1][:, 1:], along_x.T.flip(1)[:, :-1]) < 2e-3


@pytest.mark.parametrize("n", [24, 25])
def test_friedel_opposite_views_are_mirror_images(n: int) -> None:
    """Looking from behind, R' = diag(-1, 1, -1) R, mirrors x about the centre."""
    matrices = rotations(4)
    back = torch.diag(torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)) @ matrices
    front, behind = project(noise(n, n, n), matrices), project(noise(n, n, n), back)
    c = n // 2
    lead = 1 if n % 2 == 0 else 0  # an even box has no partner for its first column
    torch.testing.assert_close(behind[..., lead:].flip(-1), front[..., lead:], rtol=1e-9, atol=1e-9)
    assert behind[..., c].abs().max() > 0


@pytest.mark.parametrize("n", [10, 11])
def test_gradient_of_rotations_against_finite_differences(n: int) -> None:
    volume, upstream = noise(n, n, n), noise(4, n, n, seed=8)
    base, direction = rotations(4), noise(4, 3, seed=9)

    def loss(step: Tensor) -> Tensor:
        return (project(volume, axis_angle_to_matrix(step * direction) @ base) * upstream).sum()

    at = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(at), at)
    h = 1e-5
    with torch.no_grad():
        difference = (loss(torch.tensor(h)) - loss(torch.tensor(-h))) / (2 * h)
    assert abs(gradient.item() / difference.item() - 1) < 1e-5


def test_gradient_of_all_nine_entries() -> None:
    """Each entry of the matrix apart: the third row, the viewing direction, has no influence."""
    volume, upstream, matrix = noise(9, 9, 9), noise(1, 9, 9, seed=8), 0.9 * rotations(1)
    leaf = matrix.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((project(volume, leaf) * upstream).sum(), leaf)
    numeric = torch.zeros_like(matrix)
    for i in range(9):
        h = torch.zeros(9, dtype=torch.float64)
        h[i] = 1e-5
        step = h.reshape(1, 3, 3)
        change = project(volume, matrix + step) - project(volume, matrix - step)
        numeric.view(-1)[i] = (change * upstream).sum() / 2e-5
    assert (gradient - numeric).abs().max() < 1e-5 * numeric.abs().max()
    assert gradient[0, 2].abs().max() == 0


def all_outputs(
    volume: Tensor, matrices: Tensor, multiplier: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Images, gradients to volume and rotations, and the adjoint."""
    v, r = volume.clone().requires_grad_(True), matrices.clone().requires_grad_(True)
    images = project(v, r, multiplier)
    upstream = noise(*images.shape, dtype=torch.float64).to(images)
    to_volume, to_rotations = torch.autograd.grad((images * upstream).sum(), [v, r])
    adjoint = Projector(matrices, volume.shape[-1], multiplier).adjoint(upstream)
    return images.detach(), to_volume, to_rotations, adjoint


@pytest.mark.parametrize("n", [4, 16, 17, 32, 33])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
def test_torch_loops_equal_compiled_loops(
    n: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, matrices = noise(n, n, n, dtype=dtype), rotations(5, dtype)
    # Axis-aligned views put taps on the stored halo and on the Nyquist edge along z.
    matrices[0] = torch.eye(3)
    matrices[1] = torch.tensor([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])
    matrices[2] = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    compiled = all_outputs(volume, matrices)
    monkeypatch.setattr(projector, "_loops", lambda device: slice_torch)
    for ours, theirs in zip(compiled, all_outputs(volume, matrices), strict=True):
        assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("n", [32, 33, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-5)])
def test_gpu_equals_cpu(n: int, dtype: torch.dtype, tolerance: float) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    volume, matrices = noise(n, n, n, dtype=dtype), rotations(6, dtype)
    phases = shift_phases(n, 3 * noise(6, 2, dtype=dtype), 1.0)
    on_cpu = all_outputs(volume, matrices, phases)
    on_gpu = all_outputs(volume.cuda(), matrices.cuda(), phases.cuda())
    for cpu, gpu in zip(on_cpu, on_gpu, strict=True):
        assert gpu.is_cuda
        assert (gpu.cpu() - cpu).abs().max() < tolerance * cpu.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("n", [32, 65])
def test_gpu_analytic_blobs(n: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    matrices = rotations(12, torch.float32)
    images = project(blob_volume(n).float().cuda(), matrices.cuda())
    assert relative_error(images.cpu(), blob_images(n, matrices)) < 3e-3


@pytest.mark.parametrize("n", [24, 33])
def test_bitwise_independent_of_threads(n: int) -> None:
    volume, matrices = noise(n, n, n, dtype=torch.float32), rotations(7, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(all_outputs(volume, matrices))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("n", [16, 17])
def test_single_and_double_precision_agree(n: int) -> None:
    volume, matrices = noise(n, n, n), rotations(5)
    double = all_outputs(volume, matrices)
    single = all_outputs(volume.float(), matrices.float())
    for a, b in zip(single, double, strict=True):
        assert a.dtype == torch.float32
        assert relative_error(a, b) < 3e-5


def test_batch_dimensions() -> None:
    """To the last bits but two: an FFT's depend on where an image lies in memory."""
    volume, matrices = noise(8, 8, 8), rotations(6)
    close = {"rtol": 0, "atol": 1e-12}
    flat = project(volume, matrices)
    lead = project(volume, matrices.reshape(2, 3, 3, 3))
    assert torch.allclose(lead, flat.reshape(2, 3, 8, 8), **close)
    assert torch.allclose(project(volume, matrices[0]), flat[0], **close)
    phases = shift_phases(8, noise(6, 2), 1.0)
    assert torch.allclose(
        project(volume, matrices.reshape(2, 3, 3, 3), phases.reshape(2, 3, 8, 5)),
        project(volume, matrices, phases).reshape(2, 3, 8, 8),
        **close,
    )
    assert project(volume, matrices[:0]).shape == (0, 8, 8)


def test_one_spectrum_serves_many_calls() -> None:
    volume, matrices = noise(9, 9, 9), rotations(4)
    spectrum = oversampled_spectrum(volume)
    parts = [project_spectrum(spectrum, matrices[i : i + 1], 9) for i in range(4)]
    torch.testing.assert_close(torch.cat(parts), project(volume, matrices), rtol=1e-12, atol=1e-12)
    slices = [central_slices(spectrum, matrices[i : i + 1], 9) for i in range(4)]
    assert torch.equal(torch.cat(slices), central_slices(spectrum, matrices, 9))


@pytest.mark.parametrize("n", [8, 9])
def test_slices_stop_at_the_nyquist_circle(n: int) -> None:
    slices = central_slices(oversampled_spectrum(noise(n, n, n)), rotations(2), n)
    kx, ky = frequency_grid(n, dtype=torch.float64)
    inside = (kx**2 + ky**2) < 0.25 - 1e-9
    assert (slices[:, ~inside] == 0).all()
    assert (slices[:, inside] != 0).all()


def test_matrices_that_leave_the_sphere_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix that is no rotation must not read or write outside the grid; NaN stays NaN."""
    volume = noise(16, 16, 16)
    matrices = torch.stack([2.5 * rotations(1)[0], torch.full((3, 3), math.nan).double()])
    for loops in (projector._loops(volume.device), slice_torch):
        monkeypatch.setattr(projector, "_loops", lambda device, loops=loops: loops)
        slices = central_slices(oversampled_spectrum(volume), matrices, 16)
        assert slices[0].isfinite().all()
        assert slices[0, 0, 7] == 0
        assert slices[0, 0, 1] != 0
        assert slices[1, 0, 1].isnan()
    Projector(matrices[:1], 16).adjoint(noise(1, 16, 16))


def test_padded_size_is_even_and_smooth() -> None:
    assert [padded_size(n) for n in (2, 32, 33, 64, 65, 128, 192, 180)] == [
        4, 48, 50, 96, 100, 192, 288, 270,
    ]  # fmt: skip


EIGHT = torch.zeros(8, 8, 8)
ONE = torch.eye(3)[None]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: oversampled_spectrum(EIGHT[..., :7]), r"cubic.*\(8, 8, 7\)"),
        (lambda: oversampled_spectrum(EIGHT[None]), r"cubic"),
        (lambda: central_slices(oversampled_spectrum(EIGHT), ONE[0], 8), r"b, 3, 3.*\(3, 3\)"),
        (lambda: central_slices(oversampled_spectrum(EIGHT), ONE, 12), r"not that of a box of 12"),
        (lambda: Projector(ONE[0], 8), r"rotations must be"),
        (lambda: Projector(ONE, 8)(torch.zeros(9, 9, 9)), r"\(8, 8, 8\).*\(9, 9, 9\)"),
        (lambda: Projector(ONE, 8).adjoint(torch.zeros(2, 8, 8)), r"\(1, 8, 8\)"),
    ],
)
def test_errors_name_the_values(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def relion_case(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations, shifts +t in px, and RELION's images."""
    table = read_star(folder / f"{name}.star").blocks["particles"]
    angles = [table.numbers(f"rlnAngle{a}") for a in ("Rot", "Tilt", "Psi")]
    legacy = "rlnOriginX" in table
    origin = ("rlnOriginX", "rlnOriginY") if legacy else ("rlnOriginXAngst", "rlnOriginYAngst")
    euler = torch.stack([torch.as_tensor(a) for a in angles], -1)
    shift = -torch.stack([torch.as_tensor(table.numbers(o)) for o in origin], -1)
    stack = MrcStack(folder / f"{name}.mrcs")
    images = torch.as_tensor(stack.read(list(range(len(stack)))))
    return euler_to_matrix(euler), shift, images.double()


def lowest_correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean((1, 2), keepdim=True), b - b.mean((1, 2), keepdim=True)
    return ((a * b).sum((1, 2)) / (a.norm(dim=(1, 2)) * b.norm(dim=(1, 2)))).min().item()


@pytest.mark.parametrize("kind", ["", "_shifted", "_centered"])
@pytest.mark.parametrize("n", [64, 65])
def test_relion_projections(n: int, kind: str, shared_data: Path) -> None:
    """Every image of RELION's, its angles and shifts as the file states them, above 0.99.

    The even maps are RELION's own resampling of the odd one, that of the plain set about voxel 0
    instead of the middle, which moves it by half a voxel. RELION takes even boxes only: its images
    of the odd box sit one pixel further along x and y than the map's own centre.
    """
    folder = shared_data / "relion"
    array, _ = read_mrc(shared_data / "maps" / "ribosome70S_65.mrc")
    volume = torch.as_tensor(array).double()
    matrices, shift, images = relion_case(folder, f"rln_proj_{n}{kind}")
    if n == 64:
        volume = fourier_resize(volume, 64, 3)
        if kind == "":
            half = torch.full((3,), -0.5, dtype=torch.float64)
            shift = shift + (matrices @ half)[:, :2]
    else:
        shift = shift + 1
    ours = project(volume, matrices, shift_phases(n, shift, 1.0))
    assert lowest_correlation(ours, images) > 0.999
    if kind == "_shifted":
        assert shift.abs().min() >= 1, "this set is to test shifts"
        wrong = project(volume, matrices, shift_phases(n, -shift, 1.0))
        assert lowest_correlation(wrong, images) < 0.5
    transposed = project(volume, matrices.mT, shift_phases(n, shift, 1.0))
    assert lowest_correlation(transposed, images) < 0.9
