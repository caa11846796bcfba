"""``vitreous check``: verdicts, exit codes, the page, and the corrected table."""

import json

import numpy as np
import pytest

from vitreous.data.particles import Particles
from vitreous.io.mrc import read_mrc, write_mrc
from vitreous.io.star import StarBlock, StarDocument, format_column, read_star, write_star


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A small set with strong signal: folder with particles.mrcs and truth.star."""
    from typer.testing import CliRunner

    from vitreous.cli.main import app

    folder = tmp_path_factory.mktemp("check") / "sim"
    arguments = "simulate phantom:4 --box 32 --apix 6 --n 250 --snr-db 0 --shift gaussian:12 -o"
    options = ["--n-micrographs", "20", "-q"]
    result = CliRunner().invoke(app, [*arguments.split(), str(folder), *options])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def case(simulated, tmp_path):
    """A copy of it to be changed: document and a writer of what it has become."""
    images, header = read_mrc(simulated / "particles.mrcs")
    document = read_star(simulated / "truth.star")

    def write(change=lambda rows, optics: None, images=images):
        rows = dict(document.blocks["particles"].columns)
        optics = dict(document.blocks["optics"].columns)
        change(rows, optics)
        write_mrc(tmp_path / "particles.mrcs", images, header.pixel_size_or(None), is_stack=True)
        blocks = {"optics": StarBlock(optics), "particles": StarBlock(rows)}
        write_star(tmp_path / "set.star", StarDocument(blocks))
        return tmp_path / "set.star"

    return images, write


def scaled(name, factor):
    def change(rows, optics):
        rows[name] = format_column(np.array(rows[name], float) * factor)

    return change


def test_a_right_table_passes(vitreous, case, tmp_path):
    _, write = case
    code, out, err = vitreous("check", write(), "--fix", "-q")
    assert code == 0
    assert "Nothing wrong was found." in out
    assert "nothing to correct" in err
    assert not (tmp_path / "set_fixed.star").exists()


def test_wrong_tables_are_mended_beside_the_original(vitreous, case, tmp_path):
    images, write = case
    damaged = images.copy()
    damaged[5, 1, 1] = np.nan

    def change(rows, optics):
        rows["rlnOriginXAngst"], rows["rlnOriginYAngst"] = (
            rows["rlnOriginYAngst"],
            rows["rlnOriginXAngst"],
        )
        optics["rlnVoltage"] = ["200"]

    table = write(change, damaged)
    before = table.read_bytes()
    code, out, err = vitreous("check", table, "--fix", "-q", "-o", tmp_path / "out")
    assert code == 3
    assert "WRONG  CTF: the voltage is 300 kV" in out
    assert "WRONG  shifts: the origins' x and y are swapped" in out
    assert "remedy: swap rlnOriginXAngst and rlnOriginYAngst" in out
    assert table.read_bytes() == before
    told = json.loads((tmp_path / "out" / "findings.json").read_text())
    assert set(told["faults"]) == {"non-finite", "voltage", "shift-axes"}
    code, out, _ = vitreous("check", tmp_path / "set_fixed.star", "-q")
    assert code == 0
    fixed = Particles.open(tmp_path / "set_fixed.star")
    assert len(fixed) == len(images) - 1
    assert "000006@particles.mrcs" not in fixed.ids
    code, _, err = vitreous("check", table, "--fix", "-q")
    assert code == 2
    assert "give --overwrite" in err


@pytest.mark.slow
def test_dark_protein_is_right_when_it_is_said(vitreous, case):
    images, write = case
    table = write(images=-images)
    code, out, _ = vitreous("check", table, "-q")
    assert code == 3
    assert "protein is dark" in out
    code, out, _ = vitreous("check", table, "-q", "--invert")
    assert code == 0
    assert "protein is dark, as stated" in out


@pytest.mark.slow
def test_results_name_flags_and_what_was_not_tested(vitreous, case, tmp_path):
    images, write = case
    table = write(images=-images)
    code, out, _ = vitreous("check", table, "-q", "--fix", "-o", tmp_path / "out")
    assert code == 3
    assert "`" not in out.replace("`vitreous prepare`", "")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "with --invert" in page
    few = tmp_path / "few.star"
    assert vitreous("select", table, few, "--first", "7")[0] == 0
    code, out, _ = vitreous("check", few, "-q")
    assert code == 0
    assert "Nothing wrong was found; no verdict on contrast, pixel size, CTF, poses." in out
    assert vitreous("check", tmp_path / "gone.star")[2].startswith(
        f"error: {tmp_path}/gone.star: no such file; check the path"
    )


def test_pixel_size_of_the_header(vitreous, case):
    _, write = case
    code, out, _ = vitreous("check", write(lambda rows, optics: None), "-q", "--apix", "12")
    assert code == 3
    assert "the pixel size is 6 Å, not 12 Å" in out


def test_the_page_is_complete_and_asks_for_nothing(vitreous, case, tmp_path):
    _, write = case

    def hostile(rows, optics):
        scaled("rlnDefocusU", -1)(rows, optics)
        scaled("rlnDefocusV", -1)(rows, optics)
        rows["rlnMicrographName"] = ["</script><b>.mrc"] * len(rows["rlnDefocusU"])

    code, _, _ = vitreous("check", write(hostile), "-q", "-o", tmp_path / "out")
    assert code == 3
    page = (tmp_path / "out" / "report.html").read_text()
    assert "defocus has the wrong sign" in page
    assert "default-src 'none'" in page
    assert "</script><b>" not in page
    assert "Which CTF explains the rings" in page


def test_real_particles(vitreous, shared_data):
    folder = shared_data / "empiar10061"
    stack = (
        folder / "particles_192.mrcs",
        "--ctf",
        folder / "ctffind_1539.txt",
        "--particles-per-micrograph",
        folder / "particles_per_micrograph.txt",
        "-q",
    )
    code, out, _ = vitreous("check", *stack, "--apix", "1.274")
    assert code == 3
    assert out.count("WRONG") == 2
    assert "WRONG  normalisation: grey values have an offset of +7." in out  # raw counts
    assert "WRONG  contrast: protein is dark" in out
    assert "ok  pixel size: 1.274 Å fits" in out
    assert "ok  CTF: 300 kV" in out
    code, out, _ = vitreous("check", *stack, "--apix", "2.548", "--invert")
    assert code == 3
    assert "WRONG  pixel size: the pixel size is 1.274 Å, not 2.548 Å" in out


@pytest.mark.slow
def test_a_sample_is_enough_for_a_look(vitreous, case, tmp_path):
    _, write = case
    table = write()
    code, out, _ = vitreous("check", table, "-q", "--sample", "200")
    assert code == 0
    assert "200 images of 32 px" in out
    code, _, err = vitreous("check", table, "--sample", "200", "--fix")
    assert code == 2
    assert "exclude each other" in err
