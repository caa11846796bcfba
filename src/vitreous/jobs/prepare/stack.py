"""Recipe and stack of ``prepare`` and ``backgrounds``: images streamed into an output folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from vitreous.core.errors import InputError
from vitreous.data.prepare import Geometry, Preparation
from vitreous.io.mrc import read_header
from vitreous.io.mrc_growing import GrowingStack
from vitreous.jobs.prepare.options import ImageOptions
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals
from vitreous.jobs.run.streaming import Piece, cores, same_input, stream_pieces
from vitreous.jobs.run.summary import JobResult


@dataclass(frozen=True)
class PreparedStack(JobResult):
    """Prepared particle images, or background windows, with their table.

    Its ``text`` is empty where the run in the folder was finished before.
    """

    count: int  # number of images written


def recipe_of(options: ImageOptions) -> Preparation:
    """Return the recipe that options describe, whose fields have the same names.

    Raises:
        UsageError: sizes that contradict each other.
    """
    names = {field.name for field in fields(Preparation)}
    return Preparation(**options.model_dump(include=names))


def write_stack(
    folder: OutputFolder,
    name: str,
    options: ImageOptions,
    geometry: Geometry,
    work: Callable[[int], Piece],
    count: int,
    identity: Callable[[int], bytes],
    conclude: Callable[[Mapping[int, dict[str, Any]], float], str],
    *,
    label: str,
    quiet: bool,
) -> PreparedStack:
    """Stream pieces into a stack of an output folder, and conclude the run.

    Args:
        folder: entered; a finished run in it is left as it is.
        name: of the stack.
        options: of the run.
        geometry: sizes of the images.
        work, count, identity: see :func:`~vitreous.jobs.run.streaming.stream_pieces`.
        conclude: called with the records by piece and the seconds taken when the stack is whole;
            writes what belongs to it and returns lines about it.
        label, quiet: of the progress.

    Raises:
        InputError, ResourceError, SystemExit: as ``stream_pieces``; after an InputError the folder
            holds nothing of the run.
    """
    started = time.monotonic()
    target = GrowingStack(
        folder.path(name),
        geometry.box_size,
        geometry.pixel_size_angstrom,
        mode=12 if options.float16 else 2,
        resume=folder.resuming,
    )
    text, threads = "", cores(options.threads)
    if folder.was_finished:
        same_input(folder.config["run"].get("input"), identity, count, threads)
        say(f"{folder.root}: the run was finished already; nothing to do")
    else:
        try:
            with StopSignals() as stop, target as stack, RunProgress(label, quiet=quiet) as bar:
                records, digest = stream_pieces(
                    stack, work, count, identity, threads=threads, stop=stop, progress=bar
                )
        except InputError:
            if not folder.resuming:
                folder.discard()
            raise
        folder.config["run"]["input"] = digest
        text = conclude(records, time.monotonic() - started)
    folder.finish(target.forget)
    written = read_header(folder.root / name).shape[0]
    return PreparedStack(None, "", text, folder.root, written)
