"""Grey-scale pictures of maps and particles: pixels, PNG bytes, and two static figures.

Protein is positive and drawn white, as everywhere in the package; the first row is at the top, as
in RELION.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Gray = NDArray[np.uint8]


def contrast_limits(values: Array, low_percent: float = 0.5) -> tuple[float, float]:
    """Grey limits that ignore ``low_percent`` % of the values at either end, and NaN.

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
    """An 8-bit grey-scale PNG of ``(rows, columns)`` pixels; the first row is at the top.

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
    """Smoothly enlarge a small picture ``(n, n)`` to about ``pixels`` wide; never shrinks.

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
    """Lay ``(k, n, n)`` images out in rows; the gaps and empty cells are NaN.

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
    """The three orthogonal planes through the centre, ``n // 2``, of a ``(z, y, x)`` volume.

    >>> [name for name in central_slices(np.zeros((4, 4, 4)))]
    ['xy', 'xz', 'yz']
    """
    z, y, x = (n // 2 for n in volume.shape)
    return {"xy": volume[z], "xz": volume[:, y], "yz": volume[:, :, x]}


def projections(volume: Array) -> dict[str, Array]:
    """Sums along z, y and x.

    >>> projections(np.ones((4, 4, 4)))["along z"].max().item()
    4.0
    """
    return {f"along {name}": volume.sum(axis=axis) for axis, name in enumerate("zyx")}


def z_section_indices(n: int, count: int) -> list[int]:
    """Evenly spaced z indices over the middle 80 % of a box of ``n``.

    >>> z_section_indices(11, 3)
    [1, 5, 9]
    """
    centre, reach = n // 2, 0.4 * (n - 1)
    wanted = np.linspace(centre - reach, centre + reach, min(count, n))
    return sorted({int(i) for i in np.round(wanted).clip(0, n - 1)})


def save_map_montage(
    path: Path, volume: Array, pixel_size_angstrom: float, *, title: str = ""
) -> None:
    """Write a PNG of the three central slices above the three projections of a map.

    Args:
        path: the PNG to write.
        volume: ``(z, y, x)``.
        pixel_size_angstrom: Å per voxel, for the axis labels.
        title: printed above.
    """
    slices, sums = central_slices(volume), projections(volume)
    limits = contrast_limits(volume)
    figure, axes = _axes(2, 3, title)
    edge = volume.shape[0] * pixel_size_angstrom
    for column, (name, plane) in enumerate(slices.items()):
        axes[0][column].imshow(plane, cmap="gray", vmin=limits[0], vmax=limits[1])
        axes[0][column].set_title(f"slice {name}, {edge:.0f} Å", fontsize=8)
    for column, (name, plane) in enumerate(sums.items()):
        axes[1][column].imshow(plane, cmap="gray")
        axes[1][column].set_title(f"projection {name}", fontsize=8)
    _save(figure, path)


def save_particle_grid(path: Path, rows: Mapping[str, Array], *, title: str = "") -> None:
    """Write a PNG with one labelled row of pictures per entry, as in CryoGAN's figure 3.

    Args:
        path: the PNG to write.
        rows: label to images ``(k, n, n)``; rows may differ in ``k`` and ``n``.
        title: printed above.
    """
    columns = max(len(images) for images in rows.values())
    figure, axes = _axes(len(rows), columns, title)
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=False):
            low, high = contrast_limits(image)
            axis.imshow(image, cmap="gray", vmin=low, vmax=high)
        row[0].set_ylabel(label, fontsize=8)
    _save(figure, path)


def _axes(rows: int, columns: int, title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 * columns, 1.7 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150, metadata={"Software": None})
