r"""Joint refinement of the map and of all poses, from poses that are roughly known.

.. math::

    \min_{c, \Theta, \Gamma} J = \tfrac12 \|b - H(\Theta, \Gamma)\, c\|^2 + \lambda R(L c),

equation (4.29), by turns (algorithm 3): over the map by ADMM on the normal equations of the poses
at hand (algorithm 4), over the poses of each image apart (4.31), which algorithm 5 does by gradient
descent with a line search and this module by Levenberg-Marquardt on rotations and shifts. No turn
is taken that makes J larger.

J has many minima in the poses, and more of them the finer the map. The stages therefore go from
coarse to fine: in each the images and the lattice are those of a box that holds the frequencies up
to a shell, and :math:`\lambda` is chosen anew. A stage may begin with a search among all poses,
which saves those that have gone to a minimum of their own.

Source: L. Donati, PhD thesis, EPFL 2020, section 4.2.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from vitreous.core.fourier import fourier_resize, irfft_centered, rfft_centered
from vitreous.core.images import ImageSource, read_ahead
from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import geodesic_distance_deg
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.global_search import GlobalSearch
from vitreous.methods.em.local_search import PoseFit, PoseRefiner
from vitreous.methods.reconstruct.model_based import accumulate, support
from vitreous.methods.reconstruct.model_based_config import ModelBasedConfig
from vitreous.methods.reconstruct.posed_particles import PosedParticles
from vitreous.optim.admm import admm
from vitreous.optim.admm_config import STRICT
from vitreous.optim.choose_strength import StrengthRange, StrengthSearch
from vitreous.optim.least_squares import LeastSquares
from vitreous.optim.loop import Stateful, Stats, run
from vitreous.optim.priors import WEIGHTED, penalty
from vitreous.physics.ctf import ctf_half
from vitreous.physics.kaiser_bessel.normal_equations import NormalEquations
from vitreous.physics.kaiser_bessel.projector import WindowProjector
from vitreous.physics.kaiser_bessel.window import KaiserBessel
from vitreous.physics.shift import shift_phases

_PROJECTED = 512  # images at a time
_POWER_OF_BOX = 4.0  # that lambda grows with, roughly: where the next stage's is looked for
_LEAST_STRENGTH = 1e-3  # of that which leaves nothing of the map, where a guess is below


@validated(frozen=True, config=STRICT)
class JointConfig:
    """Stages, rounds and poses searched.

    Args:
        radii: highest shells of the stages in cycles per box, growing; the last is at most
            ``(n - 1) // 2``.
        rounds: of each stage; one is a map and then poses.
        searched: radii of the stages whose first round looks for poses everywhere; none: only those
            near the given ones are ever looked at.
        search_radius: highest shell that a search compares.
        candidates: poses of an image that a search hands to Levenberg-Marquardt.
        steps: of Levenberg-Marquardt in a round.
        shift_range_angstrom: farthest shift of a particle; 0 allows none.
        prior: regulariser and basis; scales other than 1 are not for here, iterations are those of
            a round.
        seed: of the halves of the images between which the strength is cross-validated.

    >>> JointConfig(radii=(4, 8)).rounds
    5
    """

    radii: tuple[int, ...] = Field(min_length=1)
    rounds: int = Field(default=5, ge=1)
    searched: tuple[int, ...] = ()
    search_radius: int = Field(default=10, ge=2)
    candidates: int = Field(default=6, ge=1)
    steps: int = Field(default=3, ge=1)
    shift_range_angstrom: float = Field(default=0.0, ge=0)
    prior: ModelBasedConfig = Field(
        default_factory=lambda: ModelBasedConfig(scales=(1,), nonnegative=False, iterations=20)
    )
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for radii that do not grow, or a lattice that is not the pixels'."""
        if self.radii[0] < 2 or any(a >= b for a, b in pairwise(self.radii)):
            raise ValueError(f"radii must grow and be at least 2, got {self.radii}")
        if not set(self.searched) <= set(self.radii):
            raise ValueError(f"searched must be among radii {self.radii}, got {self.searched}")
        if self.prior.scales != (1,):
            raise ValueError(f"prior.scales must be (1,), got {self.prior.scales}; set radii")


