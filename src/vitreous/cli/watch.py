"""``vitreous watch``: a live page on runs, in the browser."""

from __future__ import annotations

import typer

from vitreous.cli.options.command import options_command
from vitreous.jobs.watch.options import WatchOptions


@options_command(
    WatchOptions,
    {
        "folders": typer.Argument(metavar="FOLDER..."),
        "idle_seconds": typer.Option("--idle", metavar="SECONDS"),
    },
)
def watch(options: WatchOptions) -> object:
    """Show runs in the browser while they run: progress, map, FSC, resolution by round.

    Prints an address to open. It works for runs that another process started, here or on a machine
    that shares the disk, before they start, after they were stopped and continued, and when they
    are finished: then it links the report. Only this machine can open the address, and only who
    knows it. From your own computer, with the port of the printed address:
    `ssh -L 8080:127.0.0.1:PORT HOST`, and open the address with 8080 in place of the port. The run
    notices nothing; Ctrl-C ends the page only. `--watch` of the long commands does the same for one
    run.

    Example: `vitreous watch OUT OUT2`
    """
    from vitreous.jobs.watch.run import watch

    return watch(options)
