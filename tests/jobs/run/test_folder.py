import ctypes
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tomllib
from contextlib import suppress
from unittest.mock import ANY

import pytest

from vitreous.core.errors import InputError, ResourceError, UsageError
from vitreous.jobs.run.folder import CONFIG, OutputFolder, fingerprint
from vitreous.jobs.run.lock import LOCK


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "particles.star"
    path.write_text("some rows")
    return path


@pytest.fixture
def folder(tmp_path, data):
    def make(command="abinit", seed=1, **more):
        options = {"seed": seed, "sym": "D2", "mask": None, **more.pop("options", {})}
        return OutputFolder(
            tmp_path / "OUT",
            command,
            options,
            inputs={"particles": data},
            outputs=("map.mrc",),
            machine={"device": "cpu", "threads": more.pop("threads", 2)},
            **more,
        )

    return make


def config_of(out):
    return tomllib.loads((out.root / CONFIG).read_text())


def finished(folder):
    with folder() as out:
        out.path("map.mrc").write_text("a map")
        out.finish()
    return out


def test_records_everything_needed_to_repeat(folder, data):
    with folder() as out:
        held = config_of(out)
        assert held["run"]["status"] == "running"
        assert held["run"]["command"] == "abinit"
        assert held["options"] == {"seed": 1, "sym": "D2"}
        assert held["inputs"]["particles"] == fingerprint(data)
        assert held["machine"]["threads"] == 2
        assert {"vitreous", "python", "torch", "numpy"} <= set(held["versions"])
        out.finish()
    assert config_of(out)["run"]["status"] == "finished"
    assert not (out.root / LOCK).exists()


def test_fingerprint_is_sha256(data):
    want = hashlib.sha256(b"some rows").hexdigest()
    assert fingerprint(data) == {"path": str(data), "bytes": 9, "sha256": want}


def contents(path):
    return {p.name: p.read_text() for p in path.iterdir() if p.is_file() and p.name != CONFIG}


def test_finished_run_is_not_overwritten_unasked(folder):
    finished(folder)
    with pytest.raises(UsageError, match="finished run"), folder():
        pass


