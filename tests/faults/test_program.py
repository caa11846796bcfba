"""The program in bad circumstances: streams, limits, names, signals, settings."""

import errno
import io
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from vitreous.cli.main import _respelled
from vitreous.core.errors import InputError, ResourceError, UsageError
from vitreous.core.params import Optics
from vitreous.data.tables import make_document
from vitreous.io.atoms import read_atoms
from vitreous.io.mrc import write_mrc
from vitreous.io.star import write_star
from vitreous.jobs.cryogan import half_processes, plan
from vitreous.jobs.inputs import working_set
from vitreous.jobs.maps.options import AlignOptions
from vitreous.jobs.refine.micrographs_csv import cell
from vitreous.jobs.run.config import load_config
from vitreous.jobs.run.messages import printable, resource_shortage
from vitreous.jobs.run.signals import StopSignals
from vitreous.methods.cryogan.config import CryoGanConfig
from vitreous.methods.vaegan.config import VaeGanConfig

# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("kind", [CryoGanConfig, VaeGanConfig])
@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("learning_rate_critic = nan", "learning_rate_critic"),
        ("learning_rate_critic = -1.0", "learning_rate_critic"),
        ("learning_rate_critic = inf", "learning_rate_critic"),
        ("learning_rate_end = 1e9", "learning_rate_end"),
        ("betas = [0.5, 1.0]", "betas.1"),
        ("betas = [2.0, 0.9]", "betas.0"),
        ("averaging = 5.0", "averaging"),
        ("batch_size = 1000000", "batch_size"),
        ("batch_size = 0", "batch_size"),
        ("penalty = nan", "penalty"),
        ("n_critic = 100000", "n_critic"),
    ],
)
def test_fault_35_settings_out_of_bounds_are_refused_by_name(tmp_path, kind, line, name):
    path = tmp_path / "s.toml"
    path.write_text(line + "\n[[stages]]\nbox_size = 16\niterations = 4\n")
    with pytest.raises(UsageError, match=f"{path}: {name}: Input should be"):
        load_config(kind, path, {})


# ---------------------------------------------------------------- machine


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("x"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (RuntimeError("std::bad_alloc"), "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "out of memory"),
        (OSError(errno.ENOSPC, "No space left", "a"), "disk full"),
        (OSError(errno.EFBIG, "File too large", "a"), "a limit of size"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "no more processes"),
        (RuntimeError("can't start new thread"), "no more processes"),
        (OSError(errno.EMFILE, "Too many open files"), "open files"),
    ],
)
def test_fault_27_and_26_a_shortage_is_one_sentence(error, words):
    assert words in resource_shortage(error)
    assert resource_shortage(ValueError("no")) is None


def test_a_limit_of_addresses_that_libraries_would_not_survive_is_said(vitreous, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (500 << 20, 500 << 20))
    code, _, err = vitreous("check", "nothing.star")
    assert (code, "500 MB of addresses" in err) == (4, True)


