"""Rules of the house that import contracts cannot state, read from the source."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "vitreous"
FILES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
BELOW_CLI = [name for name in FILES if not name.startswith("cli/")]
MOST_LINES, MOST_ARGUMENTS, MOST_CLI_LINES = 60, 8, 3000
_COMMAND_LINE = re.compile(r"`(?:vitreous )?[a-z0-9]+(?: [^`]*)?`")  # a command to type, whole

# What is not as it should be yet; each list must only shrink.
FLAGS_TO_TRANSLATE: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
MANY_ARGUMENTS: set[str] = set()
CLASSES_TWICE: set[str] = set()


def tree_of(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text("utf-8"))


def flags() -> set[str]:
    """Every flag of every command."""
    from vitreous.cli.main import COMMANDS, load

    found = set()
    for name in (name for commands in COMMANDS.values() for name in commands):
        command = load(name)
        for inner in getattr(command, "commands", {"": command}).values():
            for parameter in inner.params:
                found |= {one for one in (*parameter.opts, *parameter.secondary_opts)}
    return {flag for flag in found if flag.startswith("--")}


def texts(name: str) -> Iterator[str]:
    """Every string of a module, docstrings included."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Name and node of every function outside the command line."""
    for name in BELOW_CLI:
        for node in ast.walk(tree_of(name)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{name}:{node.name}", node


def test_no_flag_below_the_command_line():
    """Messages name parameters; only a whole command to type, in backticks, may hold a flag."""
    known = "|".join(map(re.escape, sorted(flags(), key=len, reverse=True)))
    pattern = re.compile(rf"(?<![\w-])({known})(?![\w-])")
    found = {
        name
        for name in BELOW_CLI
        for text in texts(name)
        if pattern.search(_COMMAND_LINE.sub("", text))
    }
    assert found <= FLAGS_TO_TRANSLATE


@pytest.mark.parametrize(("library", "allowed"), [("typer", ()), ("rich", ("jobs/run/progress",))])
def test_libraries_of_the_terminal(library, allowed):
    for name in BELOW_CLI:
        for node in ast.walk(tree_of(name)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            if any(module.split(".")[0] == library for module in modules):
                assert name.removesuffix(".py") in allowed


def test_the_command_line_only_parses_and_prints():
    lines = 0
    for name, path in FILES.items():
        if name.startswith("cli/"):
            text = path.read_text("utf-8")
            lines += len(text.splitlines())
            if not name.startswith("cli/options/") and name != "cli/__init__.py":
                assert re.search(r"^import typer|^@options_command", text, re.MULTILINE), name
    assert lines <= MOST_CLI_LINES


def test_functions_are_short():
    found = {
        name
        for name, node in functions()
        if node.end_lineno is not None and node.end_lineno - node.lineno + 1 > MOST_LINES
    }
    assert found <= LONG_FUNCTIONS


def test_functions_take_few_arguments():
    found = set()
    for name, node in functions():
        arguments = node.args
        names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        count = sum(one.arg not in ("self", "cls") for one in names)
        if count > MOST_ARGUMENTS and not name.startswith("jobs/"):
            found.add(name)
    assert found <= MANY_ARGUMENTS


def test_every_class_has_a_name_of_its_own():
    names = Counter(
        node.name
        for name in FILES
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1} <= CLASSES_TWICE
