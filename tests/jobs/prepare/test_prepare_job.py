"""``prepare`` called from Python."""

import numpy as np
import torch

from vitreous.core.params import Optics
from vitreous.data.particles import Particles
from vitreous.data.tables import make_document
from vitreous.io.mrc import write_mrc
from vitreous.io.star import write_star
from vitreous.jobs.prepare.options import PrepareOptions
from vitreous.jobs.prepare.run import prepare


def test_ten_lines(tmp_path):
    images = np.random.default_rng(1).normal(5, 2, (12, 16, 16)).astype(np.float32)
    write_mrc(tmp_path / "stack.mrcs", images, 2.0, is_stack=True)
    names = [f"{i + 1:06d}@stack.mrcs" for i in range(12)]
    table = make_document(names, Optics.uniform(12), pixel_size_angstrom=2.0, box_size=16)
    write_star(tmp_path / "in.star", table)
    options = PrepareOptions(
        particles=tmp_path / "in.star", output=tmp_path / "OUT", box_size=8, threads=1, quiet=True
    )
    result = prepare(options)
    prepared = Particles.open(result.folder / "particles.star")
    assert (result.count, prepared.box_size, prepared.pixel_size_angstrom) == (12, 8, 4.0)
    assert torch.isfinite(prepared.read(torch.arange(12))).all()
    assert "16 px of 2 Å -> 8 px of 4 Å" in result.text
