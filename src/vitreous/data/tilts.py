"""Tilt series: reading of images and angles, tilt schemes, and scan masks."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.io.atomic import atomic_write_text
from vitreous.io.inflate import open_binary
from vitreous.io.mrc import read_mrc

LARGEST_TILT_DEGREES = 89.0
_SECTION = re.compile(r"^\[\s*ZValue\s*=\s*(-?\d+)\s*\]\s*$")
_ENTRY = re.compile(r"^(\w+)\s*=\s*(.*?)\s*$")
_LONGEST_BYTES = 1 << 26


@dataclass(frozen=True)
class TiltSeries:
    """Images of one volume, tilted about their y axis.

    Args:
        images: float32 ``(tilts, y, x)``; 0 where not scanned.
        tilts_degrees: float64 ``(tilts,)``.
        scanned: bool, shape of the images.
        pixel_size_angstrom: Å.
    """

    images: Tensor
    tilts_degrees: Tensor
    scanned: Tensor
    pixel_size_angstrom: float

    @property
    def dose(self) -> float:
        """Fraction of the pixels that were scanned."""
        return float(self.scanned.double().mean())


def linear_tilts(start: float, stop: float, increment: float) -> Tensor:
    """Return angles in degrees from ``start`` in equal steps up to ``stop``, float64.

    Raises:
        ValueError: an increment that is not positive, or angles beyond 89 degrees.

    >>> linear_tilts(-60, 60, 40).tolist()
    [-60.0, -20.0, 20.0, 60.0]
    """
    if not increment > 0:
        raise ValueError(f"the increment must be positive, got {increment} degrees")
    count = math.floor((stop - start) / increment + 1e-9) + 1
    return _within(start + increment * torch.arange(max(count, 1), dtype=torch.float64))


def saxton_tilts(largest: float, increment: float) -> Tensor:
    r"""Return angles that sample a slab evenly: the step falls with the cosine of the tilt.

    :math:`\theta_{k+1} = \theta_k + \arcsin(\sin\delta \cos\theta_k)` from 0 up to ``largest``
    degrees, :math:`\delta` the increment at 0 degrees, and the same with the opposite sign.

    Raises:
        ValueError: an increment outside 0 to 90 degrees, or angles beyond 89 degrees.

    Source: W. O. Saxton, W. Baumeister, M. Hahn, Ultramicroscopy 13 (1984) 57.

    >>> [round(t, 2) for t in saxton_tilts(60, 20).tolist()]
    [-54.22, -38.75, -20.0, 0.0, 20.0, 38.75, 54.22]
    """
    if not 0 < increment < 90:
        raise ValueError(f"the increment must be between 0 and 90 degrees, got {increment}")
    sine, positive, angle = math.sin(math.radians(increment)), [], 0.0
    while True:
        angle += math.degrees(math.asin(sine * math.cos(math.radians(angle))))
        if angle > largest + 1e-9 or angle > LARGEST_TILT_DEGREES:
            break
        positive.append(angle)
    return _within(
        torch.tensor([-a for a in reversed(positive)] + [0.0, *positive], dtype=torch.float64)
    )


def _within(tilts: Tensor) -> Tensor:
    if float(tilts.abs().max()) > LARGEST_TILT_DEGREES:
        raise ValueError(
            f"tilts from {tilts.min():g} to {tilts.max():g} degrees go beyond "
            f"{LARGEST_TILT_DEGREES:g}; choose a smaller range"
        )
    return tilts


def tilt_downsampling(tilts: int, dose: float) -> Tensor:
    """Choose the tilts that are fully scanned, spread evenly (tilt downsampling, T-DS).

    bool ``(tilts,)``, of which ``round(dose * tilts)``, at least one, are True.

    Raises:
        ValueError: a dose outside (0, 1].

    Source: section 3.6.1 of L. Donati's thesis (EPFL, 2020).

    >>> tilt_downsampling(9, 1 / 3).long().tolist()
    [0, 1, 0, 0, 1, 0, 0, 1, 0]
    """
    count = max(1, round(_dose(dose) * tilts))
    kept = torch.zeros(tilts, dtype=torch.bool)
    kept[((torch.arange(count, dtype=torch.float64) + 0.5) * tilts / count).long()] = True
    return kept


def random_downsampling(
    shape: tuple[int, int, int], dose: float, generator: torch.Generator
) -> Tensor:
    """Draw scanned pixels at random, the same number in every image (image downsampling, I-DS).

    bool ``(tilts, y, x)``, in each image ``round(dose * y * x)`` pixels, at least one, True.

    Raises:
        ValueError: a dose outside (0, 1].

    Source: section 3.6.1 of L. Donati's thesis (EPFL, 2020); its uniform random mask.

    >>> random_downsampling((2, 4, 4), 0.25, torch.Generator()).sum((1, 2)).tolist()
    [4, 4]
    """
    tilts, height, width = shape
    count = max(1, round(_dose(dose) * height * width))
    scanned = torch.zeros(tilts, height * width, dtype=torch.bool)
    for image in scanned:
        image[torch.randperm(height * width, generator=generator)[:count]] = True
    return scanned.reshape(shape)


def _dose(dose: float) -> float:
    if not 0 < dose <= 1:
        raise ValueError(f"the dose is a fraction above 0 and up to 1, got {dose}")
    return dose


def read_angles(path: Path | str) -> Tensor:
    """Read tilt angles in degrees, float64, from .tlt, .rawtlt (one per line) or .mdoc, in order.

    Raises:
        InputError: unreadable, no angles, values that are no angles between -89 and 89 degrees,
            or an .mdoc whose sections do not count from 0.
    """
    path = Path(path)
    with open_binary(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > _LONGEST_BYTES:
            raise InputError(f"{path}: {size} bytes is no list of tilt angles; give a .tlt file")
        lines = stream.read().decode("utf-8-sig", errors="replace").splitlines()
    is_mdoc = path.suffix.lower() == ".mdoc"
    plain = ((number, text) for number, text in enumerate(lines, 1) if text.strip())
    angles = _mdoc_angles(path, lines) if is_mdoc else [_angle(path, *line) for line in plain]
    if not angles:
        raise InputError(f"{path}: no tilt angles; give one for every image")
    return torch.tensor(angles, dtype=torch.float64)


def _mdoc_angles(path: Path, lines: Iterable[str]) -> list[float]:
    """Read SerialEM's .mdoc: ``TiltAngle`` of each section ``[ZValue = k]``, by k."""
    by_section: dict[int, float] = {}
    section: int | None = None
    sections: list[int] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text.startswith("["):
            match = _SECTION.match(text)
            section = int(match.group(1)) if match else None
            if section is not None:
                sections.append(section)
            continue
        entry = _ENTRY.match(text)
        if section is not None and entry and entry.group(1) == "TiltAngle":
            by_section[section] = _angle(path, number, entry.group(2))
    if sorted(sections) != list(range(len(sections))):
        raise InputError(
            f"{path}: ZValue: sections must count from 0 without gap or repetition, got "
            f"{sorted(sections)[:8]} ...; give the .mdoc of this stack"
        )
    missing = [k for k in sections if k not in by_section]
    if missing:
        raise InputError(f"{path}: TiltAngle: missing in section ZValue = {missing[0]}; add it")
    return [by_section[k] for k in range(len(sections))]


