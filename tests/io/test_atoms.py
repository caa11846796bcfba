"""Atomic models: analytic density of one atom, centring, axes, and row 32 of the faults."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

from vitreous.core.errors import InputError
from vitreous.core.fourier import fourier_resize
from vitreous.io.atoms import atoms_to_density, read_atoms

Atoms = list[tuple[str, float, float, float]]
L_SHAPE: Atoms = [("C", 0, 0, 0), ("C", 20, 0, 0), ("C", 0, 12, 0), ("C", 0, 0, 6), ("N", 9, 1, 2)]


def write_model(path: Path, atoms: Atoms, residue: str = "GLY") -> Path:
    lines = [
        f"ATOM  {i + 1:5d}  {name:<3s} {residue} A{i + 1:4d}    "
        f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00 30.00          {name:>2s}"
        for i, (name, x, y, z) in enumerate(atoms)
    ]
    path.write_text("\n".join([*lines, "END", ""]))
    return path


def peng(element: str, k: np.ndarray) -> np.ndarray:
    table = gemmi.Element(element).c4322
    return sum(a * np.exp(-b * k**2 / 4) for a, b in zip(table.a, table.b, strict=True))


@pytest.mark.parametrize(
    ("box", "resolution"), [(24, 4.0), (25, 4.0), (24, 7.0), (24, 2.5), (25, 2.7)]
)
def test_one_atom_is_its_scattering_factor(tmp_path: Path, box: int, resolution: float) -> None:
    pixel = 2.0
    path = write_model(tmp_path / "c.pdb", [("C", 3.0, -40.0, 17.0)])
    got = atoms_to_density(
        path, box_size=box, pixel_size_angstrom=pixel, resolution_angstrom=resolution
    )
    spectrum = np.fft.fftn(np.fft.ifftshift(got.astype(np.float64))) * pixel**3
    k = np.fft.fftfreq(box, pixel)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
    b_factor = 8 * math.pi**2 * (0.225 * resolution) ** 2
    want = peng("C", radius) * np.exp(-b_factor * radius**2 / 4)
    inside = radius < 0.49 / pixel
    assert np.abs(spectrum - want)[inside].max() < 3e-3 * want.max()
    assert np.abs(spectrum)[radius > 0.56 / pixel].max() < 1e-4 * want.max()


def test_axes_order_and_centre_of_mass(tmp_path: Path) -> None:
    path = write_model(tmp_path / "l.pdb", L_SHAPE)
    positions, masses = read_atoms(path)
    centre = (positions * masses[:, None]).sum(axis=0) / masses.sum()
    density = atoms_to_density(path, box_size=40, pixel_size_angstrom=1.0, resolution_angstrom=3.0)
    for x, y, z in np.round(positions - centre).astype(int) + 20:
        patch = density[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2]
        assert patch.max() > 0.3 * density.max()
    assert density[20, 20, 39] < 0.01 * density.max()


def test_same_map_at_two_samplings(tmp_path: Path) -> None:
    path = write_model(tmp_path / "l.pdb", L_SHAPE)
    fine = atoms_to_density(path, box_size=48, pixel_size_angstrom=1.0, resolution_angstrom=12.0)
    coarse = atoms_to_density(path, box_size=24, pixel_size_angstrom=2.0, resolution_angstrom=12.0)
    resized = fourier_resize(torch.from_numpy(fine), 24, 3).numpy()
    assert np.abs(resized - coarse).max() < 0.01 * coarse.max()


def test_waters_and_hydrogens_are_dropped(tmp_path: Path) -> None:
    path = write_model(tmp_path / "h.pdb", [*L_SHAPE, ("H", 1, 1, 1)])
    assert len(read_atoms(path)[0]) == 5
    with pytest.raises(InputError, match="none besides water"):
        read_atoms(write_model(tmp_path / "w.pdb", L_SHAPE, residue="HOH"))


def test_beta_galactosidase(shared_data: Path) -> None:
    path = shared_data / "models" / "5a1a.cif.gz"
    positions, _ = read_atoms(path)
    assert np.ptp(positions, axis=0) == pytest.approx([181, 136, 92], abs=1.0)
    density = atoms_to_density(path, box_size=32, pixel_size_angstrom=7.2)
    assert density.dtype == np.float32
    axis = np.arange(32) - 16
    for d in range(3):
        profile = density.sum(axis=tuple({0, 1, 2} - {d}))
        assert abs((profile * axis).sum() / profile.sum()) < 0.01
    assert density.max() > 5 * abs(density.min())
    with pytest.raises(
        InputError, match=r"181 x 136 x 92 Å.*173 Å is too small; give `box_size` 30"
    ):
        atoms_to_density(path, box_size=24, pixel_size_angstrom=7.2)
    atoms_to_density(path, box_size=30, pixel_size_angstrom=7.2)


def test_fault_32_no_wrap_around(tmp_path: Path) -> None:
    path = write_model(tmp_path / "l.pdb", [("C", -30, 0, 0), ("C", 30, 0, 0)])
    with pytest.raises(InputError, match="too small"):
        atoms_to_density(path, box_size=60, pixel_size_angstrom=1.0)
    density = atoms_to_density(path, box_size=68, pixel_size_angstrom=1.0)
    assert np.abs(density[:, :, [0, -1]]).max() < 0.03 * density.max()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "none besides water"),
        ("data_x\n_cell.length_a 1\n", "none besides water"),
        ("data_x\nloop_\n_a\n_b\n1\n", "not a readable"),
        ("data_x\n", "none besides water"),
    ],
)
def test_fault_32_empty_or_broken_models(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "m.cif"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_atoms(path)


def mmcif(x: str, symbol: str = "C") -> str:
    names = "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id"
    names += " label_entity_id label_seq_id Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv"
    head = "\n".join(f"_atom_site.{name}" for name in names.split())
    rows = f"ATOM 1 C CA . GLY A 1 1 0 0 0 1 30\nATOM 2 {symbol} CB . ALA A 1 2 {x} 0 0 1 30\n"
    return f"data_x\nloop_\n{head}\n{rows}"


def test_fault_32_nan_position_and_unknown_element(tmp_path: Path) -> None:
    path = tmp_path / "m.cif"
    path.write_text(mmcif("4.0"))
    assert len(read_atoms(path)[0]) == 2
    for x in ("nan", "inf", "?", "abc"):
        path.write_text(mmcif(x))
        with pytest.raises(InputError, match=r"atom 2 .*not finite"):
            read_atoms(path)
    path.write_text(mmcif("4.0", symbol="Qq"))
    with pytest.raises(InputError, match=r"atom 2 .*element"):
        read_atoms(path)


def test_gzip_is_bounded_and_checked(tmp_path: Path) -> None:
    whole = gzip.compress(mmcif("4.0").encode())
    path = tmp_path / "m.cif.gz"
    path.write_bytes(whole)
    assert len(read_atoms(path)[0]) == 2
    path.write_bytes(whole[:-12])
    with pytest.raises(InputError, match="truncated"):
        read_atoms(path)
    with pytest.raises(InputError, match="no such file"):
        read_atoms(tmp_path / "absent.pdb")


def test_bad_sizes(tmp_path: Path) -> None:
    path = write_model(tmp_path / "l.pdb", L_SHAPE)
    for pixel in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be positive"):
            atoms_to_density(path, box_size=16, pixel_size_angstrom=pixel)
