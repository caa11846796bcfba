"""Noise of images: additive samplers of unit variance, and counting noise.

Samplers return additive noise alone, with unit variance; the simulator scales it by a fixed sigma
(:func:`noise_sigma`) or a learned one. Numbers are drawn on the generator's device and then moved:
one seed gives the same noise on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize


class Noise(Protocol):
    """Interface of samplers of additive noise of zero mean and unit variance."""

    def sample(
        self,
        n_images: int,
        box_size: int,
        *,
        micrograph_id: Tensor | None = None,
        generator: torch.Generator,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw noise ``(n_images, box_size, box_size)``.

        ``micrograph_id (n_images,)`` is the micrograph of each image, for noise that depends on it.
        """
        ...


def noise_sigma(signal_variance: float, *, snr_db: float) -> float:
    r"""Return the standard deviation of the noise for a signal-to-noise ratio of power.

    :math:`\sigma = \sqrt{v / \mathrm{SNR}}`, :math:`\mathrm{SNR} = 10^{\mathrm{dB} / 10}`, v the
    ``signal_variance`` of the noiseless images after shift and CTF, over the whole image, averaged
    over the data set.

    Raises:
        ValueError: a ratio or variance that is not finite, a negative variance.

    >>> noise_sigma(4.0, snr_db=-20)
    20.0
    """
    ratio = 10.0 ** (snr_db / 10)
    if not (ratio > 0 and math.isfinite(ratio)):
        raise ValueError(f"the signal-to-noise ratio must be positive and finite, got {ratio}")
    if not (signal_variance >= 0 and math.isfinite(signal_variance)):
        raise ValueError(f"signal_variance must be finite and >= 0, got {signal_variance}")
    return math.sqrt(signal_variance / ratio)


