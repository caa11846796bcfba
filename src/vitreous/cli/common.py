"""What the commands share: options, device and threads, signals, seeded random streams."""

from __future__ import annotations

import errno
import hashlib
import math
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from vitreous.core.errors import UsageError, out_of_memory

if TYPE_CHECKING:
    import torch

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

Device = Annotated[
    str,
    typer.Option(
        help="Where to compute: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`.",
        rich_help_panel="Machine",
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        min=0, help="CPU threads; 0 takes what the machine offers.", rich_help_panel="Machine"
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, help="Every random number follows from it; recorded in config.toml.", metavar="INT"
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="Folder to write; made if it does not exist.", metavar="FOLDER"
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what an earlier run of this command left there."),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No progress; results and errors only.", rich_help_panel="Machine"
    ),
]


def use_device(name: str, threads: int = 0) -> torch.device:
    """The device for ``--device``, with ``--threads`` set.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        threads: CPU threads for torch; 0 leaves torch's choice.

    Raises:
        UsageError: unknown name, or no such device on this machine.

    >>> use_device("cpu").type
    'cpu'
    """
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (":" in name and not index.isdecimal()):
        raise UsageError(f"--device {name}: unknown device; choose auto, cpu, cuda or cuda:i")
    if index and kind != "cuda":
        raise UsageError(
            f"--device {name}: only cuda takes a number; choose {kind} or cuda:{index}"
        )
    import torch

    if threads:
        torch.set_num_threads(threads)
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not present):
        return torch.device("cpu")
    if not present:
        raise UsageError(f"--device {name}: no CUDA device is visible; use --device cpu")
    number = int(index or 0)
    if number >= present:
        raise UsageError(f"--device {name}: only cuda:0 to cuda:{present - 1} are visible")
    return torch.device("cuda", number)


def require_finite(parameters: Mapping[str, Any]) -> None:
    """Refuse NaN and infinity, which pass the bounds of an option.

    Raises:
        UsageError: naming the option.
    """
    for name, value in parameters.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{name.replace('_', '-')}: {value} is not finite; give a number")


def refuse_options(context: typer.Context, names: Iterable[str], method: str) -> None:
    """Refuse options given on the command line that the chosen method would ignore.

    Raises:
        UsageError: naming the option.
    """
    for name in sorted(names):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--continue" if name == "resume" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} has no meaning for --method {method}; leave it out")


def number_or_auto(option: str, text: str, *, signed: bool = False) -> float | None:
    """The number of an option that is ``auto`` or a number from 0 on; None stands for ``auto``.

    Args:
        option: its name, for the message.
        text: what was given.
        signed: negative numbers will do as well.

    Raises:
        UsageError: neither.

    >>> number_or_auto("--strength", "auto"), number_or_auto("--strength", "12.5")
    (None, 12.5)
    """
    if text == "auto":
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and (signed or number >= 0)):
        raise UsageError(f"{option} {text}: give auto or a number{'' if signed else ' from 0 on'}")
    return number


def stream_seed(seed: int, source: str) -> int:
    """A 63-bit seed for one source of randomness, from the run's one ``--seed``.

    Streams of different names are independent; adding a source leaves the others as they were.

    >>> stream_seed(1, "poses") == stream_seed(1, "poses") != stream_seed(1, "noise")
    True
    """
    digest = hashlib.sha256(f"vitreous:{seed}:{source}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, source: str) -> torch.Generator:
    """A CPU generator for one source of randomness; see :func:`stream_seed`."""
    import torch

    return torch.Generator().manual_seed(stream_seed(seed, source))


class StopSignals:
    """Turn the first SIGINT, SIGTERM or SIGUSR1 into a flag; the second stops at once.

    Use as a context manager around a run; ask :attr:`requested` between steps, save, and leave
    with :meth:`exit_if_requested`.

    >>> with StopSignals() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop.requested, stop.exit_code
    (True, 143)
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise SystemExit(128 + number)
        self._received = number

    @property
    def requested(self) -> bool:
        """Whether the run shall end after the current step."""
        return self._received is not None

    @property
    def exit_code(self) -> int:
        """128 + signal number once a signal came, 0 before."""
        return 0 if self._received is None else 128 + self._received

    def exit_if_requested(self) -> None:
        """Leave the program with 128 + n if a signal came.

        Raises:
            SystemExit: a signal came.
        """
        if self.requested:
            raise SystemExit(self.exit_code)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings as one line on stderr, each text once, without file names of the program."""
    seen: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in seen:
            seen.add(str(message))
            print(f"warning: {one_line(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = show
        yield


def one_line(message: object) -> str:
    """Any text on one line, control characters removed.

    >>> one_line("two\\n  lines\\x1b[31m")
    'two lines[31m'
    """
    text = " ".join(str(message).split())
    return "".join(character for character in text if character.isprintable())


def say(message: str) -> None:
    """A line for the person at the terminal, on stderr, so that stdout holds results only."""
    print(message, file=sys.stderr, flush=True)


def resource_shortage(error: BaseException) -> str | None:
    """One line if the error means memory or disk is used up, else None."""
    text = one_line(error)
    if out_of_memory(error):
        return f"out of memory ({text[:120]}); use a smaller box or batch, or more memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'output'}: disk full or quota reached; free some space"
    return None
