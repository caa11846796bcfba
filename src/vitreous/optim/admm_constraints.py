"""Constraints z = K x of ADMM: what each variable z costs, and its multipliers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from vitreous.linop.gradient import Gradient
from vitreous.linop.operator import Identity, LinearOperator
from vitreous.linop.wavelet import Wavelet
from vitreous.optim.admm_config import AdmmConfig
from vitreous.optim.conjugate_gradient import dot
from vitreous.optim.least_squares import Convolution
from vitreous.optim.prox import lengths, project, prox_l1, prox_l21, prox_squared_l2

_IMBALANCE, _FACTOR = 2.0, 1.5  # rho moves by the factor where residuals are further apart
_LEAST_SCALE = 1e-2  # of |x|, as |K x| vanishes where nothing but the prior is left


class Split(ABC):
    r"""One constraint :math:`z = K x`, with scaled multipliers :math:`d = y / \rho`.

    ``update`` does :math:`z \leftarrow \mathrm{prox}(K x + d)` and
    :math:`d \leftarrow d + K x - z`, and sets what the solver reads:

    Args:
        pulled, dual: :math:`K^T z` and :math:`K^T d`.
        cost: of z's term, at K x.
        primal, primal_scale: :math:`\|K x - z\|`, and the larger of :math:`\|K x\|`,
            :math:`\|z\|` and 0.01 :math:`\|x\|`.
        drift: norm of the change of :math:`K^T z`.
        spectrum: eigenvalues of :math:`K^T K` on the volume's half-spectrum; for conjugate
            gradients those of a circulant matrix close to it will do.
    """

    lowest_rho = 0.0
    cost = primal = primal_scale = drift = 0.0

    def __init__(self, rho: float, pulled: Tensor, dual: Tensor, spectrum: Tensor) -> None:
        self.rho = rho
        self.spectrum = spectrum
        self.pulled = pulled
        self.dual = dual

    @abstractmethod
    def normal(self, x: Tensor) -> Tensor:
        """K^T K x."""

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Minimise over z, then climb in d."""

    @abstractmethod
    def _scale_multipliers(self, factor: float) -> None:
        """Multiply d."""

    @property
    def pull(self) -> Tensor:
        """rho K^T (z - d): this constraint's share of the right-hand side for x."""
        return self.rho * (self.pulled - self.dual)

    def balance(self, stationarity: float) -> None:
        """Move rho where relative primal and dual residual are out of balance; y stays.

        Args:
            stationarity: relative residual of the whole problem in x. Above the primal residual
                it forbids to stiffen a system that is not solved well as it is.

        Source: Wohlberg, arXiv:1704.06209, equations (26) and (27).
        """
        pull = float(self.dual.norm())
        if self.primal == 0 or pull == 0:  # the constraint does nothing
            return
        primal, dual = self.primal / self.primal_scale, self.drift / pull
        factor = 1.0
        if primal > _IMBALANCE * max(dual, stationarity):
            factor = _FACTOR
        elif dual > _IMBALANCE * primal:
            factor = 1 / _FACTOR
        factor = max(factor, self.lowest_rho / self.rho)
        if factor != 1.0:
            self.rho *= factor
            self._scale_multipliers(1 / factor)
            self.dual = self.dual / factor

    def _record(self, pulled: Tensor, dual: Tensor) -> None:
        self.drift = float((pulled - self.pulled).norm())
        self.pulled, self.dual = pulled, dual


class TermSplit(Split):
    """A term g(z) with a proximal map.

    Args:
        operator: K.
        prox: (u, 1 / rho) to the minimiser of g(z) / rho + 1/2 |z - u|^2.
        cost: g.
        x: where to start.
        y: multipliers to start from, shape of K x; zero by default.
        rho: penalty parameter at the start.
        spectrum: eigenvalues of the circulant matrix that K^T K is, or is close to.
    """

    def __init__(
        self,
        operator: LinearOperator,
        prox: Callable[[Tensor, float], Tensor],
        cost: Callable[[Tensor], float],
        *,
        x: Tensor,
        y: Tensor | None,
        rho: float,
        spectrum: Tensor,
    ) -> None:
        self._operator = operator
        self._prox = prox
        self._cost = cost
        self.z = operator(x)
        self.d = torch.zeros_like(self.z) if y is None else y / rho
        super().__init__(rho, operator.adjoint(self.z), operator.adjoint(self.d), spectrum)

    @property
    def y(self) -> Tensor:
        """Multipliers: a subgradient of g at z."""
        return self.rho * self.d

    def normal(self, x: Tensor) -> Tensor:
        """K^T K x."""
        return self._operator.normal(x)

    def value(self, x: Tensor) -> float:
        """g(K x)."""
        return self._cost(self._operator(x))

    def update(self, x: Tensor) -> None:
        """Minimise over z, then climb in d."""
        kx = self._operator(x)
        self.z = self._prox(kx + self.d, 1 / self.rho)
        gap = kx - self.z
        self.d += gap
        self.cost = self._cost(kx)
        self.primal = float(gap.norm())
        scales = kx.norm(), self.z.norm(), _LEAST_SCALE * x.norm()
        self.primal_scale = max(map(float, scales))
        self._record(self._operator.adjoint(self.z), self._operator.adjoint(self.d))

    def _scale_multipliers(self, factor: float) -> None:
        self.d = self.d * factor


