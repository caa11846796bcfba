"""The page on a run that shows itself: a process of its own beside that of the run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

from vitreous.jobs.run.messages import one_line, say
from vitreous.jobs.watch.server import WatchServer, address_of, listening_socket, new_token

IDLE_SECONDS = 120.0  # after the page was last asked for, once the run has ended


def watch_beside(folder: Path) -> None:
    """Start a server of the page on the run in a folder, and print its address.

    It outlives the run only as long as somebody looks at the page. A run never fails for it: where
    it cannot be started, a warning says why.
    """
    token = new_token()
    try:
        with listening_socket() as listening:
            number = listening.fileno()
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(number), str(folder.resolve())],
                stdin=subprocess.PIPE,  # the token: other users could read an argument
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(number,),
                start_new_session=True,  # Ctrl-C is for the run
            )
            address = address_of(listening, token)
        assert process.stdin is not None
        with process.stdin as stream:
            stream.write(token.encode())
        process.returncode = 0  # it is not waited for
    except (OSError, ValueError) as error:
        warnings.warn(f"the run cannot be watched: {one_line(error)}", stacklevel=2)
        return
    say(f"watch the run at {address}")


def main() -> None:
    """Serve the page of a socket and a folder that the arguments name; the process's body."""
    os.nice(5)
    listening = socket.socket(fileno=int(sys.argv[1]))
    token = sys.stdin.read()
    WatchServer(listening, token, [Path(sys.argv[2])], IDLE_SECONDS, asked=False).serve()


if __name__ == "__main__":
    main()
