r"""Scan masks: which pixels of each image were measured.

.. math::

    b = S H c + n,

S diagonal with ones where the beam was. Source: L. Donati, PhD thesis, EPFL 2020, equation (3.5).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitreous.linop.operator import LinearOperator


class ScanMask(LinearOperator):
    """Keep scanned pixels, zero the others: a diagonal projection, its own adjoint and square.

    Args:
        scanned: bool, the shape of the images; leading dimensions of these are a batch.

    Raises:
        ValueError: a mask that is not boolean.

    >>> ScanMask(torch.tensor([True, False]))(torch.tensor([3.0, 4.0])).tolist()
    [3.0, 0.0]
    """

    def __init__(self, scanned: Tensor) -> None:
        if scanned.dtype != torch.bool:
            raise ValueError(f"a scan mask is boolean, got {scanned.dtype}; compare it with 0")
        self.scanned = scanned
        self.domain_shape = self.range_shape = tuple(scanned.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return S x."""
        return x * self.scanned

    def adjoint(self, y: Tensor) -> Tensor:
        """Return S y."""
        return y * self.scanned

    def normal(self, x: Tensor) -> Tensor:
        """Return S x, as S is a projection."""
        return x * self.scanned
