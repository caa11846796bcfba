r"""Local refinement of poses and shifts by Gauss-Newton, and their likelihood.

Within a band, on the images' own frequencies (no polar grid, only the slices are interpolated),

.. math::

    E(\omega, t, a) = \sum_k w_k\, |\hat y_k - a\, c_k\, s_t(k)\, \hat V(R(\omega)^T k)|^2 ,

:math:`w_k` being one over the noise power in the shell of k. The residual is linear in the slice,
whose derivatives come with it (:mod:`vitreous.physics.slice_derivatives`), so that one pass gives
error, gradient and the Gauss-Newton matrix H of three rotations and two shifts, for
Levenberg-Marquardt steps of all images at once. The scale is given, or the best one of every pose.

:math:`e^{-E / 2}` is the likelihood, and :math:`\sqrt{\det (2 \pi H^{-1})}\, e^{-E / 2}` its
integral over a whole neighbourhood (Laplace): the weight of a candidate among others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.fourier import rfft_centered
from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import axis_angle_to_matrix
from vitreous.methods.em.frequency_band import FrequencyBand
from vitreous.methods.em.image_record import ImageRecord, PoseRecord
from vitreous.physics.ctf import ctf_half
from vitreous.physics.projector import oversampled_spectrum
from vitreous.physics.slice_derivatives import band_points, slice_derivatives

BLOCK_BYTES = 2**22  # of derivatives at a time
_DAMPING = 0.02
_LEAST_GAIN = 0.1  # that a step must promise: a fiftieth of the gain of a pose by chance
_LARGEST_STEP = 0.5  # radians times K, and pixels of half a period


@dataclass(frozen=True)
class WhitenedSpectra(ImageRecord):
    """Whitened spectra of images at the points of a band.

    Args:
        values: complex ``(b, points)``.
        transfer: CTFs, likewise whitened, real ``(b, points)``.
    """

    values: Tensor
    transfer: Tensor


@dataclass(frozen=True)
class PoseFit(PoseRecord):
    """Poses and their likelihood.

    Args:
        rotation: ``(b, 3, 3)``.
        shift_angstrom: ``(b, 2)``.
        log_likelihood_ratio: ``(b,)``, squared error without the particle less that with it.
        scale: ``(b,)``, a.
        precision: ``(b, 5, 5)``, H: inverse covariance of the pose's likelihood, radians and Å.
    """

    rotation: Tensor
    shift_angstrom: Tensor
    log_likelihood_ratio: Tensor
    scale: Tensor
    precision: Tensor

    @property
    def log_volume(self) -> Tensor:
        """Logarithm of the square root of det H^-1, ``(b,)``."""
        # an empty image is blind to its pose
        logarithm = torch.linalg.slogdet(self.precision.double())[1].clamp_min(-200.0)
        return (-0.5 * logarithm).float()


class PoseRefiner:
    """Fit of poses near given ones, within a band.

    Args:
        volume: ``(n, n, n)``, full box.
        band: the frequencies to compare.
        noise_power: of the cropped images by shell, ``(K + 1,)``.
    """

    def __init__(self, volume: Tensor, band: FrequencyBand, noise_power: Tensor) -> None:
        self.band = band
        device = volume.device
        self._spectrum = oversampled_spectrum(band.volume(volume.float()))
        kx, ky, place = band_points(band.box_size, band.radius)
        self._kx = torch.as_tensor(kx, device=device, dtype=torch.float32)
        self._ky = torch.as_tensor(ky, device=device, dtype=torch.float32)
        self._place = torch.as_tensor(place, device=device)
        self.shell = (self._kx**2 + self._ky**2).sqrt().round().long()
        # a point of the half plane stands for two, but column 0 is there with both signs of ky
        self.multiplicity = torch.where(self._kx == 0, 1.0, 2.0)
        power = noise_power.float().to(device).clamp_min(1e-30)
        self.noise_power = power
        self._weight = (self.multiplicity / power[self.shell]).sqrt()

    def measure(self, images: Tensor, optics: Optics | None) -> WhitenedSpectra:
        """Return spectra and CTFs of images cropped to the band, ``(b, m, m)``."""
        spectrum = rfft_centered(images.float(), 2).flatten(1)[:, self._place]
        transfer = torch.ones(len(images), len(self._place), device=images.device)
        if optics is not None:
            pixel = self.band.pixel_size_angstrom
            transfer = ctf_half(self.band.box_size, pixel, optics).flatten(1)[:, self._place]
        return WhitenedSpectra(spectrum * self._weight, transfer.float() * self._weight)

    def _slices(self, rotation: Tensor) -> Tensor:
        """Return slices and their derivatives at the points of the band."""
        return slice_derivatives(self._spectrum, rotation, self.band.box_size, self.band.radius)

    def _pull_back(self, spectra: WhitenedSpectra, shift_angstrom: Tensor) -> Tensor:
        """Return the values with the shift undone."""
        return spectra.values * self._phase(shift_angstrom)

    def _phase(self, shift_angstrom: Tensor) -> Tensor:
        """Return the factors that undo a shift, complex ``(b, points)``."""
        turn = shift_angstrom * (2 * math.pi / (self.band.box_size * self.band.pixel_size_angstrom))
        angle = turn[:, :1] * self._kx + turn[:, 1:] * self._ky
        return torch.complex(angle.cos(), angle.sin())

    def evaluate(
        self,
        spectra: WhitenedSpectra,
        rotation: Tensor,
        shift_angstrom: Tensor,
        scale: Tensor | None,
    ) -> tuple[PoseFit, Tensor]:
        """Return the fit of given poses, and the gradient's negative half ``(b, 5)``.

        Variables: the rotation vector in radians, then the shift in Å.
        """
        derivatives = self._slices(rotation)
        values = self._pull_back(spectra, shift_angstrom)
        derivatives = derivatives * spectra.transfer[..., None]
        slices = derivatives[..., 0]
        cross = (values.conj() * slices).real.sum(1)
        power = (slices.real.square() + slices.imag.square()).sum(1)
        best = (cross / power.clamp_min(1e-20)).clamp_min(0)
        a = best if scale is None else scale
        log_likelihood_ratio = 2 * a * cross - a.square() * power
        matrix, downhill = self._normal_equations(derivatives, values, a)
        return PoseFit(rotation, shift_angstrom, log_likelihood_ratio, a, matrix), downhill

    def _normal_equations(
        self, derivatives: Tensor, values: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        a = scale[:, None]
        length = self.band.box_size * self.band.pixel_size_angstrom
        slices, tilted, turned = derivatives.unbind(-1)
        ramp = torch.complex(slices.imag, -slices.real) * (a * (2 * math.pi / length))  # -i V
        tilted, residual = tilted * a, values - slices * a
        rotated = (tilted * -self._ky, tilted * self._kx, turned * a)
        columns = torch.stack([*rotated, ramp * self._kx, ramp * self._ky, residual], 1)
        flat = torch.view_as_real(columns).flatten(2)
        matrix = flat[:, :5] @ flat.mT
        return matrix[..., :5], matrix[..., 5]

    def refine(
        self,
        spectra: WhitenedSpectra,
        rotation: Tensor,
        shift_angstrom: Tensor,
        scale: Tensor | None,
        steps: int,
        *,
        farthest_angstrom: float | None = None,
    ) -> PoseFit:
        """Refine given poses by Levenberg-Marquardt steps; none gets worse, converged ones stay.

        Args:
            spectra: of each pose's image, ``(b, ...)``.
            rotation: ``(b, 3, 3)``.
            shift_angstrom: ``(b, 2)``.
            scale: a of each ``(b,)``; None: the best for each pose.
            steps: most steps.
            farthest_angstrom: bound of the shifts' lengths.
        """
        best, downhill = self.evaluate(spectra, rotation, shift_angstrom, scale)
        damping = torch.full_like(best.log_likelihood_ratio, _DAMPING)
        active = torch.arange(len(rotation), device=rotation.device)
        for _ in range(steps):
            step = self._step(best.precision[active], downhill[active], damping[active])
            promising = (step * downhill[active]).sum(1) > _LEAST_GAIN
            active, step = active[promising], step[promising]
            if len(active) == 0:
                break
            rotated = axis_angle_to_matrix(step[:, :3]) @ best.rotation[active]
            moved = best.shift_angstrom[active] + step[:, 3:]
            if farthest_angstrom is not None:
                length = moved.norm(dim=1, keepdim=True).clamp_min(1e-9)
                moved = moved * (farthest_angstrom / length).clamp(max=1.0)
            a = None if scale is None else scale[active]
            tried, tried_downhill = self.evaluate(spectra[active], rotated, moved, a)
            better = tried.log_likelihood_ratio > best.log_likelihood_ratio[active]
            best = best.with_better(tried, active)
            downhill[active[better]] = tried_downhill[better]
            damping[active] *= torch.where(better, 0.3, 8.0)
        return best

    def _step(self, matrix: Tensor, downhill: Tensor, damping: Tensor) -> Tensor:
        """Return the Levenberg-Marquardt step ``(b, 5)``, shortened to where the model holds."""
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        lifted = matrix + torch.diag_embed(
            damping[:, None] * diagonal + 1e-12 * diagonal.amax(1, keepdim=True) + 1e-30
        )
        step = torch.linalg.solve_ex(lifted, downhill)[0].nan_to_num(0.0, 0.0, 0.0)
        longest = (step / self._reach().to(step)).abs().amax(1, keepdim=True)
        return step / longest.clamp_min(1.0)

    def _reach(self) -> Tensor:
        """Return the longest step of each variable."""
        turn = 2 * _LARGEST_STEP / self.band.radius
        length = self.band.box_size * self.band.pixel_size_angstrom
        move = _LARGEST_STEP * length / (2 * math.pi * self.band.radius)
        return torch.tensor([turn, turn, turn, move, move])

    def residual_power(self, spectra: WhitenedSpectra, fit: PoseFit) -> Tensor:
        """Return the sums by shell of ``|y - a c s V|^2`` over images, ``(K + 1,)``."""
        model = self._slices(fit.rotation)[..., 0] * spectra.transfer * fit.scale[:, None]
        residual = self._pull_back(spectra, fit.shift_angstrom) - model
        power = (residual.real.square() + residual.imag.square()).sum(0).double()
        sums = torch.zeros(self.band.radius + 1, dtype=torch.float64, device=power.device)
        return sums.index_add_(0, self.shell, power) * self.noise_power

    def shift_corrected(
        self, spectra: WhitenedSpectra, rotation: Tensor, shift_angstrom: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return values with the shift undone, and slices without CTF, complex ``(b, points)``."""
        return self._pull_back(spectra, shift_angstrom), self._slices(rotation)[..., 0]

    def correlation(self, pose: Pose, other: Pose, last_shell: int) -> Tensor:
        """Return how alike the map's projections at two poses ``(b,)`` are, ``(b,)``.

        Shifts count: an axis of symmetry that does not run through the centre moves projections.
        Frequencies up to ``last_shell`` are weighted by one over the noise power.
        """
        inside = self.shell <= last_shell
        parts = []
        for rows in torch.split(torch.arange(len(pose)), self.batch_size()):
            first, second = (
                (self._slices(one.rotation[rows])[..., 0] * self._weight)[:, inside]
                for one in (pose, other)
            )
            moved = other.shift_angstrom[rows] - pose.shift_angstrom[rows]
            second = second * self._phase(moved)[:, inside].conj()
            size = (first.abs().square().sum(1) * second.abs().square().sum(1)).sqrt()
            parts.append((first.conj() * second).real.sum(1) / size.clamp_min(1e-20))
        return torch.cat(parts)

    def frequency_squared(self) -> Tensor:
        """Return the squared frequency of each point, in (cycles per box)², ``(points,)``."""
        return self._kx**2 + self._ky**2

    def frequencies(self) -> tuple[Tensor, Tensor]:
        """Return kx and ky of each point, in cycles per box, ``(points,)``."""
        return self._kx, self._ky

    def points_per_shell(self) -> Tensor:
        """Return the number of frequencies of each shell's whole circle, ``(K + 1,)``."""
        sums = torch.zeros(self.band.radius + 1, device=self.shell.device)
        return sums.index_add_(0, self.shell, self.multiplicity)

    def batch_size(self) -> int:
        """Return the number of poses to process at once, which bounds the memory."""
        return max(1, BLOCK_BYTES // (8 * 6 * len(self._kx)))
