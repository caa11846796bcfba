"""Sets of particles of tomograms with known truth, as RELION 5 and Warp write them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import vitreous as vt
from vitreous.core.params import Optics
from vitreous.data.tables import make_document, pose_columns
from vitreous.io.mrc import write_mrc
from vitreous.io.star import StarBlock, StarDocument, format_column, write_star
from vitreous.physics.ctf import ctf_half

PIXEL = 6.0


@dataclass(frozen=True)
class TiltSet:
    """A set that was written: its table, the true map, and pose and optics of each image."""

    path: Path
    truth: Tensor
    rotation: Tensor
    shift: Tensor
    optics: Optics

    @staticmethod
    def matrix(z: float, y: float, x: float) -> np.ndarray:
        """Rotation of a tilt."""
        return _about("z", z) @ _about("y", y) @ _about("x", x)


def _about(axis: str, degrees: float) -> np.ndarray:
    """Counter-clockwise rotation about an axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.array(rows[axis])


def _relion_euler(rot: float, tilt: float, psi: float) -> np.ndarray:
    """RELION's matrix of Euler angles, by its definition."""
    return (_about("z", rot) @ _about("y", tilt) @ _about("z", psi)).T


def _block(rows: list[dict[str, object]]) -> StarBlock:
    return StarBlock({name: [str(row[name]) for row in rows] for name in rows[0]})


