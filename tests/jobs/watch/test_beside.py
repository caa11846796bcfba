"""A job that shows itself while it runs, and the page in a browser."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import watched_job

from vitreous.jobs.watch import beside

ADDRESS = re.compile(r"watch the run at (http://127\.0\.0\.1:(\d+)/[\w-]{32}/)")


def test_a_run_does_not_fail_for_want_of_a_port(tmp_path, monkeypatch):
    def taken() -> socket.socket:
        raise OSError("no port")

    monkeypatch.setattr(beside, "listening_socket", taken)
    with pytest.warns(UserWarning, match="cannot be watched: no port"):
        watched_job.run(tmp_path / "OUT", 0.0)
    assert 'status = "finished"' in (tmp_path / "OUT" / "config.toml").read_text()
    assert not (tmp_path / "OUT" / ".progress").exists()


@pytest.mark.slow
def test_the_page_comes_and_goes_with_the_run(tmp_path, capsys):
    watched_job.run(tmp_path / "OUT", 0.1)  # 4 s
    address, port = ADDRESS.search(capsys.readouterr().err).groups()
    began, codes = time.monotonic(), []
    while time.monotonic() - began < 30:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/wrong/", timeout=5)
        except urllib.error.HTTPError as error:
            codes.append(error.code)
        except OSError:
            break
        time.sleep(0.2)
    assert set(codes) <= {403}
    assert time.monotonic() - began < 30  # it ended, as nobody who may has asked for it
    assert address.startswith(f"http://127.0.0.1:{port}/")


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of Chromium; what it complains of is in ``page.complaints``."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 390, "height": 844})
        opened.complaints, opened.asked = [], []
        opened.on("console", lambda message: opened.complaints.append(message.text))
        opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.on("request", lambda request: opened.asked.append(request.url))
        yield opened
        browser.close()


def started(out: Path, *words: str) -> tuple[subprocess.Popen[str], str]:
    """The process of a job and the address it prints."""
    process = subprocess.Popen(
        [sys.executable, watched_job.__file__, str(out), *words], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while not (match := ADDRESS.search(line := process.stderr.readline())):
        assert line, "ended without an address"
    return process, match[1]


def rounds(page: Any) -> int:
    return int(re.search(r"Newest of (\d+) rows", page.text_content("main"))[1])


@pytest.mark.browser
def test_browser_sees_a_run_grow_stop_go_on_and_end(tmp_path, page):
    process, address = started(tmp_path / "OUT")
    page.goto(address)
    page.wait_for_selector(".state.running", timeout=60_000)
    page.wait_for_selector("polyline", timeout=60_000)
    first, picture = rounds(page), page.get_attribute("img", "src")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.wait_for_function("n => Number(/of (\\d+) rows/.exec(document.body.innerText)[1]) > n",
                           arg=first)  # fmt: skip
    page.wait_for_function("old => document.querySelector('img').src.endsWith(old) === false",
                           arg=picture)  # fmt: skip
    assert page.evaluate("document.querySelector('img').naturalWidth") > 200
    assert "left" in page.text_content("[aria-live]")
    process.kill()
    page.wait_for_selector(".state.stopped", timeout=60_000)
    process.wait()
    process, second = started(tmp_path / "OUT", "continue")
    page.wait_for_selector(".state.running", timeout=60_000)  # the page of the killed run
    page.wait_for_selector(".state.finished", timeout=60_000)
    assert process.wait(60) == 0
    assert "12.0 Å at 0.143" in page.text_content(".verdict")
    page.click("text=Open the report")
    page.wait_for_selector("text=the report")
    own = address.split("/")[2]
    assert {url.split("/")[2] for url in page.asked if not url.startswith("data:")} == {own}
    assert second != address
    assert page.complaints == []
