r"""Estimate of aberrations of optics groups: odd phases (beam tilt, trefoil) and even ones.

With odd phases :math:`\varphi` and a change :math:`\delta` of the CTF's :math:`\gamma`, an image
whose slice is V is :math:`e^{i \varphi} (c \cos\delta - q \sin\delta) V`, where q is the CTF with
90 degrees more phase. So the log likelihood of all particles of a group,

.. math::

    L(\varphi, \delta) = \sum_k \Re\, e^{-i \varphi} (C \cos\delta - Q \sin\delta)
        - \tfrac12 (P_{cc} \cos^2\delta - 2 P_{cq} \cos\delta \sin\delta + P_{qq} \sin^2\delta),

needs five sums over particles for each k: :math:`C = \sum w\, c\, \bar V \bar s_t \hat y`,
:math:`Q` likewise with q (both complex), and :math:`P_{cq} = \sum w\, c q\, |V|^2`, likewise cc and
qq. The polynomials of :mod:`vitreous.physics.aberrations` are fitted to it by Gauss-Newton, with a
weak normal prior: every term has a standard deviation of one radian at the band's edge.

The map under each particle is that of the other half, made without it, its amplitudes scaled to the
images' by shell. Linear odd terms are a shift of all images. They are fitted because the particles'
shifts, found while the other terms were in the images, hold their linear part.

Source: J. Zivanov, T. Nakane, S. Scheres, IUCrJ 7 (2020) 253.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitreous.core.images import ImageSource
from vitreous.core.params import Optics
from vitreous.methods.em.ctf_refinement import ImageTerms, scale_to_images
from vitreous.methods.em.local_search import PoseRefiner
from vitreous.physics.aberrations import even_basis, odd_basis, undo_distortion

ODD_TERMS, EVEN_TERMS = 6, 9
_ODD_ORDERS = (1, 1, 3, 3, 3, 3)
_EVEN_ORDERS = (2, 2, 2, 4, 0, 4, 4, 4, 4)
_BANDS = (0.5, 0.75, 1.0)  # of the band's edge: phases of several radians are found from below
_STEPS = 8  # in each band
_DAMPING = 1e-3


class AberrationTally:
    """Sums over particles that give the aberrations of their optics groups.

    Args:
        refiner: of the band to compare in, with any map.
        groups: number of optics groups.
    """

    def __init__(self, refiner: PoseRefiner, groups: int) -> None:
        kx, ky = (one.double() / refiner.band.edge_angstrom for one in refiner.frequencies())
        edge = float((kx * kx + ky * ky).max().sqrt())
        orders = torch.tensor([*_ODD_ORDERS, *_EVEN_ORDERS], dtype=torch.float64)
        self._unit = 1 / edge**orders  # of each term: one radian at the edge
        self._unit[ODD_TERMS:] /= 2 * math.pi
        self._odd = odd_basis(kx, ky).cpu() * self._unit[:ODD_TERMS, None]
        turns = even_basis(kx, ky).cpu() * self._unit[ODD_TERMS:, None]
        self._even = 2 * math.pi * turns
        self._radius = ((kx * kx + ky * ky).sqrt() / edge).cpu()
        self._shell = refiner.shell.cpu()
        self._sums = kx.new_zeros(7, groups, len(kx))

    def add(self, terms: ImageTerms, group: Tensor) -> None:
        """Add particles of the optics groups ``group (b,)`` to the sums."""
        c, q = terms.c, terms.q
        cross = terms.slices.conj() * terms.values
        power = terms.slices.real.square() + terms.slices.imag.square()
        in_phase, turned = c * cross, q * cross
        products = (
            *(in_phase.real, in_phase.imag, turned.real, turned.imag),
            *(c * c * power, c * q * power, q * q * power),
        )
        for total, product in zip(self._sums, products, strict=True):
            total.index_add_(0, group, product.double())

    def estimates(self, odd: Tensor, even: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coefficients of all groups, ``(g, 6)`` and ``(g, 9)``.

        Args:
            odd, even: coefficients by which images and CTFs were corrected before the sums.
        """
        sums = self._sums.cpu()
        scale_to_images(sums[0], sums[4], sums[:4], sums[4:], self._shell)
        before = torch.cat([odd, even], 1) / self._unit
        after = torch.stack([self._fit(sums[:, g], before[g]) for g in range(len(odd))])
        after = after * self._unit
        return after[:, :ODD_TERMS], after[:, ODD_TERMS:]

    def _fit(self, sums: Tensor, before: Tensor) -> Tensor:
        """Return the coefficients of a group in radians at the edge, by Levenberg-Marquardt."""
        best = before.clone()
        for share in _BANDS:
            inside = self._radius <= share
            some, odd, even = sums[:, inside], self._odd[:, inside], self._even[:, inside]
            value, slope, matrix = _likelihood(some, odd, even, best, before)
            damping = _DAMPING
            for _ in range(_STEPS):
                lifted = matrix + damping * torch.diag(matrix.diagonal())
                tried = best + torch.linalg.solve(lifted, slope)
                reached = _likelihood(some, odd, even, tried, before)
                if reached[0] > value:
                    best, (value, slope, matrix) = tried, reached
                    damping *= 0.3
                else:
                    damping *= 8
        return best


