r"""Expectation step: poses of images under one map, searched, refined and weighted.

Candidates of an image compete: by the Laplace approximation each stands for the probability

.. math::

    p_j \propto e^{L_j / 2} \sqrt{\det H_j^{-1}}

of its neighbourhood, L being the log likelihood ratio and H the Gauss-Newton matrix. A candidate
that falls below a bound relative to the best of its image is dropped before finer work, and so is
one that has come to the same pose as a better candidate.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.memory import in_memory
from vitreous.core.params import Optics
from vitreous.core.rotation import geodesic_distance_deg
from vitreous.core.symmetry import point_group
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.global_search import GlobalCandidates, GlobalSearch
from vitreous.methods.em.local_search import PoseFit, PoseRefiner, WhitenedSpectra
from vitreous.methods.em.pose_posterior import ExpectationResult, PoseCandidates, SampledPoses
from vitreous.methods.em.two_stage_search import NEAR_STEPS, TwoStageSearch

_GRID_LOSS = 0.3  # of the best log likelihood ratio, lost by lying between points of the grid
_BATCH_LIMITS = 64, 128  # images on one thread, fewest and most
_BATCHES = 8  # into which images are split at best
_SAME = 0.3  # radians times K
_NEAR = 1.5  # steps of the grid: a sample that is as near to a candidate stands for it


@dataclass(frozen=True)
class _GridSamples:
    """Rows of images that were searched in the whole band, and poses sampled from the grid."""

    rows: Tensor
    sampled: GlobalCandidates


def images_at_once(device: torch.device, count: int) -> int | None:
    """Return the best number of images to process at once: few on each thread, None on a GPU.

    >>> images_at_once(torch.device("cpu"), 10_000), images_at_once(torch.device("cpu"), 100)
    (128, 64)
    """
    if device.type != "cpu":
        return None
    fewest, most = _BATCH_LIMITS
    return min(most, max(fewest, math.ceil(count / _BATCHES)))


class ExpectationStep:
    """Estimate of poses under one map; templates are made once, for all images.

    Args:
        volume: ``(n, n, n)``, the map.
        pixel_size_angstrom: Å.
        radii: highest shells of the bands to go through, growing; a search uses the first.
        noise_power: mean of ``|rfft2|^2`` of the noise by shell, ``(n // 2 + 1,)``.
        config: see :class:`~vitreous.methods.em.config.RefinementConfig`.
        search: whether all poses are searched; otherwise a start is needed.
        recentre: whether shifts are searched around those of a start only.
    """

    def __init__(
        self,
        volume: Tensor,
        pixel_size_angstrom: float,
        radii: Sequence[int],
        noise_power: Tensor,
        config: RefinementConfig,
        *,
        search: bool = True,
        recentre: bool = False,
    ) -> None:
        n = int(volume.shape[-1])
        self.config = config
        self._shift_range = config.shift_range(n * pixel_size_angstrom)
        bands = [FrequencyBand(n, pixel_size_angstrom, radius) for radius in radii]
        self._refiners = [PoseRefiner(volume, b, b.noise_power(noise_power)) for b in bands]
        self._group = point_group(config.symmetry).matrices.float().to(volume.device)
        self._search: TwoStageSearch[GlobalCandidates] | None = None
        self._pieces = 1  # that images are taken in at a time

        def global_search(band: FrequencyBand, range_angstrom: float) -> GlobalSearch:
            return GlobalSearch(
                volume,
                band,
                band.noise_power(noise_power),
                symmetry=config.symmetry,
                shift_range_angstrom=range_angstrom,
                spacing=config.spacing,
                candidates=config.candidates,
            )

        if search:
            farthest, near = self._shift_range, NEAR_STEPS * bands[0].shift_step_angstrom
            farthest = min(farthest, near) if recentre else farthest
            self._search = TwoStageSearch(global_search, bands[0], farthest)

    @property
    def refiner(self) -> PoseRefiner:
        """Pose refiner of the last band."""
        return self._refiners[-1]

    def __call__(
        self,
        images: Tensor,
        optics: Optics | None,
        *,
        start: PoseCandidates | None = None,
        scale: float | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ExpectationResult:
        """Return poses of images, and the power of the residual images.

        Where memory runs out, these and later images are taken in twice as many pieces.

        Args:
            images: full box, ``(b, n, n)``, protein positive.
            optics: CTF of each; None for none.
            start: candidates to refine. Only images whose best pose is not certain are searched
                then, around the shift of the best.
            scale: of the map in all images, or in each ``(b,)``; None: the best for each pose.
            generator: of poses sampled from the likelihood, on the map's device; None for none.

        Raises:
            ValueError: neither a search nor a start.
        """
        if isinstance(scale, float):
            scale = torch.full((len(images),), scale, device=images.device)

        def in_pieces(count: int) -> ExpectationResult:
            every = torch.arange(len(images), device=images.device)
            results = [
                self._poses(
                    images[rows],
                    None if optics is None else optics[rows],
                    None if start is None else start[rows],
                    None if scale is None else scale[rows],
                    generator,
                )
                for rows in (every.tensor_split(count) if count > 1 else [slice(None)])
            ]
            return results[0] if count == 1 else ExpectationResult.cat(results)

        result, pieces = in_memory(in_pieces, min(self._pieces, len(images)), len(images))
        if pieces > self._pieces:
            self._pieces = pieces
            size = math.ceil(len(images) / pieces)
            warnings.warn(f"out of memory: images are now taken {size} at a time", stacklevel=2)
        return result

    def _poses(
        self,
        images: Tensor,
        optics: Optics | None,
        start: PoseCandidates | None,
        scale: Tensor | None,
        generator: torch.Generator | None,
    ) -> ExpectationResult:
        """Return poses of images all at once; see :meth:`__call__`."""
        result, searched = self._start(images, optics, start, scale, generator)
        for refiner in self._refiners:
            measured = refiner.measure(refiner.band.images(images), optics)
            result = self._refine(refiner, measured, result, scale)
        sampled = None if generator is None else self._sampled(result, searched, generator)
        return ExpectationResult(result, self._residual_power(measured, result), sampled)

    def updated_noise_power(self, known: Tensor, residual: Tensor) -> Tensor:
        """Return the noise power by shell, that of the residual images inside the band.

        Args:
            known: ``(n // 2 + 1,)``, as this step was given it.
            residual: mean over images of :attr:`ExpectationResult.residual_power`, ``(K + 1,)``.
        """
        band, points = self.refiner.band, self.refiner.points_per_shell().cpu()
        power = residual / points.clamp_min(1) * (band.full_box / band.box_size) ** 6
        updated = known.clone()
        updated[1 : band.radius + 1] = power[1:].to(updated)
        return updated

    def _sampled(
        self, result: PoseCandidates, searched: _GridSamples | None, generator: torch.Generator
    ) -> SampledPoses:
        """Return poses of every image to reconstruct from.

        For images whose poses were searched in the whole band, they are sampled from the whole
        grid: a sample that is near a candidate is replaced by it. For the others, they are sampled
        from the candidates.
        """
        draws = self.config.draws
        choice = result.posterior.multinomial(draws, True, generator=generator)
        away = torch.zeros_like(choice, dtype=torch.bool)
        if searched is not None:
            near, found = self._nearest(result[searched.rows], searched.sampled)
            choice[searched.rows] = torch.where(found, near, choice[searched.rows])
            away[searched.rows] = ~found
        rows = torch.arange(len(result), device=choice.device)[:, None]
        rotation, shift = (
            one[rows, choice, 0] if draws == 1 else one[rows, choice, torch.arange(draws)]
            for one in result.draw(draws, generator)
        )
        if searched is not None and bool(away.any()):
            everywhere = result.rotation.new_zeros(rotation.shape)
            everywhere[searched.rows] = searched.sampled.rotation
            rotation = torch.where(away[..., None, None], everywhere, rotation)
            moved = torch.zeros_like(shift)
            moved[searched.rows] = searched.sampled.shift_angstrom
            shift = torch.where(away[..., None], moved, shift)
        return SampledPoses(rotation, shift)

    def _nearest(self, result: PoseCandidates, sampled: GlobalCandidates) -> tuple[Tensor, Tensor]:
        """Return the nearest candidate of every sampled pose, and whether it is near enough."""
        assert self._search is not None
        ratio, count = sampled.log_likelihood_ratio, result.log_likelihood_ratio.shape[1]
        angle = ratio.new_full((*ratio.shape, count), 180.0)
        for matrix in self._group:
            mates = result.rotation[:, None] @ matrix
            angle = angle.minimum(geodesic_distance_deg(sampled.rotation[:, :, None], mates))
        apart = (sampled.shift_angstrom[:, :, None] - result.shift_angstrom[:, None]).norm(dim=-1)
        band = self._search.band
        steps = torch.maximum(
            torch.deg2rad(angle) * band.radius / self.config.spacing,
            apart / band.shift_step_angstrom,
        )
        steps = steps.masked_fill(~result.log_likelihood_ratio.isfinite()[:, None], torch.inf)
        least, place = steps.min(-1)
        return place, least < _NEAR

    def _start(
        self,
        images: Tensor,
        optics: Optics | None,
        start: PoseCandidates | None,
        scale: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[PoseCandidates, _GridSamples | None]:
        """Return the candidates to refine: known ones; those of a search where in doubt."""
        if self._search is None:
            if start is None:
                raise ValueError("start: give candidates, or make the step with search=True")
            return start, None
        if start is None:
            every = torch.arange(len(images), device=images.device)
            again, sampled = self._search_candidates(images, optics, None, scale, generator)
            return again, None if sampled is None else _GridSamples(every, sampled)
        uncertain = start.posterior[:, 0] < self.config.certain
        rows = uncertain.nonzero().flatten()
        if len(rows) == 0:
            return start, None
        some = None if optics is None else optics[rows]
        a = None if scale is None else scale[rows]
        centre = start.shift_angstrom[rows, 0]
        again, sampled = self._search_candidates(images[rows], some, centre, a, generator)
        both = PoseCandidates.cat([start, again])
        take = torch.arange(len(start), device=rows.device)
        take[rows] = len(start) + torch.arange(len(rows), device=rows.device)
        return both[take], None if sampled is None else _GridSamples(rows, sampled)

    def _search_candidates(
        self,
        images: Tensor,
        optics: Optics | None,
        centre: Tensor | None,
        scale: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[PoseCandidates, GlobalCandidates | None]:
        """Return candidates of a search without those too poor to refine, and sampled poses."""
        assert self._search is not None
        draws = self.config.draws if generator is not None and len(self._refiners) == 1 else 0
        found = self._search(images, optics, scale, centre=centre, draws=draws, generator=generator)
        ratio, best = found.log_likelihood_ratio, found.log_likelihood_ratio[:, :1]
        kept = ratio >= best - _GRID_LOSS * best.abs() - 2 * self.config.tolerance
        candidates = PoseCandidates(
            found.rotation,
            found.shift_angstrom,
            ratio.masked_fill(~kept, -torch.inf),
            torch.ones_like(ratio),
            torch.zeros_like(ratio),
            ratio.new_zeros(*ratio.shape, 5, 5),
        )
        return candidates, found.sampled

    def _refine(
        self,
        refiner: PoseRefiner,
        measured: WhitenedSpectra,
        before: PoseCandidates,
        scale: Tensor | None,
    ) -> PoseCandidates:
        """Return candidates after some steps at a band, sorted, without those beyond tolerance."""
        image, rank = before.log_likelihood_ratio.isfinite().nonzero(as_tuple=True)
        fits: list[PoseFit] = []
        every = torch.arange(len(image), device=image.device)
        for some in torch.split(every, refiner.batch_size()):
            i, j = image[some], rank[some]
            start = before.rotation[i, j], before.shift_angstrom[i, j]
            a, farthest = None if scale is None else scale[i], self._shift_range
            fits.append(
                refiner.refine(
                    measured[i], *start, a, self.config.steps, farthest_angstrom=farthest
                )
            )
        fit = PoseFit.cat(fits)
        nothing = torch.full_like(before.log_likelihood_ratio, -torch.inf)
        old, new = vars(before) | {"log_likelihood_ratio": nothing}, vars(fit)
        filled = {name: old[name].index_put((image, rank), new[name]) for name in new}
        value = nothing.index_put((image, rank), fit.log_likelihood_ratio + 2 * fit.log_volume)
        return self._weighted(filled, value, refiner.band.radius)

    def _weighted(self, filled: dict[str, Tensor], value: Tensor, radius: int) -> PoseCandidates:
        """Return candidates sorted by ``value``, without repetitions or those beyond tolerance."""
        value, order = value.sort(dim=1, descending=True, stable=True)
        rows = torch.arange(len(value), device=value.device)[:, None]
        filled = {name: tensor[rows, order] for name, tensor in filled.items()}
        rotation = filled["rotation"]
        near = torch.zeros(*value.shape, value.shape[1], dtype=torch.bool, device=value.device)
        for matrix in self._group:
            angle = geodesic_distance_deg(rotation[:, :, None] @ matrix, rotation[:, None])
            near |= torch.deg2rad(angle) < _SAME / radius
        repeated = near.tril(-1).any(2)  # the same pose as a better one
        dropped = repeated | ~(value > value[:, :1] - 2 * self.config.tolerance)
        dropped[:, 0] = False
        value = value.masked_fill(dropped, -torch.inf)
        # candidates that are left come first
        order = dropped.to(torch.uint8).sort(dim=1, stable=True).indices
        value = value[rows, order]
        width = int((~dropped).sum(1).max())
        filled = {name: tensor[rows, order][:, :width] for name, tensor in filled.items()}
        value = value[:, :width]
        ratio = filled["log_likelihood_ratio"]
        filled["log_likelihood_ratio"] = ratio.masked_fill(~value.isfinite(), -torch.inf)
        return PoseCandidates(**filled, posterior=torch.softmax(value / 2, 1))

    def _residual_power(self, measured: WhitenedSpectra, result: PoseCandidates) -> Tensor:
        """Return the sums by shell of the squared residuals of the best candidates."""
        sums = torch.zeros(self.refiner.band.radius + 1, dtype=torch.float64)
        every = torch.arange(len(result), device=result.scale.device)
        for rows in torch.split(every, self.refiner.batch_size()):
            best = vars(result[rows, 0])
            fit = PoseFit(**{name: best[name] for name in PoseFit.__annotations__})
            sums += self.refiner.residual_power(measured[rows], fit).cpu()
        return sums