def write_tilt_set(
    folder: Path,
    *,
    particles: int = 40,
    tilts: int = 37,
    box: int = 32,
    premultiplied: bool = False,
    snr: float = 0.5,
    hidden: int = 0,
    warp: bool = False,
    seed: int = 1,
) -> TiltSet:
    """Write particles of two tomograms: defocus by depth, exposure, scale by the tilt, origins.

    ``hidden`` tilts of every third particle are not visible. With ``warp`` the table has one row
    for each image, the exposure as negative B factor, and no tomograms.
    """
    rng, truth = np.random.default_rng(seed), vt.phantom(box, PIXEL)
    folder.mkdir(parents=True, exist_ok=True)
    angle = np.linspace(-54, 54, tilts)
    exposure = 3.0 * np.argsort(np.argsort(np.abs(angle) + 1e-3 * angle))
    defocus = np.array([[18000.0], [36000.0]]) + rng.normal(0, 300, (2, tilts))
    axis, hand, size = 84.0, -1, (400, 380, 120)
    rows: list[dict[str, object]] = []
    rotation, fields, stack_of = [], [], []
    for p in range(particles):
        euler, tomo = rng.uniform((-180, 20, -180), (180, 160, 180)), p % 2
        origin, place = rng.uniform(-9, 9, 3), rng.uniform(-900, 900, 3)
        visible = np.ones(tilts, dtype=int)
        if p % 3 == 0 and hidden:
            visible[rng.choice(tilts, hidden, replace=False)] = 0
        name = f"TS_{tomo + 1}/{p // 2 + 1}"
        rows.append(
            {
                "rlnTomoName": f"TS_{tomo + 1}",
                "rlnTomoParticleName": name,
                "rlnOpticsGroup": 1,
                "rlnImageName": f"Extract/{name}_stack2d.mrcs",
                "rlnTomoVisibleFrames": str(visible.tolist()).replace(" ", ""),
                **{f"rlnCenteredCoordinate{a}Angst": v for a, v in zip("XYZ", place, strict=True)},
                **{f"rlnAngle{a}": v for a, v in zip(("Rot", "Tilt", "Psi"), euler, strict=True)},
                **{f"rlnOrigin{a}Angst": v for a, v in zip("XYZ", origin, strict=True)},
            }
        )
        for f in np.flatnonzero(visible):
            turn = _about("z", axis) @ _about("y", angle[f]) @ _about("x", 1.5)
            shift = -(turn @ origin)[:2]
            d = defocus[tomo, f] + hand * (turn @ (place - origin))[2]
            rotation.append(turn @ _relion_euler(*euler))
            scale = math.cos(math.radians(angle[f]))
            fields.append((*shift, d + 150, d - 150, 30.0, exposure[f], scale))
            stack_of.append((p, f))
    values = torch.from_numpy(np.array(fields)).float()
    damped = {"b_factor_angstrom2": 4 * values[:, 5]} if warp else {}
    damped |= {} if warp else {"exposure_e_per_angstrom2": values[:, 5]}
    none, n = torch.zeros(len(values)), len(values)
    optics = Optics(
        **{
            "defocus_u_angstrom": values[:, 2],
            "defocus_v_angstrom": values[:, 3],
            "defocus_angle_deg": values[:, 4],
            "phase_shift_deg": none,
            "voltage_kv": none + 300,
            "cs_mm": none + 2.7,
            "amplitude_contrast": none + 0.1,
            "b_factor_angstrom2": none,
            "scale": values[:, 6],
            **damped,
        }
    )
    poses = torch.from_numpy(np.array(rotation)).float()
    shift = values[:, :2]
    clean = (vt.Shift(shift, box, PIXEL) @ vt.Projector(poses, box))(truth)
    transfer = ctf_half(box, PIXEL, optics)
    spectra = torch.fft.rfft2(clean) * transfer
    seen = torch.fft.irfft2(spectra, s=(box, box))
    noise = torch.from_numpy(rng.normal(0, 1, seen.shape)).float()
    spectra = spectra + torch.fft.rfft2(noise * (seen.var() / snr).sqrt())
    if premultiplied:
        spectra = spectra * transfer
    images = torch.fft.irfft2(spectra, s=(box, box)).numpy()
    if warp:
        _write_warp(folder, images, optics, vt.Pose(poses, shift), [p for p, _ in stack_of])
        return TiltSet(folder / "particles.star", truth, poses, shift, optics)
    owner = np.array([p for p, _ in stack_of])
    for p, row in enumerate(rows):
        stack = folder / str(row["rlnImageName"])
        stack.parent.mkdir(parents=True, exist_ok=True)
        write_mrc(stack, images[owner == p], PIXEL, is_stack=True)
    group = {
        "rlnOpticsGroup": 1,
        "rlnOpticsGroupName": "optics1",
        "rlnVoltage": 300,
        "rlnSphericalAberration": 2.7,
        "rlnAmplitudeContrast": 0.1,
        "rlnTomoTiltSeriesPixelSize": 1.5,
        "rlnCtfDataAreCtfPremultiplied": int(premultiplied),
        "rlnImageDimensionality": 2,
        "rlnTomoSubtomogramBinning": 4,
        "rlnImagePixelSize": PIXEL,
        "rlnImageSize": box,
    }
    general = StarBlock({"rlnTomoSubTomosAre2DStacks": ["1"]}, is_loop=False)
    table = {"general": general, "optics": _block([group]), "particles": _block(rows)}
    write_star(folder / "particles.star", StarDocument(table))
    tomograms = [
        {
            "rlnTomoName": f"TS_{t + 1}",
            "rlnTomoHand": hand,
            "rlnTomoTiltSeriesPixelSize": 1.5,
            "rlnTomoTiltSeriesStarFile": f"tilt_series/TS_{t + 1}.star",
            **{f"rlnTomoSize{a}": s for a, s in zip("XYZ", size, strict=True)},
        }
        for t in range(2)
    ]
    write_star(folder / "tomograms.star", StarDocument({"global": _block(tomograms)}))
    (folder / "tilt_series").mkdir(exist_ok=True)
    for t in range(2):
        series = [
            {
                "rlnMicrographName": f"frames/TS_{t + 1}_{f:02d}.mrc",
                "rlnMicrographPreExposure": exposure[f],
                "rlnTomoXTilt": 1.5,
                "rlnTomoYTilt": angle[f],
                "rlnTomoZRot": axis,
                "rlnTomoXShiftAngst": 3.0,
                "rlnTomoYShiftAngst": -5.0,
                "rlnDefocusU": defocus[t, f] + 150,
                "rlnDefocusV": defocus[t, f] - 150,
                "rlnDefocusAngle": 30.0,
                "rlnCtfScalefactor": math.cos(math.radians(angle[f])),
            }
            for f in range(tilts)
        ]
        document = StarDocument({f"TS_{t + 1}": _block(series)})
        write_star(folder / f"tilt_series/TS_{t + 1}.star", document)
    assert n == len(images)
    return TiltSet(folder / "particles.star", truth, poses, shift, optics)


def _write_warp(
    folder: Path, images: np.ndarray, optics: Optics, pose: vt.Pose, particle: list[int]
) -> None:
    """One table of the older layout with a row for each image."""
    write_mrc(folder / "particles.mrcs", images, PIXEL, is_stack=True)
    count = len(images)
    names = [f"{i + 1:06d}@particles.mrcs" for i in range(count)]
    document = make_document(
        names, optics, pixel_size_angstrom=PIXEL, box_size=images.shape[-1], pose=pose
    )
    columns = dict(document.blocks["particles"].columns) | pose_columns(pose)
    shared = {"rlnVoltage": 300, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
    shared |= {"rlnMagnification": 1e4, "rlnDetectorPixelSize": PIXEL}
    columns |= {name: [str(value)] * count for name, value in shared.items()}
    del columns["rlnOpticsGroup"]
    columns["rlnCtfBfactor"] = format_column(-optics.b_factor_angstrom2.double().numpy())
    columns["rlnCtfScalefactor"] = format_column(optics.scale.double().numpy())
    columns["rlnGroupName"] = [f"TS_1_{p:07d}" for p in particle]
    columns["rlnMicrographName"] = ["TS_1.mrc"] * count
    write_star(folder / "particles.star", StarDocument({"": StarBlock(columns)}))
