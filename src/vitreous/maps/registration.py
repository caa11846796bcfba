"""Registration of two maps: whitened spectra, exhaustive search, Gauss-Newton refinement.

The spectrum of the moving map, rotated, phase-shifted and, for the other hand, conjugated, is
compared with that of the reference at the integer frequencies of half a ball.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitreous.core.fourier import rfft_centered
from vitreous.core.grid import soft_mask
from vitreous.core.params import Batched
from vitreous.core.resample import spline_pairs
from vitreous.core.rotation import axis_angle_to_matrix, geodesic_distance_deg

_CHUNK = 250_000  # spectrum samples per batch of rotations, to stay in cache


@dataclass(frozen=True)
class RegistrationCandidates(Batched):
    """Transforms of the moving map: ``out(r) = moving(+-R^T (r - t))``, minus when mirrored.

    Args:
        rotation: ``(b, 3, 3)``.
        shift_px: ``(b, 3)`` in (x, y, z), pixels of the searched box.
        mirrored: bool ``(b,)``.
        score: ``(b,)`` weighted correlation in [-1, 1].
    """

    rotation: Tensor
    shift_px: Tensor
    mirrored: Tensor
    score: Tensor


def half_ball(radius: int, most: int, device: torch.device) -> Tensor:
    """Return integer frequencies (x, y, z) with 0.5 <= |k| < radius + 0.5, one of each +-k pair.

    At most ``most``: the lowest half of them, and a fixed random choice of the others.

    >>> len(half_ball(1, 100, torch.device("cpu")))
    9
    """
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], dim=-1).reshape(-1, 3)
    points = points[len(points) // 2 + 1 :]
    points = points[points.square().sum(-1) < (radius + 0.5) ** 2]
    if len(points) > most:
        # all low frequencies: the power of a thinned shell would change with rotation
        points = points[points.square().sum(-1).argsort(stable=True)]
        low, high = points[: most // 2], points[most // 2 :]
        order = torch.randperm(len(high), generator=torch.Generator().manual_seed(0))
        points = torch.cat([low, high[order[: most - most // 2]]])
    return points.to(device)


def _cut(volume: Tensor, mask: Tensor) -> Tensor:
    """Cut a soft sphere out of a volume and subtract the mean outside it, which leaves no step."""
    outside = 1 - mask
    return (volume - (volume * outside).sum() / outside.sum()) * mask


class Registration:
    """Comparison of soft spheres of two float32 maps, at any relative rotation, shift and hand."""

    def __init__(self, moving: Tensor, reference: Tensor) -> None:
        n = self.n = int(moving.shape[-1])
        self.device = moving.device
        mask = soft_mask(n, 3, 0.4 * n, 0.1 * n - 0.5, device=self.device)
        self._moving = _cut(moving, mask)
        self._spectra: dict[bool, Tensor] = {}
        self._reference_half = rfft_centered(_cut(reference, mask), 3)
        self._grid = torch.zeros(0)
        self.points = torch.zeros(0, 3)

    def _padded_spectrum(self, cubic: bool) -> Tensor:
        """Return the spectrum in the doubled box, the kernel's transform divided out."""
        if cubic not in self._spectra:
            n = self.n
            axis = torch.sinc((torch.arange(n, device=self.device) - n // 2) / (2 * n))
            axis = axis**4 if cubic else axis**2
            window = 1 / (axis[:, None, None] * axis[:, None] * axis)
            low = n - n // 2  # moves index n // 2 to index n of the doubled box
            padded = F.pad(self._moving * window, [low, n - low] * 3)
            self._spectra[cubic] = rfft_centered(padded, 3)
        return self._spectra[cubic]

    def use(self, radius: int, most: int = 20_000, *, cubic: bool = False) -> None:
        """Set the compared frequencies: up to ``radius`` cycles per box, at most ``most``.

        ``cubic`` interpolation is eight times slower than linear and nearly exact.
        """
        self.radius = radius
        self.cubic = cubic
        self.points = half_ball(radius, most, self.device)
        reach = 2 * radius + 4
        size = 2 * self.n
        index = torch.arange(-reach, reach + 1, device=self.device) % size
        right = self._padded_spectrum(cubic)[index[:, None], index][..., : reach + 1]
        left = right[..., 1:].flip(0, 1, 2).conj()  # F(-k) = conj F(k)
        cube = torch.cat([left, right], dim=-1)
        self._grid = torch.view_as_real(cube).permute(3, 0, 1, 2)[None].contiguous()
        self._shell = self.points.norm(dim=-1).round().long()
        self._set_reference()
        self._whiten_moving()
        self.weight = 1 / self._shell.to(self.points)

    def _set_reference(self) -> None:
        x, y, z = self.points.long().unbind(-1)
        sign = torch.where(x < 0, -1, 1)
        value = self._reference_half[(sign * z) % self.n, (sign * y) % self.n, x.abs()]
        self._reference = self._white(torch.where(x < 0, value.conj(), value))

    def _whiten_moving(self) -> None:
        self._moving_scale = torch.ones_like(self.points[:, 0])
        value = self.sample(torch.eye(3, device=self.device)[None])[0]
        white = self._white(value)
        scale = white.abs() / value.abs().clamp(min=1e-30)
        self._moving_scale = torch.where(value.abs() > 0, scale, torch.zeros_like(scale))

    def _white(self, value: Tensor) -> Tensor:
        """Divide by the root mean square of each shell; empty shells become zero."""
        power = self._shell_sum(value.abs().square())
        count = self._shell_sum(torch.ones_like(value.real))
        rms = (power / count.clamp(min=1)).sqrt()
        scale = torch.where(rms > rms.max() * 1e-7, 1 / rms.clamp(min=1e-30), torch.zeros_like(rms))
        return value * scale[self._shell]

    def _shell_sum(self, value: Tensor) -> Tensor:
        """Sum real values ``(..., p)`` at the points over shells, ``(..., radius + 1)``."""
        sums = torch.zeros(*value.shape[:-1], self.radius + 1, device=self.device)
        return sums.index_add_(-1, self._shell, value)

    def sample(self, rotation: Tensor) -> Tensor:
        """Return the whitened moving spectrum at ``R^T k``, ``(b, 3, 3)`` to complex ``(b, p)``."""
        size = self._grid.shape[-1]
        position = (self.points @ rotation) * 2 + size // 2  # two grid cells per cycle
        if not self.cubic:
            return self._look_up(position) * self._moving_scale
        pairs = [spline_pairs(p) for p in position.unbind(-1)]
        value = torch.zeros((), dtype=torch.complex64, device=self.device)
        for (wx, px), (wy, py), (wz, pz) in itertools.product(*pairs):
            value = value + wx * wy * wz * self._look_up(torch.stack([px, py, pz], dim=-1))
        return value * self._moving_scale

    def _look_up(self, position: Tensor) -> Tensor:
        grid = position[None, :, :, None] * (2 / (self._grid.shape[-1] - 1)) - 1
        out = F.grid_sample(self._grid, grid, align_corners=True)
        return torch.complex(out[0, 0, ..., 0], out[0, 1, ..., 0])

    def moved(self, rotation: Tensor, shift_px: Tensor, mirrored: Tensor) -> Tensor:
        """Return the whitened spectrum of the transformed map at the points, complex ``(b, p)``."""
        value = self.sample(rotation)
        value = torch.where(mirrored[:, None], value.conj(), value)
        angle = (shift_px @ self.points.mT) * (-2 * math.pi / self.n)
        return value * torch.polar(torch.ones_like(angle), angle)

    def correlation(self, value: Tensor) -> Tensor:
        """Return the weighted correlation of whitened spectra ``(b, p)`` with the reference.

        Divided by the power of whitened spectra: the actual power would reward rotations at which
        interpolation damps the noise of the moving map.
        """
        cross = (value * self._reference.conj()).real @ self.weight
        return cross / self._power

    @property
    def _power(self) -> Tensor:
        return self.weight.sum().clamp(min=1e-30)

    def shell_correlation(self, rotation: Tensor, shift_px: Tensor) -> Tensor:
        """Return the FSC ``(b, radius + 1)`` of the transformed map with the reference.

        0 in shell 0. ``rotation`` is ``(b, 3, 3)``, ``shift_px (b, 3)`` in (x, y, z). Normalised by
        the power after interpolation.
        """
        size = max(1, _CHUNK // len(self.points))
        unmirrored = torch.zeros(1, dtype=torch.bool, device=self.device)
        curves = []
        for turns, shifts in zip(
            torch.split(rotation, size), torch.split(shift_px, size), strict=True
        ):
            value = self.moved(turns, shifts, unmirrored)
            cross = self._shell_sum((value * self._reference.conj()).real)
            power = self._shell_sum(value.abs().square())
            reference = self._shell_sum(self._reference.abs().square().expand_as(value.real))
            curves.append(cross / (power * reference).sqrt().clamp(min=1e-12))
        return torch.cat(curves)

    def weight_by_shell(self, weight: Tensor) -> None:
        """Weight the frequencies by shell: ``(radius + 1,)`` or longer."""
        self.weight = weight.to(self.points)[self._shell]

    def weight_by_agreement(self, best: RegistrationCandidates) -> int:
        """Weight each shell by c / (1 - c^2), c its correlation under the first candidate.

        This weight is optimal for two maps of equal noise; c is averaged over three shells. Returns
        the highest shell that agrees better than by chance; 0 when none does.
        """
        value = self.moved(best.rotation[:1], best.shift_px[:1], best.mirrored[:1])[0]
        cross = self._shell_sum((value * self._reference.conj()).real)
        count = self._shell_sum(torch.ones_like(value.real))
        padded = F.pad(cross, [1, 1]) + F.pad(cross, [2, 0]) + F.pad(cross, [0, 2])
        counts = F.pad(count, [1, 1]) + F.pad(count, [2, 0]) + F.pad(count, [0, 2])
        counts = counts[1:-1].clamp(min=1)
        agreement = padded[1:-1] / counts
        # shells that agree no better than by chance would only add noise
        agreement = torch.where(agreement > 2 / counts.sqrt(), agreement.clamp(max=0.999), 0.0)
        weight = (agreement / (1 - agreement**2))[self._shell]
        significant = agreement.nonzero()
        if not len(significant):
            return 0
        self.weight = weight
        return int(significant.max())

    def search(
        self, rotations: Tensor, shift_axes: Tensor, hands: tuple[bool, ...]
    ) -> RegistrationCandidates:
        """Find the best shift and its score for all rotations ``(m, 3, 3)`` and hands.

        ``shift_axes (a, 3)`` are the free directions: none, one, or all three. Hands are False for
        the given and True for the mirrored one.
        """
        box = 2 * self.radius + 2
        size = max(1, _CHUNK // len(self.points))
        parts = torch.split(rotations, size)
        results: dict[tuple[bool, int], tuple[Tensor, ...]] = {}
        for i, part in enumerate(parts):
            value = self.sample(part)
            for mirrored in hands:
                one = value.conj() if mirrored else value
                best = self._best_shifts(one, shift_axes, box)
                hand = torch.full((len(part),), mirrored, device=self.device)
                results[mirrored, i] = (part, best[0], hand, best[1])
        ordered = [results[hand, i] for hand in hands for i in range(len(parts))]
        return RegistrationCandidates(*(torch.cat(column) for column in zip(*ordered, strict=True)))

    def _best_shifts(self, value: Tensor, shift_axes: Tensor, box: int) -> tuple[Tensor, Tensor]:
        """Return the best shift ``(b, 3)`` and its score ``(b,)`` for spectra ``(b, p)``."""
        cross = value * (self._reference.conj() * self.weight)
        steps = torch.arange(box, device=self.device) - box // 2
        if len(shift_axes) == 3:
            best, where = self._shift_scan(cross, box)
            x, y, z = where % box, where // box % box, where // box**2
            shift = torch.stack([x, y, z], dim=-1)
            shift = torch.where(shift >= (box + 1) // 2, shift - box, shift) * (self.n / box)
        elif len(shift_axes) == 1:
            shifts = steps[:, None] * (self.n / box) * shift_axes
            angle = (self.points @ shifts.mT) * (-2 * math.pi / self.n)
            scores = cross.real @ angle.cos() - cross.imag @ angle.sin()
            best, where = scores.max(-1)
            shift = shifts[where]
        else:
            best, shift = cross.real.sum(-1), torch.zeros(len(value), 3, device=self.device)
        return shift.to(self.points), best / self._power

    def _shift_scan(self, cross: Tensor, box: int) -> tuple[Tensor, Tensor]:
        """Return the maximum of the cross-correlation over all grid shifts, and its flat index."""
        # the correlation at shift t is Re sum cross exp(-2 pi i k t / n), an inverse transform of
        # the conjugate
        x, y, z = self.points.long().unbind(-1)
        sign = torch.where(x < 0, -1, 1)
        flat = (((sign * z) % box) * box + (sign * y) % box) * (box // 2 + 1) + x.abs()
        values = torch.where(x < 0, cross, cross.conj())
        both = torch.where(x == 0, 1.0, 0.5)  # irfft doubles every column but x = 0
        spectrum = cross.new_zeros(len(cross), box * box * (box // 2 + 1))
        spectrum[:, flat] = values * both
        cube = spectrum.reshape(-1, box, box, box // 2 + 1)
        # the plane x = 0 must be Hermitian: half of it and half of its mirror image
        plane = cube[..., 0]
        mirror = plane.flip(1, 2).roll((1, 1), (1, 2)).conj()
        cube[..., 0] = (plane + mirror) / 2
        scores = torch.fft.irfftn(cube, s=(box, box, box), dim=(1, 2, 3), norm="forward")
        best, where = scores.flatten(1).max(-1)
        return best, where

    def refine(
        self,
        start: RegistrationCandidates,
        rotation_axes: Tensor,
        shift_axes: Tensor,
        iterations: int,
        *,
        sort: bool = True,
    ) -> RegistrationCandidates:
        r"""Refine each candidate by damped Gauss-Newton steps; best first if ``sort``.

        Maximises :math:`\mathrm{Re} \sum_k w B(k) A_{R,t}^*(k)` over rotations
        :math:`\exp(\omega) R` with :math:`\omega` in the span of ``rotation_axes`` and shifts in
        the span of ``shift_axes``; the Hessian is that of the least-squares fit.
        """
        rotation, shift = start.rotation, start.shift_px
        value = self.moved(rotation, shift, start.mirrored)
        score = self.correlation(value)
        damping = torch.full_like(score, 1e-2)
        free = len(rotation_axes) + len(shift_axes)
        for _ in range(iterations if free else 0):
            step = self._step(
                value, rotation, shift, start.mirrored, rotation_axes, shift_axes, damping
            )
            turn = step[:, : len(rotation_axes)] @ rotation_axes
            new_rotation = axis_angle_to_matrix(turn) @ rotation
            new_shift = shift + step[:, len(rotation_axes) :] @ shift_axes
            new_value = self.moved(new_rotation, new_shift, start.mirrored)
            new_score = self.correlation(new_value)
            better = new_score > score
            rotation = torch.where(better[:, None, None], new_rotation, rotation)
            shift = torch.where(better[:, None], new_shift, shift)
            value = torch.where(better[:, None], new_value, value)
            increase = (new_score - score).clamp(min=0).max()
            score = torch.where(better, new_score, score)
            damping = torch.where(better, damping / 5, damping * 5).clamp(1e-6, 1e6)
            if bool(better.any()) and float(increase) < 1e-5:
                break
        refined = RegistrationCandidates(rotation, shift, start.mirrored, score)
        return refined[score.argsort(descending=True)] if sort else refined

    def _step(
        self,
        value: Tensor,
        rotation: Tensor,
        shift: Tensor,
        mirrored: Tensor,
        rotation_axes: Tensor,
        shift_axes: Tensor,
        damping: Tensor,
    ) -> Tensor:
        epsilon = 0.25 / self.radius
        columns = []
        for axis in rotation_axes:
            turn = axis_angle_to_matrix(epsilon * axis)
            ahead = self.moved(turn @ rotation, shift, mirrored)
            behind = self.moved(turn.mT @ rotation, shift, mirrored)
            columns.append((ahead - behind) / (2 * epsilon))
        for axis in shift_axes:
            columns.append(value * (self.points @ axis) * (-2j * math.pi / self.n))
        weight = self.weight
        power = (value.abs().square() @ weight).clamp(min=1e-30)
        scale = ((value * self._reference.conj()).real @ weight / power).clamp(min=0.02)
        jacobian = torch.stack(columns, dim=1)
        weighted = jacobian.conj() * weight
        hessian = (weighted @ jacobian.mT).real * scale[:, None, None]
        gradient = (weighted @ self._reference[:, None]).real
        diagonal = hessian.diagonal(dim1=-2, dim2=-1)
        ridge = diagonal * damping[:, None] + diagonal.amax(-1, keepdim=True) * 1e-9 + 1e-30
        solved: Tensor = torch.linalg.solve(hessian + torch.diag_embed(ridge), gradient)
        return solved[..., 0]


def distinct(
    candidates: RegistrationCandidates, most: int, angle_deg: float
) -> RegistrationCandidates:
    """Return the best candidates, each at least ``angle_deg`` from better ones of its hand."""
    pool = candidates[candidates.score.argsort(descending=True)[: 12 * most]]
    near = geodesic_distance_deg(pool.rotation[:, None], pool.rotation) < angle_deg
    near &= pool.mirrored[:, None] == pool.mirrored
    close = near.tolist()
    kept: list[int] = []
    for i in range(len(close)):
        if len(kept) < most and not any(close[i][j] for j in kept):
            kept.append(i)
    return pool[torch.tensor(kept, device=pool.score.device)]
