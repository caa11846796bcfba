"""The page on runs: who may ask, what it says of a folder's state, when it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitreous.core.errors import UsageError
from vitreous.io.checkpoint import save_checkpoint
from vitreous.io.mrc import write_mrc
from vitreous.io.nested import flatten_state
from vitreous.jobs.run.folder import CONFIG, PROGRESS
from vitreous.jobs.run.lock import LOCK, Lock
from vitreous.jobs.run.replacement import MARK
from vitreous.jobs.watch.options import WatchOptions
from vitreous.jobs.watch.run import watch
from vitreous.jobs.watch.run_folder import RunFolder
from vitreous.jobs.watch.server import WatchServer, listening_socket, new_token

OPTIONS = '[options]\nbox_size = 16\npixel_size_angstrom = 4.0\nsymmetry = "C1"\n'
ROW = '{"step": %d, "resolution_angstrom": %g, "seconds": %g}\n'


def make_run(folder: Path, status: str, rounds: int = 2) -> Path:
    """A folder as ``refine`` leaves it: configuration, history, a checkpoint, a result."""
    folder.mkdir(exist_ok=True)
    ended = 'ended = "2026-11-30T09:57:12+00:00"\nverdict = "9 Å"\n' if status == "finished" else ""
    run = f'[run]\ncommand = "refine"\nstatus = "{status}"\n'
    started = 'started = "2026-11-30T09:50:20+00:00"\n'
    (folder / CONFIG).write_text(run + started + ended + OPTIONS, "utf-8")
    rows = "".join(ROW % (step, 40 / step, 3 * step) for step in range(1, rounds + 1))
    (folder / "history.jsonl").write_text(rows)
    if status != "finished":
        save_round(folder, rounds)
        told = {"share": 0.4, "label": "refinement", "seconds_left": 100.0, "detail": "halves 9 Å"}
        told["continue"] = "vitreous refine p.star --continue"
        (folder / PROGRESS).write_text(json.dumps(told))
        return folder
    blob = np.random.default_rng(1).random((16, 16, 16), np.float32)
    write_mrc(folder / "map.mrc", blob, 4.0)
    (folder / "fsc.csv").write_text("shell,frequency_inv_angstrom,unmasked\n0,0.0,1.0\n1,0.1,0.5\n")
    (folder / "report.html").write_text("<!DOCTYPE html><title>the report</title>")
    return folder


def save_round(folder: Path, number: int) -> None:
    solver = {"fsc": torch.linspace(1, 0, 9), "references": list(torch.rand(2, 16, 16, 16))}
    stage = {"name": "refinement", "solver": {"round": number, **solver}}
    tensors, tree = flatten_state({"kept": {}, "stage": stage})
    save_checkpoint(folder / "checkpoints", number, tensors, {"tree": tree, "seconds": 1.0})


# ---------------------------------------------------------------------------- who may ask


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WatchServer]:
    (tmp_path / "secret.txt").write_text("secret")
    finished = make_run(tmp_path / "OUT", "finished")
    with listening_socket() as listening:
        served = WatchServer(listening, new_token(), [finished, tmp_path / "LATER"], 60)
        ended = threading.Event()
        served.timeout = 0.05
        thread = threading.Thread(target=served.serve, args=(ended.is_set,))
        thread.start()
        yield served
        ended.set()
        thread.join()


def ask(
    server: WatchServer, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, bytes, dict[str, str]]:
    port = server.socket.getsockname()[1]
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    link.putrequest(method, path, skip_host=True)
    link.putheader("Host", f"127.0.0.1:{port}" if host is None else host)
    link.endheaders()
    answer = link.getresponse()
    content = answer.status, answer.read(), dict(answer.getheaders())
    link.close()
    return content


def test_only_who_knows_the_token_sees_anything(server):
    token = server.token
    code, page, headers = ask(server, f"/{token}/")
    assert (code, b"vitreous watch" in page) == (200, True)
    nonce = re.search(r"script-src 'nonce-(.+?)'", headers["Content-Security-Policy"])[1]
    assert f'<script nonce="{nonce}">'.encode() in page
    assert headers["Referrer-Policy"] == "no-referrer"
    state = json.loads(ask(server, f"/{token}/state.json")[1])
    assert [run["state"] for run in state["runs"]] == ["finished", "not started"]
    assert ask(server, f"/{token}/0/map.png")[1].startswith(b"\x89PNG")
    code, report, headers = ask(server, f"/{token}/0/report.html")
    assert (code, b"the report" in report) == (200, True)
    assert headers["Content-Security-Policy"].startswith("sandbox")
    wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
    for path in (
        "/",
        "/state.json",
        f"/{wrong}/",
        f"/{token[:-1]}/",
        "//",
        f"/x/{token}/",
        "/%C3%A9/",
    ):
        assert ask(server, path)[:2] == (403, b"")


def test_names_of_foreign_pages_are_refused(server):
    """A foreign site whose name is made to mean this machine has another Host header."""
    path = f"/{server.token}/state.json"
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "10.0.0.1"):
        assert ask(server, path, host=host)[0] == 403
    assert ask(server, path, host="localhost:8080")[0] == 200  # a tunnel


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"])
def test_it_can_only_be_read(server, method):
    assert ask(server, f"/{server.token}/", method)[0] == 405


@pytest.mark.parametrize(
    "path",
    ["0/secret.txt", "0/../secret.txt", "../secret.txt", "%2e%2e/secret.txt", "0/config.toml",
     "2/map.png", "-1/map.png", "1/map.png", "0/map.png/", "0//map.png", "0/report.html/x"],
)  # fmt: skip
def test_no_path_of_a_request_is_opened(server, path):
    assert ask(server, f"/{server.token}/{path}")[:2] == (404, b"")


def test_links_in_place_of_the_report_are_not_followed(server, tmp_path):
    (tmp_path / "OUT" / "report.html").unlink()
    (tmp_path / "OUT" / "report.html").symlink_to(tmp_path / "secret.txt")
    assert ask(server, f"/{server.token}/0/report.html")[:2] == (404, b"")


def test_it_listens_on_this_machine_only(server):
    host, port = server.socket.getsockname()
    assert host == "127.0.0.1"
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", port))


# ---------------------------------------------------------------------------- state of a folder


def test_state_follows_lock_and_configuration(tmp_path):
    run = RunFolder(tmp_path / "OUT")
    assert run.view()["state"] == "not started"
    make_run(tmp_path / "OUT", "running")
    lock = Lock(tmp_path / "OUT")
    view = run.view()
    assert (view["state"], view["left"], view["again"]) == ("running", "1 min 40 s", "")
    assert (view["share"], view["doing"]) == (0.4, "refinement · halves 9 Å")
    assert view["plot"]["series"] == {"rounds": [[1, 40.0], [2, 20.0]]}
    assert view["rows"][0] == {"step": "2", "resolution_angstrom": "20", "seconds": "6"}
    assert view["caption"] == "Map, refinement, round 2"
    lock.release()
    view = run.view()
    assert (view["state"], view["left"]) == ("stopped", "")
    assert view["again"] == "vitreous refine p.star --continue"
    make_run(tmp_path / "OUT", "finished")
    view = run.view()
    assert (view["state"], view["verdict"], view["again"]) == ("finished", "9 Å", "")
    assert (view["report"], view["caption"]) == (True, "map.mrc")
    assert view["fsc"] == {"unmasked": [[0.0, 0.1], [1.0, 0.5]]}


def test_a_killed_run_is_stopped_though_its_lock_file_is_there(tmp_path):
    make_run(tmp_path / "OUT", "running")
    program = (
        "import sys, time; from pathlib import Path; from vitreous.jobs.run.lock import Lock; "
        "held = Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "OUT")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        run = RunFolder(tmp_path / "OUT")
        assert run.status()[0] == "running"
        assert str(process.pid) in run.status()[1]
        process.kill()
        deadline = time.monotonic() + 10
        while run.status()[0] == "running" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert run.status()[0] == "stopped"  # though nobody has waited for the process yet
    (tmp_path / "OUT" / LOCK).write_text(f"{socket.gethostname()} {os.getpid()}\n")
    assert run.status()[0] == "stopped"  # its number is that of another process now


def test_a_run_that_replaces_another_is_the_one_shown(tmp_path):
    run = RunFolder(make_run(tmp_path / "OUT", "finished"))
    lock = Lock(tmp_path / "OUT")
    new = make_run(tmp_path / ".OUT.new", "running", rounds=5)
    (new / MARK).touch()
    view = run.view()
    assert (view["state"], view["verdict"], view["count"]) == ("running", "", 5)
    lock.release()
    assert run.view()["state"] == "stopped"
    shutil.rmtree(new)
    assert (run.view()["state"], run.view()["count"]) == ("finished", 2)


def test_between_two_stages_the_map_of_the_last_is_shown(tmp_path):
    out = make_run(tmp_path / "OUT", "running")
    halves = {name: torch.rand(16, 16, 16) for name in ("half1", "half2")}
    tensors, tree = flatten_state({"kept": {"initial_model": halves}, "stage": None})
    save_checkpoint(out / "checkpoints", 9, tensors, {"tree": tree, "seconds": 1.0})
    view = RunFolder(out).view()
    assert (view["caption"], view["picture"]) == ("Map, initial model", 1)


def test_curves_of_rounds_gather_until_the_run_begins_anew(tmp_path):
    run = RunFolder(make_run(tmp_path / "OUT", "running", rounds=1))
    assert list(run.view()["fsc"]) == ["refinement, round 1"]
    save_round(tmp_path / "OUT", 2)
    fsc = run.view()["fsc"]
    assert list(fsc) == ["refinement, round 1", "refinement, round 2"]
    assert fsc["refinement, round 2"][0][1] == pytest.approx(1 / 64)  # of a box of 64 Å
    config = tmp_path / "OUT" / CONFIG
    config.write_text(config.read_text("utf-8").replace("09:50:20", "10:00:00"), "utf-8")
    assert list(run.view()["fsc"]) == ["refinement, round 2"]


def test_files_are_read_only_when_they_have_changed(tmp_path, monkeypatch):
    from vitreous.jobs.watch import run_folder

    reads: list[str] = []
    for name in ("read_config", "read_rows", "CheckpointView"):
        real = getattr(run_folder, name)

        def counted(path: Path, real: Any = real) -> Any:
            reads.append(path.name)
            return real(path)

        monkeypatch.setattr(run_folder, name, counted)
    run = RunFolder(make_run(tmp_path / "OUT", "running"))
    first = run.view()
    before = len(reads)
    assert before == 3
    assert run.view() == first
    assert len(reads) == before
    with (tmp_path / "OUT" / "history.jsonl").open("a") as stream:
        stream.write(ROW % (3, 12, 9))
    assert run.view()["count"] == 3
    assert len(reads) == before + 1


@pytest.mark.parametrize("name", [CONFIG, "history.jsonl", PROGRESS, "checkpoints"])
def test_damaged_files_cost_what_they_hold_and_no_more(tmp_path, name):
    make_run(tmp_path / "OUT", "running")
    paths = [tmp_path / "OUT" / name]
    if name == "checkpoints":
        paths = sorted(paths[0].iterdir())
    for path in paths:
        path.write_bytes(b'\xff\x00{"a": [1')
    view = RunFolder(tmp_path / "OUT").view()
    assert view["state"] == ("not started" if name == CONFIG else "stopped")
    assert (view["picture"] is None) == (name == "checkpoints")


# ---------------------------------------------------------------------------- its end


def test_it_ends_when_no_run_goes_on_and_nobody_looks(tmp_path, monkeypatch):
    make_run(tmp_path / "OUT", "running")
    with listening_socket() as listening:
        server = WatchServer(listening, new_token(), [tmp_path / "OUT"], 100)
        now = time.monotonic()

        def over(seconds: float) -> bool:
            monkeypatch.setattr(time, "monotonic", lambda: now + seconds)
            return server.over()

        lock = Lock(tmp_path / "OUT")
        assert not over(200)  # the run goes on
        lock.release()
        assert over(210)
        server.asked_at = now + 210
        assert not over(300)  # somebody looks
        assert over(320)


def test_watch_ends_by_itself(tmp_path, capsys):
    began = time.monotonic()
    options = WatchOptions(folders=(tmp_path / "OUT",), idle_seconds=0.1)
    assert "nobody looked for 0.1 s" in watch(options).text
    assert time.monotonic() - began < 10
    assert re.search(r"watch at http://127\.0\.0\.1:\d+/[\w-]{32}/ ", capsys.readouterr().err)
    assert not (tmp_path / "OUT").exists()


def test_a_signal_ends_the_page(tmp_path):
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    timer.start()
    assert "SIGINT: the page has ended" in watch(WatchOptions(folders=(tmp_path,))).text


def test_a_taken_port_and_a_file_are_refused(tmp_path):
    with listening_socket() as listening:
        port = listening.getsockname()[1]
        with pytest.raises(UsageError, match=f"`port` {port}: cannot be had"):
            watch(WatchOptions(folders=(tmp_path,), port=port))
    (tmp_path / "map.mrc").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        watch(WatchOptions(folders=(tmp_path / "map.mrc",)))
