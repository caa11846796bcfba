"""The real models made from options, trained a little, saved and restored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitreous.core.errors import InputError, UsageError
from vitreous.io.nested import flatten_state, restore_state
from vitreous.jobs.hetero.models import ModelKind, TrainingData, build_model, model_settings
from vitreous.jobs.hetero.options import HeteroOptions
from vitreous.jobs.inputs.working_set import open_working_set

BOX = 16


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from typer.testing import CliRunner

    from vitreous.cli.main import app

    folder = tmp_path_factory.mktemp("data") / "sim"
    size = ("--box", str(BOX), "--apix", "8", "--n", "60", "--snr-db", "5", "--threads", "1")
    done = CliRunner().invoke(app, ["simulate", "phantom:3", *size, "-o", str(folder), "-q"])
    assert done.exit_code == 0, done.output
    return folder


def case(simulated: Path, kind: ModelKind, **more: Any) -> tuple[TrainingData, dict[str, Any]]:
    options = HeteroOptions(
        particles=simulated / "truth.star", output=simulated, device="cpu", threads=1, **more
    )
    working_set = open_working_set(options)
    data = TrainingData(working_set, options)
    if kind == "linear":
        data = replace(data, pose=working_set.particles.pose)
    return data, model_settings(kind, options, working_set)


@pytest.mark.parametrize("kind", ["vaegan", "linear", "vaegan2d"])
def test_training_goes_on_bit_by_bit(simulated: Path, kind: ModelKind) -> None:
    data, settings = case(simulated, kind, latent_dimensions=2, effort=0.002)
    whole, first, second = (build_model(kind, settings, data) for _ in range(3))
    whole.step()
    first.step()
    tensors, tree = flatten_state(first.state_dict())
    second.load_state_dict(restore_state(tensors, tree))
    for model in (whole, second):
        while not model.done:
            model.step()
        assert model.result() is model
    rows = torch.arange(60)
    assert torch.equal(whole.embed(rows), second.embed(rows))
    assert whole.embed(rows).shape == (60, 2)
    volume = second.volume(second.embed(rows)[0])
    assert volume.shape == (second.box_size,) * (2 if kind == "vaegan2d" else 3)
    assert torch.equal(volume, whole.volume(whole.embed(rows)[0]))
    assert whole.progress == 1.0


def test_what_cannot_be_is_refused(simulated: Path, tmp_path: Path) -> None:
    data, settings = case(simulated, "linear")
    with pytest.raises(InputError, match="no poses"):
        build_model("linear", settings, replace(data, pose=None))
    file = tmp_path / "settings.toml"
    file.write_text("stages = [{ box_size = 32, iterations = 5 }]\n")
    with pytest.raises(UsageError, match="at most 16"):
        case(simulated, "vaegan", settings_file=file)
    file.write_text("nonsense = 1\n")
    with pytest.raises(UsageError, match="unknown key nonsense"):
        case(simulated, "linear", settings_file=file)
