"""Shared fixtures: where the real data lie, and one torch thread for reproducible timing."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker for each core: threads would only contend
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of programs that tests start


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found beside the checkout ({folder.parent.name}/{folder.name})")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: on a busy machine small problems wait for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def quick_processes() -> Iterator[None]:
    """Half sets in forked processes, which need not import torch anew; torch on one thread."""
    from vitreous.jobs.cryogan import half_processes

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process has none of the other threads
    context = multiprocessing.get_context("fork")
    with pytest.MonkeyPatch.context() as patch:
        forking = SimpleNamespace(get_context=lambda _: context)
        patch.setattr(half_processes, "multiprocessing", forking)
        yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with a fixed seed."""
    return torch.Generator().manual_seed(20261121)


@pytest.fixture
def vitreous(monkeypatch, capsys):
    """Run the program in this process: ``code, stdout, stderr = vitreous("info", path)``."""

    def call(*arguments):
        from vitreous.cli.main import run

        monkeypatch.setattr(sys, "argv", ["vitreous", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            run()
        out, err = capsys.readouterr()
        code = leaving.value.code
        return (0 if code is None else code), out, err

    return call
