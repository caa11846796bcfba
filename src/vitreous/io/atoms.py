"""Atomic models (mmCIF, PDB, either gzipped) to electron scattering density on a voxel grid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.core.fourier import fourier_resize
from vitreous.io.atoms_symmetry import symmetry_turn
from vitreous.io.inflate import read_bounded

_LIMIT = 1 << 30
_SIGMA_PER_RESOLUTION = 0.225
"""Gaussian deviation over resolution: the amplitude at 1 / resolution falls to 1 / e."""


def _read_structure(path: Path) -> Any:
    text = read_bounded(path, _LIMIT)
    name = path.name.lower().removesuffix(".gz")
    try:
        content = text.decode("utf-8")
        if name.endswith((".pdb", ".ent")) or not content.lstrip().startswith(("data_", "#")):
            structure = gemmi.read_pdb_string(content)
        else:
            block = gemmi.cif.read_string(content)[0]
            structure = gemmi.make_structure_from_block(block)
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not a readable mmCIF or PDB file ({error})") from error
    return structure


def _clean_model(path: Path, keep_hydrogens: bool) -> Any:
    """First model without waters, each atom checked."""
    structure = _read_structure(path)
    structure.remove_waters()
    if not keep_hydrogens:
        structure.remove_hydrogens()
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise InputError(f"{path}: atoms: none besides water; give a model of the molecule")
    model = structure[0]
    for place in model.all():
        atom = place.atom
        values = (*atom.pos.tolist(), atom.occ)
        if not all(math.isfinite(value) for value in values):
            raise InputError(
                f"{path}: atom {atom.serial} ({place}): position or occupancy is not finite: "
                f"{values}"
            )
        if atom.element == gemmi.Element("X") or not any(_scattering(atom.element)):
            raise InputError(
                f"{path}: atom {atom.serial} ({place}): element {atom.element.name!r} is unknown "
                "or has no electron scattering factor; correct or remove it"
            )
    return model


def _scattering(element: Any) -> list[float]:
    coefficients = element.c4322
    return list(coefficients.a) if coefficients is not None else []


def read_atoms(
    path: Path | str, *, keep_hydrogens: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (x, y, z) in Å, ``(m, 3)``, and masses in Da, ``(m,)``, of the first model.

    Args:
        path: mmCIF or PDB, optionally gzipped; waters are dropped.
        keep_hydrogens: hydrogens are dropped unless asked for.

    Raises:
        InputError: unreadable, no atoms, a position that is not finite, an unknown element.
    """
    model = _clean_model(Path(path), keep_hydrogens)
    atoms = [place.atom for place in model.all()]
    positions = np.array([atom.pos.tolist() for atom in atoms], dtype=np.float64)
    weights = np.array([atom.element.weight * atom.occ for atom in atoms], dtype=np.float64)
    return positions, weights


