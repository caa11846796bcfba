"""A symmetric model in any orientation is turned into its point group's standard setting."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch

from vitreous.core.errors import InputError
from vitreous.core.rotation import random_rotations
from vitreous.core.symmetry import point_group, symmetrise
from vitreous.io.atoms import atoms_to_density
from vitreous.io.atoms_symmetry import symmetry_rotation

GROUPS = ["C1", "C2", "C3", "C7", "D2", "D3", "D7", "T", "O", "I", "I2"]


def assembly(name: str, seed: int = 0, noise: float = 0.0) -> tuple[gemmi.Structure, np.ndarray]:
    """Alike chains under a group in a random orientation, and the atoms' positions."""
    rng = np.random.default_rng(seed)
    unit = np.cumsum(rng.normal(scale=2.0, size=(24, 3)), axis=0) + rng.normal(scale=15.0, size=3)
    matrices = point_group(name).matrices.numpy()
    generator = torch.Generator().manual_seed(seed)
    hidden = random_rotations(1, generator=generator, dtype=torch.float64)[0].numpy()
    copies = np.einsum("gij,nj->gni", hidden @ matrices, unit) + 7.0
    copies = copies + rng.normal(scale=noise, size=copies.shape) if noise else copies
    model = gemmi.Model(1)
    for number, copy in enumerate(copies):
        chain = gemmi.Chain(f"A{number}")
        for place, position in enumerate(copy):
            residue = gemmi.Residue()
            residue.name, residue.seqid = "ALA", gemmi.SeqId(place + 1, " ")
            atom = gemmi.Atom()
            atom.name, atom.element = "CA", gemmi.Element("C")
            atom.pos = gemmi.Position(*position)
            residue.add_atom(atom)
            chain.add_residue(residue)
        model.add_chain(chain)
    structure = gemmi.Structure()
    structure.add_model(model)
    return structure, copies.reshape(-1, 3)


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("seed", [0, 1])
def test_turned_atoms_map_onto_themselves(name: str, seed: int) -> None:
    structure, positions = assembly(name, seed)
    turn = symmetry_rotation(structure[0], name, Path("x.cif"))
    assert np.allclose(turn @ turn.T, np.eye(3))
    assert np.linalg.det(turn) == pytest.approx(1.0)
    turned = torch.from_numpy((positions - positions.mean(axis=0)) @ turn.T)
    for matrix in point_group(name).matrices[:8]:
        nearest = torch.cdist(turned @ matrix.T, turned).min(dim=1).values
        assert nearest.max() < 1e-4 or name == "C1"


def test_imperfect_symmetry_is_found_and_absent_symmetry_refused() -> None:
    structure, positions = assembly("D2", noise=0.2)
    turned = positions @ symmetry_rotation(structure[0], "D2", Path("x.cif")).T
    turned -= turned.mean(axis=0)
    shuffled = torch.from_numpy(turned)
    for matrix in point_group("D2").matrices:
        assert torch.cdist(shuffled @ matrix.T, shuffled).min(dim=1).values.median() < 1.5
    for absent in ("C4", "D3", "T"):
        with pytest.raises(InputError, match=rf"4 alike chains .* symmetry {absent}"):
            symmetry_rotation(structure[0], absent, Path("x.cif"))


def test_density_is_symmetric_on_the_grid(tmp_path: Path) -> None:
    structure, _ = assembly("D3", seed=4)
    structure.make_mmcif_document().write_file(str(tmp_path / "d3.cif"))

    def error(align: str | None) -> float:
        volume = torch.from_numpy(
            atoms_to_density(
                tmp_path / "d3.cif",
                box_size=40,
                pixel_size_angstrom=3.0,
                resolution_angstrom=12.0,
                align_symmetry=align,
            )
        )
        return float((symmetrise(volume, point_group("D3")) - volume).norm() / volume.norm())

    assert error("D3") < 0.05
    assert error(None) > 0.5


def test_beta_galactosidase_is_d2(shared_data: Path) -> None:
    path = shared_data / "models" / "5a1a.cif.gz"
    volume = torch.from_numpy(
        atoms_to_density(path, box_size=32, pixel_size_angstrom=7.2, align_symmetry="D2")
    )
    difference = symmetrise(volume, point_group("D2")) - volume
    assert difference.norm() < 0.01 * volume.norm()
    with pytest.raises(InputError, match="do not have the symmetry C4"):
        atoms_to_density(path, box_size=32, pixel_size_angstrom=7.2, align_symmetry="C4")
