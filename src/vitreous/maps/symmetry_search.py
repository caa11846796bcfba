"""Which point group two half maps obey, and how well: evidence that noise cannot make up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.resample import rotate_volume
from vitreous.core.rotation import geodesic_distance_deg, random_rotations
from vitreous.core.symmetry import PointGroup, point_group
from vitreous.maps.fsc import fsc_resolution
from vitreous.maps.registration import Registration
from vitreous.maps.symmetry_frames import Frame, find_frames, refine_frames

CUTOFF = 0.143
HOLDS = 0.75
HOLDS_ON_AVERAGE = 0.92
FEWEST_SHELLS = 7
_FIRST_SHELL = 2
_SEARCH_RADIUS = 6
_RANDOM_TURNS = 64
_LEAST_RANDOM_TURN_DEG = 60.0  # narrower ones leave much in place
_FEWEST_REFINED = 8
_LIKELY = 0.5  # of the best score
_SAME_ROTATION_DEG = 10.0


@dataclass(frozen=True)
class SymmetryCandidate:
    """A point group, where its axes lie, and how well the half maps obey it.

    ``standard(r) = map(R^T (r - t))``, r from the centre ``n // 2``, has the axes where RELION has
    them; :func:`to_standard` does it.

    Args:
        name: Schoenflies name.
        order: number of rotations.
        agreement: mean over the rotations, but the identity, of how well half map 1 agrees with
            half map 2 so rotated, as a share of how well it agrees with it as it is: 1 for a
            perfect symmetry.
        weakest: the same of the rotation that agrees least. The group stands or falls with it.
        resolution_angstrom: where the mean FSC over the rotations falls below 0.143.
        curve: that FSC, ``(n // 2 + 1,)`` at the working box.
        chance: greatest agreement under random rotations that are far from the group's own.
        rotation: ``(3, 3)`` float64 R.
        shift_angstrom: ``(3,)`` float64 t in (x, y, z).
        holds: whether the half maps obey it.
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
    """What a search for symmetry came to.

    Args:
        candidates: those that hold first, then by ``weakest``; higher order before lower.
        group: the largest group that holds; C1 if none does.
        curve: FSC between the half maps, unturned, at the working box.
        resolution_angstrom: of it, at 0.143; the test sees nothing finer.
        chance: mean agreement of half map 1 with half map 2 under random rotations.
        box_size: of the working box.
        pixel_size_angstrom: at the working box.
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
        """The candidate of :attr:`group`; None for C1."""
        return next((one for one in self.candidates if one.name == self.group), None)


def find_symmetry(
    half1: Tensor,
    half2: Tensor,
    *,
    pixel_size_angstrom: float,
    generator: torch.Generator,
    box_size: int = 40,
) -> SymmetrySearch:
    r"""Find the point group of a map that was reconstructed without one, with evidence.

    Axes are sought in the mean of the half maps, at low resolution, over all rotations and shifts;
    pairs of axes at a group's angles give frames; every rotation of a frame is refined by itself
    up to the resolution of the half maps, and the frame is fitted through their axes.

    The evidence compares the half maps, whose noise is independent: for a rotation g,

    .. math::

        q_g = \frac{\sum_s n_s\, \mathrm{FSC}_1(s)\, \mathrm{FSC}_g(s)}
                   {\sum_s n_s\, \mathrm{FSC}_1(s)^2},

    the slope of the FSC of half map 1 with the rotated half map 2 on that with half map 2 as it
    is, weighted by the number of coefficients. Its expectation is 1 where g is a symmetry, at any
    noise. A group holds if its rotations reach 0.92 on average, the worst of them 0.75 and more
    than random rotations at their best shifts: of 64, the half that is farthest from the group's
    own. Those that it has beyond a part that holds, such as D4 beyond C4, must reach 0.92 of that
    part's average. Where several groups hold, the largest is taken.

    Groups tried: Cn and Dn of n = 2 to 8 and 12, T, O, I.

    Args:
        half1, half2: independent half maps ``(n, n, n)`` made without symmetry, in one frame.
        pixel_size_angstrom: Å.
        generator: for the random rotations.
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
        judge = _Judge(small1, small2)
        resolution = fsc_resolution(judge.curve.clamp(max=1), CUTOFF, n, pixel)
        if judge.last < FEWEST_SHELLS:
            return _nothing(judge, resolution, pixel, n)
        frames = _frames(0.5 * (small1 + small2), judge)
        chance = judge.by_chance(generator)
    found = [_candidate(frame, judge, chance, pixel) for frame in frames]
    found = _without_pretenders(found)
    found.sort(key=lambda one: (one.holds, one.order if one.holds else one.weakest), reverse=True)
    group = found[0].name if found and found[0].holds else "C1"
    verdict = _verdict(group, found, resolution)
    mean_chance = float(chance[1].mean())
    return SymmetrySearch(
        tuple(found), group, judge.curve, resolution, mean_chance, n, pixel, verdict
    )


def symmetry_agreement(half1: Tensor, half2: Tensor, name: str, *, box_size: int = 40) -> float:
    """How well two half maps obey a point group about RELION's axes through the centre.

    Args:
        half1, half2: independent half maps ``(n, n, n)``.
        name: Schoenflies name.
        box_size: working box.

    Returns:
        agreement under the worst rotation, as :attr:`SymmetryCandidate.weakest`; 1 for C1, NaN
        where the half maps share too little to tell.

    Raises:
        ValueError: boxes differ, not cubic, or values that are not finite.
        UsageError: unknown point group.
    """
    group = point_group(name)
    if group.order == 1:
        return 1.0
    with torch.no_grad():
        judge = _Judge(_small(half1, box_size), _small(half2, box_size))
        if judge.last < FEWEST_SHELLS:
            return math.nan
        return float(judge.agreement(judge.curves(*_standard(group).operators())).min())


def to_standard(volume: Tensor, candidate: SymmetryCandidate, pixel_size_angstrom: float) -> Tensor:
    """A map turned and shifted so that the candidate's axes are RELION's.

    Args:
        volume: ``(n, n, n)``, one of the half maps or a map in their frame.
        candidate: from :func:`find_symmetry`.
        pixel_size_angstrom: of the volume, Å.
    """
    return rotate_volume(volume, candidate.rotation, candidate.shift_angstrom / pixel_size_angstrom)


class _Judge:
    """FSC of half map 1 with half map 2, as it is and rotated; both within a soft sphere."""

    def __init__(self, half1: Tensor, half2: Tensor) -> None:
        self.n = len(half1)
        self.engine = Registration(half2, half1)
        eye, none = torch.eye(3)[None], torch.zeros(1, 3)
        self.engine.use(max(2, int(0.9 * (self.n // 2))), most=30_000)
        below = (self.curves(eye, none)[0, 1:] < CUTOFF).nonzero()
        self.last = int(below[0]) if len(below) else self.engine.radius  # shell that still agrees
        self.engine.use(min(self.engine.radius, self.last + 2), most=30_000, cubic=True)
        unturned = self.curves(eye, none)[0]
        self.curve = self._padded(unturned)
        counts = torch.bincount(self.engine.points.norm(dim=-1).round().long().cpu())
        self.weight = counts.double() * unturned.clamp(min=0)
        self.unturned = unturned

    def _padded(self, curves: Tensor) -> Tensor:
        """Up to shell n // 2, 0 beyond the radius in use, 1 at shell 0."""
        full = curves.new_zeros((*curves.shape[:-1], self.n // 2 + 1))
        full[..., : curves.shape[-1]] = curves
        full[..., 0] = 1.0
        return full

    def curves(self, turns: Tensor, shifts_px: Tensor) -> Tensor:
        """FSC ``(b, radius + 1)`` under rotations and shifts."""
        device = self.engine.device
        found = self.engine.shell_correlation(
            turns.float().to(device), shifts_px.float().to(device)
        )
        return found.double().cpu()

    def agreement(self, curves: Tensor) -> Tensor:
        """Slope of the curves on the unturned one, over the shells that agree."""
        used = slice(_FIRST_SHELL, self.last + 1)
        weight, unturned = self.weight[used], self.unturned[used]
        return (curves[:, used] @ weight) / (unturned @ weight)

    def by_chance(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Wide random rotations, and the agreement under each at its best shift."""
        turns = random_rotations(8 * _RANDOM_TURNS, generator=generator)
        wide = geodesic_distance_deg(turns, torch.eye(3)) > _LEAST_RANDOM_TURN_DEG
        turns = turns[wide][:_RANDOM_TURNS].to(self.engine.device)
        eye = torch.eye(3, device=self.engine.device)
        placed = self.engine.search(turns, eye, (False,))
        shares = self.agreement(self.curves(placed.rotation, placed.shift_px))
        return placed.rotation.double().cpu(), shares


def _small(half: Tensor, box_size: int) -> Tensor:
    n = int(half.shape[-1])
    if tuple(half.shape) != (n, n, n) or not bool(torch.isfinite(half).all()):
        raise ValueError(f"half maps must be finite cubes, got {tuple(half.shape)}")
    return fourier_resize(half.detach().float(), min(n, box_size), 3)


def _standard(group: PointGroup) -> Frame:
    eye = torch.eye(3, dtype=torch.float64)
    return Frame(group, eye, torch.zeros(3, dtype=torch.float64), math.nan)


def _frames(average: Tensor, judge: _Judge) -> list[Frame]:
    """The likeliest frames at low resolution, refined to the last shell that agrees."""
    engine = Registration(average, average)
    radius = min(_SEARCH_RADIUS, judge.last)
    engine.use(radius)
    frames = find_frames(engine)
    ranked = sorted(frames, key=lambda frame: frame.score, reverse=True)
    likely = ranked[:_FEWEST_REFINED]
    likely += [one for one in ranked[len(likely) :] if one.score > _LIKELY * ranked[0].score]
    likely = refine_frames(engine, likely, 6)
    trust = judge.unturned.clamp(0, 0.98)
    while radius < judge.last:
        radius = min(judge.last, math.ceil(1.5 * radius))
        engine.use(radius)
        engine.weigh_by_shell(trust / (1 - trust.square()))
        likely = refine_frames(engine, likely, 5)
    return likely


def _candidate(
    frame: Frame, judge: _Judge, chance: tuple[Tensor, Tensor], pixel: float
) -> SymmetryCandidate:
    operators = frame.operators()
    curves = judge.curves(*operators)
    shares = judge.agreement(curves)
    # near the group's own rotations a symmetric map agrees well, and not by chance
    distance = geodesic_distance_deg(chance[0][:, None], operators[0]).amin(-1)
    far = chance[1][distance >= distance.median()]
    random, average = float(far.max()), float(shares.mean())
    mean = judge._padded(curves.mean(0))
    weakest = float(shares.min())
    return SymmetryCandidate(
        name=frame.group.name,
        order=frame.group.order,
        agreement=average,
        weakest=weakest,
        resolution_angstrom=fsc_resolution(mean, CUTOFF, judge.n, pixel),
        curve=mean,
        chance=random,
        rotation=frame.rotation,
        shift_angstrom=-frame.rotation @ frame.centre_px * pixel,
        holds=average >= HOLDS_ON_AVERAGE and weakest >= HOLDS and weakest > random,
    )


def _nothing(judge: _Judge, resolution: float, pixel: float, n: int) -> SymmetrySearch:
    reached = f"only to {resolution:.0f} Å" if math.isfinite(resolution) else "nowhere"
    verdict = (
        f"cannot tell: the half maps agree {reached}, over fewer than {FEWEST_SHELLS} shells; "
        "any map looks symmetric at that resolution"
    )
    return SymmetrySearch((), "C1", judge.curve, resolution, math.nan, n, pixel, verdict)


def _verdict(group: str, found: Sequence[SymmetryCandidate], resolution: float) -> str:
    if group == "C1":
        if not found:
            return f"no symmetry: no axis was found to {resolution:.1f} Å"
        best = max(found, key=lambda one: one.weakest)
        return (
            f"no symmetry to {resolution:.1f} Å: the best candidate, {best.name}, keeps "
            f"{_percent(best.weakest)} of the half maps' agreement under its worst rotation, "
            f"{_percent(best.agreement)} on average; random rotations reach {_percent(best.chance)}"
        )
    one = found[0]
    rivals = [other.name for other in found[1:] if other.holds and not _is_part(other, one)]
    doubt = f", but so does {', '.join(rivals)}: too coarse to tell them apart" if rivals else ""
    return (
        f"{group}: rotated about its axes, half map 2 keeps {_percent(one.agreement)} of its "
        f"agreement with half map 1 (the worst rotation {_percent(one.weakest)}; random rotations "
        f"reach {_percent(one.chance)}), to "
        f"{one.resolution_angstrom:.1f} Å where unrotated they agree to {resolution:.1f} Å{doubt}"
    )


def _without_pretenders(found: Sequence[SymmetryCandidate]) -> list[SymmetryCandidate]:
    """Groups no longer hold whose further rotations agree less than those of a part that holds.

    Noise in the FSC that all agreements are divided by raises or lowers them together, so this
    comparison is sharper than that with 1.
    """
    kept: list[SymmetryCandidate] = []
    for one in sorted(found, key=lambda candidate: candidate.order):
        parts = [p for p in kept if p.holds and p.order < one.order and _is_part(p, one)]
        total = one.agreement * (one.order - 1)
        holds = one.holds and all(
            total - part.agreement * (part.order - 1)
            >= HOLDS_ON_AVERAGE * part.agreement * (one.order - part.order)
            for part in parts
        )
        kept.append(replace(one, holds=holds))
    return kept


def _is_part(small: SymmetryCandidate, large: SymmetryCandidate) -> bool:
    """Whether every rotation of a group is near one of the other, both placed in the map."""
    turns, others = (
        one.rotation.mT @ point_group(one.name).matrices @ one.rotation for one in (small, large)
    )
    nearest = geodesic_distance_deg(turns[:, None], others).amin(-1)
    return float(nearest.max()) < _SAME_ROTATION_DEG


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
