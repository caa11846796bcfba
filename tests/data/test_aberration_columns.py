"""Columns of magnification, beam tilt and higher aberrations: read, undone, converted both ways."""

from __future__ import annotations

import math
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from vitreous.core.errors import InputError
from vitreous.core.grid import frequency_grid
from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import euler_to_matrix
from vitreous.data.aberrations import (
    aberration_columns,
    even_polynomial,
    even_zernike,
    odd_polynomial,
    read_magnification,
    read_odd_polynomial,
    tilt_factors,
)
from vitreous.data.cryosparc.tables import from_cryosparc, to_cryosparc
from vitreous.data.particle_table import ParticleTable
from vitreous.data.particles import Particles
from vitreous.data.tables import make_document, pose_columns
from vitreous.io.cryosparc import CsTable, join_fields
from vitreous.io.mrc import read_mrc, write_mrc
from vitreous.io.star import StarBlock, StarDocument, format_star, parse_star, write_star
from vitreous.physics.aberrations import fourth_order_basis, odd_phase
from vitreous.physics.ctf import CTF, ctf
from vitreous.physics.projector import Projector
from vitreous.physics.shift import Shift

MATRIX = {"rlnMagMat00": "1.02", "rlnMagMat01": "0.004", "rlnMagMat10": "0", "rlnMagMat11": "0.98"}
TILT = {"rlnBeamTiltX": "0.3", "rlnBeamTiltY": "-0.2"}
ODD = {"rlnOddZernike": "[1.5,-2,30,0.5,-0.7,-40]"}
EVEN = {"rlnEvenZernike": "[0,0,0,300,-500,0,0,100,700]"}
N, SIDE = 6, 16


def table(tmp_path: Path, **optics: str) -> Path:
    rng = np.random.default_rng(3)
    images = rng.normal(size=(N, SIDE, SIDE))
    if not (tmp_path / "s.mrcs").exists():
        write_mrc(tmp_path / "s.mrcs", images, 2.0, is_stack=True)
    angles = torch.from_numpy(rng.uniform(0, 180, (N, 3)))
    pose = Pose(euler_to_matrix(angles), torch.from_numpy(rng.normal(size=(N, 2))))
    names = [f"{i + 1:06d}@s.mrcs" for i in range(N)]
    document = make_document(
        names, Optics.uniform(N), pixel_size_angstrom=2.0, box_size=SIDE, pose=pose
    )
    block = document.blocks["optics"]
    columns = {**block.columns, **{name: [value] for name, value in optics.items()}}
    path = tmp_path / "p.star"
    write_star(path, StarDocument({**document.blocks, "optics": StarBlock(columns)}))
    return path


def test_zernike_polynomials_are_relion_s() -> None:
    """Against the definition R_n^m(r) cos(m t), or sin, at a point."""
    kx, ky = torch.tensor([0.13], dtype=torch.float64), torch.tensor([-0.08], dtype=torch.float64)
    r, t = math.hypot(0.13, 0.08), math.atan2(-0.08, 0.13)
    odd = [
        *(r * math.sin(t), r * math.cos(t), r**3 * math.sin(3 * t)),
        *((3 * r**3 - 2 * r) * math.sin(t), (3 * r**3 - 2 * r) * math.cos(t)),
        r**3 * math.cos(3 * t),
    ]
    even = [
        *(1, r * r * math.sin(2 * t), 2 * r * r - 1, r * r * math.cos(2 * t)),
        *(r**4 * math.sin(4 * t), (4 * r**4 - 3 * r * r) * math.sin(2 * t)),
        *(
            6 * r**4 - 6 * r * r + 1,
            (4 * r**4 - 3 * r * r) * math.cos(2 * t),
            r**4 * math.cos(4 * t),
        ),
    ]
    low = torch.stack([kx * kx, ky * ky, kx * ky, (kx * kx + ky * ky) ** 2, torch.ones_like(kx)])
    basis = torch.cat([low, fourth_order_basis(kx, ky)])[:, 0].numpy()
    for i, want in enumerate(odd):
        p = torch.from_numpy(odd_polynomial(np.eye(6)[i]))
        assert odd_phase(kx, ky, p).item() == pytest.approx(want)
    for i, want in enumerate(even):
        assert 2 * math.pi * basis @ even_polynomial(np.eye(9)[i]) == pytest.approx(want)
        assert even_zernike(even_polynomial(np.eye(9)[i])) == pytest.approx(np.eye(9)[i])


