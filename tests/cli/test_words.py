"""Small stumbles of new users: the message names what is meant."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitreous.core.errors import InputError
from vitreous.core.params import Optics
from vitreous.data.aberrations import UNDONE
from vitreous.data.bad_images import BadImages
from vitreous.data.particle_table import ParticleTable
from vitreous.data.particles import Particles
from vitreous.data.selection import Condition
from vitreous.data.tables import make_document
from vitreous.doctor.examine import Claims, _headers
from vitreous.io.mrc import write_mrc
from vitreous.io.star import read_star, write_star
from vitreous.jobs.maps.align import _euler


@pytest.mark.parametrize(
    ("command", "option", "meant"),
    [
        ("refine", "--gpu", "--device"),
        ("auto", "--angpix", "--apix"),
        ("reconstruct", "--symmetry", "--sym"),
        ("refine", "--ref", "--map"),
    ],
)
def test_options_of_other_programs_name_ours(vitreous, command, option, meant):
    code, _, err = vitreous(command, option, "0")
    assert code == 2
    assert f"{option} (Possible options: {meant})" in " ".join(err.split())


def test_options_of_subcommands_too(vitreous):
    assert "--device" in vitreous("tomo", "reconstruct", "--gpu", "0")[2]


@pytest.mark.parametrize("option", ["--permissive", "--allow-outside-root"])
def test_retired_options_say_why_they_are_not_needed(vitreous, option):
    code, _, err = vitreous("auto", option)
    assert (code, "is no longer needed" in err) == (2, True)


def test_columns_may_be_named_without_rln(tmp_path):
    path = tmp_path / "p.star"
    names = [f"{i + 1}@s.mrcs" for i in range(4)]
    write_star(path, make_document(names, Optics.uniform(4), pixel_size_angstrom=2.0, box_size=8))
    table = ParticleTable(read_star(path), path)
    for text in ("DefocusU > 1e4", "rlnDefocusU > 1e4", "_rlnDefocusU > 1e4", "Voltage == 300"):
        assert Condition.parse(text).mask(table).all()
    with pytest.raises(InputError, match="column _Defocus: missing"):
        Condition.parse("Defocus > 1").mask(table)


def test_images_are_counted_from_1():
    with pytest.raises(InputError, match=r"images 1 \(a\), 3 \(c\): NaN"):
        BadImages(non_finite=(0, 2)).refuse_non_finite("abc", "p.star")


def rotation(*degrees: float) -> torch.Tensor:
    from vitreous.core.rotation import euler_to_matrix

    return euler_to_matrix(torch.tensor(degrees, dtype=torch.float64))


def test_the_identity_has_no_angles():
    assert _euler(torch.eye(3, dtype=torch.float64)) == [0.0, 0.0, 0.0]
    rot, tilt, psi = _euler(rotation(37.0, 0.001, -37.0))
    assert (abs(rot) < 0.01, tilt, psi) == (True, 0.0, 0.0)
    rot, tilt, psi = _euler(rotation(50.0, 0.0, 150.0))
    assert (math.isclose(rot, -160.0, abs_tol=1e-6), tilt, psi) == (True, 0.0, 0.0)
    assert np.allclose(_euler(rotation(50.0, 20.0, 30.0)), [50.0, 20.0, 30.0])


def test_a_header_of_1_angstrom_is_a_note():
    """Programs that do not know the pixel size write 1; another value is a contradiction."""
    (note,) = _headers(Claims(4.0, header_pixel_size_angstrom=1.0))
    assert (note.verdict, note.fault) == ("note", "")
    (wrong,) = _headers(Claims(4.0, header_pixel_size_angstrom=1.1))
    assert wrong.fault == "header-pixel-size"


def test_prepared_images_do_not_keep_the_columns_of_what_is_undone(vitreous, tmp_path):
    from vitreous.io.star import StarBlock, StarDocument

    images = np.random.default_rng(0).normal(size=(6, 16, 16)).astype("f4")
    write_mrc(tmp_path / "s.mrcs", images, 2.0, is_stack=True)
    names = [f"{i + 1}@s.mrcs" for i in range(6)]
    document = make_document(names, Optics.uniform(6), pixel_size_angstrom=2.0, box_size=16)
    optics = dict(document.blocks["optics"].columns)
    optics |= {"rlnMagMat00": ["1.02"], "rlnBeamTiltX": ["2"], "rlnOddZernike": ["[0,0,9,0,0,0]"]}
    write_star(tmp_path / "p.star", StarDocument({**document.blocks, "optics": StarBlock(optics)}))
    code, _, err = vitreous(
        "prepare", tmp_path / "p.star", "-o", tmp_path / "OUT", "--normalise", "none", "-q"
    )
    assert code == 0, err
    made = read_star(tmp_path / "OUT" / "particles.star")
    assert not set(UNDONE) & set(made.blocks["optics"].columns)
    want = Particles.open(tmp_path / "p.star").read(slice(None))
    got = Particles.open(tmp_path / "OUT" / "particles.star").read(slice(None))
    assert torch.allclose(want, got, atol=1e-5)
    assert not np.allclose(got.numpy(), images, atol=1e-2)
