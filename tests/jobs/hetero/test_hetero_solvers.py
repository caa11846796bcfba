"""The real solvers made from options, trained a little, saved and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vitreous.core.errors import InputError, UsageError
from vitreous.io.nested import flatten_state, restore_state
from vitreous.jobs.hetero import solvers as sorters
from vitreous.jobs.hetero.recipe import Recipe, material
from vitreous.jobs.inputs.particles import ParticleFiles
from vitreous.jobs.inputs.working_set import ProcessingOptions, open_working_set
from vitreous.jobs.run.folder import plain

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


def recipe(simulated: Path, method: sorters.Method, **overrides: Any) -> tuple[Recipe, Any]:
    files = ParticleFiles(simulated / "truth.star")
    working = ProcessingOptions(device="cpu", threads=1)
    data = open_working_set(files, working)
    settings = sorters.settle(method, None, overrides, working, data)
    return Recipe(files, working, method, settings), data


@pytest.mark.parametrize("method", ["gan", "align", "classes"])
def test_training_goes_on_bit_by_bit(simulated: Path, method: sorters.Method) -> None:
    made, data = recipe(simulated, method, latent=2, effort=0.002)
    pose = data.particles.pose if method == "align" else None

    def build() -> Any:
        return sorters.build(method, made.settings, material(made, data, pose))

    whole, first, second = build(), build(), build()
    whole.step()
    first.step()
    tensors, tree = flatten_state(first.state_dict())
    second.load_state_dict(restore_state(tensors, tree))
    for one in (whole, second):
        while not one.done:
            one.step()
    rows = torch.arange(60)
    assert torch.equal(whole.embed(rows), second.embed(rows))
    assert whole.embed(rows).shape == (60, 2)
    volume = second.volume(second.embed(rows)[0])
    assert volume.shape == (second.box_size,) * (2 if method == "classes" else 3)
    assert torch.equal(volume, whole.volume(whole.embed(rows)[0]))
    assert whole.progress == 1.0


@pytest.mark.parametrize("method", ["gan", "align"])
def test_recipe_survives_its_configuration(simulated: Path, method: sorters.Method) -> None:
    made, _ = recipe(simulated, method, latent=3, effort=0.01)
    options = {key: plain(value) for key, value in made.options().items() if value is not None}
    inputs = {"particles": {"path": str(made.files.path)}}
    back = Recipe.of_config({"options": options, "inputs": inputs})
    assert back.files == made.files
    assert plain(back.options()) == plain(made.options())
    data = open_working_set(back.files, back.working)
    pose = data.particles.pose if method == "align" else None
    sorters.build(method, back.settings, material(back, data, pose))


def test_what_cannot_be_is_refused(simulated: Path, tmp_path: Path) -> None:
    made, data = recipe(simulated, "align")
    with pytest.raises(InputError, match="no poses"):
        sorters.build("align", made.settings, material(made, data, None))
    file = tmp_path / "settings.toml"
    file.write_text("stages = [{ box_size = 32, iterations = 5 }]\n")
    with pytest.raises(UsageError, match="at most 16"):
        sorters.settle("gan", file, {}, made.working, data)
    file.write_text("nonsense = 1\n")
    with pytest.raises(UsageError, match="unknown key nonsense"):
        sorters.settle("align", file, {}, made.working, data)
