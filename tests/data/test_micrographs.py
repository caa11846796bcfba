"""Micrographs and their CTF from folders, STAR files and texts."""

import pytest
import torch

from vitreous.core.errors import InputError
from vitreous.data.micrographs import find_micrographs
from vitreous.io.mrc import write_mrc

STAR = """data_optics
loop_
_rlnOpticsGroup
_rlnOpticsGroupName
_rlnVoltage
_rlnSphericalAberration
_rlnAmplitudeContrast
1 g 200 1.4 0.07

data_micrographs
loop_
_rlnMicrographName
_rlnOpticsGroup
_rlnDefocusU
_rlnDefocusV
_rlnDefocusAngle
Mic/b.frames.mrc 1 12000 11000 30
Mic/a.frames.mrc 1 22000 21000 40
"""
RELION3 = """data_
loop_
_rlnMicrographName
_rlnDefocusU
_rlnDefocusV
_rlnDefocusAngle
_rlnVoltage
_rlnSphericalAberration
_rlnAmplitudeContrast
Mic/a.frames.mrc 22000 21000 40 200 1.4 0.07
Mic/b.frames.mrc 12000 11000 30 200 1.4 0.07
"""
TABLE = """micrograph\tdefocus_u_A\tdefocus_v_A\tangle_deg\tscore
b.frames\t12000\t11000\t30\t0.4
a.frames\t22000\t21000\t40\t0.5
"""
CTFFIND = """# Columns
a.frames.mrc 1 22000 21000 40 0 0.1 5
b.frames.mrc 2 12000 11000 30 0 0.1 5
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "Mic").mkdir()
    for name in ("a", "b"):
        write_mrc(tmp_path / "Mic" / f"{name}.frames.mrc", torch.randn(16, 16).numpy(), 2.0)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [("m.star", STAR), ("m3.star", RELION3), ("ctf.tsv", TABLE), ("ctf.txt", CTFFIND)],
)
def test_ctf_goes_to_the_micrograph_of_its_name(folder, name, text):
    (folder / name).write_text(text)
    microscope = {"voltage_kv": 200.0, "cs_mm": 1.4, "amplitude_contrast": 0.07}
    files = find_micrographs(folder / "Mic", folder / name, **microscope)
    assert [path.name for path in files.paths] == ["a.frames.mrc", "b.frames.mrc"]
    assert files.optics.defocus_u_angstrom.tolist() == [22000, 12000]
    assert files.optics.defocus_angle_deg.tolist() == [40, 30]
    assert files.optics.voltage_kv.tolist() == [200, 200]
    assert files.optics.phase_shift_deg.tolist() == [0, 0]


def test_a_star_file_gives_names_files_and_ctf(folder):
    (folder / "m.star").write_text(STAR)
    files = find_micrographs(folder / "m.star")
    assert files.names == ("Mic/b.frames.mrc", "Mic/a.frames.mrc")
    assert files.paths[0] == folder / "Mic/b.frames.mrc"
    assert files.optics.defocus_v_angstrom.tolist() == [11000, 21000]
    assert find_micrographs(folder / "Mic").optics is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (TABLE.replace("a.frames", "c.frames"), "no row"),
        (TABLE.replace("\t0.5", "").replace("\t40\n", "\n"), "angle_deg: no value"),
        (TABLE.replace("22000", "many"), "'many' is not a finite number"),
    ],
)
def test_tables_that_lack_something(folder, text, complaint):
    (folder / "ctf.tsv").write_text(text)
    with pytest.raises(InputError, match=complaint):
        find_micrographs(folder / "Mic", folder / "ctf.tsv")


def test_no_micrographs(tmp_path):
    with pytest.raises(InputError, match=r"no \.mrc files"):
        find_micrographs(tmp_path)


def test_a_star_file_without_its_micrographs(tmp_path):
    (tmp_path / "m.star").write_text(STAR)
    with pytest.raises(InputError, match="give their folder instead, and the table as `ctf_file`"):
        find_micrographs(tmp_path / "m.star")