def atoms_to_density(
    path: Path | str,
    *,
    box_size: int,
    pixel_size_angstrom: float,
    resolution_angstrom: float | None = None,
    keep_hydrogens: bool = False,
    align_symmetry: str | None = None,
) -> NDArray[np.float32]:
    r"""Electron scattering density of a molecule, centred in a box.

    Each atom's electron scattering factor (Peng's five Gaussians, by gemmi) is blurred by the same
    :math:`B = 8 \pi^2 (0.225\, d)^2`, so that amplitudes at the resolution ``d`` fall to 1/e (the
    convention of simulated maps in ChimeraX). Temperature factors of the file are not used: they
    hold other things in predicted models. The density is sampled at least twice as finely as
    asked and cropped in Fourier space to the sphere of the box's Nyquist frequency.

    Args:
        path: mmCIF or PDB, optionally gzipped; the first model, without waters.
        box_size: edge in voxels; the centre of mass comes to index ``box_size // 2``.
        pixel_size_angstrom: voxel edge in Å.
        resolution_angstrom: ``d``; twice the pixel size by default.
        keep_hydrogens: hydrogens are dropped unless asked for.
        align_symmetry: a point group that the chains have; the molecule is turned so that its axes
            come to RELION's setting of that group.

    Returns:
        float32 ``(z, y, x)``, protein positive.

    Raises:
        InputError: unreadable, empty, atoms that are not finite or of unknown element, a
            molecule that does not fit the box or does not have the symmetry.
        ValueError: box size, pixel size or resolution not positive.
    """
    path = Path(path)
    resolution = 2.0 * pixel_size_angstrom if resolution_angstrom is None else resolution_angstrom
    sizes = (pixel_size_angstrom, resolution)
    if box_size < 2 or not all(math.isfinite(v) and v > 0 for v in sizes):
        raise ValueError(
            f"box size, pixel size and resolution must be positive, got {box_size}, "
            f"{pixel_size_angstrom} and {resolution}"
        )
    model = _clean_model(path, keep_hydrogens)
    if align_symmetry is not None:
        turn = gemmi.Transform(
            gemmi.Mat33(symmetry_turn(model, align_symmetry, path).tolist()), gemmi.Vec3(0, 0, 0)
        )
        model.transform_pos_and_adp(turn)
    centre = model.calculate_center_of_mass()
    sigma = _SIGMA_PER_RESOLUTION * resolution
    _check_fits(path, model, centre, sigma, box_size, pixel_size_angstrom)
    factor = max(2, math.ceil(4.0 * pixel_size_angstrom / resolution))
    fine = box_size * factor
    edge = box_size * pixel_size_angstrom
    calculator = gemmi.DensityCalculatorE()
    calculator.grid.set_unit_cell(gemmi.UnitCell(edge, edge, edge, 90, 90, 90))
    calculator.grid.spacegroup = gemmi.find_spacegroup_by_name("P 1")
    calculator.grid.set_size(fine, fine, fine)
    origin = gemmi.Position(*[(fine // 2) * pixel_size_angstrom / factor] * 3)
    for place in model.all():
        atom = place.atom
        atom.pos = atom.pos - centre + origin
        atom.b_iso = 8.0 * math.pi**2 * sigma**2
        atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    calculator.add_model_density_to_grid(model)
    # gemmi's array runs x, y, z
    density = torch.from_numpy(np.array(calculator.grid.array, dtype=np.float32))
    coarse = fourier_resize(density.permute(2, 1, 0), box_size, 3)
    return _inside_nyquist(coarse).numpy()


def _check_fits(
    path: Path, model: Any, centre: Any, sigma: float, box_size: int, pixel_size_angstrom: float
) -> None:
    positions = np.array([(p.atom.pos - centre).tolist() for p in model.all()])
    extent = positions.max(axis=0) - positions.min(axis=0)
    reach = float(np.abs(positions).max()) + 3.0 * sigma
    room = (box_size // 2 - 0.5) * pixel_size_angstrom
    if reach > room:
        needed = 2 * math.ceil(reach / pixel_size_angstrom + 0.5)
        raise InputError(
            f"{path}: extent: the molecule measures {extent[0]:.0f} x {extent[1]:.0f} x "
            f"{extent[2]:.0f} Å and reaches {reach:.0f} Å from its centre of mass, blur included; "
            f"the box of {box_size} x {pixel_size_angstrom:g} Å = "
            f"{box_size * pixel_size_angstrom:.0f} Å is too small; use --box {needed} or more, or "
            "a larger --apix"
        )


def _inside_nyquist(volume: torch.Tensor) -> torch.Tensor:
    """Remove frequencies beyond Nyquist's sphere with a raised-cosine edge a tenth wide."""
    n = volume.shape[-1]
    k = torch.fft.fftfreq(n)
    radius = (k[:, None, None] ** 2 + k[:, None] ** 2 + torch.fft.rfftfreq(n) ** 2).sqrt()
    window = 0.5 + 0.5 * torch.cos(torch.pi * ((radius / 0.5 - 1.0) / 0.1).clamp(0, 1))
    filtered: torch.Tensor = torch.fft.irfftn(torch.fft.rfftn(volume) * window, s=volume.shape)
    return filtered.contiguous()
