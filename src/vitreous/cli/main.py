"""The ``vitreous`` program: its commands, and how errors become exit codes and one line."""

from __future__ import annotations

import atexit
import codecs
import importlib
import os
import signal
import sys
import traceback
import unicodedata
from contextlib import suppress
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from vitreous import __version__
from vitreous.cli.options.suggestions import WORDS, SuggestingCommand
from vitreous.core.errors import ResourceError, VitreousError
from vitreous.jobs.run.messages import (
    one_line,
    plain_warnings,
    resource_shortage,
    utf8,
)

DEBUG_VARIABLE = "VITREOUS_DEBUG"
COMMANDS = {  # by panel of the help: command to the first line of its help
    "Prepare data": {
        "info": "Say what a file is: kind, sizes, pixel size, statistics.",
        "check": "Test a particle table against its images: signs, units, conventions, damage.",
        "convert": "Convert a particle table between RELION and cryoSPARC, by the suffixes of "
        "the files.",
        "select": "Write the particles that meet every condition, in their order, all columns "
        "kept.",
        "join": "Write the particles of several tables as one table, whatever their optics.",
        "pick": "Find particles in micrographs, by diameter alone or by class averages.",
        "prepare": "Resample, normalise and invert particle images, into a new stack with its "
        "table.",
        "backgrounds": "Cut background windows from micrographs: real noise for `vitreous abinit`.",
    },
    "Find a map": {
        "auto": "From raw particles to a refined map: no orientations, no starting map, one "
        "command.",
        "abinit": "Reconstruct from particle images alone by CryoGAN: no orientations, no starting "
        "map.",
        "refine": "Refine poses and map from a rough map: find every particle's pose, reconstruct, "
        "repeat.",
        "reconstruct": "Reconstruct a map from particles whose orientations and shifts are known.",
    },
    "Sort particles": {
        "classify2d": "Class images of particles: their views, without noise and CTF.",
        "hetero": "Mixed particles: sort them into structures without being told how many there "
        "are.",
    },
    "Work with maps": {
        "postprocess": "Mask, FSC, sharpening and local resolution of two half maps.",
        "symmetry": "Find the point group of a map that was reconstructed without one.",
        "align": "Align a map to another over rotation, shift and hand, from any start.",
        "resample": "Write a map with another pixel size, another box, or both, about the same "
        "centre.",
        "fsc": "Compare two maps by Fourier shell correlation.",
    },
    "Tomography": {
        "tomo": "Tomography: simulate and reconstruct single-axis tilt series, scanned fully or "
        "sparsely.",
    },
    "Look at runs": {
        "watch": "Show runs in the browser while they run: progress, map, FSC, resolution by "
        "round.",
        "figure": "Draw figures for papers from a run's folder, and write a script for ChimeraX.",
    },
    "Try it": {
        "demo": "Show what the program does: make particles of a molecule, find it again, compare.",
        "simulate": "Make a data set with known truth: project, shift, CTF, noise.",
    },
}


def load(name: str) -> Any:
    """Import a command or a group of commands.

    Args:
        name: of the command, a key of :data:`COMMANDS`.
    """
    module = importlib.import_module(f"vitreous.cli.{name}")
    if not hasattr(module, "app"):  # a single command, not a group of commands
        app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
        app.command(no_args_is_help=True, cls=SuggestingCommand)(getattr(module, name))
        return typer.main.get_command(app)
    return typer.main.get_command(module.app)


class Commands(typer.core.TyperGroup):
    """All commands by name; each is imported when it is called, so that help stays fast."""

    def __init__(self, **settings: Any) -> None:
        settings["commands"] = {
            name: typer.core.TyperCommand(name, short_help=text, rich_help_panel=panel)
            for panel, commands in COMMANDS.items()
            for name, text in commands.items()
        }
        super().__init__(**settings)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return name, command and its arguments."""
        ctx.meta[WORDS] = tuple(args)
        name, command, rest = super().resolve_command(ctx, args)
        command = command if name is None else load(name)
        return name, command, _with_values(command, rest)


_WITHOUT_VALUE = {  # their values, the one that is meant first
    "--invert": ("yes", "no", "auto"),
    "--refine-defocus": ("micrograph", "particle", "no"),
}


def _with_values(command: Any, arguments: list[str]) -> list[str]:
    """Give options that may stand without a value the one that is meant."""
    taking = {p.opts[0] for p in getattr(command, "params", ()) if not getattr(p, "is_flag", 1)}
    for flag, values in _WITHOUT_VALUE.items():
        if flag in taking and flag in arguments:
            place = arguments.index(flag) + 1
            if not set(values).intersection(arguments[place : place + 1]):
                arguments = [*arguments[:place], values[0], *arguments[place:]]
    return arguments


app = typer.Typer(
    cls=Commands,
    name="vitreous",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vitreous {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help=f"Show tracebacks, as {DEBUG_VARIABLE}=1 does."),
    ] = False,
) -> None:
    """From noisy cryo-EM particle images to a 3D map, without being told the orientations.

    Lengths are in Å, angles in degrees. Every command explains itself: `vitreous simulate -h`.
    Results go to stdout or the output folder, progress and errors to stderr. Exit codes: 0 done,
    1 a bug, 2 wrong usage, 3 bad input, 4 out of memory or disk, 5 diverged, 128+n stopped by
    signal n.
    """
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def run() -> None:
    """Entry point of the console script.

    Raises:
        SystemExit: always, with the exit code.
    """
    _prepare_streams()
    interrupted = signal.signal(signal.SIGINT, _interrupted)
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # no traceback at the very end
    try:
        with plain_warnings():
            _run()
    finally:
        signal.signal(signal.SIGINT, interrupted)


def _interrupted(*_: object) -> None:
    with suppress(RuntimeError):  # in the middle of another message
        print("SIGINT: stopped before the end; give the same command again", file=sys.stderr)
    sys.exit(130)


def _run() -> None:
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # nobody reads the results any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except VitreousError as error:
        _fail(error, one_line(error), error.exit_code)
    except (Exception, MemoryError) as error:
        resource = resource_shortage(error)
        if resource is not None:
            _fail(error, resource, ResourceError.exit_code)
        traceback.print_exc()
        print(
            f"error: a bug in vitreous {__version__}: {type(error).__name__}: "
            f"{one_line(error)}; please report it with the traceback above",
            file=sys.stderr,
        )
        sys.exit(1)


def _fail(error: BaseException, message: str, code: int) -> None:
    if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0"):
        traceback.print_exception(error)
    print(f"error: {message}", file=sys.stderr)
    with suppress(OSError):
        sys.stdout.flush()
        sys.exit(code)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a full disk; the last flush would fail again
    sys.exit(code)


def _prepare_streams() -> None:
    """Open closed standard streams, and let the others print what they cannot encode."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    codecs.register_error("respell", _respelled)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="respell")


def _respelled(error: UnicodeError) -> tuple[str, int]:
    """Spell characters in ASCII: Å as A, a byte of a file name in hexadecimal, others as ``?``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = utf8(error.object[error.start : error.end])
    spelled = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return spelled or "?" * len(text), error.end
