"""Particles of tomograms (RELION 5) and of tilt series (Warp) against sets of known truth."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import vitreous as vt
from tilt_particle_files import PIXEL, write_tilt_set
from vitreous.core.errors import InputError
from vitreous.data.copies import joined_labels, split_labels
from vitreous.data.formats import read_particles_document
from vitreous.data.particles import Particles
from vitreous.io.star import StarBlock, StarDocument, read_star, write_star


@pytest.mark.parametrize("kind", ["plain", "premultiplied", "warp"])
def test_tilts_have_their_poses_exposures_and_ctfs(tmp_path: Path, kind: str) -> None:
    made = write_tilt_set(
        tmp_path, particles=6, tilts=9, hidden=2, **({kind: True} if kind != "plain" else {})
    )
    particles = Particles.open(made.path, half_seed=1)
    assert len(particles) == 6 * 9 - 2 * 2
    assert particles.pose is not None
    assert (particles.pose.rotation - made.rotation).abs().max() < 1e-5
    assert (particles.pose.shift_angstrom - made.shift).abs().max() < 1e-3
    for name, value in vars(made.optics).items():
        if value is None:
            continue
        assert (getattr(particles.optics, name) - value).abs().max() < 1e-2, name
    tilts = particles.tilt_particles
    assert tilts is not None
    assert len(set(tilts)) == 6
    assert not len(split_labels(particles.half_set, joined_labels(tilts)))
    clean = vt.Projector(made.rotation, 32)(made.truth)
    seen = (vt.CTF(made.optics, 32, PIXEL) @ vt.Shift(made.shift, 32, PIXEL))(clean)
    score = torch.corrcoef(torch.stack([particles.read(slice(None)).flatten(), seen.flatten()]))
    assert score[0, 1] == pytest.approx(math.sqrt(0.5 / 1.5), abs=0.05)  # by the noise added


def test_projection_vectors_and_pixel_coordinates_of_relion_4(tmp_path: Path) -> None:
    made = write_tilt_set(tmp_path, particles=4, tilts=5)
    want = Particles.open(made.path)
    tomograms = read_star(tmp_path / "tomograms.star")
    blocks = {"global": tomograms.blocks["global"]}
    columns = dict(blocks["global"].columns)
    del columns["rlnTomoTiltSeriesStarFile"]
    blocks["global"] = StarBlock(columns)
    for name in columns["rlnTomoName"]:
        series = dict(
            next(iter(read_star(tmp_path / f"tilt_series/{name}.star").blocks.values())).columns
        )
        turns = [
            made.matrix(*(float(series[f"rlnTomo{a}"][f]) for a in ("ZRot", "YTilt", "XTilt")))
            for f in range(5)
        ]
        for i, axis in enumerate("XYZ"):
            series[f"rlnTomoProj{axis}"] = [
                str([*turn[i].tolist(), 7.0]).replace(" ", "") for turn in turns
            ]
        blocks[name] = StarBlock(
            {
                k: v
                for k, v in series.items()
                if k not in ("rlnTomoZRot", "rlnTomoYTilt", "rlnTomoXTilt")
            }
        )
    write_star(tmp_path / "tomograms.star", StarDocument(blocks))
    table = read_star(made.path).blocks
    particles = dict(table["particles"].columns)
    for axis, size in zip("XYZ", (400, 380, 120), strict=True):
        centred = particles.pop(f"rlnCenteredCoordinate{axis}Angst")
        particles[f"rlnCoordinate{axis}"] = [str(float(v) / 1.5 + size / 2) for v in centred]
    write_star(made.path, StarDocument({**table, "particles": StarBlock(particles)}))
    found = Particles.open(made.path)
    assert (found.pose.rotation - want.pose.rotation).abs().max() < 1e-5
    assert (found.optics.defocus_u_angstrom - want.optics.defocus_u_angstrom).abs().max() < 0.01
    columns["rlnCtfBfactorPerElectronDose"] = ["2.0", "2.0"]
    write_star(tmp_path / "tomograms.star", StarDocument({**blocks, "global": StarBlock(columns)}))
    found = Particles.open(made.path)
    torch.testing.assert_close(
        found.optics.b_factor_angstrom2, 2 * want.optics.exposure_e_per_angstrom2
    )
    assert not found.optics.exposure_e_per_angstrom2.any()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    made = write_tilt_set(tmp_path, particles=4, tilts=5)
    sets = {"rlnTomoParticlesFile": ["particles.star"], "rlnTomoTomogramsFile": ["tomograms.star"]}
    write_star(tmp_path / "optimisation_set.star", StarDocument({"": StarBlock(sets)}))
    named = read_particles_document(tmp_path / "optimisation_set.star")
    assert len(named.blocks["particles"]) == 20
    table = read_star(made.path).blocks

    def edit(**columns: list[str]) -> None:
        changed = StarBlock({**table["particles"].columns, **columns})
        write_star(made.path, StarDocument({**table, "particles": changed}))

    edit(rlnTomoVisibleFrames=["[1,1,1,0,1]"] * 4)
    with pytest.raises(InputError, match=r"row 1: rlnTomoVisibleFrames has 4.*holds 5 images"):
        Particles.open(made.path)
    edit(rlnTomoVisibleFrames=["[1,1,1,1]"] * 4)
    with pytest.raises(InputError, match="each of the 5 tilts"):
        Particles.open(made.path)
    edit(rlnTomoVisibleFrames=["all"] * 4)
    with pytest.raises(InputError, match="no vector"):
        Particles.open(made.path)
    edit(rlnTomoName=["TS_9"] * 4)
    with pytest.raises(InputError, match=r"TS_9 is not in .*tomograms\.star"):
        Particles.open(made.path)
    volumes = {**table["optics"].columns, "rlnImageDimensionality": ["3"]}
    write_star(made.path, StarDocument({**table, "optics": StarBlock(volumes)}))
    with pytest.raises(InputError, match="extract 2D images"):
        Particles.open(made.path)
    edit()
    with pytest.raises(InputError, match="lists tilt series, not particles"):
        Particles.open(tmp_path / "tomograms.star")
    (tmp_path / "tilt_series/TS_2.star").unlink()
    with pytest.raises(InputError, match=r"tilt_series/TS_2\.star: not found"):
        Particles.open(made.path)
    (tmp_path / "tomograms.star").unlink()
    with pytest.raises(InputError, match=r"no tomograms\.star.*optimisation_set"):
        Particles.open(made.path)
