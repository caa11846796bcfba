"""``vitreous pick`` and ``vitreous prepare`` with micrographs: what they print and refuse."""

import numpy as np
import pytest

from vitreous.io.mrc import write_mrc

STAR = """data_
loop_
_rlnMicrographName
_rlnCoordinateX
_rlnCoordinateY
m.mrc 30 40
m.mrc 70.6 50.4
m.mrc 5 5
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(1)
    write_mrc(tmp_path / "m.mrc", rng.normal(0, 1, (96, 128)).astype(np.float32), 4.0)
    (tmp_path / "picks.star").write_text(STAR)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (("--diameter", 2000), 3, "too few for particles of 2000 Å; check --diameter and --apix"),
        (("--diameter", 0), 2, "--diameter"),
        (("--diameter", 80, "--ctf", "none.star"), 3, "none.star: no such file"),
        (("--diameter", 80, "--templates", "m.mrc"), 3, "needs square images"),
    ],
)
def test_what_pick_refuses(vitreous, folder, monkeypatch, options, code, complaint):
    monkeypatch.chdir(folder)
    status, _, errors = vitreous("pick", folder, *options, "-o", folder / "OUT", "-q")
    assert status == code
    assert complaint in errors
    assert not (folder / "OUT" / "particles.star").exists()


def test_damaged_micrographs_are_left_out(vitreous, folder):
    (folder / "bad.mrc").write_bytes(b"x" * 2000)
    call = ("pick", folder, "--diameter", 80, "--invert", "no", "-q", "-o", folder / "OUT")
    code, _, errors = vitreous(*call)
    assert code == 3
    assert "bad.mrc" in errors
    code, printed, errors = vitreous(*call, "--skip-bad", "--apix", 4, "--overwrite")
    assert code == 0
    assert "in 1 micrographs" in printed
    assert "left out" in errors


def test_windows_that_leave_the_micrograph(vitreous, folder):
    call = ("prepare", folder / "picks.star", "--micrographs", folder, "-o", folder / "OUT", "-q")
    code, _, errors = vitreous(*call)
    assert code == 2
    assert "--window: needed to cut particles" in errors
    code, printed, errors = vitreous(*call, "--window", 32)
    assert code == 0
    assert "2 particles" in printed
    assert "1 of 3 particles are left out" in errors
    code, _, errors = vitreous(*call, "--window", 96, "--overwrite")
    assert code == 3
    assert "no window of 96 px lies in its micrograph" in errors
