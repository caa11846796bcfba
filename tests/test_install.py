"""The package as `pip install .` gives it: with nothing but what it declares."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
IMPORT_ALL = """
import importlib, pkgutil, vitreous
for module in pkgutil.walk_packages(vitreous.__path__, "vitreous."):
    if module.name != "vitreous.__main__":
        importlib.import_module(module.name)
"""


def declared(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """Distributions that requirements lead to, each checked against the version asked for."""
    found: dict[str, metadata.Distribution] = {}
    todo = [(Requirement(text), "") for text in requirements]
    while todo:
        wanted, extra = todo.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        distribution = metadata.distribution(name)
        assert wanted.specifier.contains(distribution.version, prereleases=True), wanted
        if name in found:
            continue
        found[name] = distribution
        for text in distribution.requires or []:
            todo += [(Requirement(text), one) for one in ("", *wanted.extras)]
    return found


@pytest.mark.slow
def test_a_fresh_environment_without_constraints_has_a_working_program(tmp_path: Path) -> None:
    """Only what the package declares is there: links to the distributions of this environment."""
    wheels, fresh, source = (tmp_path / name for name in ("wheels", "fresh", "source"))
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = ("-m", "pip", "-q", "--disable-pip-version-check")
    run(sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source)
    venv.create(fresh, with_pip=True)
    python = fresh / "bin" / "python"
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", show).strip())
    (wheel,) = wheels.glob("vitreous-*.whl")
    run(python, *pip, "install", "--no-index", "--no-deps", wheel)
    (info,) = site.glob("vitreous-*.dist-info")
    own = metadata.PathDistribution(info)
    needed = declared([text for text in own.requires or [] if "extra ==" not in text])
    for distribution in needed.values():
        for top in {Path(str(file)).parts[0] for file in distribution.files or []}:
            target = Path(str(distribution.locate_file(top)))
            link = site / top
            if top not in ("..", "__pycache__") and target.exists() and not link.exists():
                link.symlink_to(target)
    assert str(fresh) in run(str(python), "-c", "import vitreous; print(vitreous.__file__)")
    run(str(python), "-c", IMPORT_ALL)
    program = str(fresh / "bin" / "vitreous")
    assert "backgrounds" in run(program, "--help")
    options = ["phantom:1", "--box", "24", "--apix", "6", "--n", "30"]
    run(program, "simulate", *options, "-o", "SIM", "-q")
    run(program, "reconstruct", "SIM/truth.star", "-o", "MAP", "-q")
    assert (tmp_path / "MAP" / "report.html").is_file()
