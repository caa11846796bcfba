"""A first map from images without poses: several runs from random blobs, the best goes on.

Every run is a :class:`~vitreous.methods.em.refinement.Refinement` of some images at low
frequencies, in which every round searches among all poses and the band grows slowly. Rounds use a
part of the images at first: a wrong map is left in as many rounds of a part as of all, if at all.
After one round of all images the run that leaves least of them goes on alone. The images are split
in two once more for it, whose FSC leads band and regularisation; as both halves share the map that
they are assigned under, it says nothing of whether that is right. This is for two such maps of
independent images to say.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.images import ImagesInMemory, ImageSource, ImageSubset
from vitreous.core.params import Optics
from vitreous.core.symmetry import point_group
from vitreous.methods.em.config import RandomStartConfig, RefinementConfig
from vitreous.methods.em.map_vs_noise_test import MOST_IMAGES, map_vs_noise_test
from vitreous.methods.em.refinement import Correlate, Refinement
from vitreous.optim.loop import Stats

_BLOBS, _BLOB_SIZE, _REACH = 40, 0.06, 0.3  # how many, and in units of the diameter: sigma, radius


@torch.no_grad()
def random_blobs(n: int, diameter_px: float, symmetry: str, generator: torch.Generator) -> Tensor:
    """Gaussian blobs at random places of a ball, and their symmetry mates, ``(n, n, n)``.

    Args:
        n: edge of the box, pixels.
        diameter_px: of the sphere that holds the molecule; blobs stay within 0.6 of it.
        symmetry: point group.
        generator: on the CPU.

    >>> blobs = random_blobs(16, 14.0, "C2", torch.Generator().manual_seed(0))
    >>> bool(torch.allclose(blobs[1:, 1:, 1:], blobs[1:, 1:, 1:].flip(1, 2), atol=1e-5))
    True
    """
    direction = torch.randn(_BLOBS, 3, generator=generator)
    distance = _REACH * diameter_px * torch.rand(_BLOBS, 1, generator=generator) ** (1 / 3)
    centre = direction / direction.norm(dim=1, keepdim=True) * distance
    mates = (point_group(symmetry).matrices.float() @ centre.mT).permute(0, 2, 1).reshape(-1, 3)
    axis = torch.arange(n) - n // 2
    width = _BLOB_SIZE * diameter_px
    x, y, z = torch.exp(-0.5 * ((axis - mates.mT[..., None]) / width) ** 2)
    return torch.einsum("bz,by,bx->zyx", z, y, x)


class RandomStart:
    """The runs; one call of :meth:`step` is one round of one of them.

    Args:
        images: of one half set, protein positive.
        optics: CTF of each; None for none.
        pixel_size_angstrom: Å.
        config: settings.
        correlate: Fourier shell correlation of two maps.
        device: where to compute; the CPU by default.

    Raises:
        ValueError: fewer than four images.
    """

    def __init__(
        self,
        images: ImageSource,
        optics: Optics | None,
        pixel_size_angstrom: float,
        config: RandomStartConfig,
        *,
        correlate: Correlate,
        device: torch.device | None = None,
    ) -> None:
        if len(images) < 4:
            raise ValueError(f"a start needs at least four images, got {len(images)}")
        self.config, self._correlate = config, correlate
        self.device = device or torch.device("cpu")
        self._full = images.box_size
        self._stream = torch.Generator().manual_seed(config.seed)
        self.rows = torch.randperm(len(images), generator=self._stream)[: config.images].sort()[0]
        self.box_size = min(self._full, 2 * (config.box_radius + 3))
        self.pixel_size_angstrom = pixel_size_angstrom * self._full / self.box_size
        read = ImageSubset(images, self.rows).read
        self.images = torch.cat(
            [
                fourier_resize(read(some).float(), self.box_size, 2)
                for some in torch.split(torch.arange(len(self.rows)), 512)
            ]
        )
        self.optics = None if optics is None else optics[self.rows]
        self._half = torch.arange(len(self.rows)) % 2 + 1
        self.runs: list[Refinement] = []
        self.misfits: list[float] = []

    @property
    def _length(self) -> float:
        return self.box_size * self.pixel_size_angstrom

    def _begin(self) -> Refinement:
        config = self.config
        diameter = config.diameter_angstrom or self._length
        start = random_blobs(
            self.box_size, diameter / self.pixel_size_angstrom, config.symmetry, self._stream
        )
        settings = RefinementConfig(
            start_resolution_angstrom=self._length / config.start_radius,
            symmetry=config.symmetry,
            shift_range_angstrom=config.shift_range_angstrom,
            rounds=self._rounds,
            searches=self._rounds,
            certain=1.0,
            search_radius=config.search_radius,
            growth=config.growth,
            seed=config.seed,
            diameter_angstrom=config.diameter_angstrom,
            one_map=config.one_map,
            batches=config.batches,
        )
        return Refinement(
            ImagesInMemory(self.images),
            self.optics,
            self.pixel_size_angstrom,
            self._half,
            start.to(self.device),
            settings,
            correlate=self._correlate,
        )

    @property
    def _rounds(self) -> int:
        """Of the best run."""
        return self.config.batches.rounds + self.config.rounds

    @property
    def _trial(self) -> int:
        """Rounds of every run."""
        return self.config.batches.rounds + 1

    @property
    def steps(self) -> int:
        """How many steps there are in all."""
        return self.config.starts * self._trial + self.config.rounds - 1

    @property
    def done(self) -> bool:
        """Whether the best run has come to its end."""
        return len(self.misfits) == self.config.starts and self.best.round >= self._rounds

    @property
    def best(self) -> Refinement:
        """Of the runs tried so far, the one that explains the images best."""
        return self.runs[min(range(len(self.misfits)), key=self.misfits.__getitem__)]

    def step(self) -> Stats:
        """One round; its numbers and the run's."""
        if len(self.misfits) < self.config.starts:
            if len(self.runs) == len(self.misfits):
                self.runs.append(self._begin())
            run = self.runs[-1]
            stats = run.step()
            if run.round == self._trial:
                self.misfits.append(run.misfit(self._trial_radius))
        else:
            run = self.best
            stats = run.step()
        return {**stats, "start": self.runs.index(run) + 1.0}

    @property
    def _trial_radius(self) -> int:
        """Shells that every run may have compared by the end of its trial."""
        batches = self.config.batches
        return min(self.config.start_radius + batches.rounds, batches.radius)

    def volume(self) -> Tensor:
        """The best run's map, weighted by its FSC, in the images' own box ``(n, n, n)``."""
        return fourier_resize(self.best.maps()[2], self._full, 3)

    def recognised_by(self, other: RandomStart) -> float:
        """How sure it is that another half set's images show this map: in standard errors.

        See :mod:`vitreous.methods.em.map_vs_noise_test`. Rounds have modes that they fall into
        when there is nothing else, and in which two half sets of noise agree.
        """
        best = self.best
        rows = torch.arange(min(MOST_IMAGES, len(other.rows)))
        return map_vs_noise_test(
            best.maps()[2],
            self.pixel_size_angstrom,
            other.images[rows],
            None if other.optics is None else other.optics[rows],
            torch.stack(best.noise_power).mean(0),
            [min(best.radius, self.config.search_radius)],
            best.config,
        )
