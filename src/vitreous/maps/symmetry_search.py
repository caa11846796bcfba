"""Search for the point group that two half maps obey, with statistical evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.resample import rotate_volume
from vitreous.core.rotation import geodesic_distance_deg, random_rotations
from vitreous.core.symmetry import point_group
from vitreous.maps.fsc import CUTOFF, fsc_resolution
from vitreous.maps.registration import Registration
from vitreous.maps.symmetry_frames import Frame, find_frames, refine_frames

LEAST_AGREEMENT = 0.75  # of the worst rotation
LEAST_MEAN_AGREEMENT = 0.92
FEWEST_SHELLS = 7
_FIRST_SHELL = 2
_SEARCH_RADIUS = 6
_RANDOM_ROTATIONS = 64
_LEAST_RANDOM_ANGLE_DEG = 60.0  # smaller rotations leave much of a map unchanged
_FEWEST_REFINED = 8
_LIKELY = 0.5  # of the best score
_SAME_ROTATION_DEG = 10.0


@dataclass(frozen=True)
class SymmetryCandidate:
    """Point group, its axes in the map, and its agreement with the half maps.

    ``standard(r) = map(R^T (r - t))``, r from the centre ``n // 2``, has RELION's axes; see
    :func:`to_standard`.

    Args:
        name: Schoenflies name.
        order: number of rotations.
        agreement: agreement of half map 1 with the rotated half map 2, relative to that with the
            unrotated one, averaged over rotations but the identity: 1 for a perfect symmetry.
        weakest: the same of the rotation that agrees least.
        resolution_angstrom: resolution at which the mean FSC over rotations falls below 0.143.
        curve: that FSC, ``(n // 2 + 1,)`` at the working box.
        chance: largest agreement under random rotations far from those of the group.
        rotation: ``(3, 3)`` float64 R.
        shift_angstrom: ``(3,)`` float64 t in (x, y, z).
        holds: True if the half maps obey the group.
    """

    name: str
    order: int
    agreement: float
    weakest: float
    resolution_angstrom: float
    curve: Tensor
    chance: float
    rotation: Tensor
    shift_angstrom: Tensor
    holds: bool


@dataclass(frozen=True)
class SymmetrySearch:
    """Result of a search for symmetry.

    Args:
        candidates: those that hold first, by order, then the others by ``weakest``.
        group: the largest group that holds; C1 if none does.
        curve: FSC between the unrotated half maps at the working box.
        resolution_angstrom: its resolution at 0.143, the limit of the test.
        chance: mean agreement of the half maps under random rotations.
        box_size: edge of the working box in pixels.
        pixel_size_angstrom: pixel size at the working box.
        verdict: one sentence.
    """

    candidates: tuple[SymmetryCandidate, ...]
    group: str
    curve: Tensor
    resolution_angstrom: float
    chance: float
    box_size: int
    pixel_size_angstrom: float
    verdict: str

    @property
    def best(self) -> SymmetryCandidate | None:
        """Candidate of :attr:`group`; None for C1."""
        return next((one for one in self.candidates if one.name == self.group), None)


def find_symmetry(
    half1: Tensor,
    half2: Tensor,
    *,
    pixel_size_angstrom: float,
    generator: torch.Generator,
    box_size: int = 40,
) -> SymmetrySearch:
    r"""Find the point group of a map that was reconstructed without symmetry.

    Axes are searched in the mean of the half maps, at low resolution, over all rotations and
    shifts; pairs of axes at the angles of a group give frames; every rotation of a frame is refined
    independently up to the resolution of the half maps, and the frame is fitted to the axes.

    The evidence compares the half maps, whose noise is independent: for a rotation g,

    .. math::

        q_g = \frac{\sum_s n_s\, \mathrm{FSC}_1(s)\, \mathrm{FSC}_g(s)}
                   {\sum_s n_s\, \mathrm{FSC}_1(s)^2},

    the slope of the FSC with the rotated half map 2 on that with the unrotated one, weighted by the
    number of coefficients. Its expectation is 1 where g is a symmetry, at any noise. A group holds
    if its rotations reach 0.92 on average and the worst of them 0.75 and more than random rotations
    at their best shifts: of 64, the half farthest from the group's own. Rotations beyond a subgroup
    that holds, such as those of D4 beyond C4, must reach 0.92 of the subgroup's average. If several
    groups hold, the largest is taken.

    Groups tried: Cn and Dn of n = 2 to 8 and 12, T, O, I.

    Args:
        half1, half2: independent half maps ``(n, n, n)`` made without symmetry, in one frame.
        pixel_size_angstrom: pixel size in Å.
        generator: draws the random rotations.
        box_size: working box; larger maps are Fourier-cropped to it.

    Raises:
        ValueError: boxes differ, not cubic, or values that are not finite.
    """
    if half1.shape != half2.shape:
        raise ValueError(f"boxes differ: {tuple(half1.shape)} and {tuple(half2.shape)}")
    small1, small2 = (_small(half, box_size) for half in (half1, half2))
    n = len(small1)
    pixel = pixel_size_angstrom * half1.shape[-1] / n
    with torch.no_grad():
        halves = _HalfMapAgreement(small1, small2)
        resolution = fsc_resolution(halves.curve.clamp(max=1), CUTOFF, n, pixel)
        if halves.last < FEWEST_SHELLS:
            return _undecided(halves, resolution, pixel, n)
        frames = _frames(0.5 * (small1 + small2), halves)
        chance = halves.by_chance(generator)
    candidates = _test_supergroups([_candidate(one, halves, chance, pixel) for one in frames])
    candidates.sort(key=lambda c: (c.holds, c.order if c.holds else c.weakest), reverse=True)
    group = candidates[0].name if candidates and candidates[0].holds else "C1"
    verdict = _verdict(group, candidates, resolution)
    mean_chance = float(chance[1].mean())
    return SymmetrySearch(
        tuple(candidates), group, halves.curve, resolution, mean_chance, n, pixel, verdict
    )


def symmetry_agreement(half1: Tensor, half2: Tensor, name: str, *, box_size: int = 40) -> float:
    """Measure how well two half maps obey a point group about RELION's axes through the centre.

    The independent half maps ``(n, n, n)`` are compared at a box of ``box_size``. Returns the
    agreement under the worst rotation, see :attr:`SymmetryCandidate.weakest`; 1 for C1, NaN if the
    half maps agree over too few shells.

    Raises:
        ValueError: boxes differ, not cubic, or values that are not finite.
        UsageError: unknown point group.
    """
    group = point_group(name)
    if group.order == 1:
        return 1.0
    with torch.no_grad():
        halves = _HalfMapAgreement(_small(half1, box_size), _small(half2, box_size))
        if halves.last < FEWEST_SHELLS:
            return math.nan
        standard = Frame(group, torch.eye(3).double(), torch.zeros(3).double(), math.nan)
        return float(halves.agreement(halves.curves(*standard.operators())).min())


def to_standard(volume: Tensor, candidate: SymmetryCandidate, pixel_size_angstrom: float) -> Tensor:
    """Rotate and shift a map so that the candidate's axes are RELION's.

    ``volume (n, n, n)`` is one of the half maps of :func:`find_symmetry` or a map in their frame.
    """
    return rotate_volume(volume, candidate.rotation, candidate.shift_angstrom / pixel_size_angstrom)


class _HalfMapAgreement:
    """FSC of half map 1 with half map 2, unrotated and rotated, within a soft sphere."""

    def __init__(self, half1: Tensor, half2: Tensor) -> None:
        self.n = len(half1)
        self.engine = Registration(half2, half1)
        eye, none = torch.eye(3)[None], torch.zeros(1, 3)
        self.engine.use(max(2, int(0.9 * (self.n // 2))), most=30_000)
        below = (self.curves(eye, none)[0, 1:] < CUTOFF).nonzero()
        self.last = int(below[0]) if len(below) else self.engine.radius  # last agreeing shell
        self.engine.use(min(self.engine.radius, self.last + 2), most=30_000, cubic=True)
        self.unrotated = self.curves(eye, none)[0]
        self.curve = self.padded(self.unrotated)
        counts = torch.bincount(self.engine.points.norm(dim=-1).round().long().cpu())
        self.weight = counts.double() * self.unrotated.clamp(min=0)

    def padded(self, curves: Tensor) -> Tensor:
        """Extend curves to shell n // 2, with 0 beyond the current radius and 1 at shell 0."""
        full = curves.new_zeros((*curves.shape[:-1], self.n // 2 + 1))
        full[..., : curves.shape[-1]] = curves
        full[..., 0] = 1.0
        return full

    def curves(self, rotations: Tensor, shifts_px: Tensor) -> Tensor:
        """Return FSC curves ``(b, radius + 1)`` under rotations and shifts."""
        transforms = (one.float().to(self.engine.device) for one in (rotations, shifts_px))
        return self.engine.shell_correlation(*transforms).double().cpu()

    def agreement(self, curves: Tensor) -> Tensor:
        """Return the slopes of curves on the unrotated one, over the shells that agree."""
        used = slice(_FIRST_SHELL, self.last + 1)
        weight, unrotated = self.weight[used], self.unrotated[used]
        return (curves[:, used] @ weight) / (unrotated @ weight)

    def by_chance(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return wide random rotations, and the agreement under each at its best shift."""
        rotations = random_rotations(8 * _RANDOM_ROTATIONS, generator=generator)
        wide = geodesic_distance_deg(rotations, torch.eye(3)) > _LEAST_RANDOM_ANGLE_DEG
        rotations = rotations[wide][:_RANDOM_ROTATIONS].to(self.engine.device)
        eye = torch.eye(3, device=self.engine.device)
        best = self.engine.search(rotations, eye, (False,))
        agreement = self.agreement(self.curves(best.rotation, best.shift_px))
        return best.rotation.double().cpu(), agreement


def _small(half: Tensor, box_size: int) -> Tensor:
    n = int(half.shape[-1])
    if tuple(half.shape) != (n, n, n) or not bool(torch.isfinite(half).all()):
        raise ValueError(f"half maps must be finite cubes, got {tuple(half.shape)}")
    return fourier_resize(half.detach().float(), min(n, box_size), 3)


def _frames(average: Tensor, halves: _HalfMapAgreement) -> list[Frame]:
    """Return the best frames at low resolution, refined to the last shell that agrees."""
    engine = Registration(average, average)
    radius = min(_SEARCH_RADIUS, halves.last)
    engine.use(radius)
    frames = find_frames(engine)
    ranked = sorted(frames, key=lambda frame: frame.score, reverse=True)
    likely = ranked[:_FEWEST_REFINED]
    likely += [one for one in ranked[len(likely) :] if one.score > _LIKELY * ranked[0].score]
    likely = refine_frames(engine, likely, 6)
    trust = halves.unrotated.clamp(0, 0.98)
    while radius < halves.last:
        radius = min(halves.last, math.ceil(1.5 * radius))
        engine.use(radius)
        engine.weight_by_shell(trust / (1 - trust.square()))
        likely = refine_frames(engine, likely, 5)
    return likely


def _candidate(
    frame: Frame, halves: _HalfMapAgreement, chance: tuple[Tensor, Tensor], pixel: float
) -> SymmetryCandidate:
    operators = frame.operators()
    curves = halves.curves(*operators)
    agreement = halves.agreement(curves)
    # near the group's own rotations a symmetric map agrees, but not by chance
    distance = geodesic_distance_deg(chance[0][:, None], operators[0]).amin(-1)
    far = chance[1][distance >= distance.median()]
    random, average = float(far.max()), float(agreement.mean())
    mean = halves.padded(curves.mean(0))
    weakest = float(agreement.min())
    return SymmetryCandidate(
        name=frame.group.name,
        order=frame.group.order,
        agreement=average,
        weakest=weakest,
        resolution_angstrom=fsc_resolution(mean, CUTOFF, halves.n, pixel),
        curve=mean,
        chance=random,
        rotation=frame.rotation,
        shift_angstrom=-frame.rotation @ frame.centre_px * pixel,
        holds=average >= LEAST_MEAN_AGREEMENT and weakest >= LEAST_AGREEMENT and weakest > random,
    )


def _undecided(
    halves: _HalfMapAgreement, resolution: float, pixel: float, n: int
) -> SymmetrySearch:
    reached = f"only to {resolution:.0f} Å" if math.isfinite(resolution) else "nowhere"
    verdict = (
        f"cannot tell: the half maps agree {reached}, over fewer than {FEWEST_SHELLS} shells; "
        "any map looks symmetric at that resolution"
    )
    return SymmetrySearch((), "C1", halves.curve, resolution, math.nan, n, pixel, verdict)


def _verdict(group: str, candidates: Sequence[SymmetryCandidate], resolution: float) -> str:
    if group == "C1":
        if not candidates:
            return f"no symmetry: no axis was found to {resolution:.1f} Å"
        best = max(candidates, key=lambda one: one.weakest)
        return (
            f"no symmetry to {resolution:.1f} Å: the best candidate, {best.name}, keeps "
            f"{_percent(best.weakest)} of the half maps' agreement under its worst rotation, "
            f"{_percent(best.agreement)} on average; random rotations reach {_percent(best.chance)}"
        )
    one = candidates[0]
    others = candidates[1:]
    rivals = [other.name for other in others if other.holds and not _is_subgroup(other, one)]
    doubt = f", but so does {', '.join(rivals)}: too coarse to tell them apart" if rivals else ""
    return (
        f"{group}: rotated about its axes, half map 2 keeps {_percent(one.agreement)} of its "
        f"agreement with half map 1 (the worst rotation {_percent(one.weakest)}; random rotations "
        f"reach {_percent(one.chance)}), to "
        f"{one.resolution_angstrom:.1f} Å where unrotated they agree to {resolution:.1f} Å{doubt}"
    )


def _test_supergroups(candidates: Sequence[SymmetryCandidate]) -> list[SymmetryCandidate]:
    """Reject groups whose further rotations agree less than those of a subgroup that holds.

    More sensitive than a comparison with 1, as noise of the denominator changes all alike.
    """
    tested: list[SymmetryCandidate] = []
    for one in sorted(candidates, key=lambda candidate: candidate.order):
        parts = [p for p in tested if p.holds and p.order < one.order and _is_subgroup(p, one)]
        total = one.agreement * (one.order - 1)
        holds = one.holds and all(
            total - part.agreement * (part.order - 1)
            >= LEAST_MEAN_AGREEMENT * part.agreement * (one.order - part.order)
            for part in parts
        )
        tested.append(replace(one, holds=holds))
    return tested


def _is_subgroup(small: SymmetryCandidate, large: SymmetryCandidate) -> bool:
    """Return whether every rotation of a group in the map is near one of the other group."""
    rotations, others = (
        one.rotation.mT @ point_group(one.name).matrices @ one.rotation for one in (small, large)
    )
    nearest = geodesic_distance_deg(rotations[:, None], others).amin(-1)
    return float(nearest.max()) < _SAME_ROTATION_DEG


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
