import re

import pytest

from vitreous.cli import demo


@pytest.mark.slow
def test_from_nothing_to_a_report_and_the_truth(vitreous, tmp_path, monkeypatch):
    small = {"box_size": 24, "pixel_size_angstrom": 8.0, "n_particles": 400, "snr_db": 3.0}
    monkeypatch.setattr(demo, "SAMPLE", demo.SAMPLE | small)
    out = tmp_path / "demo"
    code, stdout, stderr = vitreous("demo", "-o", out, "-q", "--threads", 1)
    assert code == 0, stderr
    report = out / "auto" / "report.html"
    assert f"open         {report}" in stdout
    assert report.is_file()
    assert (out / "aligned.mrc").is_file()
    assert re.search(r"FSC +.*at 0\.5, .* at 0\.143", stdout)
    shown = [line for line in stderr.splitlines() if line.startswith("$ vitreous ")]
    assert [line.split()[2] for line in shown] == ["simulate", "auto", "align"]
    # a second time it asks before it replaces
    code, _, stderr = vitreous("demo", "-o", out, "-q")
    assert code == 2
    assert "--overwrite" in stderr
