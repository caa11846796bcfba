"""``vitreous check --fix``: plant a fault, fix, check again: no finding; or it says why not."""

from dataclasses import replace

import pytest
import torch

from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import euler_to_matrix, matrix_to_euler, random_rotations
from vitreous.data.particles import Particles
from vitreous.data.phantoms import protein_phantom
from vitreous.io.mrc import write_mrc
from vitreous.io.star import StarBlock, StarDocument, write_star
from vitreous.physics.simulator import simulate

BOX, PIXEL, COUNT, MICROGRAPHS = 32, 6.0, 300, 30


def true_conditions(phase_shift_deg=0.0):
    g = torch.Generator().manual_seed(5)
    mean = 8000 + 14000 * torch.rand(MICROGRAPHS, generator=g)
    optics = replace(
        Optics.uniform(MICROGRAPHS),
        defocus_u_angstrom=1.05 * mean,
        defocus_v_angstrom=0.95 * mean,
        phase_shift_deg=torch.full((MICROGRAPHS,), phase_shift_deg),
    )[torch.arange(COUNT) * MICROGRAPHS // COUNT]
    pose = Pose(random_rotations(COUNT, generator=g), 12 * torch.randn(COUNT, 2, generator=g))
    return optics, pose


@pytest.fixture
def plant(tmp_path, one_thread):
    """Write images made under some conditions and a table that tells of others."""

    def write(true, told, sign=1, grouped=()):
        optics, pose = true
        g = torch.Generator().manual_seed(6)
        volume = protein_phantom(BOX, PIXEL, seed=21)
        images = simulate(volume, pose.rotation, pose.shift_angstrom, optics, PIXEL)
        images = sign * (images / images.std() + torch.randn(images.shape, generator=g))
        write_mrc(tmp_path / "particles.mrcs", images.numpy(), PIXEL, is_stack=True)
        member = torch.arange(COUNT) * MICROGRAPHS // COUNT
        particles = Particles.from_arrays(
            images, told[0], pixel_size_angstrom=PIXEL, pose=told[1], micrograph_id=member
        )
        document = particles.to_star_document()
        rows = dict(document.blocks["particles"].columns)
        groups = dict(document.blocks["optics"].columns)
        for name in grouped:
            groups[name] = rows.pop(name)[:1]
        blocks = {"optics": StarBlock(groups), "particles": StarBlock(rows)}
        write_star(tmp_path / "set.star", StarDocument(blocks))
        return tmp_path / "set.star"

    return write


def corrected(vitreous, table):
    """Fix, check the result, and give what was said and what was written."""
    code, out, err = vitreous("check", table, "--fix", "-q")
    assert code == 3
    again, text, _ = vitreous("check", table.with_name("set_fixed.star"), "-q")
    assert "WRONG" not in text
    assert again == 0
    return out, err, Particles.open(table.with_name("set_fixed.star"))


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [(), ("rlnPhaseShift",)])
def test_phase_shift_in_radians(vitreous, plant, grouped):
    optics, pose = true_conditions(70.0)
    wrong = replace(optics, phase_shift_deg=torch.deg2rad(optics.phase_shift_deg))
    out, err, fixed = corrected(vitreous, plant((optics, pose), (wrong, pose), grouped=grouped))
    assert "the phase shift is in radians" in out
    assert "rlnPhaseShift corrected" in err
    assert "nothing to correct" not in err
    assert torch.allclose(fixed.optics.phase_shift_deg, optics.phase_shift_deg, atol=1e-3)


@pytest.mark.slow
def test_missing_phase_shift_gets_a_first_value(vitreous, plant):
    optics, pose = true_conditions(90.0)
    wrong = replace(optics, phase_shift_deg=torch.zeros(COUNT))
    out, err, fixed = corrected(vitreous, plant((optics, pose), (wrong, pose)))
    assert "a phase plate's shift of about 90 degrees is missing" in out
    assert "rlnPhaseShift corrected (90 degrees more are a first value" in err
    assert torch.equal(fixed.optics.phase_shift_deg, optics.phase_shift_deg)


@pytest.mark.slow
def test_mirrored_poses(vitreous, plant):
    optics, pose = true_conditions()
    angles = matrix_to_euler(pose.rotation.double()) * torch.tensor([-1.0, 1.0, -1.0])
    wrong = Pose(euler_to_matrix(angles).float(), pose.shift_angstrom)
    out, err, fixed = corrected(vitreous, plant((optics, pose), (optics, wrong)))
    assert "rot and psi have the wrong sign" in out
    assert "orientations corrected" in err
    assert torch.allclose(fixed.pose.rotation, pose.rotation, atol=1e-4)


def test_what_no_table_can_mend_is_said(vitreous, plant, tmp_path):
    conditions = true_conditions()
    code, _, err = vitreous("check", plant(conditions, conditions, sign=-1), "--fix", "-q")
    assert code == 3
    assert "not corrected by a table: contrast: protein is dark: grey values are the images'" in err
    assert "--invert" in err.split("grey values")[1]
    assert "nothing that a table can correct" in err
    assert "nothing to correct" not in err
    assert not (tmp_path / "set_fixed.star").exists()


@pytest.mark.slow
def test_what_a_table_can_mend_is_mended_beside_what_it_cannot(vitreous, plant, tmp_path):
    optics, pose = true_conditions()
    wrong = Pose(pose.rotation, -pose.shift_angstrom)
    table = plant((optics, pose), (optics, wrong), sign=-1)
    code, _, err = vitreous("check", table, "--fix", "-q")
    assert code == 3
    assert "not corrected by a table: contrast" in err
    assert "shifts corrected" in err
    code, out, _ = vitreous("check", tmp_path / "set_fixed.star", "-q", "--invert")
    assert code == 0, out
