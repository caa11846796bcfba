"""Build a command from the options model of its job.

1. ``jobs/<job>/options.py``: one frozen model, put together from the mixins of
   :mod:`vitreous.jobs.run.options` and :mod:`vitreous.jobs.inputs.options`. The ``description`` of
   a field is the help text of its option, its bounds (``ge``, ``le``) are the option's bounds. A
   text below ``cli`` names a parameter in backticks and never a flag: "With `box_size`: ...".
   Checks between fields are a ``@model_validator(mode="after")`` that raises ``UsageError``.
2. ``jobs/<job>/run.py``: ``def refine(options: RefineOptions) -> RefineResult``. The result is a
   frozen dataclass with ``verdict`` and ``text`` among its fields; the command prints both.
   ``options.recorded()``, ``options.inputs()`` and ``options.machine()`` are what the output folder
   records. ``options.model_fields_set`` tells which fields were given, ``options.refuse(...)``
   refuses those that have no meaning.
3. ``cli/<command>.py``: a function of that name under :func:`options_command`. Its docstring is the
   help: one sentence, details, an example. It imports the job when it is called::

       @options_command(
           RefineOptions,
           {"start_map": typer.Option("--map", metavar="FILE.mrc")},
           panels={"Search": ("shift_range_angstrom", "rounds")},
       )
       def refine(options: RefineOptions) -> object:
           from vitreous.jobs.refine.run import refine

           return refine(options)

The flag of a field is its name without unit, with hyphens, unless the table of the command or
:data:`vitreous.cli.options.flags.FLAGS` says otherwise: a flag (``"--sym"``), a ``typer.Option``, a
``typer.Argument`` (with its metavar), or None for a field that the command does not show. A field
that is True by default gets ``--name/--no-name``. Only what was given on the command line reaches
the model; everything else is the model's default.
"""

from __future__ import annotations

import inspect
import os
import re
import resource
import threading
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from vitreous.cli.options.flags import FLAGS, PANELS
from vitreous.cli.options.suggestions import WORDS
from vitreous.cli.options.translation import translated, with_flags
from vitreous.core.errors import ResourceError
from vitreous.jobs.run.messages import printable, resource_shortage, reworded
from vitreous.jobs.run.options import Options

Model = TypeVar("Model", bound=Options)
_UNIT = re.compile(r"_(angstrom2?|degrees)$")
_FEWEST_BYTES = 1200 << 20
_SIMPLE = (bool, int, float, str, Path)


