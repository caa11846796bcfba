"""``classify2d`` called from Python, by alignment and by latents."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from vitreous.core.errors import UsageError
from vitreous.io.mrc import read_mrc
from vitreous.jobs.class2d.options import Classify2dOptions
from vitreous.jobs.class2d.run import classify2d
from vitreous.methods.vaegan.solver import VaeGan

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from typer.testing import CliRunner

    from vitreous.cli.main import app

    folder = tmp_path_factory.mktemp("data") / "sim"
    size = ("--box", "16", "--apix", "10", "--n", "60", "--snr-db", "10", "--seed", "3")
    done = CliRunner().invoke(
        app, ["simulate", "phantom:3", *size, "--threads", "1", "-q", "-o", str(folder)]
    )
    assert done.exit_code == 0, done.output
    return folder


def options(simulated: Path, output: Path, **more: Any) -> Classify2dOptions:
    return Classify2dOptions(
        particles=simulated / "particles.star", output=output, threads=1, quiet=True, **more
    )


def test_ten_lines(simulated: Path, tmp_path: Path) -> None:
    result = classify2d(options(simulated, tmp_path / "OUT", classes=3, effort=0.2))
    averages, label = result.classes.averages, result.classes.assignments.label
    assert averages.shape[1:] == (16, 16)
    assert len(label) == 60
    assert int(label.max()) + 1 == len(averages) <= 3
    stack, _ = read_mrc(result.folder / "classes.mrcs")
    assert torch.equal(torch.from_numpy(stack.copy()), averages)
    assert "class images of 60 particles" in result.verdict


def test_options_of_the_other_model_are_refused(simulated: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`latent_dimensions`: needs `align=False`"):
        options(simulated, tmp_path, latent_dimensions=3)


@pytest.mark.slow
def test_without_alignment_stopped_and_continued_is_the_same(
    simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"align": False, "effort": 0.004, "classes": 2, "latent_dimensions": 2, "space": "pca"}
    whole = classify2d(options(simulated, tmp_path / "WHOLE", **few))
    step = VaeGan.step

    def step_and_stop(self: VaeGan) -> dict[str, float]:
        if self.iteration == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(VaeGan, "step", step_and_stop)
    with pytest.raises(SystemExit):
        classify2d(options(simulated, tmp_path / "PARTS", **few))
    monkeypatch.setattr(VaeGan, "step", step)
    parts = classify2d(options(simulated, tmp_path / "PARTS", resume=True, **few))
    for name in ("classes.mrcs", "classes.star", "particles.star"):
        assert (parts.folder / name).read_bytes() == (whole.folder / name).read_bytes()