@dataclass(frozen=True)
class WhiteGaussian:
    """White Gaussian noise: independent standard normal pixels.

    >>> noise = WhiteGaussian()
    >>> noise.sample(2, 8, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([2, 8, 8])
    """

    def sample(
        self,
        n_images: int,
        box_size: int,
        *,
        micrograph_id: Tensor | None = None,
        generator: torch.Generator,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw noise ``(n_images, box_size, box_size)``; ``micrograph_id`` is ignored."""
        shape = (n_images, box_size, box_size)
        noise = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
        return noise.to(device or generator.device)


def prepare_patches(patches: Tensor, size: int, *, chunk: int = 256) -> Tensor:
    """Resample background patches by Fourier cropping; give each zero mean, unit deviation.

    Real ``(m, n, n)`` become float32 ``(m, size, size)`` of the same field of view; ``chunk``
    patches are transformed together, which bounds the memory.

    Raises:
        ValueError: another shape, or a patch that is constant or not finite, named by its index.

    >>> patch = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(0))
    >>> small = prepare_patches(patch, 8)
    >>> small.shape, round(small[0].std(correction=0).item(), 4)
    (torch.Size([3, 8, 8]), 1.0)
    """
    if patches.ndim != 3 or patches.shape[-1] != patches.shape[-2]:
        raise ValueError(f"patches must be (m, n, n), got {tuple(patches.shape)}")
    out = torch.empty(len(patches), size, size, device=patches.device)
    bad: list[int] = []
    for start in range(0, len(patches), chunk):
        resized = fourier_resize(patches[start : start + chunk].float(), size, 2)
        mean = resized.mean((-2, -1), keepdim=True)
        deviation = resized.std((-2, -1), correction=0, keepdim=True)
        valid = ((deviation > 1e-6 * mean.abs()) & deviation.isfinite()).flatten()
        bad += [start + int(i) for i in (~valid).nonzero()]
        out[start : start + chunk] = (resized - mean) / deviation
    if bad:
        raise ValueError(f"background patches {bad[:8]} are constant or not finite; drop them")
    return out


@dataclass(frozen=True)
class BackgroundPatches:
    """Real background: random patches of the micrograph that provides an image's CTF.

    Source: CryoGAN's paper, section VI.A and appendix.

    Args:
        patches: ``(m, s, s)``, each of zero mean and unit deviation (:func:`prepare_patches`). From
            patches larger than the images a random window is cut, whose deviation is 1 on average.
        micrograph_id: long ``(m,)``, not negative, in the numbering of the particles' micrographs.
        on_missing: for a micrograph without patches: ``"error"``, or ``"any"`` to draw from all
            patches.
        random_dihedral: also flip and transpose at random: more variety from few patches, at the
            price of changing the direction of astigmatism and drift.
        micrograph_names: names for the error message, indexed by micrograph id.

    Raises:
        ValueError: shapes that do not fit, no patches, an unknown policy.

    >>> patches = torch.tensor([1.0, 2.0])[:, None, None].expand(2, 4, 4)
    >>> noise = BackgroundPatches(patches, torch.tensor([7, 3]))
    >>> ids = torch.tensor([3, 7, 3])
    >>> drawn = noise.sample(3, 4, micrograph_id=ids, generator=torch.Generator().manual_seed(0))
    >>> drawn[:, 0, 0].tolist()
    [2.0, 1.0, 2.0]
    """

    patches: Tensor
    micrograph_id: Tensor
    on_missing: Literal["error", "any"] = "error"
    random_dihedral: bool = False
    micrograph_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.patches.shape)
        if len(shape) != 3 or shape[1] != shape[2] or shape[0] == 0:
            raise ValueError(f"patches must be (m, s, s) with m >= 1, got {shape}")
        if tuple(self.micrograph_id.shape) != shape[:1]:
            raise ValueError(
                f"micrograph_id must be ({shape[0]},) for {shape[0]} patches, "
                f"got {tuple(self.micrograph_id.shape)}"
            )
        if self.on_missing not in ("error", "any"):
            raise ValueError(f"on_missing must be 'error' or 'any', got {self.on_missing!r}")

    @cached_property
    def _index(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Micrographs, where their patches begin in the order, how many they are, and the order."""
        ids = self.micrograph_id.cpu()
        known, count = torch.unique(ids, return_counts=True)
        return known, count.cumsum(0) - count, count, torch.argsort(ids, stable=True)

    def _name(self, micrograph: int) -> str:
        known = 0 <= micrograph < len(self.micrograph_names)
        return f"{micrograph} ({self.micrograph_names[micrograph]})" if known else str(micrograph)

    def _draw(self, n_images: int, micrograph_id: Tensor | None, uniform: Tensor) -> Tensor:
        """Return the index of one patch per image, chosen by ``uniform (n_images,)`` in [0, 1)."""
        total = len(self.patches)
        if micrograph_id is None:
            return (uniform * total).long().clamp(max=total - 1)
        if tuple(micrograph_id.shape) != (n_images,):
            raise ValueError(
                f"micrograph_id must be ({n_images},), got {tuple(micrograph_id.shape)}"
            )
        requested = micrograph_id.cpu()
        known, start, count, order = self._index
        index = torch.searchsorted(known, requested).clamp(max=len(known) - 1)
        missing = known[index] != requested
        if self.on_missing == "error" and bool(missing.any()):
            missing_ids = sorted(set(requested[missing].tolist()))[:8]
            names = ", ".join(self._name(i) for i in missing_ids)
            raise ValueError(
                f"no background patch of micrograph {names}; add patches of these micrographs or "
                "set on_missing='any'"
            )
        count = torch.where(missing, total, count[index])
        offset = torch.minimum((uniform * count).long(), count - 1)
        return order[torch.where(missing, 0, start[index]) + offset]

    def sample(
        self,
        n_images: int,
        box_size: int,
        *,
        micrograph_id: Tensor | None = None,
        generator: torch.Generator,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Draw patches ``(n_images, box_size, box_size)``, from all if ``micrograph_id`` is None.

        Raises:
            ValueError: a micrograph without patches (named), or patches smaller than the box.
        """
        size = self.patches.shape[-1]
        if box_size > size:
            raise ValueError(
                f"patches of {size} px cannot fill images of {box_size} px; resample or cut larger"
            )
        where = generator.device
        shape, stored = (n_images, 6), self.patches.device
        uniform = torch.rand(shape, generator=generator, device=where, dtype=torch.float64).cpu()
        row = self._draw(n_images, micrograph_id, uniform[:, 0]).to(stored)
        if box_size == size:
            noise = self.patches[row]
        else:
            corner = (uniform[:, 1:3] * (size - box_size + 1)).long().clamp(max=size - box_size)
            window = (corner[:, :, None] + torch.arange(box_size)).to(stored)
            noise = self.patches[row[:, None, None], window[:, 0, :, None], window[:, 1, None, :]]
        noise = noise.to(device=device or where, dtype=dtype)
        if self.random_dihedral:
            coin = (uniform[:, 3:] < 0.5).to(noise.device)[..., None, None]
            noise = torch.where(coin[:, 0], noise.flip(-1), noise)
            noise = torch.where(coin[:, 1], noise.flip(-2), noise)
            noise = torch.where(coin[:, 2], noise.mT, noise)
        return noise


@dataclass(frozen=True)
class PoissonNoise:
    r"""Counting noise: the clean image sets the expected number of electrons in each pixel.

    :math:`\lambda = \max(d + s\, x, 0)`, :math:`c \sim \mathrm{Poisson}(\lambda)`, and the noisy
    image is :math:`(c - d) / s`: unbiased for x, of variance :math:`(d + s x) / s^2`.

    The value is an exact Poisson sample. Its gradient is a surrogate: that of the Gaussian
    approximation :math:`c \approx \lambda + \sqrt\lambda\, \epsilon` at fixed :math:`\epsilon`,
    :math:`\partial c / \partial\lambda = (c + \lambda) / (2 \lambda)`, of mean 1, accurate from
    about ten counts on and noisy below one; zero where the expected count is clipped to zero.

    Args:
        scale: s, electrons per unit of grey value, positive.
        dose: d, electrons per pixel in empty ice, positive.

    Raises:
        ValueError: scale or dose not positive.

    >>> noise = PoissonNoise(scale=10.0, dose=100.0)
    >>> image = noise.apply(torch.zeros(64, 64), generator=torch.Generator().manual_seed(0))
    >>> abs(image.std().item() - 1.0) < 0.05
    True
    """

    scale: float
    dose: float

    def __post_init__(self) -> None:
        for name, value in (("scale", self.scale), ("dose", self.dose)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, got {value}")

    def apply(self, clean: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return noisy images of the shape, type and device of ``clean``."""
        rate = (self.dose + self.scale * clean).clamp(min=0)
        fixed = rate.detach()
        counts = torch.poisson(fixed.to(generator.device), generator=generator).to(clean.device)
        slope = torch.where(fixed > 0, (counts + fixed) / (2 * fixed), torch.zeros_like(fixed))
        counts = counts + slope * (rate - fixed)
        return (counts - self.dose) / self.scale
