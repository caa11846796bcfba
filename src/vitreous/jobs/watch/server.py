"""Server of the page: this machine only, one secret address, nothing but what it makes itself."""

from __future__ import annotations

import hmac
import json
import math
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Lock, active_count
from typing import Any

from vitreous.jobs.watch.run_folder import RunFolder

LOOPBACK = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost", "[::1]")  # what a browser may call this server
FRESH_SECONDS, LOOK_SECONDS, MOST_THREADS = 1.0, 3.0, 32
_PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; style-src 'nonce-{nonce}'; "
    "script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REPORT_POLICY = (  # of an origin of its own: it can reach nothing of this server
    "sandbox allow-scripts allow-downloads; default-src 'none'; img-src data: blob:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline' blob:; worker-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def new_token() -> str:
    """Return the secret part of an address."""
    return secrets.token_urlsafe(24)


def listening_socket(port: int = 0) -> socket.socket:
    """Return a socket that listens on a port of this machine, which no other machine reaches.

    Args:
        port: 0 for a free one.

    Raises:
        OSError: the port is taken.
    """
    return socket.create_server((LOOPBACK, port))


def address_of(listening: socket.socket, token: str) -> str:
    """Return the address of the page."""
    return f"http://{LOOPBACK}:{listening.getsockname()[1]}/{token}/"


class WatchServer(ThreadingHTTPServer):
    """Server of the page on some runs.

    Args:
        listening: from :func:`listening_socket`.
        token: without which every request is refused.
        folders: of the runs.
        idle_seconds: after the last request, once no run goes on, :attr:`over` turns true.
        asked: whether the time counts from now on, instead of from the first request.
    """

    daemon_threads = True
    timeout = 1.0  # of handle_request

    def __init__(
        self,
        listening: socket.socket,
        token: str,
        folders: Sequence[Path],
        idle_seconds: float,
        *,
        asked: bool = True,
    ) -> None:
        super().__init__((LOOPBACK, 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.token = listening, token
        self.runs = [RunFolder(path) for path in folders]
        self._idle, self.asked_at = idle_seconds, time.monotonic() if asked else -math.inf
        self._looked_at, self._lock = time.monotonic(), Lock()
        self._state, self._made_at = b"", -math.inf

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuse a connection where too many are open."""
        return active_count() < MOST_THREADS

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that has gone."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def over(self) -> bool:
        """Return whether no run goes on and nobody has asked for the page of late."""
        now = time.monotonic()
        if now - self.asked_at <= self._idle or now - self._looked_at < LOOK_SECONDS:
            return False
        self._looked_at = now
        return not any(run.status()[0] == "running" for run in self.runs)

    def state(self) -> bytes:
        """Return what the page shows as JSON; made once a second at most."""
        with self._lock:
            if time.monotonic() - self._made_at > FRESH_SECONDS:
                views = [run.view() for run in self.runs]
                self._state = json.dumps(_finite({"runs": views})).encode()
                self._made_at = time.monotonic()
            return self._state

    def serve(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Answer requests until :meth:`over`, or ``stopped`` says so."""
        while not stopped() and not self.over():
            self.handle_request()


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer
    server_version, sys_version = "vitreous", ""
    timeout = 10  # seconds for a request to come in

    def parse_request(self) -> bool:
        """Refuse what is no GET, comes from a foreign page, or lacks the token."""
        if not super().parse_request():
            return False
        host = self.headers.get("Host", "").rsplit(":", 1)[0].lower()
        token = self.path.split("?")[0].split("/")[1] if self.path.startswith("/") else ""
        known = hmac.compare_digest(token.encode(), self.server.token.encode())
        code = 0 if known and host in HOSTS else 403
        if self.command != "GET":
            code = 405
        if code:
            self._send(code, b"", "text/plain")
        return not code

    def do_GET(self) -> None:
        """Send the page, the state as JSON, a picture or a report: nothing else exists."""
        server = self.server
        server.asked_at = time.monotonic()
        parts = self.path.split("?")[0].split("/")[2:]
        if parts == [""]:
            nonce = secrets.token_urlsafe(12)
            page = _page().replace("{{ nonce }}", nonce).encode()
            self._send(200, page, "text/html", _PAGE_POLICY.format(nonce=nonce))
            return
        if parts == ["state.json"]:
            self._send(200, server.state(), "application/json")
            return
        runs = {str(number): run for number, run in enumerate(server.runs)}
        run = runs.get(parts[0]) if len(parts) == 2 else None
        png = run.png if run is not None and parts[1] == "map.png" else None
        report = run.report() if run is not None and parts[1] == "report.html" else None
        if png is not None:
            self._send(200, png, "image/png")
        elif report is not None:
            self._send(200, report, "text/html", _REPORT_POLICY)
        else:
            self._send(404, b"", "text/plain")

    def _send(
        self, code: int, content: bytes, kind: str, policy: str = "default-src 'none'"
    ) -> None:
        self.send_response(code)
        text = kind.startswith("text/") or kind.endswith("json")
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8" if text else kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal free of requests."""


@cache
def _page() -> str:
    return files("vitreous.report").joinpath("templates", "watch.html").read_text("utf-8")


def _finite(value: Any) -> Any:
    """Return nested values with None for numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
