import os
import signal
import subprocess
import sys
import warnings

import pytest

from vitreous.core.errors import UsageError
from vitreous.core.random import generator, stream_seed
from vitreous.jobs.run.device import use_device
from vitreous.jobs.run.messages import plain_warnings
from vitreous.jobs.run.signals import STOP_SIGNALS, StopSignals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_first_signal_is_a_flag_second_stops(number, request):
    before = signal.signal(number, signal.SIG_DFL)  # what is ignored, as by nohup, stays ignored
    request.addfinalizer(lambda: signal.signal(number, before))
    with StopSignals() as stop:
        assert not stop.requested
        stop.exit_if_requested()
        signal.raise_signal(number)
        assert stop.requested
        with pytest.raises(SystemExit) as leaving:
            stop.exit_if_requested()
        assert leaving.value.code == 128 + number
        with pytest.raises(SystemExit) as leaving:
            signal.raise_signal(number)
        assert leaving.value.code == 128 + number


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopSignals():
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "cpu:0", "auto:1", ""])
def test_unknown_devices_are_refused(name):
    with pytest.raises(UsageError, match="`device`"):
        use_device(name)


def test_absent_cuda_is_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert use_device("auto").type == "cpu"
    with pytest.raises(UsageError, match="no CUDA device"):
        use_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (use_device("auto").index, use_device("cuda:1").index) == (0, 1)
    with pytest.raises(UsageError, match="cuda:0 to cuda:1"):
        use_device("cuda:2")


def test_threads_are_set():
    program = "import torch; from vitreous.jobs.run.device import use_device as u; u('cpu', 3); "
    done = subprocess.run(
        [sys.executable, "-c", program + "print(torch.get_num_threads())"],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
    )
    assert done.stdout.strip() == "3"


def test_streams_differ_by_seed_and_source_and_are_stable():
    seeds = {stream_seed(seed, source) for seed in (0, 1) for source in ("poses", "noise")}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    first = generator(7, "poses").initial_seed()
    assert first == generator(7, "poses").initial_seed() == stream_seed(7, "poses")


def test_warnings_are_one_line_and_said_once(capsys):
    with plain_warnings():
        for _ in range(2):
            warnings.warn("two\nlines", stacklevel=1)
    assert capsys.readouterr().err == "warning: two lines\n"
