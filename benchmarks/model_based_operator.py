"""H^T H as one convolution against H^T H image by image; the cost of scales and particles. JSON.

The experiment of table 4.1 of L. Donati's thesis: 500 projections of 128^3 coefficients, s = 1, CTF
included (the thesis: 257.41 s for H^T H, 0.81 s for the convolution, 318 times less; 118.07 s for
its kernel). Two explicit operators are timed: the package's own, which reads Fourier slices, and
one in the manner of the thesis, which adds the look-up table of the projected window around every
projected coefficient and applies the CTF by FFT; the latter on a few projections, scaled up. The
ratio that must hold is that to the latter.

Also: seconds per application at s = 1 to 4, one-off sums against the number of particles, and the
kernel spread trilinearly in place of the projector's window.

Fails (exit 1) where a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from _circumstances import commit
from vitreous.core.params import Optics
from vitreous.core.rotation import random_rotations
from vitreous.core.threads import in_threads, single_torch_thread
from vitreous.linop.operator import LinearOperator
from vitreous.physics.ctf import CTF, ctf_half
from vitreous.physics.insertion import Accumulator, weighted_slices
from vitreous.physics.kaiser_bessel.normal_equations import (
    ConvolutionOperator,
    NormalAccumulator,
    NormalEquations,
)
from vitreous.physics.kaiser_bessel.projector import WindowProjector, window_transfer
from vitreous.physics.kaiser_bessel.window import KaiserBessel, lattice_size
from vitreous.physics.kernels.insertion_points import half_disc
from vitreous.physics.shift import Shift

PIXEL = 1.5
WINDOW = KaiserBessel()
BATCH = 250
LIMITS = {
    "seconds_of_the_convolution": 0.25,
    "seconds_of_the_kernel": 10.0,
    "error_of_the_convolution": 1e-3,
    "least_ratio_to_real_space": 500.0,
    "least_ratio_of_scales_1_and_4": 50.0,
    "growth_over_linear": 1.2,
    "growth_of_iterations": 1.5,
}


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(n: int, b: int) -> tuple[Tensor, Tensor, Tensor, Optics]:
    images = torch.randn(b, n, n, generator=stream(1))
    rotations = random_rotations(b, generator=stream(2))
    shift = 4 * torch.randn(b, 2, generator=stream(3))
    return images, rotations, shift, Optics.uniform(b)


def summed(n: int, scale: int, particles: int, b: int) -> tuple[NormalEquations, float]:
    """Normal equations of ``particles`` images, ``b`` different ones over and over; seconds."""
    images, rotations, shift, optics = case(n, b)
    start = time.perf_counter()
    sums = NormalAccumulator(n, WINDOW, scale)
    with single_torch_thread():
        for first in range(0, particles, BATCH):
            rows = torch.arange(first, min(first + BATCH, particles)) % b
            sums.insert(images[rows], rotations[rows], shift[rows], optics[rows], PIXEL)
    equations = sums.equations()
    return equations, time.perf_counter() - start


def imaging(n: int, rotations: Tensor, shift: Tensor, optics: Optics) -> LinearOperator:
    inner = WindowProjector(rotations, n, WINDOW)
    return CTF(optics, n, PIXEL) @ Shift(shift, n, PIXEL) @ inner


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@njit(nogil=True, fastmath=True)
def _footprints(
    coefficients: Any, images: Any, rotations: Any, table: Any, a: Any, spread: bool
) -> None:
    """Add coefficients to images, or images to coefficients, through the table over r^2 / a^2."""
    size, n = coefficients.shape[0], images.shape[1]
    entries = len(table) - 1
    for p in range(images.shape[0]):
        r = rotations[p]
        for i in range(size):
            for j in range(size):
                for m in range(size):
                    x, y, z = m - size // 2, j - size // 2, i - size // 2
                    px = r[0, 0] * x + r[0, 1] * y + r[0, 2] * z + n // 2
                    py = r[1, 0] * x + r[1, 1] * y + r[1, 2] * z + n // 2
                    total = np.float32(0)
                    for v in range(max(0, math.ceil(py - a)), min(n, math.floor(py + a) + 1)):
                        for u in range(max(0, math.ceil(px - a)), min(n, math.floor(px + a) + 1)):
                            t = ((u - px) ** 2 + (v - py) ** 2) / (a * a)
                            if t < 1:
                                w = table[int(t * entries)]
                                if spread:
                                    images[p, v, u] += w * coefficients[i, j, m]
                                else:
                                    total += w * images[p, v, u]
                    if not spread:
                        coefficients[i, j, m] += total


def real_space(n: int, projections: int) -> Callable[[], None]:
    """H^T H of as many projections, window by window, on all threads, ready to be run."""
    _, rotations, _, optics = case(n, projections)
    transfer = ctf_half(n, PIXEL, optics)
    radius = WINDOW.support * torch.linspace(0, 1, 4097).sqrt()
    table = WINDOW.xray(radius).numpy()
    turns, a = rotations.numpy(), np.float32(WINDOW.support)
    threads = torch.get_num_threads()
    edges = [projections * t // threads for t in range(threads + 1)]
    coefficients = torch.randn(n, n, n, generator=stream(5)).numpy()
    back = [np.zeros((n, n, n), np.float32) for _ in range(threads)]

    def filtered(images: Any) -> Any:
        spectra = torch.fft.rfft2(torch.from_numpy(images)) * transfer
        return torch.fft.irfft2(spectra, s=(n, n)).numpy()

    def run() -> None:
        images = np.zeros((projections, n, n), np.float32)

        def project(first: int, last: int) -> None:
            part = turns[first:last]
            _footprints(coefficients, images[first:last], part, table, a, True)

        def gather(first: int, last: int) -> None:
            part, mine = turns[first:last], back[edges.index(first)]
            _footprints(mine, ready[first:last], part, table, a, False)

        in_threads(project, edges)
        ready = filtered(filtered(images))
        in_threads(gather, edges)

    return run


def turns(works: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of several works that take turns, so that other load slows them alike."""
    for work in works:
        work()
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for seconds, work in zip(taken, works, strict=True):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
    return taken


