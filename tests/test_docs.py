"""What README and docs name exists: modules, benchmark scripts, commands with options, links."""

from __future__ import annotations

import importlib
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vitreous.cli.main import COMMANDS, load

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
ROOMS = {path.name for path in (ROOT / "src" / "vitreous").iterdir() if path.is_dir()}
PARAMETERS = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def resolves(name: str) -> bool:
    """Tell whether a dotted name below ``vitreous`` is a module or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(["vitreous", *parts[:end]]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = getattr(found, part, fields.get(part))
        return found is not None
    return False


@PARAMETERS
def test_modules_exist(page: Path) -> None:
    text = page.read_text()
    dotted = {
        name.removeprefix("vitreous.") for name in re.findall(r"`([\w.]+\.\w+)`", prose(page))
    }
    dotted |= {
        f"{module}.{name}"
        for module, name in re.findall(r"from vitreous\.(\S+) import (\w+)", text)
    }
    named = {name for name in dotted if name.split(".")[0] in ROOMS and not name.endswith(".md")}
    assert not {name for name in named if not resolves(name)}
    names = set(re.findall(r"\bvt\.(\w+)", text))
    assert names <= set(importlib.import_module("vitreous").__all__)


@PARAMETERS
def test_scripts_and_files_exist(page: Path) -> None:
    pattern = r"\b((?:benchmarks|examples|tests|docs|src)/[\w/.-]*\.(?:py|md|csv|png))\b"
    assert not [
        name for name in re.findall(pattern, page.read_text()) if not (ROOT / name).exists()
    ]


def test_every_benchmark_is_documented() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    scripts = {path.name for path in (ROOT / "benchmarks").glob("[!_]*.py")}
    assert not {name for name in scripts if f"benchmarks/{name}" not in text}


@cache
def flags(name: str, sub: str) -> tuple[Any, frozenset[str]]:
    """Return a command and its flags; a group itself where ``sub`` is none of its commands."""
    command = load(name)
    command = getattr(command, "commands", {}).get(sub, command)
    names = [flag for option in command.params for flag in (*option.opts, *option.secondary_opts)]
    return command, frozenset({*names, "--help", "-h"})


def command_lines(page: Path) -> list[list[str]]:
    """Return the words of every call of the program in the code of a page."""
    text = page.read_text().replace("\\\n", " ")
    inline = re.findall(r"`((?:vitreous|hetero|tomo) [^`]+)`", " ".join(text.split()))
    block = re.findall(r"^ *(?:\S*/)?(vitreous [^\n|]*)$", text, flags=re.MULTILINE)
    lines = [
        line if line.startswith("vitreous") else f"vitreous {line}" for line in (*inline, *block)
    ]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@PARAMETERS
def test_commands_and_options_exist(page: Path) -> None:
    known = {name for panel in COMMANDS.values() for name in panel}
    for words in command_lines(page):
        name, *others = [word for word in words if word not in ("--debug", "COMMAND", "...")] or [
            ""
        ]
        if name in ("", "--help", "--version") or not name.islower():
            continue
        assert name in known, words
        command, existing = flags(name, others[0] if others else "")
        given = {word.partition("=")[0] for word in others if re.match(r"--?[a-z]", word)}
        assert given <= existing, (words, given - existing)
        if getattr(command, "commands", None) and others and not others[0].startswith("-"):
            raise AssertionError(f"vitreous {name} {others[0]} is no command")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as MkDocs and GitHub both make them."""
    titles = re.findall(r"^#+ +(.*)$", prose(page), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    return {re.sub(r"[\s-]+", "-", title) for title in plain}


@PARAMETERS
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_architecture_names_what_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = re.findall(r"^  (\w+)/ +([a-z_]\w*/?(?: [a-z_]\w*/?)*)$", text, flags=re.MULTILINE)
    assert {room for room, _ in tree} >= {"core", "physics", "io", "data", "maps", "optim"}
    for room, names in tree:
        folder = ROOT / "src" / "vitreous" / room
        missing = [
            name
            for name in names.split()
            if not (folder / name if name.endswith("/") else folder / f"{name}.py").exists()
        ]
        assert not missing, (room, missing)
    described = set(re.findall(r"^  +(\w+)/", text, flags=re.MULTILINE))
    assert ROOMS - {"__pycache__"} <= described


def test_every_example_is_documented() -> None:
    text = (ROOT / "docs" / "howto" / "python.md").read_text()
    scripts = {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    assert not {name for name in scripts if name not in text}