def test_fault_39_overwrite_replaces_own_files_at_the_end_and_keeps_others(folder, tmp_path):
    out = finished(folder)
    (out.root / "notes.txt").write_text("mine")
    (out.root / "figures").mkdir()
    out.checkpoints.joinpath("step").write_text("old")
    with folder(overwrite=True) as new:
        new.path("map.mrc").write_text("a new map")
        assert contents(out.root) == {"map.mrc": "a map", "notes.txt": "mine", LOCK: ANY}
        with pytest.raises(UsageError, match="in use"):
            folder(overwrite=True).__enter__()
        new.finish()
        with pytest.raises(UsageError, match="in use"):
            folder(overwrite=True).__enter__()
    assert contents(out.root) == {"map.mrc": "a new map", "notes.txt": "mine"}
    assert sorted(p.name for p in out.root.iterdir() if p.is_dir()) == ["figures"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["OUT", "particles.star"]


@pytest.mark.parametrize("resumable", [False, True])
def test_fault_39_a_run_that_fails_leaves_the_old_results(folder, tmp_path, resumable):
    out = finished(folder)
    with suppress(ResourceError), folder(overwrite=True, resumable=resumable) as new:
        new.path("map.mrc").write_text("half")
        raise ResourceError("disk full")
    assert contents(out.root) == {"map.mrc": "a map"}
    if not resumable:
        assert not (tmp_path / ".OUT.new").exists()
        return
    with folder(resume=True) as again:  # goes on with what was to replace the old results
        assert again.path("map.mrc").read_text() == "half"
        assert not again.was_finished
        again.path("map.mrc").write_text("whole")
        again.finish()
    assert contents(out.root) == {"map.mrc": "whole"}
    assert config_of(out)["run"]["status"] == "finished"


def killed_at(call, folder, refuse_exchange):
    """Overwrite in a child process that is killed at the given call that changes names."""
    if child := os.fork():
        return os.waitpid(child, 0)[1] == 0
    calls = iter(range(100))

    def counted(function):
        def wrapper(*arguments, **more):
            if next(calls) == call:
                os.kill(os.getpid(), 9)
            return function(*arguments, **more)

        return wrapper

    for name in ("rename", "replace", "unlink", "mkdir", "rmdir", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    if refuse_exchange:
        ctypes.CDLL = lambda *_, **__: object()
    with folder(overwrite=True) as new:
        new.path("map.mrc").write_text("new")
        new.finish()
    os._exit(0)


@pytest.mark.parametrize(
    ("refuse_exchange", "every"),
    [
        (False, 6),
        pytest.param(False, 1, marks=pytest.mark.slow),
        pytest.param(True, 1, marks=pytest.mark.slow),
    ],
)
def test_fault_39_a_kill_at_any_call_leaves_old_or_new_whole(
    folder, tmp_path, refuse_exchange, every
):
    seen, done = set(), False
    for call in range(0, 60, every):
        shutil.rmtree(tmp_path / "OUT", ignore_errors=True)
        out = finished(folder)
        (out.root / "notes.txt").write_text("mine")
        done = killed_at(call, folder, refuse_exchange)
        present = out.root if out.root.exists() else tmp_path / ".OUT.old"
        assert contents(present)["map.mrc"] in ("a map", "new")
        with folder(resume=True) as again:
            with suppress(FileNotFoundError):
                left = again.path("map.mrc").read_text()
            seen.add(left)
            again.finish()
        assert contents(out.root)["notes.txt"] == "mine"
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
        if done:
            break
    assert done
    assert seen == {"a map", "new"}


def test_fault_22_a_kill_in_the_very_first_write_leaves_a_usable_folder(folder, tmp_path):
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT" / LOCK).write_text(f"{socket.gethostname()} 1\n")
    (tmp_path / "OUT" / f".{CONFIG}.0123456789ab.part").write_text("half a")
    with folder(overwrite=True) as out:
        out.finish()
    assert [p.name for p in out.root.iterdir()] == [CONFIG]


@pytest.mark.parametrize("kills", [2])
def test_fault_30_a_lock_survives_kills_of_its_holders(folder, tmp_path, kills):
    program = (
        "import os, sys; from pathlib import Path\n"
        "from vitreous.jobs.run.folder import OutputFolder\n"
        f"path = Path({str(tmp_path / 'OUT')!r}); (path / 'config.toml').is_file()\n"
        "with OutputFolder(path, 'abinit', {}, resume=(path / 'config.toml').is_file()):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    for _ in range(kills):
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    lock = tmp_path / "OUT" / LOCK
    assert "\0" not in lock.read_text()
    lock.write_text("\0" * 20 + f"{socket.gethostname()} 1\n")  # as older versions left it
    with OutputFolder(tmp_path / "OUT", "abinit", {}, resume=True):
        pass


@pytest.mark.parametrize(
    "text", ["run = 5", "inputs = [1]", "[run]\ncommand = 'abinit'\nconfig_changes = 7",
             "[run]\ncommand = 'abinit'\n[inputs]\nparticles = 3", "a = " + "[" * 100_000,
             "[run]\ncommand = 'abinit'\n[options]\nseed = [[1]]"]
)  # fmt: skip
def test_fault_25_a_forged_config_is_refused(folder, tmp_path, text):
    finished(folder)
    (tmp_path / "OUT" / CONFIG).write_text(text)
    with pytest.raises((InputError, UsageError)) as caught, folder(resume=True):
        pass
    assert "\n" not in str(caught.value)


def test_a_link_among_the_outputs_is_not_followed(folder, tmp_path, data):
    with folder() as out:
        (out.root / "map.mrc").symlink_to(data)
        with pytest.raises(InputError, match="remove the link"):
            out.path("map.mrc")


def test_a_path_that_is_not_utf8_is_recorded(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.star")
    path.write_text("rows")
    with OutputFolder(tmp_path / "OUT", "x", {"file": path}, inputs={"particles": path}) as out:
        pass
    assert config_of(out)["options"]["file"].endswith(r"caf\xe9.star")


def test_foreign_folders_are_left_alone(folder, tmp_path):
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT" / "thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="no output of vitreous"), folder(overwrite=overwrite):
            pass
    assert [p.name for p in (tmp_path / "OUT").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_another_commands_output_is_refused(folder, how):
    finished(folder)
    with pytest.raises(UsageError, match="'vitreous abinit'"), folder("simulate", **how):
        pass


def test_resume_with_the_same_settings(folder, data, tmp_path):
    with folder() as out:
        started = config_of(out)["run"]["started"]
    moved = tmp_path / "moved.star"
    data.rename(moved)
    data.symlink_to(moved)
    with folder(resume=True, threads=1) as out:
        assert out.resuming
        assert not out.was_finished
        assert config_of(out)["run"]["started"] == started


def test_resume_with_other_settings_or_data_shows_the_difference(folder, data):
    with folder():
        pass
    data.write_text("other rows")
    changed = {"seed": 2, "resume": True, "options": {"mask": "m.mrc"}}
    with pytest.raises(InputError) as caught, folder(**changed):
        pass
    for part in ("seed: 1 -> 2", "mask: unset -> m.mrc", "content of particles", "`allow_config"):
        assert part in str(caught.value)
    with folder(**changed, allow_config_change=True) as out:
        recorded = config_of(out)["run"]["config_changes"]
        assert len(recorded) == 3
        assert recorded[0].endswith("seed: 1 -> 2")
    with folder(**changed) as out:
        assert config_of(out)["run"]["config_changes"] == recorded


def test_resume_needs_a_run_and_excludes_overwrite(folder, tmp_path):
    with pytest.raises(UsageError, match="holds no run"), folder(resume=True):
        pass
    assert not (tmp_path / "OUT").exists()
    with pytest.raises(UsageError, match="exclude"):
        folder(resume=True, overwrite=True)


def test_second_run_is_refused_while_the_first_lives(folder):
    with folder() as out:
        with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"):
            folder(resume=True).__enter__()
        assert (out.root / LOCK).exists()
    with folder(resume=True):
        pass


def test_lock_is_held_across_processes(folder, tmp_path):
    program = (
        "import sys; from pathlib import Path; from vitreous.jobs.run.folder import OutputFolder\n"
        f"with OutputFolder(Path({str(tmp_path / 'OUT')!r}), 'abinit', {{}}):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=f"in use by process {other.pid}"):
            folder(overwrite=True).__enter__()
    finally:
        other.kill()
        other.communicate()
    # killed, so the lock file is still there, and taken over
    assert (tmp_path / "OUT" / LOCK).exists()
    with folder(overwrite=True):
        pass


def test_lock_of_another_host_is_respected(folder, tmp_path):
    finished(folder)
    lock = tmp_path / "OUT" / LOCK
    lock.write_text("elsewhere 1\n")
    with pytest.raises(UsageError, match="on elsewhere; if that run is dead, remove"):
        folder(overwrite=True).__enter__()
    lock.write_text(f"{socket.gethostname()} 1\n")
    with folder(overwrite=True):
        pass


def test_nothing_is_written_outside(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    with folder() as out:
        (out.root / "link").symlink_to(tmp_path / "elsewhere")
        for parts in (("..", "x"), ("link", "x"), (str(tmp_path / "x"),)):
            with pytest.raises(InputError, match="leaves the output folder"):
                out.path(*parts)
        assert out.path("a", "b").parent.is_dir()


def test_unreadable_input_leaves_no_folder(folder, data, tmp_path):
    data.unlink()
    with pytest.raises(InputError, match=r"particles\.star"), folder():
        pass
    assert not (tmp_path / "OUT").exists()


def test_damaged_config_is_refused(folder, tmp_path):
    finished(folder)
    (tmp_path / "OUT" / CONFIG).write_text("= =")
    with pytest.raises(InputError, match="cannot be read"), folder(resume=True):
        pass