def options_command(
    model: type[Model],
    flags: Mapping[str, Any] | None = None,
    panels: Mapping[str, Sequence[str]] | None = None,
) -> Callable[[Callable[[Model], Any]], Callable[..., None]]:
    """Turn a function of an options model into a function that typer makes a command of.

    Args:
        model: the options.
        flags: of fields whose flag is not the usual one; see the module's text.
        panels: title of a panel of the help to its fields, in the order to show; fields in no
            panel stand under "Options".

    Returns:
        a decorator. What the function returns is printed: its ``verdict`` and its ``text``.
    """
    table = {**FLAGS, **(flags or {})}
    positional = [name for name in model.model_fields if isinstance(table.get(name), ArgumentInfo)]
    order = dict.fromkeys([*positional, *_ordered(model, panels or {})])
    shown = {name: table.get(name, "") for name in order}
    shown = {name: entry for name, entry in shown.items() if entry is not None}
    panel_of = {
        name: title for title, names in {**PANELS, **(panels or {})}.items() for name in names
    }
    names = {name: _label(name, entry, model.model_fields[name]) for name, entry in shown.items()}
    parameters = [
        _parameter(name, entry, model.model_fields[name], panel_of.get(name), names)
        for name, entry in shown.items()
    ]

    def decorate(function: Callable[[Model], Any]) -> Callable[..., None]:
        def call(context: typer.Context, **values: Any) -> None:
            _require_resources()
            given = {name: value for name, value in values.items() if _was_given(context, name)}
            with translated(names, context.meta.get(WORDS, ())):
                tell(function(model(**given)))

        first = inspect.Parameter(
            "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        call.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
        call.__annotations__ = {"context": typer.Context}
        call.__name__, call.__doc__ = function.__name__, function.__doc__
        return call

    return decorate


def _require_resources() -> None:
    """Refuse to start where libraries would end the program for lack of memory or threads.

    Raises:
        ResourceError: a limit of the process is too low.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _FEWEST_BYTES:
        raise ResourceError(
            f"out of memory: this process may have {limit >> 20} MB of addresses, and "
            f"{_FEWEST_BYTES >> 20} MB are needed to start; raise the limit (ulimit -v)"
        )
    started = threading.Event()
    try:
        for _ in range(len(os.sched_getaffinity(0)) + 2):
            threading.Thread(target=started.wait, daemon=True).start()
    except RuntimeError as error:
        raise ResourceError(str(resource_shortage(error))) from error
    finally:
        started.set()


def tell(result: Any) -> None:
    """Print how a job ended: its ``verdict`` in bold, then its ``text``; either may be absent."""
    verdict, text = (printable(reworded(getattr(result, n, ""))) for n in ("verdict", "text"))
    if verdict:
        typer.secho(f"{verdict[0].upper()}{verdict[1:].removesuffix('.')}.", bold=True)
    if text:
        typer.echo(text)


# ----------------------------------------------------------------------------- one parameter


def _ordered(model: type[Options], panels: Mapping[str, Sequence[str]]) -> list[str]:
    """Fields in the order to show: the model's own first, those of its bases after them."""
    last = [name for names in PANELS.values() for name in names]
    first = ["output", *(name for names in panels.values() for name in names)]
    own = [name for base in model.__mro__ for name in inspect.get_annotations(base)]
    names = dict.fromkeys(name for name in own if name in model.model_fields)
    middle = [name for name in names if name not in first and name not in last]
    ordered = [*first[:1], *middle, *first[1:], *last]
    return [name for name in dict.fromkeys(ordered) if name in model.model_fields]


def _parameter(
    name: str, entry: Any, field: FieldInfo, panel: str | None, names: Mapping[str, str]
) -> inspect.Parameter:
    """The parameter of a typer command for a field of a model."""
    kind, default = _type_shown(field.annotation), field.get_default(call_default_factory=True)
    info = _info(name, entry, field)
    info.help = with_flags(field.description or "", names)
    info.rich_help_panel = info.rich_help_panel or panel
    if kind in (int, float, int | None, float | None):
        for part in field.metadata:
            info.min, info.max = getattr(part, "ge", info.min), getattr(part, "le", info.max)
        info.metavar = info.metavar or ("INTEGER" if kind in (int, int | None) else "NUMBER")
    if field.is_required():
        default = inspect.Parameter.empty
    elif isinstance(default, tuple):
        default = None
    elif default is not None and kind is str:
        default = str(default)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _info(name: str, entry: Any, field: FieldInfo) -> ParameterInfo:
    if isinstance(entry, ArgumentInfo):
        return typer.Argument(metavar=entry.metavar)
    flags = _flags(name, entry, field)
    metavar = entry.metavar if isinstance(entry, OptionInfo) else None
    return typer.Option(*flags, metavar=metavar)


def _flags(name: str, entry: Any, field: FieldInfo) -> list[str]:
    if isinstance(entry, OptionInfo) and isinstance(entry.default, str):
        return [entry.default, *(entry.param_decls or ())]
    flag = entry if isinstance(entry, str) and entry else f"--{_UNIT.sub('', name)}"
    flag = flag.replace("_", "-")
    return [f"{flag}/--no-{flag[2:]}" if field.default is True else flag]


def _label(name: str, entry: Any, field: FieldInfo) -> str:
    """What a message calls a parameter: its metavar if it is positional, else its flag."""
    if isinstance(entry, ArgumentInfo):
        return entry.metavar or name.upper()
    return _flags(name, entry, field)[0].partition("/")[0]


def _type_shown(annotation: Any) -> Any:
    """The type that typer parses: a list for a tuple, text where numbers and words both will do."""
    if typing.get_origin(annotation) is tuple:
        return list[typing.get_args(annotation)[0]] | None  # type: ignore[misc]
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        literal = typing.get_origin(annotation) is Literal
        return annotation if literal or annotation in _SIMPLE else str
    kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    optional = len(kinds) < len(typing.get_args(annotation))
    kind = _type_shown(kinds[0]) if len(kinds) == 1 else str
    return kind | None if optional else kind


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and not source.name.startswith("DEFAULT")
