r"""Test whether images show the finer shells of a map, by poses that were found without them.

Half maps can agree on a wrong map: where the coarse shells of images tell no orientation, poses
found under a map sharpen what that map began with, in both half sets alike. Poses found by the
coarse shells then do not predict the finer ones. So every image is searched under the map of the
other half set, up to three quarters of the shells in question. Beyond these (and a gap, as
neighbouring shells of a compact object are not independent) the map's projection P at that pose,
without the map's spherical mean, is compared with the image y:

.. math::

    T = \sum_k w_k\, \mathrm{Re}\, \hat y_k^*\, c_k\, s_t(k)\, \hat P_k ,

with the weight one over the noise power: the log likelihood ratio of the finer shells, to first
order. There is one value for each image. The same is done with images simulated from the map, at
the poses found and with noise of the same power. Of a true map real and simulated images give the
same T, whether their poses are sure or not; real ones a larger one, where errors of the poses blur
the map. Of a wrong map T is near zero; or, where the map is a blend of poses that one more search
would change, much larger than the map itself predicts.

The poses found are also compared with those of the refinement: do the map's projections there look
alike (so that the mates of a symmetry nobody told are the same)? Of a true map they do as often as
poses of simulated images are found again, whatever the noise. Of a blend they do less often: there
every image fits one of several mixed maps, and not always the same one.

A wrong map that pleases all these holds less than the images do. Within the coarse shells the mean
square of images over the box is fitted by that of the map's projections and a constant (the noise).
The factor is 1 where the map accounts for all that stands out from the background. Less tells
nothing: neighbours in the corners of crowded images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.grid import radius_grid, shell_index
from vitreous.core.images import ImagesInMemory, ImageSource, shell_power
from vitreous.core.params import Optics, Pose
from vitreous.core.random import generator
from vitreous.core.threads import parallel_map
from vitreous.maps.fsc import fsc
from vitreous.maps.fsc_warnings import without_spherical_mean
from vitreous.maps.shell_filter import weight_shells
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.expectation import ExpectationStep, images_at_once
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.local_search import PoseRefiner
from vitreous.methods.em.refinement_result import RefinementResult
from vitreous.methods.reconstruct.gridding import particle_sphere
from vitreous.metrics.significance import standard_errors
from vitreous.physics.simulator import simulate

CERTAIN = 7.0  # standard errors from which images show the finer shells
LEAST, MOST = 0.5, 2.5  # T over that of images simulated from the map
MOST_LEFT = 1.5  # mean square that stands out from the background, over the map's
STABLE = 0.9  # poses that are found again, over those of simulated images
IMAGES = 500  # of each half set
_FEWER = 125  # enough where all answers are far from their bounds
_COARSE = 0.75  # of the shells in question: those that find the poses
_LEAST_NOISE = 0.05  # of an image's power, where the map's is as large
_LEAST_EXPECTED = 1e-3  # of the spread of T: maps that predict less predict nothing
_SAME_VIEW = 0.85  # correlation of coarse shells from which poses show the same view
_GAP = 1  # shells between these and the finer ones
_FIRST_SHELL = 3  # below lies what is left of a gradient of the ice


@dataclass(frozen=True)
class FinerShells:
    """Evidence of images for shells of a map that took no part in finding their poses.

    Args:
        z: mean of T over images, in standard errors; near 0 where images do not show the shells.
        ratio: mean of T over that of images simulated from the map; 1 for a true map.
        coarse_angstrom: end of the shells that found the poses.
        finer_angstrom: end of the shells that were compared.
        images: number of images.
        stability: share of poses found that are those of the refinement, over the share of poses
            of simulated images that are found again; 1 for a true map.
        standing_out: mean square of images that stands out from the background, over that of the
            map's projections; 1 for a true map.
    """

    z: float
    ratio: float
    coarse_angstrom: float
    finer_angstrom: float
    images: int
    stability: float = 1.0
    standing_out: float = 1.0

    @property
    def shown(self) -> bool:
        """Whether the images show the finer shells, as strongly as the map predicts, and no more.

        >>> [FinerShells(9.0, ratio, 10.0, 7.5, 1000).shown for ratio in (0.1, 0.9, 3.0)]
        [False, True, False]
        """
        predicted = self.z >= CERTAIN and self.ratio >= LEAST
        return predicted and not self.unfinished and self.standing_out <= MOST_LEFT

    @property
    def unfinished(self) -> bool:
        """Whether another search would change poses: the map is a blend.

        >>> FinerShells(9.0, 1.0, 10.0, 7.5, 1000, stability=0.6).unfinished
        True
        """
        return self.z >= CERTAIN and (self.ratio > MOST or self.stability < STABLE)

    @property
    def clear(self) -> bool:
        """Whether the answers are so far from their bounds that fewer images would do."""
        predicted = self.z >= 2 * CERTAIN and 0.7 <= self.ratio <= 1.5
        return predicted and self.stability >= 0.95 and self.standing_out <= 1.2


@torch.no_grad()
def finer_shells_test(
    refined: RefinementResult,
    images: ImageSource,
    optics: Optics | None,
    half_set: Tensor,
    resolution_angstrom: float,
    config: RefinementConfig,
    *,
    pixel_size_angstrom: float,
    progress: Callable[[float], object] = float,
) -> FinerShells:
    """Test half maps of a refinement; see the module's text.

    A quarter of the images is asked first, and the rest where their answers are not clear.

    Args:
        refined: half maps and poses; images that it has rejected are not used.
        images: all particle images, protein positive.
        optics: of each; None for none.
        half_set: long ``(b,)`` of 1 and 2.
        resolution_angstrom: end of the shells in question.
        config: of the search.
        pixel_size_angstrom: Å.
        progress: called after each half set with the share that is done.
    """
    half_maps = refined.half1, refined.half2
    pose, kept = refined.poses.pose, refined.poses.kept.cpu()
    n = int(half_maps[0].shape[-1])
    edge = n * pixel_size_angstrom
    top = max(4, min((n - 1) // 2, round(edge / max(resolution_angstrom, 2 * pixel_size_angstrom))))
    coarse = max(2, math.floor(_COARSE * top))
    volumes = _weighted(half_maps, (config.diameter_angstrom or edge) / edge)
    stream = generator(config.seed, "finer shells")
    asked: list[tuple[_Comparison, Tensor]] = []  # of each half set, and its rows
    for half in (1, 2):
        own = ((half_set == half) & kept).nonzero().flatten()
        chosen = own[torch.randperm(len(own), generator=stream)[:IMAGES]]
        power = shell_power(images, chosen.sort().values).to(volumes[0].device)
        one = _Comparison(volumes[2 - half], pixel_size_angstrom, power, config, coarse, top)
        asked.append((one, chosen))
    columns: list[tuple[Tensor, ...]] = []
    for part in (slice(_FEWER), slice(_FEWER, None)):
        for one, chosen in asked:
            rows = chosen[part].sort().values
            of_rows = None if optics is None else optics[rows]
            known = pose[rows.to(pose.rotation.device)]
            if len(rows):
                columns.append(one.answers(images.read(rows).float(), of_rows, known, stream))
            progress(len(columns) / (2 * len(asked)))
        finer = _evidence(columns, edge / coarse, edge / top)
        if finer.clear:
            break
    return finer


def _evidence(
    columns: list[tuple[Tensor, ...]], coarse_angstrom: float, finer_angstrom: float
) -> FinerShells:
    """Return the evidence of the answers of parts of the images."""
    value, expected, found, found_again, standing_out = (
        torch.cat(column).double() for column in zip(*columns, strict=True)
    )
    least = (_LEAST_EXPECTED * value.std()).clamp_min(1e-12)
    return FinerShells(
        standard_errors(value),
        float(value.mean() / torch.maximum(expected.mean(), least)),
        coarse_angstrom,
        finer_angstrom,
        len(value),
        float(found.mean() / found_again.mean().clamp_min(1 / len(value))),
        float(standing_out.mean()),
    )


def _weighted(half_maps: tuple[Tensor, Tensor], diameter_share: float) -> list[Tensor]:
    """Return both maps within the particle's sphere, their shells weighted by their FSC."""
    sphere = particle_sphere(len(half_maps[0]), diameter_share, half_maps[0].device)
    first, second = (one.float() * sphere for one in half_maps)
    weight = fsc(first, second).clamp(0, 1)
    return [weight_shells(one, weight) for one in (first, second)]