def _likelihood(
    sums: Tensor, odd: Tensor, even: Tensor, x: Tensor, before: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logarithm of the posterior, its slope, and the Gauss-Newton matrix."""
    cx, qx = torch.complex(sums[0], sums[1]), torch.complex(sums[2], sums[3])
    cc, cq, qq = sums[4:]
    change = x - before
    phase, delta = change[:ODD_TERMS] @ odd, change[ODD_TERMS:] @ even
    cos, sin = delta.cos(), delta.sin()
    back = torch.polar(torch.ones_like(phase), -phase)
    aligned, derived = back * (cx * cos - qx * sin), back * (-cx * sin - qx * cos)
    power = cc * cos**2 - 2 * cq * cos * sin + qq * sin**2
    mixed = (qq - cc) * cos * sin - cq * (cos**2 - sin**2)
    turned = cc * sin**2 + 2 * cq * cos * sin + qq * cos**2
    value = (aligned.real - power / 2).sum() - x @ x / 2
    slope = torch.cat([odd @ aligned.imag, even @ (derived.real - mixed)]) - x
    matrix = torch.eye(len(x)).to(even)
    matrix[:ODD_TERMS, :ODD_TERMS] += (odd * power) @ odd.mT
    matrix[ODD_TERMS:, ODD_TERMS:] += (even * turned) @ even.mT
    return value, slope, matrix


class Aberrations:
    """Estimated aberrations of optics groups, beyond those of the table.

    Both half sets together make the estimate, each under the map of the other.

    Args:
        group_of: long ``(b,)``, optics group of each image, from 0 on.
        defocus: whether defocus is refined besides; then its mean is left to that.

    Attributes:
        odd: coefficients of the odd phase, float64 ``(g, 6)``.
        even: coefficients of the even phase in turns, float64 ``(g, 9)``.
    """

    def __init__(self, group_of: Tensor, *, defocus: bool) -> None:
        self.group_of, self._defocus = group_of, defocus
        count = int(group_of.max()) + 1
        self.odd = torch.zeros(count, ODD_TERMS, dtype=torch.float64)
        self.even = torch.zeros(count, EVEN_TERMS, dtype=torch.float64)
        self._tally: AberrationTally | None = None

    def tally(self, refiner: PoseRefiner) -> AberrationTally:
        """Return the sums of this round, which both half sets add to."""
        if self._tally is None:
            self._tally = AberrationTally(refiner, len(self.odd))
        return self._tally

    def settle(self) -> None:
        """Estimate the aberrations from the sums of this round, if there are any."""
        if self._tally is None:
            return
        self.odd, self.even = self._tally.estimates(self.odd, self.even)
        if self._defocus:
            self.even[:, :2] -= self.even[:, :2].mean(1, keepdim=True)
        self._tally = None

    def optics(self, given: Optics) -> Optics:
        """Return CTF parameters with the even phases of each image's group."""
        even = self.even.to(given.defocus_u_angstrom.device)[self.group_of]
        known = given.even_turns
        return replace(given, even_turns=even if known is None else known.to(even) + even)

    @property
    def estimated(self) -> bool:
        """Whether there was an estimate."""
        return bool(self.odd.any())

    def state_dict(self) -> dict[str, Any]:
        """Return the estimates."""
        return {"odd": self.odd, "even": self.even}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the estimates of an earlier run."""
        self.odd, self.even = state["odd"].cpu(), state["even"].cpu()


class PhaseCorrectedImages:
    """Images of a source with the present estimates of their odd phases undone.

    Args:
        images: the source.
        aberrations: estimates, which may change between passes over the images.
        pixel_size_angstrom: Å.
    """

    def __init__(
        self, images: ImageSource, aberrations: Aberrations, pixel_size_angstrom: float
    ) -> None:
        self.images, self._aberrations, self.box_size = images, aberrations, images.box_size
        self.pixel_size_angstrom = pixel_size_angstrom

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Tensor) -> Tensor:
        """Return the images ``(b, n, n)`` of these rows."""
        images = self.images.read(indices).clone()
        groups = self._aberrations.group_of[indices]
        for group in sorted(set(groups.tolist())):
            rows = (groups == group).nonzero().flatten().to(images.device)
            odd = self._aberrations.odd[group].to(images.device)
            images[rows] = undo_distortion(
                images[rows], torch.eye(2), odd, self.pixel_size_angstrom
            )
        return images
