"""``abinit`` called from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vitreous as vt
from vitreous.core.errors import UsageError
from vitreous.core.params import Optics
from vitreous.data.tables import make_document
from vitreous.io.mrc import write_mrc
from vitreous.io.star import write_star
from vitreous.jobs.cryogan import output
from vitreous.jobs.cryogan.options import CryoGanOptions
from vitreous.jobs.cryogan.run import abinit
from vitreous.maps.half_maps import combine_halves
from vitreous.methods.em.finer_shells_test import FinerShells


def small_options(tmp_path: Path) -> CryoGanOptions:
    """Options for 12 images of noise and six steps."""
    images = torch.randn(12, 16, 16, generator=torch.Generator().manual_seed(1))
    write_mrc(tmp_path / "stack.mrcs", images.numpy(), 8.0, is_stack=True)
    names = [f"{i + 1:06d}@stack.mrcs" for i in range(12)]
    table = make_document(names, Optics.uniform(12), pixel_size_angstrom=8.0, box_size=16)
    write_star(tmp_path / "particles.star", table)
    settings = tmp_path / "small.toml"
    settings.write_text("width = 2\nbatch_size = 4\nstages = [{box_size = 16, iterations = 6}]")
    return CryoGanOptions(
        particles=tmp_path / "particles.star", output=tmp_path / "OUT", settings_file=settings,
        symmetry="O", device="cpu", threads=2, quiet=True,
    )  # fmt: skip


def test_ten_lines(tmp_path: Path, quick_processes: None) -> None:
    options = small_options(tmp_path)
    result = abinit(options)
    assert not result.solved
    assert result.finer_shells is None
    assert result.verdict.startswith("NOT SOLVED: 12 particles are too few")
    assert result.halves.average.shape == (16, 16, 16)
    assert (result.folder / "map.mrc").is_file()
    assert str(result.folder / "report.html") in result.text
    again = abinit(options.replaced(resume=True))
    assert torch.equal(again.halves.average, result.halves.average)
    with pytest.raises(UsageError, match="exclude each other"):
        options.replaced(envelope_nyquist=0.4, b_factor_angstrom2=100.0)


@pytest.mark.parametrize(("z", "solved"), [(1.0, False), (30.0, True)])
def test_maps_that_agree_are_solved_only_if_the_images_show_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_processes: None, z: float, solved: bool
) -> None:
    truth = vt.phantom(16, 8.0, seed=1, symmetry="O")
    stream = torch.Generator().manual_seed(1)
    agreeing = combine_halves(
        truth,
        truth + 0.01 * torch.randn(truth.shape, generator=stream),
        pixel_size_angstrom=8.0,
        symmetry="O",
        n_particles=5000,
        generator=stream,
    )
    assert agreeing.solved, agreeing.verdict
    monkeypatch.setattr(output, "_compared", lambda *_: agreeing)
    answer = FinerShells(z, 1.0, 30.0, 24.0, 12)
    monkeypatch.setattr(output, "finer_shells_test", lambda *_, **__: answer)
    result = abinit(small_options(tmp_path))
    assert result.solved == solved
    assert result.finer_shells == answer
    assert result.verdict.startswith("solved to" if solved else "NOT SOLVED: the half maps agree")
    assert f"{z:.1f} standard errors" in result.text
    assert f"{z:.1f} standard errors" in (tmp_path / "OUT" / "report.html").read_text()
