"""A STAR table of 200,000 rows and 26 columns to numbers: prints JSON, fails over a second of CPU.

The columns are those of a RELION 3.1 refinement. Read means: every row checked for its length, and
optics, poses, half sets, image and micrograph names parsed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from _circumstances import where_and_when
from _processes import peak_kb
from vitreous.data.formats import read_particles_document
from vitreous.data.particle_table import ParticleTable

LIMIT_SECONDS = 1.0
OPTICS = """
data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnAmplitudeContrast #3
_rlnSphericalAberration #4
_rlnVoltage #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
1 opticsGroup1 0.100000 2.700000 300.000000 1.403000 256 2


data_particles

loop_
"""
NUMBERS = (
    *("CoordinateX", "CoordinateY", "CtfMaxResolution", "CtfFigureOfMerit"),
    *("DefocusU", "DefocusV", "DefocusAngle", "CtfBfactor", "CtfScalefactor", "PhaseShift"),
    *("AngleRot", "AngleTilt", "AnglePsi", "OriginXAngst", "OriginYAngst"),
    *("NormCorrection", "LogLikeliContribution", "MaxValueProbDistribution"),
)
WHOLE = ("ClassNumber", "RandomSubset", "NrOfSignificantSamples", "OpticsGroup", "GroupNumber")
NAMES = ("ImageOriginalName", "MicrographName", "ImageName")


def write_table(path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    columns = [np.char.mod("%12.6f", rng.uniform(0, 1000, rows)) for _ in NUMBERS]
    columns += [np.char.mod("%12d", np.arange(rows) % 2 + 1) for _ in WHOLE]
    columns[len(NUMBERS) + WHOLE.index("OpticsGroup")] = np.full(rows, "1")
    stack = [f"Micrographs/FoilHole_{i // 300:08d}_Data_20180810_DW.mrc" for i in range(rows)]
    image = [f"{i % 300 + 1:06d}@Extract/job133/{name}s" for i, name in enumerate(stack)]
    columns += [np.array(image), np.array(stack), np.array(image)]
    names = [*NUMBERS, *WHOLE, *NAMES]
    header = "".join(f"_rln{name} #{place + 1}\n" for place, name in enumerate(names))
    body = "\n".join(map(" ".join, zip(*columns, strict=True)))
    path.write_text(f"{OPTICS}{header}{body}\n")


def read_table(path: Path) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    table = ParticleTable(read_particles_document(path), path)
    table.parse_optics()
    table.parse_pose(1.403)
    table.half_sets()
    table.micrographs(table.text("rlnImageName"))
    return {
        "wall_seconds": round(time.perf_counter() - wall, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "particles.star"
        write_table(path, options.rows)
        runs = [read_table(path) for _ in range(options.repeat)]
    best = min(run["cpu_seconds"] for run in runs)
    result = {
        "benchmark": "read_particles",
        **where_and_when(),
        "peak_memory_mb": peak_kb(os.getpid()) // 1024,
        "rows": options.rows,
        "limit_cpu_seconds": LIMIT_SECONDS,
        "pass": best <= LIMIT_SECONDS,
        "runs": runs,
    }
    print(json.dumps(result, indent=2))
    return 0 if best <= LIMIT_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