def median_ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def table_4_1(n: int, projections: int, few: int, repeats: int) -> dict[str, Any]:
    images, rotations, shift, optics = case(n, projections)
    explicit = imaging(n, rotations, shift, optics)
    coefficients = torch.randn((n, n, n), generator=stream(5))
    summed(n, 1, 2, 2)  # compiles
    equations, kernel_seconds = summed(n, 1, projections, projections)
    works: list[Callable[[], object]] = [
        lambda: explicit.forward(coefficients),
        lambda: explicit.adjoint(images),
        real_space(n, few),
        lambda: equations.operator(coefficients),
    ]
    forward, adjoint, summing, convolution = turns(works, repeats)
    both = [a + b for a, b in zip(forward, adjoint, strict=True)]
    all_summing = [seconds * projections / few for seconds in summing]
    normal = explicit.normal(coefficients)
    return {
        "box": n,
        "projections": projections,
        "seconds": {
            "H c": statistics.median(forward),
            "H^T b": statistics.median(adjoint),
            "H^T H c, explicit": statistics.median(both),
            f"H^T H c, real space, scaled up from {few}": statistics.median(all_summing),
            "H^T H c, convolution": statistics.median(convolution),
            "kernel and H^T b, once": kernel_seconds,
        },
        "ratio_to_our_explicit": median_ratio(both, convolution),
        "ratio_to_real_space": median_ratio(all_summing, convolution),
        "error_of_the_convolution": relative(equations.operator(coefficients), normal),
        "error_of_the_right_hand_side": relative(
            equations.right_hand_side, explicit.adjoint(images)
        ),
    }


def scales(n: int, repeats: int) -> list[dict[str, float]]:
    works: list[Callable[[], object]] = []
    for scale in (1, 2, 3, 4):
        size = lattice_size(n, scale)
        operator = ConvolutionOperator(torch.ones((2 * size - 1,) * 3))
        coefficients = torch.randn((size,) * 3, generator=stream(5))
        works.append(partial(operator, coefficients))
    taken = turns(works, 3 * repeats)
    return [
        {
            "scale": scale,
            "coefficients": lattice_size(n, scale) ** 3,
            "seconds": statistics.median(seconds),
            "cheaper_than_scale_1": median_ratio(taken[0], seconds),
        }
        for scale, seconds in enumerate(taken, start=1)
    ]


def particle_counts(n: int, counts: list[int], repeats: int) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    works: list[Callable[[], object]] = []
    coefficients = torch.randn((n, n, n), generator=stream(5))
    for count in counts:
        equations, seconds = summed(n, 1, count, min(count, 1000))
        works.append(partial(equations.operator, coefficients))
        rows.append({"particles": count, "one_off_seconds": seconds})
        print(f"{count} particles: {seconds:.1f} s", file=sys.stderr)
    for row, taken in zip(rows, turns(works, 3 * repeats), strict=True):
        row["iteration"] = statistics.median(taken)
    return rows


