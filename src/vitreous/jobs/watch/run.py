"""The work of ``vitreous watch``: serve a page on runs until they have ended."""

from __future__ import annotations

from dataclasses import dataclass

from vitreous.core.errors import UsageError
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.signals import StopSignals
from vitreous.jobs.watch.options import WatchOptions
from vitreous.jobs.watch.server import WatchServer, address_of, listening_socket, new_token


@dataclass(frozen=True)
class WatchResult:
    """How watching ended."""

    text: str
    verdict: str = ""


def watch(options: WatchOptions) -> WatchResult:
    """Serve a live page on runs until they have ended and nobody looks, or a signal comes.

    Raises:
        UsageError: no folder, or a port that is taken.
    """
    for folder in options.folders:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: is a file; give the output folder of a run")
    try:
        listening = listening_socket(options.port)
    except OSError as error:
        raise UsageError(
            f"`port` {options.port}: cannot be had ({error.strerror}); leave it out to take a free "
            "one"
        ) from error
    token = new_token()
    server = WatchServer(listening, token, options.folders, options.idle_seconds)
    with StopSignals() as stop, listening:
        say(f"watch at {address_of(listening, token)} (Ctrl-C ends the page, not the run)")
        server.serve(lambda: stop.requested)
    if stop.requested:
        return WatchResult(f"{stop.name}: the page has ended; runs go on")
    return WatchResult(f"no run goes on and nobody looked for {options.idle_seconds:g} s: ended")
