"""The scripts of ``examples`` run, are short, and use nothing but public names."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitreous as vt

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of the modules and objects that a script imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def of_package(path: Path) -> set[str]:
    return {name for name in imported(path) if name.split(".")[0] == "vitreous"}


@pytest.fixture
def run_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run one script as a main program, in ``folder``; return what it prints."""

    def run(name: str, folder: Path, *arguments: object) -> str:
        script = str(ROOT / "examples" / name)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(script, run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short_and_use_public_names_only(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 40
    assert of_package(path) == {"vitreous"}
    used = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "vt"
    }
    assert used <= set(vt.__all__)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_benchmarks_never_import_the_command_line(path: Path) -> None:
    assert not [name for name in of_package(path) if name.startswith("vitreous.cli")]


def test_forward_model_and_autograd(tmp_path: Path, run_example: Callable[..., str]) -> None:
    printed = run_example("forward_model_and_autograd.py", tmp_path).splitlines()
    residuals = [float(line.split()[-1]) for line in printed if line.startswith("step")]
    assert residuals[-1] < 0.2 * residuals[0]
    fitted, pixel_size_angstrom = vt.read_map(tmp_path / "fitted.mrc")
    curve = vt.fsc(fitted, vt.phantom(24, pixel_size_angstrom))
    assert float(curve[1:10].min()) > 0.9


def test_ab_initio_in_40_lines(tmp_path: Path, run_example: Callable[..., str]) -> None:
    printed = run_example("ab_initio_in_40_lines.py", tmp_path)
    curve = [
        float(value) for value in printed.partition("tensor([")[2].partition("]")[0].split(",")
    ]
    assert len(curve) == 13
    assert min(curve[:9]) > 0.8


def test_relion_project_to_tensors(
    tmp_path: Path, vitreous: Any, run_example: Callable[..., str]
) -> None:
    size = ("--box", 24, "--apix", 6, "--n", 40, "--snr-db", 0, "--seed", 1)
    assert vitreous("simulate", "phantom:1", *size, "-o", tmp_path / "data")[0] == 0
    table = tmp_path / "data" / "truth.star"
    printed = run_example("relion_project_to_tensors.py", tmp_path, table, "data/selected.star")
    assert "(8, 12, 12), pixels of 12 Å" in printed
    selected = vt.Particles.open(tmp_path / "data" / "selected.star")
    assert 0 < len(selected) < 40
    assert bool((selected.optics.defocus_u_angstrom > 15000).all())


def test_own_prior(tmp_path: Path, run_example: Callable[..., str]) -> None:
    """A prior with nothing but a value and a proximal map makes the map of few images better."""
    printed = run_example("own_prior.py", tmp_path).splitlines()
    without, with_prior = (float(line.split()[-2]) for line in printed)
    assert with_prior < 0.8 * without


def test_refine_from_tensor(tmp_path: Path, run_example: Callable[..., str]) -> None:
    """A start that is a tensor, images of the user's own, progress by callback."""
    printed = run_example("refine_from_tensor.py", tmp_path).splitlines()
    assert [line.split(":")[0] for line in printed[:4]] == [f"round {i}" for i in range(1, 5)]
    refined, _ = vt.read_map(tmp_path / "refined.mrc")
    truth = vt.phantom(32, 7.0, symmetry="D2")
    assert vt.fsc_resolution(vt.fsc(refined, truth), 0.5, 32, 7.0) < 17


def test_readme_prints_the_example() -> None:
    readme = (ROOT / "README.md").read_text()
    printed = readme.partition("```python\n")[2].partition("```")[0]
    script = (ROOT / "examples" / "particles_to_map.py").read_text()
    assert printed.split() == script.split('"""', 2)[2].split()


@pytest.mark.slow
def test_particles_to_map(tmp_path: Path, vitreous: Any, run_example: Callable[..., str]) -> None:
    """The example of the README on 600 images with less noise than the demo's."""
    size = ("--box", 64, "--apix", 3.6, "--n", 600, "--snr-db", 3, "--seed", 1)
    data = tmp_path / "demo" / "simulated"
    assert vitreous("simulate", "phantom:1", "--sym", "D2", *size, "-o", data)[0] == 0
    run_example("particles_to_map.py", tmp_path)
    refined, pixel_size_angstrom = vt.read_map(tmp_path / "map.mrc")
    truth = vt.phantom(len(refined), pixel_size_angstrom, symmetry="D2")
    aligned = vt.align(refined, truth, pixel_size_angstrom, symmetry="D2").aligned
    curve = vt.fsc(aligned, truth)
    assert vt.fsc_resolution(curve, 0.5, len(refined), pixel_size_angstrom) < 16
