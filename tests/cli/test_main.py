import errno
import runpy
import subprocess
import sys

import pytest
import typer

from vitreous import __version__
from vitreous.cli import main
from vitreous.core import errors


@pytest.fixture
def failing(monkeypatch, vitreous):
    """Run the program with a single command that raises."""

    def call(error, *arguments):
        app = typer.Typer(pretty_exceptions_enable=False)
        app.callback()(main.main)

        @app.command("fail")
        def fail():
            raise error

        monkeypatch.setattr(main, "app", app)
        monkeypatch.setenv(main.DEBUG_VARIABLE, "0")
        return vitreous(*arguments, "fail")

    return call


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("two\nlines"), 2),
        (errors.InputError("x"), 3),
        (errors.ResourceError("x"), 4),
        (errors.DivergedError("x"), 5),
        (MemoryError(), 4),
        (OutOfMemoryError("CUDA out of memory"), 4),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), 4),
        (OSError(errno.ENOSPC, "No space left on device", "a.mrc"), 4),
    ],
)
def test_expected_errors_are_one_line_and_their_code(failing, error, code):
    got, out, err = failing(error)
    assert got == code
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_bug_is_code_1_with_traceback_and_a_request(failing):
    code, _, err = failing(ZeroDivisionError("by zero"))
    assert code == 1
    assert "Traceback" in err
    assert "please report" in err.splitlines()[-1]


def test_keyboard_interrupt_is_130(failing):
    assert failing(KeyboardInterrupt())[0] == 130


def test_debug_shows_the_traceback(failing):
    code, _, err = failing(errors.InputError("x"), "--debug")
    assert code == 3
    assert "Traceback" in err


def test_wrong_usage_is_2(vitreous):
    assert vitreous("no-such-command")[0] == 2
    assert vitreous("info")[0] == 2
    code, _, err = vitreous("simulate", "phantom:1", "-o", "x", "--box", "3")
    assert code == 2
    assert "--box" in err


def test_version(vitreous):
    assert vitreous("--version") == (0, f"vitreous {__version__}\n", "")


def test_the_package_runs_as_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vitreous", "--version"])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_module("vitreous", run_name="__main__")
    assert (leaving.value.code, capsys.readouterr().out) == (0, f"vitreous {__version__}\n")


def every_command():
    for name in (name for commands in main.COMMANDS.values() for name in commands):
        command = main.load(name)
        for sub, inner in getattr(command, "commands", {"": command}).items():
            yield f"{name} {sub}".strip(), inner


@pytest.mark.parametrize(("name", "command"), list(every_command()))
def test_every_command_teaches(vitreous, monkeypatch, name, command):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = vitreous(*name.split(), "--help")
    assert code == 0
    assert f"Example: vitreous {name}" in out
    flags = [flag for option in command.params for flag in option.opts]
    assert len(set(flags)) == len(flags)
    assert "--install-completion" not in out


def test_the_table_of_commands_says_what_they_say():
    for commands in main.COMMANDS.values():
        for name, text in commands.items():
            first, _, _ = main.load(name).help.partition("\n\n")
            assert " ".join(first.split()) == text, name


HEAVY = ["torch", "numpy", "scipy", "matplotlib", "jinja2", "gemmi", "numba"]


def imported(*arguments):
    """Modules that a call of the program imports."""
    program = "from vitreous.cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}


def test_help_of_all_imports_no_command():
    modules = imported("--help")
    assert not modules.intersection([*HEAVY, "pydantic"])
    assert not any(name.startswith("vitreous.cli.prepare") for name in modules)
    assert len(modules) < 700, len(modules)


def test_help_of_every_command_imports_nothing_heavy():
    program = (
        "import sys; from vitreous.cli.main import COMMANDS, load\n"
        "for name in (name for commands in COMMANDS.values() for name in commands): load(name)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_misspelt_command_is_answered_with_the_right_one(vitreous):
    code, _, err = vitreous("refin")
    assert (code, "refine" in err) == (2, True)
