"""What the benchmarks of model-based reconstruction share: molecule, orientations, expansion."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.core.rotation import axis_angle_to_matrix, euler_to_matrix
from vitreous.data.simulation_inputs import load_volume
from vitreous.optim.admm_constraints import Constraint
from vitreous.optim.admm_linear_step import LinearStep
from vitreous.optim.conjugate_gradient import conjugate_gradient
from vitreous.optim.least_squares import LeastSquares
from vitreous.physics.kaiser_bessel.projector import every
from vitreous.physics.kaiser_bessel.window import KaiserBessel

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FIELD_ANGSTROM = 230.4  # the molecule is 180 Å long
IMAGED = KaiserBessel(2, 10.83, 2.0)  # the window that the images are made with


def stream(seed: int) -> torch.Generator:
    """Random numbers of one source."""
    return torch.Generator().manual_seed(seed)


def molecule(source: str, box: int) -> Tensor:
    """Coefficients ``(box, box, box)`` of a molecule in the window that images are made with.

    Args:
        source: an atomic model, or ``phantom:SEED``.
        box: voxels along an edge of :data:`FIELD_ANGSTROM`.
    """
    volume = load_volume(source, box_size=box, pixel_size_angstrom=FIELD_ANGSTROM / box)
    return IMAGED.analyse(volume)


def spread_directions(count: int) -> Tensor:
    """Rotations ``(count, 3, 3)`` without in-plane turn, directions on a Fibonacci spiral."""
    k = torch.arange(count, dtype=torch.float64)
    tilt = torch.rad2deg(torch.acos(1 - (2 * k + 1) / count))
    rot = torch.rad2deg(k * math.pi * (3 - math.sqrt(5))) % 360
    return euler_to_matrix(torch.stack([rot, tilt, 0 * k], dim=-1)).float()


def misestimated(rotations: Tensor, largest_deg: float, seed: int) -> Tensor:
    """Rotations with an error whose rotation vector has components uniform within a limit."""
    vector = 2 * torch.rand(len(rotations), 3, generator=stream(seed), dtype=torch.float64) - 1
    error = axis_angle_to_matrix(vector * math.radians(largest_deg))
    return (error @ rotations.double()).to(rotations)


def expanded(coefficients: Tensor, window: KaiserBessel, scale: int, n: int) -> Tensor:
    """As ``window.expand``, by FFT on a periodic box; frequencies beyond Nyquist are left out."""
    size = coefficients.shape[-1]
    box = scale * size + (scale * size - n) % 2  # even or odd as n, so that centres agree
    lattice = coefficients.new_zeros((box,) * 3)
    chosen = every(box, size, scale)
    lattice[chosen, chosen, chosen] = coefficients
    k = torch.fft.fftfreq(box, dtype=torch.float64).square()
    half = torch.fft.rfftfreq(box, dtype=torch.float64).square()
    radius = (k[:, None, None] + k[:, None] + half).sqrt()
    table = scale**3 * window.transform(scale * torch.linspace(0, 1, 1 << 16, dtype=torch.float64))
    transfer = table[(radius * (len(table) - 1)).round().long()].to(coefficients)
    volume = torch.fft.irfftn(torch.fft.rfftn(lattice) * transfer, s=(box,) * 3)
    first = box // 2 - n // 2
    kept = slice(first, first + n)
    return volume[kept, kept, kept].contiguous()


class PlainCg(LinearStep):
    """k conjugate gradients from the last x, as algorithm 2 has them: k + 1 times H^T H."""

    def __init__(self, equations: LeastSquares, x: Tensor, iterations: int) -> None:
        self._normal, self._iterations = equations.operator, iterations
        self.applied = self._normal(x)

    def solve(self, x: Tensor, rhs: Tensor, constraints: Sequence[Constraint]) -> Tensor:
        """Return the next x."""

        def stiff(v: Tensor) -> Tensor:
            return sum((one.rho * one.normal(v) for one in constraints), torch.zeros_like(v))

        x = conjugate_gradient(
            lambda v: self._normal(v) + stiff(v),
            rhs,
            x,
            applied=self.applied + stiff(x),
            iterations=self._iterations,
            tolerance=0.0,
        ).x
        self.applied = self._normal(x)
        return x


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of equal columns, numbers to six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