def _angle(path: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST_TILT_DEGREES:
        raise InputError(
            f"{path}: line {line}: {text.strip()[:40]!r} is no tilt between "
            f"-{LARGEST_TILT_DEGREES:g} and {LARGEST_TILT_DEGREES:g} degrees; correct it"
        )
    return value


def write_angles(path: Path | str, tilts_degrees: Tensor) -> None:
    """Write a .tlt file, one angle per line; ResourceError if the disk is full."""
    atomic_write_text(Path(path), "".join(f"{t:.4f}\n" for t in tilts_degrees.tolist()))


def read_tilt_series(
    path: Path | str,
    angles: Path | str,
    mask: Path | str | None = None,
    *,
    pixel_size_angstrom: float | None = None,
) -> TiltSeries:
    """Read images, angles and scan mask of a tilt series.

    Args:
        path: MRC stack ``(tilts, y, x)``, tilt axis along y; NaN where not scanned.
        angles: file of the angles, see :func:`read_angles`.
        mask: MRC stack of the same shape, 0 where not scanned. None: all pixels but NaN.
        pixel_size_angstrom: overrides the header's, Å.

    Raises:
        InputError: files that cannot be read or do not match, infinite pixels, nothing scanned,
            or no pixel size.
    """
    data, header = read_mrc(path)
    tilts = read_angles(angles)
    if len(data) != len(tilts):
        raise InputError(
            f"{angles}: {len(tilts)} angles, but {path} has {len(data)} images; give the angles "
            "of this stack"
        )
    if np.iscomplexobj(data) or np.isinf(data).any():
        raise InputError(f"{path}: data: complex or infinite values; give real, finite images")
    images = torch.from_numpy(data.astype(np.float32))
    scanned = ~torch.isnan(images)
    if mask is not None:
        scanned &= _read_mask(Path(mask), Path(path), tuple(data.shape))
    if not bool(scanned.any()):
        raise InputError(f"{mask or path}: no pixel is scanned; a scan mask is 1 where scanned")
    images = torch.where(scanned, images, torch.zeros(()))
    return TiltSeries(images, tilts, scanned, header.pixel_size_or(pixel_size_angstrom))


def _read_mask(mask: Path, images: Path, shape: tuple[int, ...]) -> Tensor:
    data, _ = read_mrc(mask)
    if tuple(data.shape) != shape:
        raise InputError(
            f"{mask}: {' x '.join(map(str, data.shape))} pixels, but {images} has "
            f"{' x '.join(map(str, shape))}; give the mask of this stack"
        )
    if np.iscomplexobj(data) or not np.isin(data, (0, 1)).all():
        raise InputError(f"{mask}: data: a scan mask holds 0 and 1 only; threshold it first")
    return torch.from_numpy(data != 0)
