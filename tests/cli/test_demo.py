import re

import pytest

from vitreous.cli import demo


@pytest.mark.slow
def test_from_nothing_to_a_report_and_the_truth(vitreous, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SAMPLE", ("--box", "24", "--apix", "8", "--n", "400", "--snr-db=3"))
    out = tmp_path / "demo"
    code, stdout, stderr = vitreous("demo", "-o", out, "-q", "--threads", 1)
    assert code == 0, stderr
    report = out / "auto" / "report.html"
    assert f"open         {report}" in stdout
    assert report.is_file()
    assert (out / "aligned.mrc").is_file()
    assert re.search(r"FSC +[\d.]+ Å at 0\.5, [\d.]+ Å at 0\.143|FSC .* inf", stdout)
    shown = [line for line in stderr.splitlines() if line.startswith("$ vitreous ")]
    assert [line.split()[2] for line in shown] == ["simulate", "auto", "align"]
    # a second time it asks before it replaces
    code, _, stderr = vitreous("demo", "-o", out, "-q")
    assert code == 2
    assert "--overwrite" in stderr
