"""``abinit`` called from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitreous.core.errors import UsageError
from vitreous.core.params import Optics
from vitreous.data.tables import make_document
from vitreous.io.mrc import write_mrc
from vitreous.io.star import write_star
from vitreous.jobs.cryogan.options import CryoGanOptions
from vitreous.jobs.cryogan.run import abinit


def test_ten_lines(tmp_path: Path, quick_processes: None) -> None:
    images = torch.randn(12, 16, 16, generator=torch.Generator().manual_seed(1))
    write_mrc(tmp_path / "stack.mrcs", images.numpy(), 8.0, is_stack=True)
    names = [f"{i + 1:06d}@stack.mrcs" for i in range(12)]
    table = make_document(names, Optics.uniform(12), pixel_size_angstrom=8.0, box_size=16)
    write_star(tmp_path / "particles.star", table)
    settings = tmp_path / "small.toml"
    settings.write_text("width = 2\nbatch_size = 4\nstages = [{box_size = 16, iterations = 6}]")
    options = CryoGanOptions(
        particles=tmp_path / "particles.star", output=tmp_path / "OUT", settings_file=settings,
        symmetry="O", device="cpu", threads=2, quiet=True,
    )  # fmt: skip
    result = abinit(options)
    assert not result.solved
    assert result.verdict.startswith("NOT SOLVED: 12 particles are too few")
    assert result.halves.average.shape == (16, 16, 16)
    assert (result.folder / "map.mrc").is_file()
    assert str(result.folder / "report.html") in result.text
    again = abinit(options.replaced(resume=True))
    assert torch.equal(again.halves.average, result.halves.average)
    with pytest.raises(UsageError, match="exclude each other"):
        options.replaced(envelope_nyquist=0.4, b_factor_angstrom2=100.0)
