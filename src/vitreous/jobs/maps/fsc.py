"""Compare two map files by Fourier shell correlation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vitreous.core.random import generator
from vitreous.core.resolution import angstrom
from vitreous.data.maps import fsc_csv, read_mask, read_pair, write_fsc_csv
from vitreous.jobs.maps.options import FscOptions
from vitreous.maps.fsc import fsc, fsc_resolution, fsc_true, solvent_mask


@dataclass(frozen=True)
class FscComparison:
    """Curves of two maps."""

    # ``fsc``; with a mask ``corrected``, ``masked``, ``unmasked`` and ``randomised``
    curves: Mapping[str, Tensor]
    # for each curve but the last, where it falls below 0.5 and 0.143
    resolution_angstrom: Mapping[str, tuple[float, float]]
    text: str  # curves and resolutions as a table


def compare(options: FscOptions) -> FscComparison:
    """Compute the FSC of two maps, and write it if a file is named.

    Raises:
        InputError: maps that cannot be read or compared.
        ResourceError: the disk is full.
    """
    first, second, pixel = read_pair(
        options.first, options.second, options.pixel_size_angstrom, different=True
    )
    n = len(first)
    if options.mask is None and not options.auto_mask:
        curves = {"fsc": fsc(first, second)}
    else:
        mask = (
            solvent_mask(0.5 * (first + second))
            if options.mask is None
            else read_mask(options.mask, first, pixel)
        )
        result = fsc_true(first, second, mask, generator(options.seed, "phases"))
        names = ("corrected", "masked", "unmasked", "randomised")
        curves = {name: getattr(result, name) for name in names}
    resolutions = {
        name: (fsc_resolution(curve, 0.5, n, pixel), fsc_resolution(curve, 0.143, n, pixel))
        for name, curve in curves.items()
        if name != "randomised"
    }
    lines = [columns(fsc_csv(curves, n, pixel))]
    for name, (half, low) in resolutions.items():
        lines.append(f"{name:>10}: {angstrom(half, 2)} at 0.5, {angstrom(low, 2)} at 0.143")
    lines.append(f"{'Nyquist':>10}: {2 * pixel:.2f} Å")
    if options.output is not None:
        write_fsc_csv(options.output, curves, n, pixel)
    return FscComparison(curves, resolutions, "\n".join(lines))


def columns(text: str) -> str:
    """Return CSV text as aligned columns, with short heads.

    >>> print(columns("shell,frequency_inv_angstrom,fsc\\n0,0.0,1.0\\n"))
    shell  1/Å  fsc
        0  0.0  1.0
    """
    heads = {"frequency_inv_angstrom": "1/Å", "resolution_angstrom": "Å"}
    rows = [line.split(",") for line in text.strip().splitlines()]
    rows[0] = [heads.get(cell, cell) for cell in rows[0]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths = [widths[0], *(width + 2 for width in widths[1:])]
    lines = ("".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(lines)
