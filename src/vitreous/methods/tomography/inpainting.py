r"""The two-step baseline: inpaint every projection by total variation, then reconstruct from them.

.. math::

    \hat b_p = \arg\min_{u \ge 0} \tfrac12 \|S_p u - b_p\|^2 + \mu\,\mathrm{TV}(u), \qquad
    \hat c = \arg\min_{c \ge 0} \tfrac12 \|H c - \hat b\|^2 + \lambda\,\mathrm{TV}(c).

Source: Saghi et al., as reference [40] of section 3.6.1 of L. Donati's thesis (EPFL, 2020)
describes it.
"""

import statistics
from collections.abc import Callable, Iterable

import torch

from vitreous.core.threads import single_torch_thread
from vitreous.methods.tomography.total_variation import FULL_SHARE, Scan, strength_search
from vitreous.optim.admm import admm
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.choose_strength import StrengthRange, StrengthSearch
from vitreous.optim.least_squares import LeastSquares
from vitreous.optim.loop import Callback, run
from vitreous.optim.priors import TotalVariation
from vitreous.physics.tomography.scan import ScanMask

_CONFIG = AdmmConfig(linear_step="cg", iterations=100, tolerance=1e-3)
_SAMPLES = 5  # projections that the strength of inpainting is chosen on


def _equations(scan: Scan, tilt: int) -> LeastSquares:
    image, scanned = scan.images[tilt : tilt + 1], scan.scanned[tilt : tilt + 1]
    return LeastSquares(ScanMask(scanned), image, float(image.double().square().sum()))


def inpaint(scan: Scan, strength: float, notify: Callable[[int], None] = lambda done: None) -> Scan:
    """Complete and denoise the projections with strength mu; fully scanned ones stay as they are.

    Tilts without a scanned pixel are left out. ``notify`` is called with the number of projections
    done.
    """
    scan = scan.compact()
    prior = TotalVariation(strength) if strength else None
    images = scan.images.clone()
    with single_torch_thread():  # images are too small to share, and waiting threads cost more
        for tilt, share in enumerate(scan.shares.tolist()):
            if share <= FULL_SHARE:
                equations = _equations(scan, tilt)
                mean = float(equations.right_hand_side.sum() / scan.scanned[tilt].sum())
                start = torch.full_like(equations.right_hand_side, mean)
                images[tilt] = admm(equations, prior, _CONFIG, start=start).volume[0]
            notify(tilt + 1)
    return Scan(images, scan.tilts_degrees, torch.ones_like(scan.scanned))


def choose_inpainting_strength(scan: Scan, generator: torch.Generator) -> float:
    """Choose the strength at which either half of a projection's pixels predicts the other best.

    It is the median over five projections; ``generator`` splits the pixels.
    """
    sparse = scan[(scan.shares > 0) & (scan.shares <= FULL_SHARE)]
    if not len(sparse.images):
        return 0.0
    strengths = []
    tilts = torch.linspace(0, len(sparse.images) - 1, _SAMPLES).round().long().tolist()
    for tilt in sorted(set(tilts)):
        halves = sparse[torch.tensor([tilt])].halves(generator)
        first, second = (_equations(half, 0) for half in halves)
        among = StrengthRange(decades=4.0)
        search = StrengthSearch((first, second), TotalVariation(0.0), _CONFIG, among=among)
        strengths.append(run(search).strength)
    return statistics.median(strengths)


def two_step_search(
    scan: Scan,
    depth: int,
    inpainting: float,
    generator: torch.Generator,
    callbacks: Iterable[Callback] = (),
) -> StrengthSearch:
    """Return the search for lambda on measured pixels, with each half inpainted on its own.

    ``inpainting`` is mu, ``generator`` splits the pixels, and every ADMM iteration calls the
    callbacks.
    """
    judges = scan.compact().halves(generator)
    halves = inpaint(judges[0], inpainting), inpaint(judges[1], inpainting)
    return strength_search(halves, depth, judges=judges, callbacks=callbacks)