class _Comparison:
    """Comparison of images with the finer shells of one map."""

    def __init__(
        self,
        volume: Tensor,
        pixel_size_angstrom: float,
        noise_power: Tensor,
        config: RefinementConfig,
        coarse: int,
        top: int,
    ) -> None:
        radii = config.radii(coarse, search=True)
        self._device, self._volume, self._pixel = volume.device, volume, pixel_size_angstrom
        self._search = ExpectationStep(volume, pixel_size_angstrom, radii, noise_power, config)
        band = FrequencyBand(len(volume), pixel_size_angstrom, top)
        self._finer = PoseRefiner(
            without_spherical_mean(volume), band, band.noise_power(noise_power)
        )
        self._coarse, self._compared = coarse, self._finer.shell > coarse + _GAP

    def answers(
        self, images: Tensor, optics: Optics | None, known: Pose, stream: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Return, of each image, T; T of its simulation; whether poses are found again; its share.

        Poses found in the images are compared with the known ones, those found in simulations with
        the poses they were made with. The last is :meth:`standing_out`.
        """
        value, poses = self.of_images(images, optics)
        clean = self.clean(poses, optics)
        simulated = clean + self.noise(images, clean, stream)
        expected, again = self.of_images(simulated, optics)
        same = self.same_view(known, poses), self.same_view(poses, again)
        return value, expected, *same, self.standing_out(images, clean)

    def of_images(self, images: Tensor, optics: Optics | None) -> tuple[Tensor, Pose]:
        """Return T of every image ``(b, n, n)``, and its best pose."""
        every = torch.arange(len(images))
        batches = torch.split(every, images_at_once(self._device, len(every)) or len(every))

        def compare(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            own = images[rows].to(self._device)
            of_rows = None if optics is None else optics[rows].to(self._device)
            found = self._search(own, of_rows).candidates
            pose = found.rotation[:, 0], found.shift_angstrom[:, 0]
            measured = self._finer.measure(self._finer.band.images(own), of_rows)
            values, slices = self._finer.shift_corrected(measured, *pose)
            model = (slices * measured.transfer)[:, self._compared]
            return (values[:, self._compared].conj() * model).real.sum(1).cpu(), *pose

        parts = list(parallel_map(compare, batches, self._device))
        cross, rotation, shift = (torch.cat(column) for column in zip(*parts, strict=True))
        return cross, Pose(rotation, shift)

    def same_view(self, pose: Pose, other: Pose) -> Tensor:
        """Return whether the map looks the same at two poses ``(b,)``, bool ``(b,)``."""
        return (self._finer.correlation(pose, other, self._coarse) > _SAME_VIEW).cpu()

    def clean(self, pose: Pose, optics: Optics | None) -> Tensor:
        """Return noiseless images of the map at given poses, ``(b, n, n)``, on the CPU."""
        optics = None if optics is None else optics.to(self._device)
        shift = pose.shift_angstrom
        return simulate(self._volume, pose.rotation, shift, optics, self._pixel).cpu()

    def noise(self, images: Tensor, clean: Tensor, stream: torch.Generator) -> Tensor:
        """Return noise ``(b, n, n)``, by shell of the power of images less that of clean ones."""
        n = images.shape[-1]
        every = torch.arange(len(images))
        total, signal = (shell_power(ImagesInMemory(one), every) for one in (images, clean))
        noise = torch.fft.rfft2(torch.randn(images.shape, generator=stream))
        power = (total - signal).clamp_min(_LEAST_NOISE * total) / n**2
        shell = shell_index(n, 2).clamp(max=n // 2)
        return torch.fft.irfft2(noise * power.sqrt()[shell], s=(n, n)).float()

    def standing_out(self, images: Tensor, clean: Tensor) -> Tensor:
        """Return each image's share in the factor of the map's mean square, ``(b,)``."""
        n = images.shape[-1]
        shell = shell_index(n, 2)
        band = ((shell >= _FIRST_SHELL) & (shell <= self._coarse)).float()
        seen = radius_grid(n, 2) < n / 2 - 1
        of_images, of_map = (
            torch.fft.irfft2(torch.fft.rfft2(one) * band, s=(n, n)).square()[:, seen]
            for one in (images, clean)
        )
        shape = of_map.mean(0)
        shape = shape - shape.mean()
        return (of_images @ shape) / shape.square().sum().clamp_min(1e-30)