def trilinear_kernel(n: int, b: int, padding: int) -> ConvolutionOperator:
    """The kernel at s = 1 spread linearly, as by direct reconstruction, its window divided out.

    A ``padding`` of 1 is the twofold grid of direct reconstruction, just as wide as all lags.
    """
    images, rotations, shift, optics = case(n, b)
    wide = padding * n
    points, all_points = half_disc(n), half_disc(wide)
    place = {k: i for i, k in enumerate(zip(all_points.kx, all_points.ky, strict=True))}
    target = [place[padding * x, padding * y] for x, y in zip(points.kx, points.ky, strict=True)]
    transfer = window_transfer(n, WINDOW, 1)[points.ky, points.kx]
    squares = weighted_slices(images, shift, optics, PIXEL)[..., 2] * transfer**2 / n**2
    values = torch.zeros(b, len(place), 3)
    values[:, target, 2] = squares
    sums = Accumulator(wide, sets=1)
    sums.insert(values, rotations)
    spectrum = torch.zeros(2 * wide, 2 * wide, wide + 1)
    spectrum[1:, 1:, :wide] = sums.gridding(0).weight.permute(2, 1, 0)
    spectrum = spectrum.roll((wide, wide), (0, 1))
    lags = torch.fft.fftshift(torch.fft.irfftn(spectrum, s=(2 * wide,) * 3, norm="forward"))
    apodisation = torch.sinc((torch.arange(2 * wide) - wide) / (2 * wide)) ** 2
    lags = lags / (apodisation[:, None, None] * apodisation[:, None] * apodisation)
    kept = slice(wide - n + 1, wide + n)
    return ConvolutionOperator(lags[kept, kept, kept])


def spreading(n: int, b: int) -> dict[str, float]:
    """Relative errors of the convolution by how its kernel was spread."""
    _, rotations, shift, optics = case(n, b)
    coefficients = torch.randn((n, n, n), generator=stream(5))
    normal = imaging(n, rotations, shift, optics).normal(coefficients)
    return {
        "box": n,
        "images": b,
        "trilinear, twofold grid": relative(trilinear_kernel(n, b, 1)(coefficients), normal),
        "trilinear, fourfold grid": relative(trilinear_kernel(n, b, 2)(coefficients), normal),
        "Kaiser-Bessel": relative(summed(n, 1, b, b)[0].operator(coefficients), normal),
    }


def verdicts(
    table: dict[str, Any], rows: list[dict[str, float]], counts: list[dict[str, float]]
) -> dict[str, bool]:
    seconds = table["seconds"]
    ratio = rows[-1]["cheaper_than_scale_1"]
    fewest, most = counts[0], counts[-1]
    growth = most["one_off_seconds"] / fewest["one_off_seconds"]
    return {
        "convolution": seconds["H^T H c, convolution"] < LIMITS["seconds_of_the_convolution"],
        "kernel": seconds["kernel and H^T b, once"] < LIMITS["seconds_of_the_kernel"],
        "error": table["error_of_the_convolution"] <= LIMITS["error_of_the_convolution"],
        "ratio": table["ratio_to_real_space"] >= LIMITS["least_ratio_to_real_space"],
        "scales": ratio >= LIMITS["least_ratio_of_scales_1_and_4"],
        "linear": growth < LIMITS["growth_over_linear"] * most["particles"] / fewest["particles"],
        "constant": most["iteration"] < LIMITS["growth_of_iterations"] * fewest["iteration"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--projections", type=int, default=500)
    parser.add_argument("--few", type=int, default=4, help="projections in real space")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--particles", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--particles-box", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = table_4_1(options.box, options.projections, options.few, options.repeats)
    rows = scales(options.box, options.repeats)
    counts = particle_counts(options.particles_box, options.particles, options.repeats)
    held = verdicts(table, rows, counts)
    result = {
        "benchmark": "model_based_operator",
        "commit": commit(),
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
        "threads": options.threads,
        "torch": torch.__version__,
        "table_4_1": table,
        "scales": rows,
        "particles": counts,
        "spreading": spreading(48, 100),
        "limits": LIMITS,
        "held": held,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result, indent=1))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
