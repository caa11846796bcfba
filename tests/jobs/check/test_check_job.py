"""``simulate`` and ``check`` called from Python."""

from vitreous.io.star import StarBlock, StarDocument, read_star, write_star
from vitreous.jobs.check.options import CheckOptions
from vitreous.jobs.check.run import check
from vitreous.jobs.simulate.options import SimulateOptions
from vitreous.jobs.simulate.run import simulate


def test_ten_lines(tmp_path):
    machine = {"threads": 1, "quiet": True}
    images = {"box_size": 32, "pixel_size_angstrom": 6.0, "n_particles": 300, "n_micrographs": 10}
    sample = simulate(
        SimulateOptions(source="phantom:4", output=tmp_path / "SIM", **images, **machine)
    )
    result = check(CheckOptions(particles=sample.folder / "truth.star", fix=True, **machine))
    assert result.faults == ()
    assert (result.images, result.box_size, result.fixed_table) == (300, 32, None)
    assert result.verdict == "Nothing wrong was found."


def test_a_wrong_table_is_corrected(tmp_path):
    machine = {"threads": 1, "quiet": True}
    sample = simulate(
        SimulateOptions(
            source="phantom:4",
            output=tmp_path / "SIM",
            box_size=32,
            pixel_size_angstrom=6.0,
            n_particles=300,
            n_micrographs=10,
            **machine,
        )
    )
    assert "300 particles of 32 px at 6 Å" in sample.text
    document = read_star(sample.folder / "particles.star")
    optics = dict(document.blocks["optics"].columns) | {"rlnVoltage": ["200"]}
    blocks = {**document.blocks, "optics": StarBlock(optics)}
    write_star(sample.folder / "wrong.star", StarDocument(blocks))
    options = CheckOptions(
        particles=sample.folder / "wrong.star", output=tmp_path / "CHECK", fix=True, **machine
    )
    result = check(options)
    assert result.faults == ("voltage",)
    assert result.fixed_table == sample.folder / "wrong_fixed.star"
    assert (tmp_path / "CHECK/report.html").is_file()
