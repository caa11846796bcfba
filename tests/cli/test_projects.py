"""Whole projects of RELION and cryoSPARC, copied, linked and moved, from table to map and back."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import vitreous as vt
from vitreous.core.rotation import matrix_to_euler
from vitreous.data.particles import Particles
from vitreous.io.cryosparc import CsTable, join_fields, read_cs, write_cs
from vitreous.io.mrc import read_mrc, write_mrc
from vitreous.io.star import StarBlock, StarDocument, format_column, write_star
from vitreous.physics.poses import GaussianShift

BOX, PIXEL, COUNT, GROUP = 24, 8.0, 210, "O"
STACKS = 3  # of equal size


@dataclass(frozen=True)
class Project:
    """A project: its folder, the table below it, the images in the table's order, the true map."""

    root: Path
    table: Path
    images: torch.Tensor
    truth: np.ndarray

    @property
    def path(self) -> Path:
        """Where the table lies."""
        return self.root / self.table


@pytest.fixture(scope="module")
def simulated() -> tuple[np.ndarray, Particles]:
    """A map and its images, with shifts; the background has deviation 1."""
    truth = vt.phantom(BOX, PIXEL, seed=3, symmetry=GROUP)
    shifts = GaussianShift(6.0)
    return truth.numpy(), vt.simulate(truth, COUNT, PIXEL, snr_db=3, seed=1, shifts=shifts)


