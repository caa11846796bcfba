"""Recognise classes that show one structure in two frames, by their maps and by their images.

Particles that have lost their poses together, all by the same rotation, form a class of their own;
its map is that of another class, rotated and shifted. A search under both maps leaves them there.
Under the better map alone it finds one frame for all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.rotation import geodesic_distance_deg
from vitreous.core.symmetry import point_group
from vitreous.maps.align import align_maps
from vitreous.maps.fsc import fsc
from vitreous.maps.half_map_pair import Halves
from vitreous.methods.hetero.class_maps import ClassMap, ReportProgress
from vitreous.methods.reconstruct.gridding import particle_sphere

_SAME_STRUCTURE = 0.9  # agreement, relative to what the half maps let expect
_OTHER_FRAME_DEG = 10.0
_OTHER_FRAME_SHIFT = 0.04  # of the box
_EQUAL_COST = 0.02  # share of the likelihood: costs that differ by less count as equal
_SAME_ROTATION_DEG = 20.0
_SIGNAL = 0.143  # FSC between half maps, below which a shell is left out


@dataclass(frozen=True)
class Superposition:
    """Alignment of two maps, and how well they agree after it."""

    agreement: float  # :func:`agreement` of the two after alignment
    # rotation and shift that aligned them
    angle_deg: float
    shift_angstrom: float
    other_frame: bool  # whether rotation or shift are large enough for two frames

    @property
    def duplicate(self) -> bool:
        """Whether the maps show one structure in two frames."""
        return self.other_frame and self.agreement >= _SAME_STRUCTURE


def distinct_maps(
    maps: Sequence[ClassMap | None],
    pixel_size_angstrom: float,
    *,
    symmetry: str = "C1",
    diameter_angstrom: float | None = None,
    report_progress: ReportProgress = float,
) -> tuple[Tensor, list[int]]:
    """Return the maps without those that show another one's structure in another frame.

    Of two such maps the one whose half maps agree better stays; a map without half maps stays, None
    is left out. Only what ``symmetry``, in RELION's axes, leaves free is searched.

    Returns maps ``(K, n, n, n)`` in the order of their classes, and for each class, from 0 on, the
    class whose map replaces its own, -1 where there is none.

    Raises:
        ValueError: no class has a map.
    """
    available = {k: class_map for k, class_map in enumerate(maps) if class_map is not None}
    if not available:
        raise ValueError("no class has enough particles for a map")
    map_of_class = [k if k in available else -1 for k in range(len(maps))]
    kept: list[int] = []
    for done, k in enumerate(sorted(available, key=lambda k: -_quality(available[k]))):
        for other in kept:
            pair = superpose(maps[k], maps[other], pixel_size_angstrom, symmetry, diameter_angstrom)
            if pair is not None and pair.duplicate:
                map_of_class[k] = other
                break
        else:
            kept.append(k)
        report_progress((done + 1) / len(available))
    kept.sort()
    return torch.stack([available[k].volume for k in kept]), map_of_class


def superpose(
    moving: ClassMap | None,
    reference: ClassMap | None,
    pixel_size_angstrom: float,
    symmetry: str = "C1",
    diameter_angstrom: float | None = None,
) -> Superposition | None:
    """Align one map to another without mirroring; None where one of them has no half maps."""
    if moving is None or reference is None or moving.halves is None or reference.halves is None:
        return None
    alignment = align_maps(
        moving.volume,
        reference.volume,
        pixel_size_angstrom=pixel_size_angstrom,
        point_group=symmetry,
        allow_mirror=False,
    )
    n = len(moving.volume)
    edge = n * pixel_size_angstrom
    mask = particle_sphere(n, (diameter_angstrom or edge) / edge)
    rotation = alignment.rotation
    angle = float(geodesic_distance_deg(rotation, torch.eye(3).to(rotation)))
    shift = float(alignment.shift_angstrom.norm())
    return Superposition(
        agreement(alignment.aligned, reference.volume, (moving.halves, reference.halves), mask),
        angle,
        shift,
        other_frame=angle > _OTHER_FRAME_DEG or shift > _OTHER_FRAME_SHIFT * edge,
    )


def agreement(a: Tensor, b: Tensor, halves: tuple[Halves, Halves], mask: Tensor) -> float:
    r"""Return the FSC of two maps, relative to that of two maps of one structure.

    With F the FSC between a map's halves, the correlation of the full map with the map without
    noise is :math:`\sqrt{C}, C = 2F / (1 + F)`, so two maps of one structure agree to
    :math:`\sqrt{C_a C_b}`. Both are summed over the shells in which F is at least 0.143 for both
    maps; 0 where there are none.

    The maps ``(n, n, n)`` are aligned, the halves of each are in frames of their own, and ``mask``
    is that of the sphere in which they are compared.
    """
    own = [fsc(pair.half1 * mask, pair.half2 * mask) for pair in halves]
    with_signal = (own[0] >= _SIGNAL) & (own[1] >= _SIGNAL)
    with_signal[0] = False
    if not bool(with_signal.any()):
        return 0.0
    c = [2 * curve / (1 + curve) for curve in own]
    expected = (c[0] * c[1]).clamp(min=0).sqrt()
    return float(fsc(a * mask, b * mask)[with_signal].sum() / expected[with_signal].sum())


def _quality(class_map: ClassMap) -> float:
    """Return the mean FSC between the half maps."""
    halves = class_map.halves
    return 0.0 if halves is None else float(halves.curves.unmasked[1:].mean())


def duplicate_maps(
    likelihood: Tensor, rotation: Tensor | None, loss: float, symmetry: str = "C1"
) -> list[int]:
    """Find maps that show the structure of another map in another frame; their numbers rise.

    Of the maps that qualify the one that costs least is dropped; then the others are tested again.
    Of maps that cost the same, as copies in two frames do, the one is dropped whose frame fewer
    images share. A map stays if half of its images keep their rotation, to 20 degrees, under the
    next best map: then it is a structure of its own in the common frame, however similar to another
    one.

    ``likelihood (b, K)`` is the log-likelihood of each image under each map minus that of noise,
    ``rotation`` ``(b, K, 3, 3)`` the best of each, None to drop nothing. A map is dropped only if
    its images lose less than the share ``loss`` of their likelihood.
    """
    kept = list(range(likelihood.shape[1]))
    if rotation is None:
        return []
    group = point_group(symmetry).matrices.to(rotation)
    while len(kept) > 1:
        log_likelihood_ratio = likelihood[:, kept]
        own = log_likelihood_ratio.argmax(1)
        costs: dict[int, float] = {}
        for i, k in enumerate(kept):
            rows = (own == i).nonzero().flatten()
            if not len(rows):
                continue
            others = log_likelihood_ratio[rows].clone()
            others[:, i] = -math.inf
            next_best, next_map = others.max(1)
            cost = 1 - float(next_best.sum() / log_likelihood_ratio[rows, i].sum().clamp(min=1e-9))
            next_rotation = rotation[rows, torch.tensor(kept)[next_map]]
            if cost < loss and _same_frame_share(rotation[rows, k], next_rotation, group) < 0.5:
                costs[k] = cost
        if not costs:
            break
        best_map = torch.tensor(kept)[own]
        best = rotation[torch.arange(len(own)), best_map]
        cheapest = [k for k in costs if costs[k] <= min(costs.values()) + _EQUAL_COST]
        shared = {
            k: _same_frame_share(rotation[best_map != k, k], best[best_map != k], group)
            for k in cheapest
        }
        kept.remove(min(cheapest, key=lambda k: (shared[k], costs[k])))
    return [k for k in range(likelihood.shape[1]) if k not in kept]


def _same_frame_share(rotation: Tensor, other: Tensor, group: Tensor) -> float:
    """Return the share of images with equal rotations ``(b, 3, 3)`` but for symmetry."""
    distance_deg = geodesic_distance_deg(rotation[:, None], other[:, None] @ group)
    return float((distance_deg.amin(1) <= _SAME_ROTATION_DEG).double().mean())
