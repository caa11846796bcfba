"""The ``vitreous`` program: its commands, and how errors become exit codes and one line."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from vitreous import __version__
from vitreous.cli import (
    abinit,
    align,
    auto,
    backgrounds,
    check,
    classify2d,
    convert,
    demo,
    fsc,
    hetero,
    info,
    postprocess,
    prepare,
    reconstruct,
    refine,
    select,
    simulate,
    symmetry,
    tomo,
)
from vitreous.core.errors import ResourceError, VitreousError
from vitreous.jobs.run.messages import one_line, plain_warnings, resource_shortage, rewording

DEBUG_VARIABLE = "VITREOUS_DEBUG"

app = typer.Typer(
    name="vitreous",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", no_args_is_help=True)(demo.command)
app.command("simulate", no_args_is_help=True)(simulate.command)
app.command("info", no_args_is_help=True)(info.command)
app.command("check", no_args_is_help=True)(check.command)
app.command("convert", no_args_is_help=True)(convert.command)
app.command("select", no_args_is_help=True)(select.command)
app.command("prepare", no_args_is_help=True)(prepare.prepare)
app.command("backgrounds", no_args_is_help=True)(backgrounds.command)
app.command("classify2d", no_args_is_help=True)(classify2d.command)
app.command("auto", no_args_is_help=True)(auto.command)
app.command("abinit", no_args_is_help=True)(abinit.command)
app.command("refine", no_args_is_help=True)(refine.command)
app.command("reconstruct", no_args_is_help=True)(reconstruct.command)
app.command("symmetry", no_args_is_help=True)(symmetry.command)
app.command("postprocess", no_args_is_help=True)(postprocess.command)
app.add_typer(tomo.app, name="tomo")
app.add_typer(hetero.app, name="hetero")
app.command("align", no_args_is_help=True)(align.command)
app.command("fsc", no_args_is_help=True)(fsc.command)


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
    from vitreous.cli.options.command import USUAL, with_flags

    with plain_warnings(), rewording(lambda text: with_flags(text, USUAL)):
        try:
            app()
        except VitreousError as error:
            _fail(error, with_flags(one_line(error), USUAL), error.exit_code)
        except KeyboardInterrupt:
            sys.exit(130)
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
    sys.exit(code)