@pytest.mark.parametrize("columns", [MATRIX, TILT, ODD, {**MATRIX, **TILT, **ODD}])
def test_reading_undoes_what_the_columns_say(tmp_path: Path, columns: dict[str, str]) -> None:
    plain = Particles.open(table(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        particles = Particles.open(table(tmp_path, **columns))
    assert not torch.allclose(particles.read([0]), plain.read([0]), atol=1e-3)
    assert particles.pose is not None
    assert plain.pose is not None
    matrix = np.array([float(columns.get(k, e)) for k, e in zip(MATRIX, (1, 0, 0, 1), strict=True)])
    want = plain.pose.shift_angstrom.numpy() @ np.linalg.inv(matrix.reshape(2, 2))
    assert np.allclose(particles.pose.shift_angstrom.numpy(), want, atol=1e-5)
    back = particles.to_star_document(**pose_columns(particles.pose)).blocks["particles"]
    for name, values in pose_columns(plain.pose).items():
        assert np.allclose(back.numbers(name), np.array(values, dtype=float), atol=2e-5)
    assert particles.select([3]).read([0]).equal(particles.read([3]))


def test_even_terms_reach_the_optics(tmp_path: Path) -> None:
    optics = Particles.open(table(tmp_path, **EVEN)).optics
    assert optics.even_turns is not None
    assert optics[1:3].even_turns.shape == (2, 9)
    assert optics.to(torch.float32).even_turns.abs().max() > 0


@pytest.mark.parametrize("cs", [2.7, 0.0])
def test_written_aberrations_come_back(tmp_path: Path, cs: float) -> None:
    path = table(tmp_path, **TILT, rlnSphericalAberration=str(cs))
    rng = np.random.default_rng(1)
    odd, even = rng.normal(size=6) * (1, 1, 30, 30, 30, 30), rng.normal(size=9) * 10
    particles = Particles.open(path)
    factors = tilt_factors(particles.optics.cs_mm, particles.optics.voltage_kv)
    rows = (np.tile(odd, (N, 1)), np.tile(even, (N, 1)), factors)
    document = particles.to_star_document(**aberration_columns(*rows))
    assert "rlnBeamTiltX" in document.blocks["optics"]
    assert "rlnBeamTiltX" not in document.blocks["particles"]
    write_star(path, document)
    again = Particles.open(path)
    assert np.allclose(again.odd_phase.numpy(), odd, rtol=1e-4, atol=0.02)
    assert again.optics.even_turns is not None
    assert np.allclose(again.optics.even_turns.numpy(), even, rtol=1e-4, atol=1e-4)
    mixed = np.tile(odd, (N, 1)) * np.arange(N)[:, None]
    document = particles.to_star_document(**aberration_columns(mixed, *rows[1:]))
    assert "rlnOddZernike" not in document.blocks["optics"]
    write_star(path, document)
    assert np.allclose(Particles.open(path).odd_phase.numpy(), mixed, rtol=1e-4, atol=0.02)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rlnMagMat00": "3"}, "_rlnMagMat00 to _rlnMagMat11, row 1: .* stretches by 3"),
        ({"rlnMagMat11": "0"}, "at most 1.5 is possible"),
        ({"rlnOddZernike": "[1,two]"}, "column _rlnOddZernike, row 1: .* no vector"),
        ({"rlnEvenZernike": "[nan]"}, "column _rlnEvenZernike, row 1: .* no vector"),
    ],
)
def test_impossible_columns_are_refused(
    tmp_path: Path, columns: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Particles.open(table(tmp_path, **columns))


def test_what_is_not_used_is_named(tmp_path: Path) -> None:
    long = "[0,0,0,0,0,0,1]"
    with pytest.warns(UserWarning, match="_rlnOddZernike: coefficients after the first 6"):
        Particles.open(table(tmp_path, rlnOddZernike=long))


# ----------------------------------------------------------------------------- conversion

FIELDS = {
    "ctf/shift_A": [0.4, -0.3],
    "ctf/tilt_A": [500.0, -800.0],
    "ctf/trefoil_A": [9000.0, 700.0],
    "ctf/tetra_A": [3e4, -2e4, 7e4, 1e4],
    "ctf/anisomag": [0.01, 0.002, -0.003, -0.02],
}


def cs_table(names: list[str]) -> CsTable:
    rng = np.random.default_rng(0)
    columns = {
        "uid": np.arange(N, dtype="u8"),
        "blob/path": np.array([b"s.mrcs"] * N),
        "blob/idx": np.arange(N, dtype="u4"),
        "blob/psize_A": np.full(N, 2.0, "f4"),
        "blob/shape": np.full((N, 2), SIDE, "u4"),
        "ctf/exp_group_id": np.array([3, 3, 5, 5, 5, 5], "u4"),
        "ctf/accel_kv": np.full(N, 300, "f4"),
        "ctf/cs_mm": np.full(N, 2.7, "f4"),
        "ctf/amp_contrast": np.full(N, 0.1, "f4"),
        "ctf/df1_A": rng.uniform(1e4, 2e4, N).astype("f4"),
        "ctf/df2_A": rng.uniform(1e4, 2e4, N).astype("f4"),
        "ctf/df_angle_rad": np.zeros(N, "f4"),
    }
    for name, values in FIELDS.items():
        scale = np.where(columns["ctf/exp_group_id"] == 3, 1.0, 0.7)[:, None] * (name in names)
        columns[name] = (scale * np.array(values)).astype("f4")
    return CsTable(join_fields(columns))


@pytest.mark.parametrize("names", [[name] for name in FIELDS] + [list(FIELDS)])
def test_cs_to_star_and_back(tmp_path: Path, names: list[str]) -> None:
    """Every field becomes a column that is used, and gives every bit back, without its original."""
    source = cs_table(names)
    document = parse_star(format_star(from_cryosparc(source, Path("p.cs"))))
    optics = document.blocks["optics"]
    assert len(optics) == 2
    expected = {
        "ctf/shift_A": "rlnOddZernike",
        "ctf/tilt_A": "rlnBeamTiltX",
        "ctf/trefoil_A": "rlnOddZernike",
        "ctf/tetra_A": "rlnEvenZernike",
        "ctf/anisomag": "rlnMagMat00",
    }
    for name in names:
        assert expected[name] in optics
        assert f"cs/{name}" not in document.blocks["particles"]
    back = to_cryosparc(document, Path("p.star"))
    for name in source.fields:
        assert source.rows[name].tobytes() == back.rows[name].tobytes(), name
    write_mrc(tmp_path / "s.mrcs", np.ones((N, SIDE, SIDE)), 2.0, is_stack=True)
    write_star(tmp_path / "p.star", document)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        particles = Particles.open(tmp_path / "p.star")
    assert (particles.optics.even_turns is not None) == ("ctf/tetra_A" in names)
    if names == ["ctf/anisomag"]:
        assert np.allclose(optics.numbers("rlnMagMat00"), [1.01, 1.007])


def test_no_aberration_means_no_column() -> None:
    document = from_cryosparc(cs_table([]), Path("p.cs"))
    assert not {"rlnMagMat00", "rlnBeamTiltX", "rlnOddZernike"} & set(
        document.blocks["optics"].columns
    )


def test_star_to_cs_and_back(tmp_path: Path) -> None:
    """The fields are there for cryoSPARC, and RELION's text comes back letter by letter."""
    path = table(tmp_path, **MATRIX, **TILT, **ODD, rlnEvenZernike="[1,2,3,4,5,6,7,8,9]")
    document = parse_star(path.read_text())
    with pytest.warns(UserWarning, match="_rlnEvenZernike: cryoSPARC has no field"):
        made = to_cryosparc(document, path)
    assert np.allclose(made.rows["ctf/anisomag"][0], [0.02, 0.004, 0, -0.02])
    assert set(FIELDS) <= set(made.fields)
    assert from_cryosparc(made, path) == document
    made.rows["ctf/anisomag"][:] = [0.03, 0, 0, 0]  # an edit there wins
    edited = from_cryosparc(made, path).blocks["optics"]
    assert edited.numbers("rlnMagMat00")[0] == pytest.approx(1.03)


def test_an_edit_of_the_star_wins_over_the_zeros_of_the_cs() -> None:
    document = from_cryosparc(cs_table([]), Path("p.cs"))
    optics = document.blocks["optics"].columns
    optics = StarBlock({**optics, **{name: [value] * 2 for name, value in MATRIX.items()}})
    back = to_cryosparc(StarDocument({**document.blocks, "optics": optics}), Path("p.star"))
    assert np.allclose(back.rows["ctf/anisomag"][0], [0.02, 0.004, 0, -0.02])


# ----------------------------------------------------------------------------- RELION as oracle


def run_relion(folder: Path, *command: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip("relion is not installed")
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=200)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def blob_map(centres: np.ndarray, n: int) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n) - n // 2] * 3, indexing="ij"), -1)[..., ::-1] * 2.0
    return sum(np.exp(-((grid - c) ** 2).sum(-1) / (2 * 2.5**2)) for c in centres)


