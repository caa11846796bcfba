r"""Reconstruction of several maps at once from images that each show a mixture of them.

Where image i shows :math:`\sum_k \beta_{ik} V_k`, the least-squares spectra of the maps solve, at
every point of the Fourier grid of :mod:`vitreous.physics.insertion`,

.. math::

    \sum_l \Big(\sum_i w\, \langle\beta_{ik}\beta_{il}\rangle\, T_i^*[c_i^2]
        + \Lambda_{kl}\Big) V_l
        = \sum_i w\, \langle\beta_{ik}\rangle\, T_i^*[c_i \bar s_i \hat y_i],

where the mixing of neighbouring points is neglected: a (d + 1) x (d + 1) system at each point.
"""

import torch
from torch import Tensor

from vitreous.methods.reconstruct.gridding import LEAST_WEIGHT, grid_radius, shell_means, to_map
from vitreous.physics.insertion import SPREAD, Accumulator

_BATCH = 1 << 15  # points solved together; bounds the memory


class ComponentSums:
    """Sums of all d + 1 ``maps`` of box size n, accumulated batch by batch.

    A grid holds a complex sum and a real one, so that two of the products beyond the first of each
    map share a grid.
    """

    def __init__(
        self,
        box_size: int,
        maps: int,
        *,
        device: torch.device | None = None,
        threads: int | None = None,
    ) -> None:
        self.box_size, self.maps = box_size, maps
        self._first, self._second = torch.triu_indices(maps, maps).unbind()
        grids = maps + -(-(len(self._first) - maps) // 2)
        self._grids = [
            Accumulator(box_size, sets=1, device=device, threads=threads) for _ in range(grids)
        ]

    def insert(self, values: Tensor, rotations: Tensor, mean: Tensor, second: Tensor) -> None:
        """Add the slices of a batch of images.

        ``values (b, points, 3)`` are of :func:`~vitreous.physics.insertion.weighted_slices`,
        ``rotations`` ``(b, 3, 3)``, ``mean (b, d + 1)`` of beta and ``second (b, d + 1, d + 1)`` of
        its products.
        """
        pairs = second[:, self._first, self._second]
        image, power = values[..., :2], values[..., 2:]
        blank = torch.zeros_like(power)
        for k, grid in enumerate(self._grids):
            if k < self.maps:
                part = torch.cat(
                    [image * mean[:, k, None, None], power * pairs[:, k, None, None]], -1
                )
            else:
                j = 2 * k - self.maps
                last = pairs[:, j + 1] if j + 1 < pairs.shape[1] else torch.zeros_like(pairs[:, j])
                part = torch.cat(
                    [power * pairs[:, j, None, None], blank, power * last[:, None, None]], -1
                )
            grid.insert(part, rotations)

    def solve(self, precision: Tensor | None) -> Tensor:
        """Solve for the maps ``(d + 1, n, n, n)``.

        ``precision``, the diagonal of Lambda by shell, ``(d + 1, n // 2 + 1)``, is for coefficients
        in the units of ``rfftn`` of a map; None for almost none.
        """
        n, count = self.box_size, self.maps
        sums = [grid.gridding(0) for grid in self._grids]
        mean, shell = shell_means(sums[0])
        inside = (grid_radius(n, mean.device) < n / 2) & (sums[0].weight > 0)
        shell = shell[inside]
        image = torch.stack([one.numerator[inside] for one in sums[:count]], -1)
        products = [one.weight[inside] for one in sums[:count]]
        for one in sums[count:]:
            products += [one.numerator.real[inside], one.weight[inside]]
        # a coefficient of the map has SPREAD^3 points of the grid
        smallest = (LEAST_WEIGHT * mean).clamp_min(torch.finfo(torch.float32).tiny)
        added = smallest.expand(count, -1)
        if precision is not None:
            added = torch.maximum(added, precision.to(smallest) / SPREAD**3)
        spectra = torch.zeros((count, *sums[0].weight.shape), dtype=torch.complex64).to(mean.device)
        solved = torch.empty_like(image)
        for batch in torch.split(torch.arange(len(image), device=image.device), _BATCH):
            matrix = image.real.new_zeros(len(batch), count, count)
            for i, j, product in zip(self._first, self._second, products, strict=False):
                matrix[:, i, j] = matrix[:, j, i] = product[batch]
            matrix = matrix + torch.diag_embed(added[:, shell[batch]].T)
            right = torch.view_as_real(image[batch])
            solved[batch] = torch.view_as_complex(torch.linalg.solve(matrix, right).contiguous())
        for k in range(count):
            spectra[k][inside] = solved[:, k]
        return torch.stack([to_map(spectrum, n) for spectrum in spectra])
