r"""Maps of a refinement's round by total variation instead of Wiener's filter.

With the sums B and W of :mod:`vitreous.physics.insertion` and the noise power :math:`\sigma^2_s` of
shell s, a half map minimises

.. math::

    \tfrac12 \sum_k \frac{W_k}{\sigma^2_{s(k)}} \Big|\hat x_k - \frac{B_k}{W_k}\Big|^2
    + \lambda \, \mathrm{TV}(x),

on the map's own Fourier grid, where the normal operator is one multiplication. The strength is that
whose map of one half set fits the sums of the other best (:mod:`vitreous.optim.choose_strength`),
looked for whenever the box of the sums has grown: one number is all that the half sets share.
Wiener's maps stand where they fit the other's sums better still.

Source: equations (2.10) and (2.11) of L. Donati's thesis (EPFL, 2020), here with poses unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import shell_index, squared_frequency
from vitreous.methods.reconstruct.gridding import half_map
from vitreous.optim.admm import Admm
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.choose_strength import StrengthRange, StrengthSearch
from vitreous.optim.conjugate_gradient import dot
from vitreous.optim.least_squares import CirculantNormal, LeastSquares
from vitreous.optim.loop import Stateful, run
from vitreous.optim.priors import TotalVariation
from vitreous.physics.insertion import SPREAD, Gridding

_SOLVER = AdmmConfig(nonnegative=False, iterations=20, tolerance=1e-3)


class RegularisedMaps(Stateful):
    """Half maps by total variation, each round's from where the last round's ended.

    Attributes:
        strength: of half maps, in units of the sums' mean weight; 0 before the first round.
        preferred: whether they fitted the other half set better than the Wiener maps in the last
            round.
    """

    STATE = ("strength", "preferred", "_box", "_volumes")

    def __init__(self) -> None:
        self.strength, self.preferred = 0.0, False
        self._box = 0  # for which the strength was looked for
        self._volumes: tuple[Tensor, ...] = ()

    def half_maps(
        self,
        sums: tuple[Gridding, Gridding],
        noise_power: Sequence[Tensor],
        sphere: Tensor,
        wiener: Sequence[Tensor],
    ) -> Sequence[Tensor]:
        """Return the half maps that fit each other's sums better, these or Wiener's.

        Args:
            sums: of both half sets.
            noise_power: of the images of each half set by shell, ``(n // 2 + 1,)``.
            sphere: soft mask of the particle, ``(box, box, box)``.
            wiener: half maps, of any box ``(n, n, n)``, as the result is.
        """
        box = sums[0].box_size
        halves = [
            _equations(one, power, sphere) for one, power in zip(sums, noise_power, strict=True)
        ]
        start = tuple(fourier_resize(one, box, 3) for one in self._volumes)
        if box == self._box:
            self._volumes = tuple(
                _solved(half, self.strength, one) for half, one in zip(halves, start, strict=True)
            )
        else:
            self._search(halves, start)
        misfit, misfit_of_wiener = (
            halves[1].misfit(first) + halves[0].misfit(second)
            for first, second in (self._volumes, (fourier_resize(one, box, 3) for one in wiener))
        )
        self.preferred = misfit < misfit_of_wiener
        if not self.preferred:
            return wiener
        return [fourier_resize(one * sphere, len(wiener[0]), 3) for one in self._volumes]

    def _search(self, halves: Sequence[LeastSquares], start: tuple[Tensor, ...]) -> None:
        """Look for the strength, and keep it and its maps; rounds of the same box keep it too."""
        search = StrengthSearch(
            (halves[0], halves[1]),
            TotalVariation(0.0),
            _SOLVER,
            start=(start[0], start[1]) if start else None,
            among=StrengthRange(self.strength or None),
        )
        found = run(search)
        self.strength, self._volumes = found.strength, found.volumes
        self._box = halves[0].right_hand_side.shape[0]

    def map_of_all(
        self, sums: tuple[Gridding, Gridding], noise_power: Sequence[Tensor], sphere: Tensor
    ) -> Tensor:
        r"""Return the map of all images of the last round; arguments as of :meth:`half_maps`.

        Twice the images ask for :math:`\sqrt 2` of a norm's strength: relative to the sums' mean
        weight for :math:`1 / \sqrt 2`.
        """
        power = (noise_power[0] + noise_power[1]) / 2
        start = (self._volumes[0] + self._volumes[1]) / 2
        equations = _equations(sums[0] + sums[1], power, sphere)
        return _solved(equations, self.strength / math.sqrt(2), start)


def _solved(equations: LeastSquares, strength: float, start: Tensor) -> Tensor:
    return run(Admm(equations, TotalVariation(strength), _SOLVER, start=start)).volume


def _equations(sums: Gridding, noise_power: Tensor, sphere: Tensor) -> LeastSquares:
    """Return the normal equations of a set's sums, in units of their mean weight."""
    box, device = sums.box_size, sums.weight.device
    frequency = torch.fft.fftfreq(box, 1 / box, device=device).round().long()
    place = (SPREAD * frequency).clamp(1 - box, box - 1)
    along_x = place[: box // 2 + 1].abs()
    weight = sums.weight[along_x][:, place + box - 1][:, :, place + box - 1].permute(2, 1, 0)
    power = noise_power[: box // 2 + 1].float().to(device)
    shell = shell_index(box, 3, device=device).clamp(max=box // 2)
    weight = weight / power[shell] * (squared_frequency(box, 3, device=device) < (box / 2) ** 2)
    operator = CirculantNormal(weight / weight.mean().clamp_min(1e-30), (box, box, box))
    fitted = half_map(sums) * sphere
    right_hand_side = operator(fitted)
    return LeastSquares(operator, right_hand_side, dot(fitted, right_hand_side))