def blob_images(
    centres: np.ndarray, pose: Pose, matrix: np.ndarray, odd: np.ndarray, n: int
) -> np.ndarray:
    """Images of Gaussians by the formula of :mod:`vitreous.physics.aberrations`."""
    kx, ky = frequency_grid(n, 2.0, dtype=torch.float64)
    kx, ky = kx + 0 * ky, ky + 0 * kx
    qx, qy = matrix[0, 0] * kx + matrix[0, 1] * ky, matrix[1, 0] * kx + matrix[1, 1] * ky
    shared = torch.exp(-2 * (math.pi * 2.5) ** 2 * (qx**2 + qy**2))
    shared = shared * ctf(qx, qy, Optics.uniform(1, defocus_angstrom=12000.0))[0].double()
    images = []
    for rotation, shift in zip(pose.rotation.double(), pose.shift_angstrom, strict=True):
        x, y, _ = rotation @ torch.from_numpy(centres.T)
        phase = -2 * math.pi * (qx[..., None] * x + qy[..., None] * y)
        start = shift + n // 2 * 2.0
        ramp = odd_phase(qx, qy, torch.from_numpy(odd)) - 2 * math.pi * (
            kx * start[0] + ky * start[1]
        )
        spectrum = torch.polar(torch.ones_like(phase), phase).sum(-1) * shared
        images.append(
            torch.fft.irfft2(spectrum * torch.polar(torch.ones_like(ramp), ramp), s=(n, n))
        )
    return torch.stack(images).numpy().astype("f4")