def stack_names(pattern: str) -> list[str]:
    """Name of each image's stack."""
    return [pattern.format(i * STACKS // COUNT + 1) for i in range(COUNT)]


def write_stacks(root: Path, names: list[str], images: torch.Tensor) -> np.ndarray:
    """Write the stacks; return the number of each image in its own, from 0 on."""
    for name in dict.fromkeys(names):
        rows = [i for i, other in enumerate(names) if other == name]
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_mrc(root / name, images[rows].numpy(), PIXEL, is_stack=True)
    return np.arange(COUNT) % (COUNT // STACKS)


def relion_project(root: Path, simulated: tuple[np.ndarray, Particles]) -> Project:
    """A project of RELION 5 after Refine3D, with the columns that it writes."""
    truth, particles = simulated
    assert particles.pose is not None
    names, optics = stack_names("Extract/job007/Movies/mic{}.mrcs"), particles.optics
    images = particles.read(slice(None))
    numbers = write_stacks(root, names, images)
    angles = matrix_to_euler(particles.pose.rotation.double()).numpy()
    origin = -particles.pose.shift_angstrom.double().numpy()
    values = {
        "rlnCoordinateX": np.arange(COUNT, dtype=float) * 10,
        "rlnCoordinateY": np.arange(COUNT, dtype=float) * 7,
        "rlnDefocusU": optics.defocus_u_angstrom.double().numpy(),
        "rlnDefocusV": optics.defocus_v_angstrom.double().numpy(),
        "rlnDefocusAngle": optics.defocus_angle_deg.double().numpy(),
        "rlnAngleRot": angles[:, 0],
        "rlnAngleTilt": angles[:, 1],
        "rlnAnglePsi": angles[:, 2],
        "rlnOriginXAngst": origin[:, 0],
        "rlnOriginYAngst": origin[:, 1],
        "rlnNormCorrection": np.ones(COUNT),
        "rlnRandomSubset": 1 + np.arange(COUNT) % 2,
    }
    text = {
        "rlnImageName": [f"{i + 1:06d}@{name}" for i, name in zip(numbers, names, strict=True)],
        "rlnMicrographName": stack_names("MotionCorr/job002/Movies/mic{}.mrc"),
        "rlnOpticsGroup": ["1"] * COUNT,
    }
    shared = {
        "rlnOpticsGroupName": "opticsGroup1", "rlnOpticsGroup": "1", "rlnVoltage": "300.000000",
        "rlnMicrographOriginalPixelSize": "8.000000", "rlnSphericalAberration": "2.700000",
        "rlnAmplitudeContrast": "0.100000", "rlnImagePixelSize": "8.000000",
        "rlnImageSize": str(BOX), "rlnImageDimensionality": "2",
        "rlnCtfDataAreCtfPremultiplied": "0",
    }  # fmt: skip
    document = StarDocument(
        {
            "optics": StarBlock({name: [value] for name, value in shared.items()}),
            "particles": StarBlock(text | {n: format_column(v) for n, v in values.items()}),
        }
    )
    table = Path("Refine3D/job019/run_data.star")
    (root / table).parent.mkdir(parents=True)
    write_star(root / table, document)
    return Project(root, table, images, truth)


def cryosparc_job(root: Path, simulated: tuple[np.ndarray, Particles]) -> Project:
    """A refinement job: poses in its own file, images and CTF in the passthrough."""
    truth, particles = simulated
    assert particles.pose is not None
    names, optics = stack_names("J3/extract/{}_mic_particles.mrc"), particles.optics
    images = particles.read(slice(None))
    numbers = write_stacks(root, names, images)
    vectors = Rotation.from_matrix(particles.pose.rotation.numpy()).inv().as_rotvec()
    uid = np.random.default_rng(1).permutation(COUNT).astype("u8") + 2**60
    single = {
        "alignments3D/pose": vectors,
        "alignments3D/shift": -particles.pose.shift_angstrom.numpy() / PIXEL,
        "alignments3D/psize_A": np.full(COUNT, PIXEL),
    }
    ctf = {
        "blob/psize_A": np.full(COUNT, PIXEL),
        "blob/sign": np.ones(COUNT),
        "ctf/accel_kv": np.full(COUNT, 300.0),
        "ctf/cs_mm": np.full(COUNT, 2.7),
        "ctf/amp_contrast": np.full(COUNT, 0.1),
        "ctf/df1_A": optics.defocus_u_angstrom.numpy(),
        "ctf/df2_A": optics.defocus_v_angstrom.numpy(),
        "ctf/df_angle_rad": np.deg2rad(optics.defocus_angle_deg.numpy()),
        "ctf/phase_shift_rad": np.zeros(COUNT),
    }
    own = {"uid": uid, "alignments3D/split": np.arange(COUNT, dtype="u4") % 2}
    rest = {
        "uid": uid,
        "blob/path": np.array([f">{name}".encode() for name in names]),
        "blob/idx": numbers.astype("u4"),
        "blob/shape": np.full((COUNT, 2), BOX, "u4"),
    }
    job = root / "J5"
    job.mkdir(parents=True)
    own |= {name: values.astype("f4") for name, values in single.items()}
    rest |= {name: values.astype("f4") for name, values in ctf.items()}
    order = np.argsort(uid)  # the passthrough has an order of its own
    write_cs(job / "J5_004_particles.cs", CsTable(join_fields(own)))
    rest = {name: values[order] for name, values in rest.items()}
    write_cs(job / "J5_passthrough_particles.cs", CsTable(join_fields(rest)))
    return Project(root, Path("J5"), images, truth)


MAKERS: dict[str, Callable[[Path, tuple[np.ndarray, Particles]], Project]] = {
    "relion": relion_project,
    "cryosparc": cryosparc_job,
}


def elsewhere(project: Project, way: str) -> Project:
    """The project where its user brought it; only links still need the old folder."""
    old, new = project.root, project.root.parent / "other" / "P9"
    new.parent.mkdir()
    if way == "linked":
        new.mkdir()
        for job in old.iterdir():
            (new / job.name).symlink_to(job)
        return replace(project, root=new)
    if way == "copied":
        shutil.copytree(old, new)
        shutil.rmtree(old)
    else:
        old.rename(new)
    return replace(project, root=new)


def correlation(path: Path, truth: np.ndarray) -> float:
    """Correlation of a map with the truth, within the largest ball."""
    grid = np.indices(truth.shape) - BOX // 2
    inside = (grid**2).sum(0) < (BOX / 2 - 1) ** 2
    return float(np.corrcoef(read_mrc(path)[0][inside], truth[inside])[0, 1])


WITH_AUTO = (("relion", "moved"), ("cryosparc", "linked"))  # the others take `reconstruct`
SMALL = ("--only-start", "--tries", "1", "--starts", "1", "--images", "8", "--box", "12")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["copied", "linked", "moved"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_project_is_used_and_given_back(
    vitreous, tmp_path: Path, simulated: tuple[np.ndarray, Particles], kind: str, way: str
) -> None:
    project = elsewhere(MAKERS[kind](tmp_path / "P1", simulated), way)
    code, text, err = vitreous("check", project.path, "--threads", "1", "-q")
    assert (code, err) == (0, ""), text
    assert "Nothing wrong was found" in text
    command, more = ("auto", SMALL) if (kind, way) in WITH_AUTO else ("reconstruct", ())
    plain = ("--sym", GROUP, "--threads", "1", "-q", "-o", tmp_path / "OUT")
    code, text, _ = vitreous(command, project.path, *more, *plain)
    assert code == 0, text
    assert Particles.open(tmp_path / "OUT/particles.star").read(slice(None)).equal(project.images)
    if command == "reconstruct":
        assert correlation(tmp_path / "OUT/map.mrc", project.truth) > 0.95
    star, back = tmp_path / "R/particles.star", tmp_path / "R/back.cs"
    star.parent.mkdir()
    code, _, err = vitreous("convert", project.path, star, "--link")
    assert (code, err) == (0, "")
    assert Particles.open(star).read(slice(None)).equal(project.images)
    assert vitreous("convert", star, back)[0] == 0
    assert Particles.open(back).read(slice(None)).equal(project.images)
    if kind == "cryosparc":
        before = read_cs(project.path / "J5_004_particles.cs").rows
        after = read_cs(back).rows
        for name in before.dtype.names:
            assert before[name].tobytes() == after[name].tobytes(), name
    if shutil.which("relion_reconstruct") is None:
        return
    relion = ["relion_reconstruct", "--i", star.name, "--o", "map.mrc", "--ctf", "--sym", GROUP]
    subprocess.run(relion, cwd=star.parent, check=True, capture_output=True, timeout=120)
    assert correlation(star.parent / "map.mrc", project.truth) > 0.9
