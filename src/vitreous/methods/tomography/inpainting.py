r"""The two-step baseline: inpaint every projection by total variation, then reconstruct from them.

.. math::

    \hat b_p = \arg\min_{u \ge 0} \tfrac12 \|S_p u - b_p\|^2 + \mu\,\mathrm{TV}(u), \qquad
    \hat c = \arg\min_{c \ge 0} \tfrac12 \|H c - \hat b\|^2 + \lambda\,\mathrm{TV}(c).

Source: Saghi et al., as reference [40] of section 3.6.1 of L. Donati's thesis (EPFL, 2020)
describes it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from vitreous.core.threads import single_torch_thread
from vitreous.methods.tomography.total_variation import FULL_SHARE, Scan, choose_strength
from vitreous.optim.admm import admm
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.choose_strength import StrengthChoice, Told, cross_validated
from vitreous.optim.least_squares import LeastSquares
from vitreous.physics.tomography.scan import ScanMask

_CONFIG = AdmmConfig("tv", linear_step="cg", iterations=100, tolerance=1e-3)
_SAMPLES = 5  # projections that the strength of inpainting is chosen on


def _equations(scan: Scan, tilt: int) -> LeastSquares:
    image, scanned = scan.images[tilt : tilt + 1], scan.scanned[tilt : tilt + 1]
    return LeastSquares(ScanMask(scanned), image, float(image.double().square().sum()))


def inpaint(scan: Scan, strength: float, notify: Callable[[int], None] = lambda done: None) -> Scan:
    """The projections completed and denoised; those that were fully scanned stay as they are.

    Args:
        scan: what was measured; tilts without a scanned pixel are left out.
        strength: mu.
        notify: told how many projections are done.
    """
    scan = scan.compact()
    config = replace(_CONFIG, strength=strength)
    images = scan.images.clone()
    with single_torch_thread():  # images are too small to share, and waiting threads cost more
        for tilt, share in enumerate(scan.shares.tolist()):
            if share <= FULL_SHARE:
                equations = _equations(scan, tilt)
                mean = float(equations.right_hand_side.sum() / scan.scanned[tilt].sum())
                start = torch.full_like(equations.right_hand_side, mean)
                images[tilt] = admm(equations, config, start=start).volume[0]
            notify(tilt + 1)
    return Scan(images, scan.tilts_degrees, torch.ones_like(scan.scanned))


def choose_inpainting_strength(scan: Scan, generator: torch.Generator) -> float:
    """The strength at which either half of a projection's pixels predicts the other half best.

    The median over five projections.

    Args:
        scan: what was measured.
        generator: splits the pixels.
    """
    sparse = scan[(scan.shares > 0) & (scan.shares <= FULL_SHARE)]
    if not len(sparse.images):
        return 0.0
    chosen = []
    places = torch.linspace(0, len(sparse.images) - 1, _SAMPLES).round().long().tolist()
    for tilt in sorted(set(places)):
        halves = sparse[torch.tensor([tilt])].halves(generator)
        first, second = (_equations(half, 0) for half in halves)
        choice = cross_validated(first, second, _CONFIG, decades=4.0)
        chosen.append(choice.strength)
    return statistics.median(chosen)


def choose_two_strengths(
    scan: Scan,
    depth: int,
    inpainting: float,
    generator: torch.Generator,
    notify: Told | None = None,
) -> StrengthChoice:
    """lambda by cross-validation on measured pixels, after each half was inpainted on its own.

    Args:
        scan: what was measured.
        depth: thickness of the volume in voxels.
        inpainting: mu.
        generator: splits the pixels.
        notify: told each lambda and its score.
    """
    judges = scan.compact().halves(generator)
    halves = inpaint(judges[0], inpainting), inpaint(judges[1], inpainting)
    return choose_strength(halves, depth, judges=judges, notify=notify)