def test_a_program_without_threads_says_so(vitreous, monkeypatch):
    def full(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", full)
    code, _, err = vitreous("check", "nothing.star")
    assert (code, "no more processes, threads" in err) == (4, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "code"),
    [("2>&-", 0), (">&-", 0), (">/dev/full", 4), ("2>/dev/full", 0), ("<&-", 0)],
)
def test_closed_and_full_streams(tmp_path, setting, code):
    write_mrc(tmp_path / "a.mrc", np.ones((4, 4, 4), np.float32), 2.0)
    program = f"{sys.executable} -c 'from vitreous.cli.main import run; run()' info a.mrc {setting}"
    done = subprocess.run(program, shell=True, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (code, False)


@pytest.mark.slow
def test_help_in_an_ascii_terminal():
    call = [sys.executable, "-c", "from vitreous.cli.main import run; run()", "auto", "--help"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(call, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Diameter in A" in done.stdout


def test_what_a_terminal_cannot_show_is_spelled():
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", errors="strict")
    with pytest.raises(UnicodeEncodeError) as caught:
        stream.write("3 Å²")
    assert _respelled(caught.value) == ("A2", 4)


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe x"])
def test_paths_that_are_not_utf8(vitreous, tmp_path, name):
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    write_mrc(folder / "a.mrcs", np.random.default_rng(1).random((9, 16, 16)), 2.0)
    code, _, err = vitreous("prepare", folder / "a.mrcs", "--box", 8, "-o", folder / "OUT", "-q")
    assert code == 0, err
    code, _, err = vitreous("info", folder / "OUT" / "particles.star")
    assert code == 0, err
    code, _, err = vitreous("info", folder / "no.mrc")
    assert (code, "no such file" in err) == (3, True)


# ---------------------------------------------------------------- hostile texts


def test_fault_33_hostile_texts_are_tamed(vitreous, tmp_path):
    assert printable("a\x1b[31mb\x07\nc") == "a[31mb\nc"
    assert [cell(t) for t in ("=1", "@x", "mic.mrc")] == ["'=1", "'@x", "mic.mrc"]
    path = tmp_path / "a.star"
    path.write_text("data_x\nloop_\n_rln\x1b[31mName\n1\n")
    _, out, err = vitreous("info", path)
    assert "\x1b[31m" not in out + err


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(("command", "module"), [("refine", working_set), ("abinit", plan)])
@pytest.mark.parametrize("reached", ["check_images", "decide_grey_values"])
def test_fault_23_before_a_run_a_signal_says_that_nothing_was_to_be_saved(
    vitreous, tmp_path, monkeypatch, command, module, reached
):
    images = np.random.default_rng(1).standard_normal((8, 16, 16), np.float32)
    write_mrc(tmp_path / "p.mrcs", images, 5.0, is_stack=True)
    names, optics = [f"{i + 1}@p.mrcs" for i in range(8)], Optics.uniform(8)
    table = make_document(names, optics, pixel_size_angstrom=5.0, box_size=16)
    write_star(tmp_path / "p.star", table)
    monkeypatch.setattr(module, reached, lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    more = ["--map", tmp_path / "no.mrc"] if command == "refine" else []
    out = tmp_path / "OUT"
    code, _, error = vitreous(command, tmp_path / "p.star", *more, "-o", out, "-q", "--threads", 1)
    assert (code, out.exists()) == (143, False), error
    assert "SIGTERM: stopped before the run: nothing was to be saved; give the same" in error


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_fault_23_the_first_signal_waits_and_the_second_stops(second, request):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and so it stays
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert (stop.name, stop.exit_code) == ("SIGHUP", 129)
        with pytest.raises(SystemExit) as leaving:
            signal.raise_signal(second)
    assert leaving.value.code == 128 + second


def test_fault_23_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_fault_36_a_stopped_half_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr(half_processes, "_STOPPED_SECONDS", 0.05)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        watch = half_processes._StoppedHalves({2: child})
        assert all(watch.check([2]) is None for _ in range(3))
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        errors = [watch.check([2]) for _ in range(2000)]
        error = next(e for e in errors if e is not None)
        assert isinstance(error, ResourceError)
        assert "half 2: its process was stopped (SIGSTOP)" in str(error)
    finally:
        child.kill()
        child.communicate()


# ---------------------------------------------------------------- files


def test_fault_32_a_model_of_occupancy_0_is_refused(tmp_path):
    atom = "ATOM      1  CA  ALA A   1      1.000   2.000   3.000  0.00 10.00           C\n"
    (tmp_path / "a.pdb").write_text(atom + "END\n")
    with pytest.raises(InputError, match="occupancy: 0 for all atoms"):
        read_atoms(tmp_path / "a.pdb")


def test_a_map_is_not_replaced_unasked(vitreous, tmp_path):
    for name in ("a.mrc", "b.mrc", "out.mrc"):
        write_mrc(tmp_path / name, np.random.default_rng(1).random((8, 8, 8)), 2.0)
    before = (tmp_path / "out.mrc").read_bytes()
    paths = [tmp_path / name for name in ("a.mrc", "b.mrc")]
    code, _, err = vitreous("align", *paths, "-o", tmp_path / "out.mrc")
    assert (code, "give --overwrite" in err) == (2, True)
    assert (tmp_path / "out.mrc").read_bytes() == before
    AlignOptions(
        moving=paths[0], reference=paths[1], output=tmp_path / "out.mrc", overwrite=True
    ).check_output(tmp_path / "out.mrc")
