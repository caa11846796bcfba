r"""Central slices and their derivatives over the rotation of the particle.

With :math:`R(\omega) = e^{[\omega]_\times} R` a slice point is read at
:math:`p = s R(\omega)^T k`, :math:`k = (k_x, k_y, 0)`, so that at :math:`\omega = 0`

.. math::

    \partial_{\omega_x} \hat V = -k_y D, \quad \partial_{\omega_y} \hat V = k_x D, \quad
    D = s\, \nabla\hat V \cdot r_z, \qquad
    \partial_{\omega_z} \hat V = s\, \nabla\hat V \cdot (k_y r_x - k_x r_y),

:math:`r_x, r_y, r_z` being the rows of R: three complex numbers per point hold the slice and its
derivatives, read in one pass over the packed spectrum of :mod:`vitreous.physics.projector`.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitreous.core.jit import njit
from vitreous.core.threads import compiled, even_edges, in_threads
from vitreous.physics.kernels import slice_torch
from vitreous.physics.kernels.slice_cpu import (
    packed_spectrum,
    point_position,
    slice_points,
    tap_weights,
)
from vitreous.physics.kernels.slice_kernel import disc, lines, polynomials


@lru_cache(maxsize=32)
def band_points(n: int, radius: float) -> tuple[Any, Any, Any]:
    """Return (kx, ky) and flat index of the half-plane points with 0 < |k| <= radius, in cycles.

    >>> band_points(8, 1.0)[0].tolist(), band_points(8, 1.0)[1].tolist()
    ([0, 1, 0], [-1, 0, 1])
    """
    kx, ky, target = disc(n)
    squared = kx**2 + ky**2
    inside = (squared > 0) & (squared <= radius**2)
    return kx[inside], ky[inside], target[inside]


@njit(nogil=True, inline="always")
def _along_z(grid: Any, start: Any, z: int, size: int, w: Any, d: Any) -> Any:
    """Interpolate value and slope along one line, real and imaginary parts."""
    z0, z1, z2, z3 = 2 * z, 2 * z + 2, 2 * z + 4, 2 * z + 6
    if not 0 <= z <= size - 4:
        z0, z1 = 2 * (z % size), 2 * ((z + 1) % size)
        z2, z3 = 2 * ((z + 2) % size), 2 * ((z + 3) % size)
    i0, i1 = start + np.uintp(z0), start + np.uintp(z1)
    i2, i3 = start + np.uintp(z2), start + np.uintp(z3)
    p0, p1, p2, p3 = grid[i0], grid[i1], grid[i2], grid[i3]
    one = np.uintp(1)
    q0, q1, q2, q3 = grid[i0 + one], grid[i1 + one], grid[i2 + one], grid[i3 + one]
    return (
        w[0] * p0 + w[1] * p1 + w[2] * p2 + w[3] * p3,
        w[0] * q0 + w[1] * q1 + w[2] * q2 + w[3] * q3,
        d[0] * p0 + d[1] * p1 + d[2] * p2 + d[3] * p3,
        d[0] * q0 + d[1] * q1 + d[2] * q2 + d[3] * q3,
    )


@compiled
def _derivatives(grid: Any, points: Any, tables: Any, out: Any, first: int, last: int) -> None:
    """Value, D and the derivative about z of slices ``first .. last`` into ``(b, points, 6)``."""
    values, size, middle = grid.values, grid.size, grid.middle
    table, slopes = tables
    real, half, scale = values.dtype.type, size // 2, points.scale
    for b in range(first, last):
        r = points.rotations[b]
        for m in range(points.kx.shape[0]):
            px, py, pz = point_position(points, b, m)
            # along r_z, and about z
            kx, ky = points.kx[m], points.ky[m]
            ux, uy, uz = scale * r[2, 0], scale * r[2, 1], scale * r[2, 2]
            vx = scale * (ky * r[0, 0] - kx * r[1, 0])
            vy = scale * (ky * r[0, 1] - kx * r[1, 1])
            vz = scale * (ky * r[0, 2] - kx * r[1, 2])
            mirrored = px < 0
            if mirrored:
                px, py, pz = -px, -py, -pz
                ux, uy, uz, vx, vy, vz = -ux, -uy, -uz, -vx, -vy, -vz
            ix, iy, iz = int(np.floor(px)), int(np.floor(py)), int(np.floor(pz))
            fx, fy, fz = real(px - ix - 0.5), real(py - iy - 0.5), real(pz - iz - 0.5)
            wx, dx = tap_weights(fx, table), tap_weights(fx, slopes)
            wy, dy = tap_weights(fy, table), tap_weights(fy, slopes)
            wz, dz = tap_weights(fz, table), tap_weights(fz, slopes)
            a0 = b0 = c0 = e0 = a1 = b1 = c1 = e1 = real(0)
            z = iz - 1 + half
            for c in range(4):
                line = middle[ix + c] + iy - 1
                s0 = s1 = t0 = t1 = h0 = h1 = real(0)
                for d in range(4):
                    start = np.uintp(2 * (line + d) * size)
                    value0, value1, change0, change1 = _along_z(values, start, z, size, wz, dz)
                    s0 += wy[d] * value0
                    s1 += wy[d] * value1
                    t0 += dy[d] * value0
                    t1 += dy[d] * value1
                    h0 += wy[d] * change0
                    h1 += wy[d] * change1
                a0 += wx[c] * s0
                a1 += wx[c] * s1
                b0 += dx[c] * s0
                b1 += dx[c] * s1
                c0 += wx[c] * t0
                c1 += wx[c] * t1
                e0 += wx[c] * h0
                e1 += wx[c] * h1
            sign = real(-1) if mirrored else real(1)
            out[b, m, 0], out[b, m, 1] = a0, sign * a1
            out[b, m, 2] = ux * b0 + uy * c0 + uz * e0
            out[b, m, 3] = sign * (ux * b1 + uy * c1 + uz * e1)
            out[b, m, 4] = vx * b0 + vy * c0 + vz * e0
            out[b, m, 5] = sign * (vx * b1 + vy * c1 + vz * e1)


def _on_cpu(spectrum: Tensor, rotations: Tensor, n: int, radius: float) -> Tensor:
    source, wanted = packed_spectrum(spectrum), band_points(n, radius)
    real: Any = source.values.dtype.type
    points = slice_points(rotations, n, source.size, real, wanted)
    out = torch.empty(len(rotations), len(wanted[0]), 6, dtype=spectrum.real.dtype)
    tables, target = polynomials(real), out.numpy()
    work = partial(_derivatives, source, points, tables, target)
    in_threads(work, even_edges(0, len(out)))
    return torch.view_as_complex(out.view(*out.shape[:2], 3, 2))


def _on_any(spectrum: Tensor, rotations: Tensor, n: int, radius: float) -> Tensor:
    """Torch version of :func:`_on_cpu`."""
    real = spectrum.real.dtype
    points = slice_torch.Points(rotations, n, spectrum.shape[1], real)
    values, slopes = polynomials(np.float64)
    w, dw = (slice_torch.tap_weights(points.fraction, table) for table in (values, slopes))
    flat = spectrum.reshape(-1)
    shape = points.sign.shape
    total = torch.zeros((4, *shape), dtype=spectrum.dtype, device=spectrum.device)
    for index, (c, d, e) in points.neighbours():
        x, y, z = w[..., 0, c], w[..., 1, d], w[..., 2, e]
        here = flat[index]
        total[0] += x * y * z * here
        total[1] += dw[..., 0, c] * y * z * here
        total[2] += x * dw[..., 1, d] * z * here
        total[3] += x * y * dw[..., 2, e] * here
    slope = total[1:] * points.sign  # at the opposite point the argument changes sign
    r = rotations.to(real)[:, None]
    kx, ky = points.k.unbind(-1)
    about = ky[:, None] * r[:, :, 0] - kx[:, None] * r[:, :, 1]
    scale = spectrum.shape[1] / n
    along = torch.einsum("ibp,bi->bp", slope, (scale * r[:, 0, 2]).to(slope.dtype))
    about_z = torch.einsum("ibp,bpi->bp", slope, about.to(slope.dtype))
    results = torch.stack([points.mirror(x) for x in (total[0], along, about_z)], -1)
    index = torch.full((n * (n // 2 + 1),), -1, device=spectrum.device)
    index[points.target] = torch.arange(len(points.target), device=spectrum.device)
    target = torch.as_tensor(band_points(n, radius)[2], device=spectrum.device)
    return results[:, index[target]]


def slice_derivatives(spectrum: Tensor, rotations: Tensor, n: int, radius: float) -> Tensor:
    """Return slices and their derivatives over rotations, at low frequencies of half planes.

    Complex ``(b, points, 3)`` at the points of :func:`band_points`: the slice, D, and the
    derivative about z per radian; see the top of the module. Not differentiable. ``spectrum`` is
    the :func:`~vitreous.physics.projector.oversampled_spectrum` of a box n; ``radius`` is K, in
    cycles per box, below n / 2.

    Raises:
        ValueError: a band that reaches Nyquist, a spectrum of another box.

    >>> from vitreous.physics.projector import oversampled_spectrum
    >>> v = torch.zeros(8, 8, 8); v[4, 4, 4] = 1.0
    >>> slices = slice_derivatives(oversampled_spectrum(v), torch.eye(3)[None], 8, 2.0)
    >>> slices.abs().max().round().item()
    1.0
    """
    if not radius < n / 2:
        raise ValueError(f"radius must be below half of the box, got {radius} for a box of {n}")
    if lines(spectrum.shape[1]).count != len(spectrum):
        raise ValueError(f"spectrum {tuple(spectrum.shape)} is not packed for a box of {n} px")
    implementation = _on_cpu if spectrum.device.type == "cpu" else _on_any
    return implementation(spectrum, rotations, n, radius)
