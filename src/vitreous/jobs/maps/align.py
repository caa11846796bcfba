"""Align a map file to another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vitreous.core.resolution import angstrom
from vitreous.core.rotation import matrix_to_euler
from vitreous.data.maps import read_pair
from vitreous.io.mrc import write_mrc
from vitreous.jobs.maps.options import AlignOptions
from vitreous.jobs.run.device import use_device
from vitreous.maps.align import Alignment, align_maps
from vitreous.maps.fsc import fsc
from vitreous.maps.half_maps import resolutions

_LEAST_TILT = 0.005  # degrees, below which two decimals show none


@dataclass(frozen=True)
class AlignResult:
    """A map that was aligned to another."""

    path: Path  # file of the moved map
    alignment: Alignment  # rotation, shift, hand and correlation
    # where the FSC of the two falls below 0.5 and 0.143
    resolution_05_angstrom: float
    resolution_0143_angstrom: float
    text: str  # the same as lines


def _euler(rotation: Tensor) -> list[float]:
    """Return rot, tilt and psi in degrees; without a tilt to print, rot holds the whole angle."""
    rot, tilt, psi = matrix_to_euler(rotation).tolist()
    if tilt < _LEAST_TILT:
        rot, tilt, psi = (rot + psi + 180) % 360 - 180, 0.0, 0.0
    return [rot, tilt, psi]


def align(options: AlignOptions) -> AlignResult:
    """Align a map to another over rotation, shift and hand, and write the moved map.

    Raises:
        UsageError: unknown device or point group, or the output exists.
        InputError: maps that cannot be read or compared.
    """
    options.check_output(options.output)
    device = use_device(options.device, options.threads)
    moving, reference, pixel = read_pair(
        options.moving, options.reference, options.pixel_size_angstrom
    )
    found = align_maps(
        moving.to(device),
        reference.to(device),
        pixel_size_angstrom=pixel,
        point_group=options.symmetry,
        allow_mirror=options.mirror,
    )
    aligned = found.aligned.cpu()
    write_mrc(options.output, aligned.numpy(), pixel)
    low, half = resolutions(fsc(aligned, reference), len(reference), pixel)
    rot, tilt, psi = (round(v, 2) + 0.0 for v in _euler(found.rotation.cpu()))
    x, y, z = (round(v, 2) + 0.0 for v in found.shift_angstrom.tolist())  # no negative zero
    lines = (
        f"rot, tilt, psi  {rot:.2f}  {tilt:.2f}  {psi:.2f} degrees",
        f"shift x, y, z   {x:.2f}  {y:.2f}  {z:.2f} Å",
        f"hand            {'mirrored' if found.mirrored else 'kept'}",
        f"correlation     {float(found.correlation):.4f}",
        f"FSC             {angstrom(half, 2)} at 0.5, {angstrom(low, 2)} at 0.143",
    )
    return AlignResult(options.output, found, half, low, "\n".join(lines))
