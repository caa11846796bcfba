r"""Contrast transfer function (CTF), in RELION's conventions.

.. math::

    \mathrm{CTF}(k) = -\sin\gamma(k)\, e^{-B |k|^2 / 4}, \qquad
    \gamma(k) = \pi \lambda D(\theta) |k|^2 + \tfrac{\pi}{2} C_s \lambda^3 |k|^4
                - \varphi - \arcsin Q

with :math:`D(\theta) = -[\bar d + \Delta\cos 2(\theta - \alpha)]`, :math:`\bar d = (d_U + d_V) / 2`
and :math:`\Delta = (d_U - d_V) / 2` (positive defocus is underfocus). The product
:math:`D(\theta)|k|^2` is computed as a quadratic form in (kx, ky), so that gradients are finite at
zero astigmatism and at the origin.

The phase reaches hundreds of radians at high resolution, where single precision holds four
decimals. It is therefore summed in double precision, in turns, and only the fraction of a turn is
cast to the working precision.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from vitreous.core.grid import frequency_grid
from vitreous.core.params import Optics
from vitreous.linop.operator import FourierFilter
from vitreous.physics.aberrations import fourth_order_basis

# RELION's rounding of h / sqrt(2 m e) in Å sqrt(V) and of e / (2 m c^2) in 1/V. Newer values
# differ by 5e-6, which would be visible at hundreds of radians.
_DE_BROGLIE_ANGSTROM_SQRT_VOLT = 12.2643247
_RELATIVISTIC_INV_VOLT = 0.978466e-6
_ANGSTROM_PER_MM = 1.0e7


def electron_wavelength_angstrom(voltage_kv: Tensor) -> Tensor:
    r"""Return the relativistic wavelength of the electron, in Å, for voltages of any shape.

    :math:`\lambda = 12.2643247 / \sqrt{V (1 + 0.978466 \cdot 10^{-6}\, V)}`, V in volts.

    >>> round(electron_wavelength_angstrom(torch.tensor(300.0, dtype=torch.float64)).item(), 5)
    0.01969
    """
    volt = voltage_kv * 1.0e3
    return _DE_BROGLIE_ANGSTROM_SQRT_VOLT / (volt * (1 + _RELATIVISTIC_INV_VOLT * volt)).sqrt()


def with_defocus_change(optics: Optics, change_angstrom: Tensor) -> Optics:
    """Return optics with both defocus values changed by the same amount.

    >>> with_defocus_change(Optics.uniform(1), torch.tensor([100.0])).defocus_u_angstrom.item()
    15100.0
    """
    change = change_angstrom.to(optics.defocus_u_angstrom)
    return replace(
        optics,
        defocus_u_angstrom=optics.defocus_u_angstrom + change,
        defocus_v_angstrom=optics.defocus_v_angstrom + change,
    )


def b_factor_from_nyquist_value(value: float, pixel_size_angstrom: float) -> float:
    r"""Return the B factor in Å^2 of an envelope :math:`e^{-B k^2 / 4}` from its value at Nyquist.

    :math:`B = -16\, p^2 \ln v` for pixel size p, the notation of CryoGAN's papers; v is the
    envelope at 1 / (2 p).

    Raises:
        ValueError: ``value`` outside (0, 1] or a pixel size that is not positive.

    >>> round(b_factor_from_nyquist_value(math.exp(-1.0), 2.0), 6)
    64.0
    """
    if not 0 < value <= 1:
        raise ValueError(f"the envelope at Nyquist must be in (0, 1], got {value}")
    if not pixel_size_angstrom > 0:
        raise ValueError(f"pixel_size_angstrom must be positive, got {pixel_size_angstrom}")
    return -16.0 * pixel_size_angstrom**2 * math.log(value) + 0.0  # + 0.0: no negative zero


def phase_coefficients(optics: Optics) -> Tensor:
    """Return coefficients of gamma / 2 pi in (kx^2, ky^2, kx ky, |k|^4, 1), float64 ``(..., 5)``.

    Further terms of the fourth order are those of ``optics.even_turns``.

    ``optics`` has fields of shape ``(...)``; frequencies are in 1/Å.

    >>> round(phase_coefficients(Optics.uniform(1))[0, 0].item(), 3)  # -wavelength defocus / 2
    -147.657
    """
    o = optics.to(torch.float64)
    wavelength = electron_wavelength_angstrom(o.voltage_kv)
    mean = (o.defocus_u_angstrom + o.defocus_v_angstrom) / 2
    half_difference = (o.defocus_u_angstrom - o.defocus_v_angstrom) / 2
    double_angle = torch.deg2rad(2 * o.defocus_angle_deg)
    along = half_difference * torch.cos(double_angle)
    across = half_difference * torch.sin(double_angle)
    constant = torch.deg2rad(o.phase_shift_deg) + torch.asin(o.amplitude_contrast)
    columns = (
        -wavelength / 2 * (mean + along),
        -wavelength / 2 * (mean - along),
        -wavelength * across,
        o.cs_mm * _ANGSTROM_PER_MM * wavelength**3 / 4,
        -constant / (2 * math.pi),
    )
    coefficients = torch.stack(columns, dim=-1)
    return coefficients if o.even_turns is None else coefficients + o.even_turns[..., :5]


def damping(squared_inv_angstrom2: Tensor, optics: Optics) -> Tensor | None:
    r"""Return the factor of the CTF by scale and radiation damage; None where all are 1.

    :math:`s\, \exp(-\tfrac12 N / N_e(k))` with the exposure N and the critical exposure
    :math:`N_e(k) = 0.245\, k^{-1.665} + 2.81` electrons per Å^2, k in 1/Å. Squared frequencies
    ``(points,)`` and optics ``(...)`` give ``(..., points)``.

    Source: T. Grant, N. Grigorieff, eLife 4 (2015) e06980, equation 3; as in RELION 5.

    >>> none = Optics.uniform(2)
    >>> tilts = Optics(**{**vars(none), "exposure_e_per_angstrom2": torch.tensor([0.0, 60.0])})
    >>> [round(v, 2) for v in damping(torch.tensor([0.01]), tilts).flatten().tolist()]
    [1.0, 0.12]
    """
    exposure, scale = optics.exposure_e_per_angstrom2, optics.scale
    exposed = exposure.requires_grad or bool((exposure != 0).any())
    if not (exposed or scale.requires_grad or bool((scale != 1).any())):
        return None
    factor = scale[..., None] + torch.zeros_like(squared_inv_angstrom2)
    if exposed:
        critical = 0.245 * squared_inv_angstrom2.clamp_min(1e-12) ** (-1.665 / 2) + 2.81
        factor = factor * torch.exp(-0.5 * exposure[..., None] / critical)
    return factor


def ctf(
    kx_inv_angstrom: Tensor,
    ky_inv_angstrom: Tensor,
    optics: Optics,
    *,
    aperture_inv_angstrom: float | None = None,
) -> Tensor:
    r"""Return the CTF at given frequencies, by the formula at the top of this module.

    Args:
        kx_inv_angstrom: x frequencies in 1/Å that broadcast with ``ky_inv_angstrom`` to
            ``(ny, nx)``, such as those of :func:`vitreous.core.grid.frequency_grid`. Give them in
            double precision: single precision causes errors of 5e-5 at 1 Å/px and 3 µm.
        ky_inv_angstrom: y frequencies in 1/Å.
        optics: batch of optics whose fields have shape ``(...)``.
        aperture_inv_angstrom: radius in 1/Å above which the CTF is zero.

    Returns:
        real ``(..., ny, nx)`` of the dtype of the optics; Q at the origin without phase plate.

    Raises:
        ValueError: the frequencies do not broadcast to two dimensions.

    >>> origin = torch.zeros(1, 1)
    >>> round(ctf(origin, origin, Optics.uniform(1, amplitude_contrast=0.1)).item(), 6)
    0.1
    """
    kx = kx_inv_angstrom.double() + torch.zeros_like(ky_inv_angstrom.double())
    ky = ky_inv_angstrom.double() + torch.zeros_like(kx)
    if kx.ndim != 2:
        raise ValueError(f"frequencies must broadcast to (ny, nx), got {tuple(kx.shape)}")
    dtype = optics.defocus_u_angstrom.dtype
    xx, yy = kx * kx, ky * ky
    squared = xx + yy
    basis = torch.stack((xx, yy, kx * ky, squared * squared, torch.ones_like(xx))).flatten(1)
    turns = phase_coefficients(optics) @ basis
    if optics.even_turns is not None:
        fourth = fourth_order_basis(kx, ky).flatten(1)
        turns = turns + optics.even_turns[..., 5:].to(fourth) @ fourth
    remainder = (turns - turns.detach().round()).to(dtype)
    value = -torch.sin((2 * math.pi) * remainder)
    decay = squared.to(dtype).flatten() / -4
    value = value * torch.exp(optics.b_factor_angstrom2[..., None] * decay)
    factor = damping(squared.to(dtype).flatten(), optics)
    value = value if factor is None else value * factor
    if aperture_inv_angstrom is not None:
        value = value * (squared <= aperture_inv_angstrom**2).to(dtype).flatten()
    return value.reshape(*value.shape[:-1], *kx.shape)


def ctf_half(
    n: int,
    pixel_size_angstrom: float,
    optics: Optics,
    *,
    aperture_inv_angstrom: float | None = None,
) -> Tensor:
    """Return the CTF on the Hermitian half of an ``n x n`` image, as a filter of real images.

    In even boxes the Nyquist frequency of an axis stands for both of its signs, which differ with
    astigmatism: row and column hold their mean. The filter then has a real, symmetric kernel,
    products of filters are exact, and quarter turns and mirrors of the image commute with those of
    the astigmatism.

    With optics of shape ``(...)`` the result is real, ``(..., n, n // 2 + 1)`` in FFT order, of
    their dtype and device. For ``aperture_inv_angstrom`` see :func:`ctf`.

    >>> ctf_half(8, 2.0, Optics.uniform(3)).shape
    torch.Size([3, 8, 5])
    """
    device = optics.defocus_u_angstrom.device
    kx, ky = frequency_grid(n, pixel_size_angstrom, device=device, dtype=torch.float64)
    if n % 2:
        return ctf(kx, ky, optics, aperture_inv_angstrom=aperture_inv_angstrom)
    half = n // 2
    both = torch.cat((ky, -ky[half : half + 1]))  # with the Nyquist row of the other sign
    value = ctf(kx, both, optics, aperture_inv_angstrom=aperture_inv_angstrom)
    row = (value[..., half : half + 1, :] + value[..., n:, :]) / 2
    value = torch.cat((value[..., :half, :], row, value[..., half + 1 : n, :]), dim=-2)
    column = value[..., half:]
    column = (column + column.flip(-2).roll(1, -2)) / 2
    return torch.cat((value[..., :half], column), dim=-1)


class CTF(FourierFilter):
    """CTF of each image as a linear operator; self-adjoint.

    Args:
        optics: fields of shape ``(...)``; the domain is ``(..., n, n)``.
        n: box size in pixels.
        pixel_size_angstrom: pixel size in Å.
        aperture_inv_angstrom: see :func:`vitreous.physics.ctf.ctf`.

    >>> CTF(Optics.uniform(2), 8, 3.0).domain_shape
    (2, 8, 8)
    """

    def __init__(
        self,
        optics: Optics,
        n: int,
        pixel_size_angstrom: float,
        *,
        aperture_inv_angstrom: float | None = None,
    ) -> None:
        multiplier = ctf_half(
            n, pixel_size_angstrom, optics, aperture_inv_angstrom=aperture_inv_angstrom
        )
        super().__init__(multiplier, n)