@dataclass(frozen=True)
class JointResult:
    """Map and poses of a run.

    Args:
        map: ``(n, n, n)``, without what lies beyond the stage's band.
        coefficients: c ``(m, m, m)``.
        pose: of every image.
        strength: lambda.
    """

    map: Tensor
    coefficients: Tensor
    pose: Pose
    strength: float


class JointRefinement(Stateful):
    """Solver for map and poses; one call of :meth:`step` is one round of algorithm 3.

    There is one map of all images. For half maps that share nothing, run two of these.

    Args:
        images: protein positive; their noise is taken for white.
        optics: CTF of each; None for none.
        pixel_size_angstrom: Å.
        pose: start, rotations ``(b, 3, 3)`` and shifts ``(b, 2)``.
        config: settings.
        device: where to compute; the CPU by default.

    Attributes:
        pose: of every image, as far as it is refined.
        coefficients: c ``(m, m, m)`` of the stage's box, zeros before the first round.
        strength: lambda of the stage.

    Raises:
        ValueError: lengths that do not agree, a radius beyond Nyquist.

    >>> import vitreous as vt
    >>> particles = vt.simulate(vt.phantom(16, 8.0), 40, 8.0, snr_db=10, seed=1)
    >>> config = JointConfig(radii=(5,), rounds=1)
    >>> solver = JointRefinement(particles.images(), particles.optics, 8.0, particles.pose, config)
    >>> stats = solver.step()
    >>> stats["objective"] <= stats["before"], solver.done, tuple(solver.result().map.shape)
    (True, True, (16, 16, 16))
    """

    STATE = ("round", "strength", "coefficients", "pose")

    def __init__(
        self,
        images: ImageSource,
        optics: Optics | None,
        pixel_size_angstrom: float,
        pose: Pose,
        config: JointConfig,
        *,
        device: torch.device | None = None,
    ) -> None:
        if not len(images) == len(pose) == (len(images) if optics is None else len(optics)):
            raise ValueError(
                f"{len(images)} images, but {len(pose)} poses; give a row for each, of CTFs too"
            )
        if config.radii[-1] > (images.box_size - 1) // 2:
            raise ValueError(
                f"radii must be at most {(images.box_size - 1) // 2} for a box of "
                f"{images.box_size} px, got {config.radii}"
            )
        self.images, self.optics, self.config = images, optics, config
        self.pixel_size_angstrom = pixel_size_angstrom
        self.pose = Pose(pose.rotation.float().cpu(), pose.shift_angstrom.float().cpu())
        self._device = device or torch.device("cpu")
        stream = torch.Generator().manual_seed(config.seed)
        self._half = torch.randperm(len(images), generator=stream) % 2 + 1
        self.round = 0
        self.strength = 0.0
        self.coefficients = torch.zeros((self._box_of_stage(),) * 3, device=self._device)
        self._equations: NormalEquations | None = None

    @property
    def rounds(self) -> int:
        """Number of rounds in all."""
        return len(self.config.radii) * self.config.rounds

    @property
    def done(self) -> bool:
        """Whether all rounds are done."""
        return self.round >= self.rounds

    @property
    def progress(self) -> float:
        """Share of the rounds that are done."""
        return min(self.round / self.rounds, 1.0)

    @property
    def stage(self) -> int:
        """Number of the stage that the next round belongs to."""
        return min(self.round // self.config.rounds, len(self.config.radii) - 1)

    @property
    def box_size(self) -> int:
        """Edge m of the lattice, and of the images for it."""
        return int(self.coefficients.shape[-1])

    def _box_of_stage(self) -> int:
        return min(self.images.box_size, 2 * (self.config.radii[self.stage] + 1))

    @property
    def _pixel(self) -> float:
        return self.pixel_size_angstrom * self.images.box_size / self.box_size

    @torch.no_grad()
    def step(self) -> Stats:
        """Do one round: the map of these poses, then the poses under it.

        Returns:
            J at the start of the round ("before"), under the round's map ("map") and with its poses
            too ("objective"); the stage's band and strength; how far poses have moved (medians).
        """
        first = self.round % self.config.rounds == 0
        if first:
            self._start_stage()
        search = first and self.config.radii[self.stage] in self.config.searched
        misfits = self.misfits(self.pose, self.coefficients)
        before = self._objective(self.coefficients, misfits)
        misfits, after = self._update_map(misfits, before)
        turned_deg, moved_angstrom, misfits = self._update_poses(misfits, search)
        stats = {
            "before": before,
            "map": after,
            "objective": self._objective(self.coefficients, misfits),
            "strength": self.strength,
            "band_angstrom": self._pixel * self.box_size / self.config.radii[self.stage],
            "turned_deg": turned_deg,
            "moved_angstrom": moved_angstrom,
        }
        self.round += 1
        return stats

    @torch.no_grad()
    def misfits(self, pose: Pose, coefficients: Tensor) -> Tensor:
        """Return J_p of every image at the stage's box, equation (4.32), float64 ``(b,)``."""
        misfits = []
        for rows, images in self._small_images(_PROJECTED):
            residual = images - self._project(pose[rows].to(self._device), rows, coefficients)
            misfits.append(0.5 * residual.double().square().sum((1, 2)).cpu())
        return torch.cat(misfits)

    def volume(self) -> Tensor:
        """Return the map ``(n, n, n)``, without what lies beyond the stage's band."""
        return fourier_resize(self._expanded(), self.images.box_size, 3)

    def result(self) -> JointResult:
        """Return the map and the poses as they are."""
        return JointResult(self.volume(), self.coefficients, self.pose, self.strength)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the :meth:`state_dict` of a run with the same images and settings."""
        super().load_state_dict(state)
        self._equations = None

    @property
    def _basis(self) -> KaiserBessel:
        return self.config.prior.basis

    def _expanded(self) -> Tensor:
        """Return the map ``(m, m, m)`` whose projections are H c; sampled windows would alias."""
        m = self.box_size
        k, half = torch.fft.fftfreq(m), torch.fft.rfftfreq(m)
        radius = (k[:, None, None].square() + k[:, None].square() + half.square()).sqrt()
        transfer = self._basis.transform(radius).to(self.coefficients)
        return irfft_centered(rfft_centered(self.coefficients, 3) * transfer, (m, m, m))

    def _sums(self) -> tuple[NormalEquations, NormalEquations]:
        rotation, shift = self.pose.rotation, self.pose.shift_angstrom
        particles = PosedParticles(
            self.images, rotation, shift, self.optics, self.pixel_size_angstrom, self._half
        )
        return accumulate(particles, self._basis, box_size=self.box_size, device=self._device)

    def _start_stage(self) -> None:
        """Set up the lattice of the stage's box, and lambda for its maps."""
        growth = self._box_of_stage() / self.box_size
        if self.round > 0:
            grown = fourier_resize(self._expanded(), self._box_of_stage(), 3)
            self.coefficients = self._basis.analyse(grown)
        sums = self._sums()
        self._equations = sums[0] + sums[1]
        self.strength = self._choose_strength(sums, self.strength * growth**_POWER_OF_BOX)

    def _choose_strength(
        self, sums: tuple[NormalEquations, NormalEquations], guess: float
    ) -> float:
        """Return lambda of all images."""
        prior = self.config.prior
        if prior.strength is not None or prior.regulariser == "none":
            return prior.strength or 0.0
        first, second = map(LeastSquares.of_images, sums)
        weighted = WEIGHTED[prior.regulariser](0.0)
        around = None
        if guess > 0:  # not from far below, where every strength scores alike
            around = max(guess, _LEAST_STRENGTH * weighted.strongest(first))
        mask = support(self.box_size, 1).to(self._device)
        among = StrengthRange(around)
        search = StrengthSearch((first, second), weighted, prior.solver, mask=mask, among=among)
        return run(search).strength * (2**0.5 if weighted.is_norm else 1.0)

    def _small_images(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows and images ``(b, m, m)``, with grey values of projections of larger voxels.

        At most ``count`` at a time.
        """
        m, n = self.box_size, self.images.box_size
        for rows, read in read_ahead(self.images, torch.arange(len(self.images))):
            small = fourier_resize(read.to(self._device, torch.float32), m, 2) * (m / n)
            yield from zip(torch.split(rows, count), torch.split(small, count), strict=True)

    def _optics(self, rows: Tensor) -> Optics | None:
        return None if self.optics is None else self.optics[rows].to(self._device)

    def _project(self, pose: Pose, rows: Tensor, coefficients: Tensor) -> Tensor:
        """Return H c of a batch of images, ``(b, m, m)``."""
        m, optics = self.box_size, self._optics(rows)
        multiplier = shift_phases(m, pose.shift_angstrom, self._pixel)
        if optics is not None:
            multiplier = multiplier * ctf_half(m, self._pixel, optics)
        return WindowProjector(pose.rotation, m, self._basis, 1, multiplier)(coefficients)

    def _objective(self, c: Tensor, misfits: Tensor) -> float:
        """Return J of equation (4.29)."""
        return float(misfits.sum()) + penalty(self.config.prior.prior(self.strength), c)

    def _update_map(self, misfits: Tensor, before: float) -> tuple[Tensor, float]:
        """Do algorithm 4, unless J grows; return misfits and J after it."""
        if self._equations is None:
            first, second = self._sums()
            self._equations = first + second
        result = admm(
            LeastSquares.of_images(self._equations),
            self.config.prior.prior(self.strength),
            self.config.prior.solver,
            start=self.coefficients,
            mask=support(self.box_size, 1).to(self._device),
        )
        self._equations = None  # poses will move
        new_misfits = self.misfits(self.pose, result.volume)
        after = self._objective(result.volume, new_misfits)
        if after > before:
            return misfits, before
        self.coefficients = result.volume
        return new_misfits, after

    def _update_poses(self, misfits: Tensor, search: bool) -> tuple[float, float, Tensor]:
        """Refine all poses, in the place of algorithm 5.

        Returns:
            the median rotation in degrees and shift in Å, and the misfits.
        """
        m = self.box_size
        band = FrequencyBand(m, self._pixel, (m - 1) // 2)
        volume = self._expanded()
        flat = torch.ones(m // 2 + 1, device=self._device)  # (4.29) has white noise
        refiner = PoseRefiner(volume, band, flat[: band.radius + 1])
        global_search = self._global_search(volume, flat) if search else None
        rotation, shift = torch.empty_like(self.pose.rotation), self.pose.shift_angstrom.clone()
        for rows, images in self._small_images(refiner.batch_size()):
            fit = self._fit(refiner, global_search, images, rows)
            rotation[rows] = fit.rotation.cpu()
            shift[rows] = fit.shift_angstrom.cpu()
        return self._accept(Pose(rotation, shift), misfits)

    def _accept(self, pose: Pose, misfits: Tensor) -> tuple[float, float, Tensor]:
        """Take the poses that fit better, now by all of H and not only within the band."""
        new_misfits = self.misfits(pose, self.coefficients)
        better = new_misfits < misfits
        before = self.pose
        rotation = torch.where(better[:, None, None], pose.rotation, before.rotation)
        shift = torch.where(better[:, None], pose.shift_angstrom, before.shift_angstrom)
        self.pose = Pose(rotation, shift)
        turned_deg = geodesic_distance_deg(rotation, before.rotation).median()
        moved_angstrom = (shift - before.shift_angstrom).norm(dim=1).median()
        return float(turned_deg), float(moved_angstrom), torch.where(better, new_misfits, misfits)

    def _global_search(self, volume: Tensor, noise_power: Tensor) -> GlobalSearch:
        m = self.box_size
        band = FrequencyBand(m, self._pixel, min((m - 1) // 2, self.config.search_radius))
        return GlobalSearch(
            volume,
            band,
            band.noise_power(noise_power),
            shift_range_angstrom=self.config.shift_range_angstrom,
            candidates=self.config.candidates,
        )

    def _fit(
        self, refiner: PoseRefiner, search: GlobalSearch | None, images: Tensor, rows: Tensor
    ) -> PoseFit:
        """Return poses of a batch of images, none with a larger misfit than it has."""
        optics = self._optics(rows)
        measured = refiner.measure(images, optics)
        start = self.pose[rows].to(self._device)
        one = torch.ones(len(rows), device=self._device)
        steps, farthest = self.config.steps, self.config.shift_range_angstrom

        def refined(rotation: Tensor, shift: Tensor) -> PoseFit:
            return refiner.refine(measured, rotation, shift, one, steps, farthest_angstrom=farthest)

        best = refined(start.rotation, start.shift_angstrom)
        if search is None:
            return best
        candidates = search(search.band.images(images), optics, one)
        for rank in range(candidates.log_likelihood_ratio.shape[1]):
            other = refined(candidates.rotation[:, rank], candidates.shift_angstrom[:, rank])
            best = best.with_better(other)
        return best