class PaddedSplit(Split):
    r"""The data term :math:`\frac12 z^T C z` of the padded volume :math:`z = P x`.

    Its proximal map divides by :math:`C / \rho + 1` in Fourier space, and :math:`P^T P = I`, so
    that nothing is left to solve. ``cost`` is :math:`\frac12 x^T H^T H x`.

    Only the spectrum of d is kept: two transforms of the padded grid an iteration.
    """

    def __init__(self, operator: Convolution, x: Tensor, rho: float) -> None:
        self._operator = operator
        self._c = operator.spectrum.to(x)
        # Where C is slightly indefinite only a stiff constraint keeps the whole problem convex.
        self.lowest_rho = max(0.0, -2 * float(self._c.min()))
        rho = max(rho, self.lowest_rho)
        self._shape = operator.padded_shape
        self._d_hat = torch.fft.rfftn(operator.pad(x)) * (self._c / rho)
        dual = operator.crop(torch.fft.irfftn(self._d_hat, s=self._shape))
        super().__init__(rho, x, dual, x.new_ones(()))

    def normal(self, x: Tensor) -> Tensor:
        """P^T P x, which is x."""
        return x

    def update(self, x: Tensor) -> None:
        """Minimise over z, then climb in d."""
        x_hat = torch.fft.rfftn(self._operator.pad(x))
        u_hat = x_hat + self._d_hat
        z_hat = u_hat / (1 + self._c / self.rho)
        self._d_hat = u_hat - z_hat
        self.cost = 0.5 * self._dot(x_hat, self._c * x_hat)
        self.primal = self._dot(x_hat - z_hat, x_hat - z_hat) ** 0.5
        self.primal_scale = max(float(x.norm()), self._dot(z_hat, z_hat) ** 0.5)
        pulled = self._operator.crop(torch.fft.irfftn(z_hat, s=self._shape))
        self._record(pulled, self.dual + x - pulled)

    def _dot(self, a: Tensor, b: Tensor) -> float:
        """Inner product of the volumes whose half-spectra these are."""
        products = torch.sum((a * b.conj()).real, dim=(0, 1), dtype=torch.float64)
        twice = products[1:-1] if self._shape[2] % 2 == 0 else products[1:]
        total = float(products.sum() + twice.sum())
        return max(total, 0.0) / torch.Size(self._shape).numel()

    def _scale_multipliers(self, factor: float) -> None:
        self._d_hat = self._d_hat * factor


def regulariser(config: AdmmConfig, x: Tensor, y: Tensor | None, rho: float) -> TermSplit | None:
    """The split u = L x of lambda R(L x); None where there is no regulariser.

    Args:
        config: which, and how strong.
        x, y: volume and multipliers to start from.
        rho: penalty parameter at the start.

    Raises:
        ValueError: an unknown wavelet.
    """
    shape, strength = tuple(x.shape), config.strength
    if config.regulariser == "none" or strength == 0:
        return None
    operator: Gradient | Wavelet | Identity
    if config.regulariser == "tv":
        operator = Gradient(shape, config.boundary)
        spectrum = Gradient(shape).normal_spectrum(x)

        def prox(u: Tensor, step: float) -> Tensor:
            return prox_l21(u, strength * step)

        def cost(u: Tensor) -> float:
            return strength * float(lengths(u).sum(dtype=torch.float64))

    elif config.regulariser == "wavelet":
        operator = Wavelet(shape, config.wavelet, config.wavelet_levels)
        spectrum, details = operator.normal_spectrum(x), operator.details(x)

        def prox(u: Tensor, step: float) -> Tensor:
            return prox_l1(u, strength * step * details)

        def cost(u: Tensor) -> float:
            return strength * float((details * u.abs()).sum(dtype=torch.float64))

    else:
        operator = Identity(shape)
        spectrum = operator.normal_spectrum(x)

        def prox(u: Tensor, step: float) -> Tensor:
            return prox_squared_l2(u, strength * step)

        def cost(u: Tensor) -> float:
            return 0.5 * strength * dot(u, u)

    return TermSplit(operator, prox, cost, x=x, y=y, rho=rho, spectrum=spectrum)


def feasibility(
    config: AdmmConfig,
    mask: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    rho: float,
) -> TermSplit | None:
    """The split v = x of nonnegativity and mask; None where neither is asked."""
    if not config.nonnegative and mask is None:
        return None
    identity = Identity(tuple(x.shape))
    return TermSplit(
        identity,
        lambda u, _: project(u, nonnegative=config.nonnegative, mask=mask),
        lambda _: 0.0,
        x=x,
        y=y,
        rho=rho,
        spectrum=identity.normal_spectrum(x),
    )
