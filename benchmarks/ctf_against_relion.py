"""CTF and shift against RELION's own program: prints JSON, fails over 1e-4.

A point in the middle of a box has a flat spectrum, so the spectrum of the image that
`relion_project --ctf` makes of it, divided by that of the image without CTF, is RELION's CTF. The
rows have astigmatism, phase shifts and B factors, in two optics groups; a third run also moves the
particles. Compared up to Nyquist, where RELION's projection ends.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mrcfile
import numpy as np
import torch

from _circumstances import where_and_when
from _processes import peak_kb
from vitreous.core.params import Optics
from vitreous.physics.ctf import ctf_half
from vitreous.physics.shift import shift_phases

TOLERANCE = 1e-4
GROUPS = ((300.0, 2.7, 0.1), (200.0, 1.4, 0.07))  # kV, mm, amplitude contrast


def draw_rows(n_images: int, n: int, pixel: float, seed: int) -> np.ndarray:
    """Per image: defocus U, V (Å), angle, phase shift (degrees), B (Å^2), shift x, y (Å), group."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(5000, 30000, n_images)
    row = np.arange(n_images)
    columns = (
        u,
        u - rng.uniform(-2000, 2000, n_images),
        rng.uniform(-90, 180, n_images),
        np.where(row < 2, 0.0, rng.uniform(0, 120, n_images)),
        np.where(row % 3 == 0, 0.0, rng.uniform(0, 100, n_images) * pixel**2),
        rng.uniform(-0.2, 0.2, n_images) * n * pixel,
        rng.uniform(-0.2, 0.2, n_images) * n * pixel,
        row % len(GROUPS),
    )
    return np.round(np.stack(columns, axis=1), 4)


def star_text(rows: np.ndarray, n: int, pixel: float, *, shifted: bool) -> str:
    def loop(name: str, columns: str, lines: list[str]) -> str:
        header = "".join(f"_rln{c} #{i + 1}\n" for i, c in enumerate(columns.split()))
        return f"# version 30001\n\ndata_{name}\n\nloop_\n{header}" + "\n".join(lines) + "\n\n"

    optics = loop(
        "optics",
        "OpticsGroup OpticsGroupName Voltage SphericalAberration AmplitudeContrast "
        "ImagePixelSize ImageSize ImageDimensionality",
        [f"{i + 1} g{i + 1} {v} {c} {q} {pixel} {n} 2" for i, (v, c, q) in enumerate(GROUPS)],
    )
    particles = loop(
        "particles",
        "ImageName AngleRot AngleTilt AnglePsi OriginXAngst OriginYAngst "
        "DefocusU DefocusV DefocusAngle PhaseShift CtfBfactor OpticsGroup",
        [
            f"{i + 1:06d}@none.mrcs 0 0 0 {-x * shifted:.4f} {-y * shifted:.4f} "
            f"{u:.4f} {v:.4f} {a:.4f} {p:.4f} {b:.4f} {int(g) + 1}"
            for i, (u, v, a, p, b, x, y, g) in enumerate(rows)
        ],
    )
    return optics + particles


def relion_spectra(folder: Path, star: str, pixel: float, *options: str) -> np.ndarray:
    (folder / "rows.star").write_text(star)
    command = ["relion_project", "--i", "point.mrc", "--o", "out", "--ang", "rows.star"]
    subprocess.run(
        [*command, "--angpix", str(pixel), *options], cwd=folder, check=True, capture_output=True
    )
    return np.fft.rfft2(mrcfile.read(folder / "out.mrcs").astype(np.float64))


def compare(n: int, pixel: float, n_images: int, seed: int) -> dict[str, float]:
    rows = draw_rows(n_images, n, pixel, seed)
    point = np.zeros((n, n, n), np.float32)
    point[n // 2, n // 2, n // 2] = 1000.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with mrcfile.new(folder / "point.mrc") as file:
            file.set_data(point)
            file.voxel_size = pixel
        still, moved = (star_text(rows, n, pixel, shifted=s) for s in (False, True))
        plain = relion_spectra(folder, still, pixel)
        with_ctf = relion_spectra(folder, still, pixel, "--ctf")
        with_both = relion_spectra(folder, moved, pixel, "--ctf")
    field = torch.from_numpy(rows)
    group = torch.tensor(GROUPS, dtype=torch.float64)[field[:, 7].long()]
    optics = Optics(*torch.cat([field[:, :4], group, field[:, 4:5]], 1).unbind(1))
    start = time.perf_counter()
    ours = ctf_half(n, pixel, optics)
    seconds = time.perf_counter() - start
    single = ctf_half(n, pixel, optics.to(torch.float32))
    both = ours * shift_phases(n, field[:, 5:7], pixel)
    signal = np.abs(plain) > 0.1 * np.abs(plain).max()

    def worst(spectra: np.ndarray, factor: torch.Tensor) -> float:
        return float(np.abs(spectra[signal] / plain[signal] - factor.numpy()[signal]).max())

    return {
        "box": n,
        "pixel_size_angstrom": pixel,
        "images": n_images,
        "compared_share": round(float(signal.mean()), 4),
        "ctf_max_abs_difference": worst(with_ctf, ours),
        "ctf_float32_max_abs_difference": worst(with_ctf, single),
        "ctf_and_shift_max_abs_difference": worst(with_both, both),
        "seconds": round(seconds, 5),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boxes", type=int, nargs="+", default=[64, 65, 128])
    parser.add_argument("--pixel-size", type=float, default=1.0, help="Å")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if shutil.which("relion_project") is None:
        print("relion_project not found: install Debian's package relion", file=sys.stderr)
        return 2
    cases = [compare(n, options.pixel_size, options.images, options.seed) for n in options.boxes]
    worst = max(v for case in cases for k, v in case.items() if k.endswith("difference"))
    result = {
        "benchmark": "ctf_against_relion",
        **where_and_when(),
        "peak_memory_mb": peak_kb(os.getpid()) // 1024,
        "tolerance": TOLERANCE,
        "max_abs_difference": worst,
        "pass": worst <= TOLERANCE,
        "cases": cases,
    }
    print(json.dumps(result, indent=2))
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
