"""Why sparse scanning works: slices are sparse in wavelets, and random sampling is incoherent.

Figures 3.2 and 3.4 of L. Donati's thesis (EPFL, 2020), in two dimensions. First, Haar coefficients
of slices of the package's cell: most are near zero, and 5 to 10 % of them give the slice back.
Second, the transform point-spread function (TPSF): a 64 x 64 square from 1800 projections, of which
every tenth pixel is scanned, uniformly or at random; filtered back-projection, then Haar. Uniform
sampling leaves few strong artifacts (coherent aliasing), random sampling many weak ones.
Prints JSON; writes PNG and CSV to a folder.

    python benchmarks/tomography_sparsity.py FOLDER
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pywt
import torch
from torch import Tensor

from _circumstances import commit
from vitreous.data.cells import cell_phantom
from vitreous.methods.tomography.total_variation import SIMULATION_WINDOW
from vitreous.physics.tomography.projector import TiltProjector

LEVELS = 5
KEPT = (0.10, 0.05)
SIZE, ANGLES, SHARE = 64, 1800, 10
LIMITS = {"psnr_of_5_percent_db": 20.0, "ratio_of_artifacts": 1.5}


def haar(image: Tensor) -> Tensor:
    """Orthonormal Haar coefficients, laid out as the image."""
    pyramid = pywt.wavedec2(image.numpy(), "haar", "periodization", LEVELS)
    return torch.from_numpy(pywt.coeffs_to_array(pyramid)[0])


def k_sparse(image: Tensor, share: float) -> Tensor:
    """The image of its largest Haar coefficients."""
    pyramid = pywt.wavedec2(image.numpy(), "haar", "periodization", LEVELS)
    array, slices = pywt.coeffs_to_array(pyramid)
    threshold = np.quantile(np.abs(array), 1 - share)
    kept = np.where(np.abs(array) > threshold, array, 0)
    pyramid = pywt.array_to_coeffs(kept, slices, output_format="wavedec2")
    return torch.from_numpy(pywt.waverec2(pyramid, "haar", "periodization"))


def psnr_db(image: Tensor, truth: Tensor) -> float:
    peak = float(truth.max() - truth.min())
    return 20 * math.log10(peak) - 10 * math.log10(float((image - truth).square().mean()))


def sparsity(folder: Path) -> dict[str, Any]:
    """Figure 3.2 on the central slices of two cells."""
    rows, pictures = [], []
    for seed in (1, 2):
        cell = cell_phantom((128, 256, 256), 40.0, seed=seed)
        noise = torch.randn((256, 256), generator=torch.Generator().manual_seed(seed))
        image = cell[64] + 0.02 * noise  # as recorded slices are never exactly flat
        coefficients = haar(image)
        near = float((coefficients.abs() < 0.05 * coefficients.abs().max()).double().mean())
        reduced = {share: k_sparse(image, share) for share in KEPT}
        row: dict[str, Any] = {"seed": seed, "coefficients_below_5_percent_of_largest": near}
        row |= {f"psnr_db_of_{100 * s:g}_percent": psnr_db(v, image) for s, v in reduced.items()}
        rows.append(row)
        pictures.append((image, coefficients, reduced))
    figure, grid = _figure(len(pictures), 5, 15, 6.2)
    for line, (image, coefficients, reduced) in zip(grid, pictures, strict=True):
        line[0].imshow(image, cmap="gray", vmin=0, vmax=1)
        line[0].set_title("slice", fontsize=9)
        line[1].hist(image.flatten(), bins=100, log=True, color="0.4")
        line[1].set_title("grey values", fontsize=9)
        line[2].hist(coefficients.flatten(), bins=100, log=True, color="0.4")
        line[2].set_title("Haar coefficients", fontsize=9)
        for axis, (share, picture) in zip(line[3:], reduced.items(), strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set_title(f"from {100 * share:g} % of the coefficients", fontsize=9)
        for axis in (line[0], *line[3:]):
            axis.set_axis_off()
    figure.savefig(folder / "haar-sparsity.png", dpi=110, metadata={"Software": None})
    with (folder / "haar-sparsity.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)
    return {"slices": rows}


def filtered_back_projection(sinogram: Tensor, projectors: list[tuple[Tensor, bool]]) -> Tensor:
    """Of ``(angles, SIZE)`` over a half turn, in two parts that are no steeper than 45 degrees."""
    width = sinogram.shape[-1]
    ramp = torch.fft.rfftfreq(4 * width, dtype=torch.float64).abs()
    spectra = torch.fft.rfft(sinogram, n=4 * width) * ramp
    filtered = torch.fft.irfft(spectra, n=4 * width)[..., :width] * (math.pi / len(sinogram))
    out, first = torch.zeros(SIZE, SIZE, dtype=torch.float64), 0
    for tilts, transposed in projectors:
        h = TiltProjector(tilts, (SIZE, 1, SIZE), SIMULATION_WINDOW, width)
        part = h.adjoint(filtered[first : first + len(tilts), None])[:, 0]
        out += part.T if transposed else part
        first += len(tilts)
    return out


def half_turn() -> list[tuple[Tensor, bool]]:
    """ANGLES directions: tilts of the image, and tilts of its transpose."""
    step = 180.0 / ANGLES
    tilts = -45 + step * torch.arange(ANGLES // 2, dtype=torch.float64)
    return [(tilts, False), (tilts, True)]


def tpsf(folder: Path) -> dict[str, Any]:
    """Figure 3.4: a square, its Haar coefficients, and what sampling does to them."""
    image = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    image[16:32, 32:48] = 1.0  # one block of the wavelets' own grid
    parts, width = half_turn(), 2 * SIZE
    images = []
    for tilts, transposed in parts:
        h = TiltProjector(tilts, (SIZE, 1, SIZE), SIMULATION_WINDOW, width)
        images.append(h((image.T if transposed else image)[:, None].contiguous())[:, 0])
    sinogram = torch.cat(images)
    draw = torch.Generator().manual_seed(0)
    every = torch.zeros_like(sinogram)
    every[:, ::SHARE] = 1
    random = (torch.rand(sinogram.shape, generator=draw) < 1 / SHARE).double()
    schemes = {
        "full": torch.ones_like(sinogram),
        "uniform pixels": every,
        "random pixels": random,
    }
    rows: dict[str, dict[str, float]] = {}
    pictures: dict[str, tuple[Tensor, ...]] = {}
    wanted = haar(image)
    support = wanted.abs() > 1e-9
    for name, mask in schemes.items():
        back = filtered_back_projection(sinogram * mask / mask.mean(), parts)
        coefficients = haar(back)
        artifacts = torch.where(support, 0.0, coefficients).abs()
        largest = float(coefficients.abs()[support].max())
        rows[name] = {
            "largest_artifact_over_largest_coefficient": float(artifacts.max()) / largest,
            "rms_artifact_over_largest_coefficient": float(artifacts.square().mean().sqrt())
            / largest,
            "psnr_db": psnr_db(back, image),
        }
        pictures[name] = (sinogram * mask, back, coefficients)
    _draw_tpsf(folder, image, wanted, pictures)
    with (folder / "tpsf.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["scheme", *rows["full"]])
        writer.writerows([name, *row.values()] for name, row in rows.items())
    return rows


def _draw_tpsf(
    folder: Path, image: Tensor, wanted: Tensor, pictures: dict[str, tuple[Tensor, ...]]
) -> None:
    figure, grid = _figure(len(pictures), 3, 11, 10)
    for line, (name, (sinogram, back, coefficients)) in zip(grid, pictures.items(), strict=True):
        ordered = torch.cat([sinogram[: ANGLES // 2], sinogram[ANGLES // 2 :].flip(0)])
        line[0].imshow(ordered[::20], cmap="gray", aspect="auto")
        line[0].set_title(f"{name}: projections", fontsize=9)
        line[1].imshow(back, cmap="gray", vmin=-0.2, vmax=1)
        line[1].set_title("filtered back-projection", fontsize=9)
        line[2].plot(coefficients.flatten(), linewidth=0.5, color="0.2")
        line[2].plot(wanted.flatten(), ".", markersize=2, alpha=0.3, color="tab:red")
        line[2].set_title("Haar coefficients; red: of the square", fontsize=9)
        line[0].set_axis_off()
        line[1].set_axis_off()
    figure.savefig(folder / "tpsf.png", dpi=110, metadata={"Software": None})


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-results"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    haar_rows, tpsf_rows = sparsity(options.folder), tpsf(options.folder)
    name = "largest_artifact_over_largest_coefficient"
    ratio = tpsf_rows["uniform pixels"][name] / tpsf_rows["random pixels"][name]
    held = {
        "sparse": all(
            row["psnr_db_of_5_percent"] > LIMITS["psnr_of_5_percent_db"]
            for row in haar_rows["slices"]
        ),
        "incoherent": ratio > LIMITS["ratio_of_artifacts"],
    }
    result = {
        "benchmark": "tomography_sparsity",
        "commit": commit(),
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
        "haar": haar_rows,
        "tpsf": tpsf_rows,
        "ratio_of_artifacts": ratio,
        "limits": LIMITS,
        "held": held,
    }
    print(json.dumps(result, indent=1))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
