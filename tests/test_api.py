"""The public names: lazily loaded, documented by examples, and a forward model that composes."""

from __future__ import annotations

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vitreous as vt
from contracts import check_operator


def test_import_loads_neither_torch_nor_numpy() -> None:
    text = "import sys, vitreous; print(len(sys.modules), *sorted(sys.modules))"
    before, after = (
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout.split()
        for program in (text.replace(", vitreous", ""), text)
    )
    assert not {"torch", "numpy", "scipy", "pydantic", "typer"} & set(after)
    assert [m for m in after if m.startswith("vitreous")] == ["vitreous"]
    assert int(after[0]) - int(before[0]) < 50


def test_help_of_a_name_and_unknown_names() -> None:
    assert set(vt.__all__) < set(dir(vt))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vt.nonsense  # noqa: B018


def test_type_checkers_see_the_names_that_are_loaded() -> None:
    """The block for type checkers and the table for loading name the same objects."""
    tree = ast.parse(Path(vt.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    typed = {a.asname: n.module for n in block.body for a in n.names}  # type: ignore[attr-defined]
    assert typed == {name: f"vitreous.{module}" for name, module in vt._MODULE_OF.items()}


@pytest.mark.parametrize("name", vt.__all__)
def test_every_public_name_has_an_example_that_runs(name: str) -> None:
    value = getattr(vt, name)
    module = inspect.getmodule(value)
    assert module is not None
    text = inspect.getdoc(value) or ""
    assert ">>>" in text, f"{name}: the docstring has no example"
    example = doctest.DocTestParser().get_doctest(
        text, dict(vars(module)), name, module.__file__, None
    )
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("n", [8, 9])
def test_the_printed_forward_model_obeys_the_laws(n: int) -> None:
    """``CTF @ Shift @ Projector``, each built as the README builds it, in float64."""
    stream = torch.Generator().manual_seed(0)
    rotation = vt.UniformPoses().sample(3, generator=stream, dtype=torch.float64)
    shift = vt.GaussianShift(4.0).sample(3, generator=stream, dtype=torch.float64)
    optics = vt.Optics.uniform(3).to(torch.float64)
    check_operator(vt.CTF(optics, n, 4.0) @ vt.Shift(shift, n, 4.0) @ vt.Projector(rotation, n))


def test_gradients_reach_map_poses_and_optics() -> None:
    stream = torch.Generator().manual_seed(0)
    rotation = vt.UniformPoses().sample(2, generator=stream).requires_grad_()
    shift = torch.zeros(2, 2, requires_grad=True)
    defocus = torch.full((2,), 15000.0, requires_grad=True)
    volume = vt.phantom(16, 8.0).requires_grad_()
    flat = vars(vt.Optics.uniform(2)) | {"defocus_u_angstrom": defocus}
    model = vt.CTF(vt.Optics(**flat), 16, 8.0) @ vt.Shift(shift, 16, 8.0)
    (model @ vt.Projector(rotation, 16))(volume).square().sum().backward()
    for leaf in (rotation, shift, defocus, volume):
        assert leaf.grad is not None
        assert float(leaf.grad.abs().max()) > 0


def test_simulated_particles_are_those_of_the_command(tmp_path: Path, vitreous) -> None:
    size = ("--box", 24, "--apix", 6, "--n", 30, "--snr-db=-3", "--seed", 5)
    code, _, error = vitreous("simulate", "phantom:3", "--sym", "D2", *size, "-o", tmp_path / "s")
    assert code == 0, error
    molecule = vt.phantom(24, 6.0, seed=3, symmetry="D2")
    mine = vt.simulate(molecule, 30, 6.0, snr_db=-3, seed=5)
    theirs = vt.Particles.open(tmp_path / "s" / "truth.star")
    assert torch.equal(vt.read_map(tmp_path / "s" / "truth.mrc")[0], molecule)
    assert torch.equal(mine.read(slice(None)), theirs.read(slice(None)))
    assert theirs.pose is not None
    assert mine.pose is not None
    torch.testing.assert_close(mine.pose.rotation, theirs.pose.rotation, atol=1e-5, rtol=0)


def test_maps_come_back_from_files(tmp_path: Path) -> None:
    volume: Tensor = vt.phantom(16, 3.5).requires_grad_()
    vt.write_map(tmp_path / "map.mrc", volume, 3.5)
    read, pixel_size_angstrom = vt.read_map(tmp_path / "map.mrc")
    assert torch.equal(read, volume.detach())
    assert pixel_size_angstrom == pytest.approx(3.5)