ORACLE = {
    "magnification": {
        **{"rlnMagMat00": "1.04", "rlnMagMat01": "0.01"},
        **{"rlnMagMat10": "-0.01", "rlnMagMat11": "0.96"},
    },
    "beam tilt": {"rlnBeamTiltX": "8", "rlnBeamTiltY": "-6"},
    "odd": {"rlnOddZernike": "[15,-20,3000,50,-70,-4000]"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ORACLE)
def test_relion_undoes_the_same(tmp_path: Path, kind: str) -> None:
    """RELION reconstructs images made by our formula with these columns as well as plain ones."""
    rng, count, n = np.random.default_rng(1), 300, 48
    angles = np.stack(
        [rng.uniform(0, 360, count), np.degrees(np.arccos(rng.uniform(-1, 1, count)))]
    )
    angles = np.concatenate([angles, rng.uniform(0, 360, (1, count))]).T
    shifts = torch.from_numpy(rng.normal(0, 3, (count, 2)))
    pose = Pose(euler_to_matrix(torch.from_numpy(angles)), shifts)
    centres = rng.uniform(-22, 22, (9, 3))
    document = make_document(
        [f"{i + 1:06d}@s.mrcs" for i in range(count)],
        Optics.uniform(count, defocus_angstrom=12000.0),
        pixel_size_angstrom=2.0,
        box_size=n,
        pose=pose,
    )
    block = document.blocks["optics"]
    block = StarBlock({**block.columns, **{k: [v] for k, v in ORACLE[kind].items()}})
    write_star(tmp_path / "p.star", StarDocument({**document.blocks, "optics": block}))
    table = ParticleTable(parse_star((tmp_path / "p.star").read_text()), tmp_path / "p.star")
    matrices, odd = read_magnification(table), read_odd_polynomial(table)
    matrix = np.eye(2) if matrices is None else matrices[0]
    images = blob_images(centres, pose, matrix, np.zeros(6) if odd is None else odd[0], n)
    write_mrc(tmp_path / "s.mrcs", images, 2.0, is_stack=True)
    command = ["--i", "p.star", "--o", "map.mrc", "--ctf", "--maxres", "5"]
    run_relion(tmp_path, "relion_reconstruct", *command)
    assert correlation(read_mrc(tmp_path / "map.mrc")[0], blob_map(centres, n)) > 0.995


@pytest.mark.slow
def test_relion_has_the_same_even_terms(tmp_path: Path) -> None:
    terms = "[0.3,20,-30,300,-5000,200,300,1000,7000]"
    path = table(tmp_path, rlnEvenZernike=terms)
    path.write_text(path.read_text().replace(f" {SIDE} 2", " 48 2"))
    volume = blob_map(np.random.default_rng(2).uniform(-18, 18, (9, 3)), 48)
    write_mrc(tmp_path / "map.mrc", volume, 2.0)
    command = ["--i", "map.mrc", "--ang", "p.star", "--o", "out", "--ctf", "--angpix", "2"]
    run_relion(tmp_path, "relion_project", *command)
    particles = Particles.open(tmp_path / "out.star")
    assert particles.pose is not None
    simulate = Projector(particles.pose.rotation.double(), 48)(torch.from_numpy(volume))
    simulate = Shift(particles.pose.shift_angstrom.double(), 48, 2.0)(simulate)
    simulate = CTF(particles.optics.to(torch.float64), 48, 2.0)(simulate)
    for ours, theirs in zip(simulate.numpy(), particles.read(slice(None)).numpy(), strict=True):
        assert correlation(ours, theirs) > 0.998
