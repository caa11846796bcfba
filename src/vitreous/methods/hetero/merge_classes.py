"""Classes that are one structure in two frames, told from classes that differ.

Particles whose poses were lost together, all by the same turn, are sorted into a class of their
own; its map is that of another class, turned and moved. A search under both maps leaves them where
they are. Under the better one alone it finds one frame for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.rotation import geodesic_distance_deg
from vitreous.maps.align import align_maps
from vitreous.maps.fsc import fsc
from vitreous.maps.half_map_pair import Halves
from vitreous.methods.hetero.class_maps import ClassMap
from vitreous.methods.reconstruct.gridding import particle_sphere

AGREES = 0.9  # of what half maps let expect
APART_DEG = 10.0
APART_SHARE = 0.04  # of the box
_SIGNAL = 0.143  # between half maps, below which a shell tells nothing


@dataclass(frozen=True)
class Pair:
    """Two maps superposed.

    Args:
        agreement: :func:`agreement` of the two after that.
        angle_deg, shift_angstrom: how far the second one had to be turned and moved.
        apart: whether that is far enough for two frames.
    """

    agreement: float
    angle_deg: float
    shift_angstrom: float
    apart: bool

    @property
    def same(self) -> bool:
        """Whether they are one structure in two frames."""
        return self.apart and self.agreement >= AGREES


def distinct_maps(
    maps: Sequence[ClassMap | None],
    pixel_size_angstrom: float,
    *,
    symmetry: str = "C1",
    diameter_angstrom: float | None = None,
    notify: Callable[[float], object] = float,
) -> tuple[Tensor, list[int]]:
    """The maps without those that show another one's structure in another frame.

    Of two such maps the one whose halves agree better stays.

    Args:
        maps: of classes; None is left out, one without halves stays.
        pixel_size_angstrom: of all maps.
        symmetry: of all about RELION's axes; only what it leaves free is searched.
        diameter_angstrom: of the particle.
        notify: told the share that is done.

    Returns:
        maps ``(K, n, n, n)`` in the order of their classes; and for each class, from 0 on, the one
        whose map stands for it, -1 where there is none.

    Raises:
        ValueError: no class has a map.
    """
    there = [k for k, one in enumerate(maps) if one is not None]
    if not there:
        raise ValueError("no class has particles enough for a map")
    stands = [k if k in there else -1 for k in range(len(maps))]
    kept: list[int] = []
    for done, k in enumerate(sorted(there, key=lambda k: -_quality(maps[k]))):
        for other in kept:
            pair = superposed(
                maps[k], maps[other], pixel_size_angstrom, symmetry, diameter_angstrom
            )
            if pair is not None and pair.same:
                stands[k] = other
                break
        else:
            kept.append(k)
        notify((done + 1) / len(there))
    kept.sort()
    return torch.stack([_volume(maps[k]) for k in kept]), stands


def superposed(
    moving: ClassMap | None,
    reference: ClassMap | None,
    pixel_size_angstrom: float,
    symmetry: str = "C1",
    diameter_angstrom: float | None = None,
) -> Pair | None:
    """How one map lies on another, whose hand it keeps; None where one has no halves."""
    if moving is None or reference is None or moving.halves is None or reference.halves is None:
        return None
    found = align_maps(
        moving.volume,
        reference.volume,
        pixel_size_angstrom=pixel_size_angstrom,
        point_group=symmetry,
        allow_mirror=False,
    )
    n = len(moving.volume)
    edge = n * pixel_size_angstrom
    mask = particle_sphere(n, (diameter_angstrom or edge) / edge)
    angle = float(geodesic_distance_deg(found.rotation, torch.eye(3).to(found.rotation)))
    shift = float(found.shift_angstrom.norm())
    return Pair(
        agreement(found.aligned, reference.volume, (moving.halves, reference.halves), mask),
        angle,
        shift,
        apart=angle > APART_DEG or shift > APART_SHARE * edge,
    )


def agreement(a: Tensor, b: Tensor, halves: tuple[Halves, Halves], mask: Tensor) -> float:
    r"""FSC of two maps over that which their own half maps let expect if they show the same.

    With F the FSC between a map's halves, the whole map's correlation with what it would be
    without noise is :math:`\sqrt{C}, C = 2F / (1 + F)`, and two maps of the same agree to
    :math:`\sqrt{C_a C_b}`. Both are summed over the shells in which F is at least 0.143 for
    both maps.

    Args:
        a, b: superposed, ``(n, n, n)``.
        halves: of each, in frames of their own.
        mask: of the sphere that all are compared in.

    Returns:
        1 for equal structures; 0 where no shell tells anything.
    """
    own = [fsc(one.half1 * mask, one.half2 * mask) for one in halves]
    telling = (own[0] >= _SIGNAL) & (own[1] >= _SIGNAL)
    telling[0] = False
    if not bool(telling.any()):
        return 0.0
    c = [2 * one / (1 + one) for one in own]
    expected = (c[0] * c[1]).clamp(min=0).sqrt()
    return float(fsc(a * mask, b * mask)[telling].sum() / expected[telling].sum())


def _quality(one: ClassMap | None) -> float:
    """Of a map: mean FSC between its halves."""
    if one is None or one.halves is None:
        return 0.0
    return float(one.halves.curves.unmasked[1:].mean())


def _volume(one: ClassMap | None) -> Tensor:
    assert one is not None
    return one.volume
