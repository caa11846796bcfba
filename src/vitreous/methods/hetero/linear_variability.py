r"""Linear variability: particles of known poses as a mean map and a few components.

Every particle shows :math:`V(z) = \mu + \sum_k z_k V_k` with a latent z of its own, standard
normal. A pass over the images is one step of expectation maximisation: the posterior of latent and
contrast of each image under the present maps (:mod:`vitreous.methods.hetero.latents`), then all
maps at once from all images (:mod:`vitreous.methods.hetero.component_sums`). Low frequencies come
first.

After each pass the model is brought into a standard form, one of many equivalent ones: contrasts of
mean 1, latents of mean 0 and covariance I over the images, and components whose information in the
images is uncorrelated, the most informative one first. This saves many passes. The embedding gives
each latent in units of its own uncertainty: where images carry no information, points contract,
and distances are weighted by their certainty.

The prior of the maps assumes that their spectra fall off as that of the mean, by a factor that is
estimated for each. It shrinks the maps at every pass; the covariance I undoes that for what the
images inform about, or factor and map would shrink each other to zero.

Sources: M. E. Tipping and C. M. Bishop, J. R. Stat. Soc. B 61 (1999) 611; A. Punjani and D. J.
Fleet, J. Struct. Biol. 213 (2021) 107702 (whose components are found likewise, but orthonormal and
with neither prior nor covariance).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import shell_index
from vitreous.core.images import (
    ImageSource,
    check_image_rows,
    pixel_size_of,
    read_ahead,
    shell_power,
)
from vitreous.core.params import Optics, Pose
from vitreous.methods.hetero.component_sums import ComponentSums
from vitreous.methods.hetero.latents import Latents, infer
from vitreous.methods.reconstruct.gridding import particle_sphere
from vitreous.optim.admm_config import STRICT
from vitreous.optim.loop import Stateful
from vitreous.physics.insertion import half_disc, weighted_slices
from vitreous.physics.projector import central_slices, oversampled_spectrum

_BATCH = 256  # images; bounds the memory
_MARGIN = 3  # shells between the highest compared and the maps' Nyquist frequency
_MIN_POWER = 0.02  # of a component's prior, relative to the mean map
_MIN_NOISE = 0.01  # of the images' power


@validated(frozen=True, config=STRICT)
class LinearVariabilityConfig:
    """Settings of :class:`~vitreous.methods.hetero.linear_variability.LinearVariability`.

    Args:
        components: d. K clearly different structures need K - 1, a motion by more than its own
            width two or three; components too many shrink to zero. 4 to 6 suffice for most data.
        passes: over all images; each is one step.
        radius: highest shell compared, in cycles per box, at most the images' Nyquist frequency.
            Structures differ at low resolution, and time and memory grow with its square and cube.
        start_radius: highest shell of the first pass; it grows to ``radius`` in half of the passes.
        contrast: whether every image has a contrast of its own; otherwise the components explain
            differences of contrast first.
        contrast_spread: standard deviation of the contrasts, whose mean is 1.
        diameter_angstrom: of the sphere that holds the particle; the box by default.
    """

    components: int = Field(default=5, ge=1)
    passes: int = Field(default=20, ge=2)
    radius: int = Field(default=16, ge=3)
    start_radius: int = Field(default=5, ge=2)
    contrast: bool = True
    contrast_spread: float = Field(default=0.15, gt=0)
    diameter_angstrom: float | None = Field(default=None, gt=0)


class LinearVariability(Stateful):
    """Solver of the linear model, a :class:`~vitreous.methods.hetero.class_maps.LatentModel`.

    A call of :meth:`step` is one pass over the images. Nothing is stored for each image.

    Args:
        images: protein positive.
        optics: CTF of each image; None for none.
        poses: of each image, from a refinement of all of them as one structure.
        config: settings.
        generator: draws the first latents, on the CPU.
        pixel_size_angstrom: Å; by default that of the images, if they know it.
        device: where to compute; the CPU by default.

    Raises:
        ValueError: lengths that do not agree.
    """

    STATE = ("passes", "seed", "maps", "noise_power", "information")

    def __init__(
        self,
        images: ImageSource,
        optics: Optics | None,
        poses: Pose,
        config: LinearVariabilityConfig,
        *,
        generator: torch.Generator,
        pixel_size_angstrom: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        full, total = images.box_size, len(images)
        half = torch.ones(total, dtype=torch.long)
        check_image_rows(images, poses.rotation, poses.shift_angstrom, optics, half, full)
        self.images, self.optics, self.poses = images, optics, poses
        self.pixel_size_angstrom = pixel_size_of(images, pixel_size_angstrom)
        self.config = config
        self._device = device or torch.device("cpu")
        self._max_radius = min(config.radius, (full - 1) // 2)
        self._n = min(full, 2 * (self._max_radius + _MARGIN))
        self.seed = int(torch.randint(2**62, (), generator=generator))
        points = half_disc(self._n)
        index = points.ky % self._n * (self._n // 2 + 1) + points.kx
        self._index = torch.as_tensor(index, device=self._device)
        kx, ky = (torch.as_tensor(k, device=self._device).double() for k in (points.kx, points.ky))
        self._shell = (kx.square() + ky.square()).sqrt().round().long()
        power = shell_power(images, torch.arange(total))[: self._n // 2 + 1]
        self._power = power * (self._n / full) ** 6
        self.passes = 0
        self.noise_power = self._power.clone()
        self.maps = torch.zeros(config.components + 1, self._n, self._n, self._n)
        self.maps = self.maps.to(self._device)
        self.information = torch.zeros(config.components)

    @property
    def done(self) -> bool:
        """Whether all passes are done."""
        return self.passes >= self.config.passes

    @property
    def progress(self) -> float:
        """Share of the passes that is done, 0 to 1."""
        return self.passes / self.config.passes

    @property
    def box_size(self) -> int:
        """Edge of the maps in pixels, the images' own."""
        return self.images.box_size

    @property
    def radius(self) -> int:
        """Highest shell of the next pass."""
        first = min(self.config.start_radius, self._max_radius)
        share = min(1.0, 2 * self.passes / self.config.passes)
        return round(first + share * (self._max_radius - first))

    def _weights(self) -> Tensor:
        """Return the weight of every point in a log-likelihood, ``(points,)``: 2 / noise power."""
        weight = (2 / self.noise_power).float().to(self._device)  # 2: with the Friedel mate
        weight[0] = weight[1]  # the images' mean is arbitrary
        return weight[self._shell] * (self._shell <= self.radius)

    def _batches(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows, their rotations and weighted slices ``(b, points, 3)``."""
        for read_rows, images in read_ahead(self.images, rows):
            for batch in torch.split(torch.arange(len(read_rows)), _BATCH):
                row = read_rows[batch]
                optics = None if self.optics is None else self.optics[row].to(self._device)
                values = weighted_slices(
                    images[batch].to(self._device, torch.float32),
                    self.poses.shift_angstrom[row].to(self._device),
                    optics,
                    self.pixel_size_angstrom,
                    box_size=self._n,
                )
                yield row, self.poses.rotation[row].float().to(self._device), values

    def _projections(self, spectra: list[Tensor], rotation: Tensor, compared: Tensor) -> Tensor:
        """Return slices of all maps at the points compared, complex ``(b, d + 1, points)``."""
        index = self._index[compared]
        slices = [central_slices(one, rotation, self._n).flatten(1)[:, index] for one in spectra]
        return torch.stack(slices, 1)

    def _posterior(self, slices: Tensor, values: Tensor, weight: Tensor) -> tuple[Latents, Tensor]:
        """Return the latents of images, and the components' products ``(b, d, d)``."""
        root = (values[..., 2] * weight).sqrt()
        flat = torch.view_as_real(slices * root[:, None]).flatten(2)
        gram = flat @ flat.mT
        image = (values[..., :2] * weight[:, None]).flatten(1)
        cross = (torch.view_as_real(slices).flatten(2) @ image[..., None])[..., 0]
        spread = self.config.contrast_spread if self.config.contrast else None
        return infer(gram, cross, spread), gram[:, 1:, 1:]

    def _residual_power(self, slices: Tensor, values: Tensor, latents: Latents) -> Tensor:
        r"""Return the mean of :math:`|y - a c s V(z)|^2 - |y|^2`, summed over images, by point."""
        beta, _ = latents.moments()
        model = (beta.to(slices.dtype)[:, None] @ slices)[:, 0]
        cross = (torch.view_as_real(model) * values[..., :2]).sum(-1)
        root = torch.linalg.cholesky(latents.covariance) * latents.contrast[:, None, None]
        variance = torch.view_as_real(root.mT.to(slices.dtype) @ slices[:, 1:]).square().sum((1, 3))
        power = torch.view_as_real(model).square().sum(-1) + variance
        return (values[..., 2] * power - 2 * cross).double().sum(0)

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        """Do one pass and return its statistics."""
        count, total = self.config.components, len(self.images)
        weight = self._weights()
        compared = ((self._shell > 0) & (self._shell <= self.radius)).nonzero().flatten()
        spectra = [oversampled_spectrum(one) for one in self.maps]
        sums = ComponentSums(self._n, count + 1, device=self._device)
        first = torch.zeros(count, dtype=torch.float64)
        second = torch.zeros(count, count, dtype=torch.float64)
        information = torch.zeros(count, count, dtype=torch.float64)
        residual_power = torch.zeros(len(compared), dtype=torch.float64, device=self._device)
        contrast = torch.zeros(2, dtype=torch.float64)
        for row, rotation, values in self._batches(torch.arange(total)):
            if self.passes == 0:
                latents = self._random_latents(row)
                gram = latents.covariance
            else:
                chosen = values[:, compared]
                slices = self._projections(spectra, rotation, compared)
                latents, gram = self._posterior(slices, chosen, weight[compared])
                residual_power += self._residual_power(slices, chosen, latents)
            beta, products = latents.moments()
            sums.insert(values * weight[:, None], rotation, beta, products)
            z, a = latents.mean, latents.contrast
            first += z.double().sum(0).cpu()
            second += (z.mT @ z + latents.covariance.sum(0)).double().cpu()
            information += (a[:, None, None] ** 2 * gram).double().sum(0).cpu()
            contrast += torch.stack([a.sum(), a.square().sum()]).cpu()
        radius, mean = self.radius, contrast[0] / total
        self._update_maps(sums, float(mean), first / total, second / total, information / total)
        if self.passes > 0:
            self._update_noise(residual_power / total, compared)
        self.passes += 1
        stats = {
            "band_angstrom": self.box_size * self.pixel_size_angstrom / radius,
            "contrast_spread": float((contrast[1] / total - mean**2).clamp_min(0).sqrt()),
        }
        return stats | {f"information_{k + 1}": float(v) for k, v in enumerate(self.information)}

    def _random_latents(self, row: Tensor) -> Latents:
        """Draw latents to start from, the same for a row in any batch."""
        count = self.config.components
        drawn = [
            torch.randn(count, generator=torch.Generator().manual_seed((self.seed + i) % 2**63))
            for i in row.tolist()
        ]
        z = torch.stack(drawn).to(self._device)
        return Latents(torch.ones_like(z[:, 0]), z, z.new_zeros(len(z), count, count))

    def _prior(self) -> Tensor | None:
        """Return twice the inverse variance of the maps by shell, ``(d + 1, n // 2 + 1)``."""
        if self.passes == 0:
            return None
        shell = shell_index(self._n, 3, device=self._device).clamp(max=self._n // 2).flatten()
        power = torch.fft.rfftn(self.maps, dim=(1, 2, 3)).abs().square().flatten(1)
        sums = power.new_zeros(len(power), self._n // 2 + 1).index_add_(1, shell, power)
        means = sums[0] / torch.bincount(shell)
        known = min(self.radius, self._n // 2)
        means[known:] = means[known - 1]  # shells that the next pass adds
        share = (sums[:, 1:known].sum(1) / sums[0, 1:known].sum()).clamp_min(_MIN_POWER)
        return 2 / (share[:, None] * means.clamp_min(1e-6 * means.max()))

    def _update_maps(
        self,
        sums: ComponentSums,
        contrast: float,
        mean: Tensor,
        second: Tensor,
        information: Tensor,
    ) -> None:
        """Solve for the maps and bring them into the standard form.

        Means over the images: contrast, which goes into the maps; z ``(d,)``, its products and
        its precision ``(d, d)``.
        """
        diameter = self.config.diameter_angstrom or self.box_size * self.pixel_size_angstrom
        share = diameter / (self.box_size * self.pixel_size_angstrom)
        sphere = particle_sphere(self._n, share, self._device)
        maps = sums.solve(self._prior()) * (sphere * contrast)
        root = torch.linalg.cholesky(second - torch.outer(mean, mean))
        value, vector = torch.linalg.eigh(root.T @ information @ root)
        change = torch.eye(len(mean) + 1, dtype=torch.float64)
        change[0, 1:] = mean
        change[1:, 1:] = (root @ vector).flip(1).T
        self.maps = (change.to(maps) @ maps.flatten(1)).view_as(maps)
        self.information = value.flip(0).clamp_min(0.0).float()

    def _update_noise(self, residual_power: Tensor, compared: Tensor) -> None:
        """Set the noise power by shell to that of the residual at the points compared."""
        shell = self._shell[compared].cpu()
        sums = torch.zeros_like(self._power).index_add_(0, shell, residual_power.cpu())
        counts = torch.bincount(shell, minlength=len(sums))
        power = self._power + sums / counts.clamp_min(1)
        self.noise_power = torch.maximum(power, _MIN_NOISE * self._power)

    @torch.no_grad()
    def latents(self, rows: Tensor) -> Latents:
        """Return contrast and latents of the images ``rows (m,)``, on the CPU."""
        weight = self._weights()
        compared = ((self._shell > 0) & (self._shell <= self.radius)).nonzero().flatten()
        spectra = [oversampled_spectrum(one) for one in self.maps]
        parts = []
        for _, rotation, values in self._batches(rows):
            slices = self._projections(spectra, rotation, compared)
            parts.append(self._posterior(slices, values[:, compared], weight[compared])[0])
        return Latents.cat(parts).to(torch.device("cpu"))

    def _embedding_scale(self) -> Tensor:
        """Return the factor from z to the embedding, one over its uncertainty, ``(d,)``."""
        return self.information.clamp_min(1e-6).sqrt()

    def embed(self, rows: Tensor) -> Tensor:
        """Return latents ``(m, d)`` float32 of rows ``(m,)``, in units of their uncertainty."""
        return (self.latents(rows).mean * self._embedding_scale()).float().cpu()

    def volume(self, latent: Tensor) -> Tensor:
        """Return the map ``(n, n, n)`` at a latent ``(d,)`` of the embedding."""
        z = (latent.cpu().float() / self._embedding_scale()).to(self.maps)
        volume = self.maps[0] + torch.einsum("k,kzyx->zyx", z, self.maps[1:])
        return fourier_resize(volume, self.box_size, 3)

    def result(self) -> "LinearVariability":
        """Return the model itself, which embeds images and makes maps."""
        return self

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a :meth:`state_dict` of a model with the same images and settings.

        Raises:
            ValueError: maps of another number or box.
        """
        if state["maps"].shape != self.maps.shape:
            raise ValueError(
                f"the state has maps {tuple(state['maps'].shape)}, this model "
                f"{tuple(self.maps.shape)}; resume with the components and radius it was begun with"
            )
        super().load_state_dict(state)
