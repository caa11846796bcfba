"""Run by ASPIRE's own Python (0.14): STAR to map, by class averages and common lines.

python _aspire_job.py STAR OUT.mrc PIXEL_ANGSTROM SYMMETRY SEED CLASSES
"""

import sys

import numpy as np
from aspire.abinitio import CLSymmetryD2, CLSyncVoting
from aspire.denoising import LegacyClassAvgSource
from aspire.noise import WhiteNoiseEstimator
from aspire.reconstruction import MeanEstimator
from aspire.source import OrientedSource, RelionSource


def main() -> None:
    star, target, pixel, symmetry, seed, classes = sys.argv[1:]
    np.random.seed(int(seed))
    source = RelionSource(star, pixel_size=float(pixel), symmetry_group=symmetry)
    source = source.phase_flip().cache()
    source = source.normalize_background().cache()
    source = source.whiten(WhiteNoiseEstimator(source)).cache()
    neighbours = min(50, max(5, source.n // 20))
    averages = LegacyClassAvgSource(source, n_nbor=neighbours)
    averages = averages[: min(int(classes), source.n)].cache()
    method = CLSymmetryD2 if symmetry == "D2" else CLSyncVoting
    oriented = OrientedSource(averages, method(averages))
    MeanEstimator(oriented).estimate().save(target, overwrite=True)


if __name__ == "__main__":
    main()
