"""Grey-scale pictures of maps and particles as pixels and PNG bytes.

Protein is positive and drawn white; the first row is at the top, as in RELION.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Gray = NDArray[np.uint8]


def contrast_limits(values: Array, low_percent: float = 0.5) -> tuple[float, float]:
    """Return grey limits that ignore NaN and ``low_percent`` % of the values at either end.

    Returns:
        ``(low, high)`` with ``high > low`` always; ``(0, 1)`` if nothing is finite.

    >>> contrast_limits(np.arange(101.0), 1.0)
    (1.0, 99.0)
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, [low_percent, 100.0 - low_percent]))
    return (low, high) if high > low else (low, low + 1.0)


def to_gray(values: Array, limits: tuple[float, float] | None = None) -> Gray:
    """Map values to 0..255 between ``limits`` (:func:`contrast_limits` if none); NaN is black.

    >>> to_gray(np.array([[0.0, 0.5], [1.0, 2.0]]), (0.0, 1.0)).tolist()
    [[0, 128], [255, 255]]
    """
    low, high = contrast_limits(values) if limits is None else limits
    scaled = np.clip((np.asarray(values, dtype=np.float64) - low) / (high - low), 0.0, 1.0)
    gray: Gray = np.round(np.nan_to_num(scaled, nan=0.0) * 255.0).astype(np.uint8)
    return gray


def png_bytes(gray: Gray) -> bytes:
    """Encode ``(rows, columns)`` pixels as an 8-bit grey-scale PNG; the first row is at the top.

    Raises:
        ValueError: not a two-dimensional ``uint8`` array.

    >>> png_bytes(np.zeros((2, 3), np.uint8))[:4]
    b'\\x89PNG'
    """
    if gray.ndim != 2 or gray.dtype != np.uint8:
        raise ValueError(f"expected a 2-D uint8 array, got {gray.dtype} {gray.shape}")
    rows, columns = gray.shape

    def chunk(name: bytes, body: bytes) -> bytes:
        check = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)

    scanlines = b"".join(b"\0" + row.tobytes() for row in gray)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(scanlines, 9))
        + chunk(b"IEND", b"")
    )


def enlarge(image: Array, pixels: int) -> Array:
    """Enlarge a small picture ``(n, n)`` smoothly to a width of about ``pixels``; never shrink it.

    >>> enlarge(np.eye(8), 30).shape
    (32, 32)
    """
    factor = max(1, round(pixels / image.shape[-1]))
    if factor == 1:
        return image
    from scipy.ndimage import zoom

    enlarged: Array = zoom(image, factor, order=3, mode="grid-wrap", grid_mode=True)
    return enlarged


def montage(images: Array, columns: int, gap_px: int = 1) -> Array:
    """Arrange images ``(k, n, n)`` in rows; gaps and empty cells are NaN.

    >>> montage(np.ones((3, 2, 2)), 2).shape
    (5, 5)
    """
    count, height, width = images.shape
    rows = -(-count // columns)
    sheet = np.full(
        (rows * (height + gap_px) - gap_px, columns * (width + gap_px) - gap_px), np.nan
    )
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap_px), (i % columns) * (width + gap_px)
        sheet[top : top + height, left : left + width] = image
    return sheet


def central_slices(volume: Array) -> dict[str, Array]:
    """Return the orthogonal planes through the centre, ``n // 2``, of a ``(z, y, x)`` volume.

    >>> [name for name in central_slices(np.zeros((4, 4, 4)))]
    ['xy', 'xz', 'yz']
    """
    z, y, x = (n // 2 for n in volume.shape)
    return {"xy": volume[z], "xz": volume[:, y], "yz": volume[:, :, x]}


def projections(volume: Array) -> dict[str, Array]:
    """Return the sums of a volume along z, y and x.

    >>> projections(np.ones((4, 4, 4)))["along z"].max().item()
    4.0
    """
    return {f"along {name}": volume.sum(axis=axis) for axis, name in enumerate("zyx")}


def z_section_indices(n: int, count: int) -> list[int]:
    """Return evenly spaced z indices over the middle 80 % of a box of ``n``.

    >>> z_section_indices(11, 3)
    [1, 5, 9]
    """
    centre, reach = n // 2, 0.4 * (n - 1)
    positions = np.linspace(centre - reach, centre + reach, min(count, n))
    return sorted({int(i) for i in np.round(positions).clip(0, n - 1)})
