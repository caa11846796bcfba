"""Electron scattering density on a voxel grid from atomic models (mmCIF, PDB, or gzipped)."""

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
from vitreous.io.atoms_symmetry import symmetry_rotation
from vitreous.io.inflate import read_bounded

_MAX_BYTES = 1 << 30
_SIGMA_PER_RESOLUTION = 0.225
"""Gaussian deviation over resolution: the amplitude at 1 / resolution falls to 1 / e."""


def _read_structure(path: Path) -> Any:
    text = read_bounded(path, _MAX_BYTES)
    name = path.name.lower().removesuffix(".gz")
    try:
        content = text.decode("utf-8")
        if name.endswith((".pdb", ".ent")) or not content.lstrip().startswith(("data_", "#")):
            return gemmi.read_pdb_string(content)
        return gemmi.make_structure_from_block(gemmi.cif.read_string(content)[0])
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not a readable mmCIF or PDB file ({error})") from error


def _clean_model(path: Path) -> Any:
    """Return the first model without waters and hydrogens after checking each atom."""
    structure = _read_structure(path)
    structure.remove_waters()
    structure.remove_hydrogens()
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise InputError(f"{path}: atoms: none besides water; give a model of the molecule")
    model = structure[0]
    if not any(site.atom.occ > 0 for site in model.all()):
        raise InputError(f"{path}: occupancy: 0 for all atoms; correct the column")
    for site in model.all():
        atom = site.atom
        values = (*atom.pos.tolist(), atom.occ)
        if not all(math.isfinite(value) for value in values):
            raise InputError(
                f"{path}: atom {atom.serial} ({site}): position or occupancy is not finite: "
                f"{values}"
            )
        factors = atom.element.c4322
        if atom.element == gemmi.Element("X") or factors is None or not any(factors.a):
            raise InputError(
                f"{path}: atom {atom.serial} ({site}): element {atom.element.name!r} is unknown "
                "or has no electron scattering factor; correct or remove it"
            )
    return model


def read_atoms(path: Path | str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read the atoms of the first model of an mmCIF or PDB file, plain or gzipped.

    Waters and hydrogens are left out. Returns positions (x, y, z) ``(m, 3)`` in Å, and masses
    ``(m,)`` in Da.

    Raises:
        InputError: unreadable, no atoms, a position that is not finite, an unknown element.
    """
    model = _clean_model(Path(path))
    atoms = [site.atom for site in model.all()]
    positions = np.array([atom.pos.tolist() for atom in atoms], dtype=np.float64)
    weights = np.array([atom.element.weight * atom.occ for atom in atoms], dtype=np.float64)
    return positions, weights


def atoms_to_density(
    path: Path | str,
    *,
    box_size: int,
    pixel_size_angstrom: float,
    resolution_angstrom: float | None = None,
    align_symmetry: str | None = None,
) -> NDArray[np.float32]:
    r"""Compute the electron scattering density of a molecule, centred in a box.

    Every atom's electron scattering factor (Peng's five Gaussians, from gemmi) is blurred with
    :math:`B = 8 \pi^2 (0.225\, d)^2`: amplitudes at resolution ``d`` fall to 1/e, as in ChimeraX's
    simulated maps. Temperature factors are ignored, because predicted models use the field for
    confidence. The density, float32 ``(z, y, x)``, protein positive, is sampled at least twice as
    finely and cropped in Fourier space.

    Args:
        path: mmCIF or PDB file, optionally gzipped; its first model is used, without waters and
            hydrogens.
        box_size: edge in voxels; the centre of mass comes to index ``box_size // 2``.
        pixel_size_angstrom: voxel edge in Å.
        resolution_angstrom: ``d`` in Å; twice the pixel size by default.
        align_symmetry: point group of the chains; the molecule is rotated to RELION's setting.

    Raises:
        InputError: the file is bad, or the molecule does not fit the box or the symmetry.
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
    model = _clean_model(path)
    if align_symmetry is not None:
        matrix = gemmi.Mat33(symmetry_rotation(model, align_symmetry, path).tolist())
        model.transform_pos_and_adp(gemmi.Transform(matrix, gemmi.Vec3(0, 0, 0)))
    sigma = _SIGMA_PER_RESOLUTION * resolution
    _check_fits(path, model, sigma, box_size, pixel_size_angstrom)
    factor = max(2, math.ceil(4.0 * pixel_size_angstrom / resolution))
    density = _sample_density(model, sigma, box_size * factor, pixel_size_angstrom / factor)
    return _inside_nyquist(fourier_resize(density, box_size, 3)).numpy()


def _sample_density(model: Any, sigma: float, box_size: int, pixel_size: float) -> torch.Tensor:
    """Sample the density of atoms blurred by ``sigma`` Å, centre of mass at the box's centre."""
    edge = box_size * pixel_size
    calculator = gemmi.DensityCalculatorE()
    calculator.grid.set_unit_cell(gemmi.UnitCell(edge, edge, edge, 90, 90, 90))
    calculator.grid.spacegroup = gemmi.find_spacegroup_by_name("P 1")
    calculator.grid.set_size(box_size, box_size, box_size)
    centre = model.calculate_center_of_mass()
    origin = gemmi.Position(*[(box_size // 2) * pixel_size] * 3)
    for site in model.all():
        atom = site.atom
        atom.pos = atom.pos - centre + origin
        atom.b_iso = 8.0 * math.pi**2 * sigma**2
        atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    calculator.add_model_density_to_grid(model)
    density = torch.from_numpy(np.array(calculator.grid.array, dtype=np.float32))
    return density.permute(2, 1, 0)  # gemmi's array is (x, y, z)


def _check_fits(
    path: Path, model: Any, sigma: float, box_size: int, pixel_size_angstrom: float
) -> None:
    centre = model.calculate_center_of_mass()
    positions = np.array([(site.atom.pos - centre).tolist() for site in model.all()])
    extent = positions.max(axis=0) - positions.min(axis=0)
    reach = float(np.abs(positions).max()) + 3.0 * sigma
    room = (box_size // 2 - 0.5) * pixel_size_angstrom
    if reach > room:
        needed = 2 * math.ceil(reach / pixel_size_angstrom + 0.5)
        raise InputError(
            f"{path}: extent: the molecule measures {extent[0]:.0f} x {extent[1]:.0f} x "
            f"{extent[2]:.0f} Å and reaches {reach:.0f} Å from its centre of mass, blur included; "
            f"the box of {box_size} x {pixel_size_angstrom:g} Å = "
            f"{box_size * pixel_size_angstrom:.0f} Å is too small; give `box_size` {needed} or "
            "more, or a larger `pixel_size_angstrom`"
        )


def _inside_nyquist(volume: torch.Tensor) -> torch.Tensor:
    """Remove frequencies beyond Nyquist with a raised-cosine edge of a tenth of it."""
    n = volume.shape[-1]
    k = torch.fft.fftfreq(n)
    radius = (k[:, None, None] ** 2 + k[:, None] ** 2 + torch.fft.rfftfreq(n) ** 2).sqrt()
    window = 0.5 + 0.5 * torch.cos(torch.pi * ((radius / 0.5 - 1.0) / 0.1).clamp(0, 1))
    filtered: torch.Tensor = torch.fft.irfftn(torch.fft.rfftn(volume) * window, s=volume.shape)
    return filtered.contiguous()
