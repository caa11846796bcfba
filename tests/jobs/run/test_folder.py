import hashlib
import os
import socket
import subprocess
import sys
import tomllib

import pytest

from vitreous.core.errors import InputError, UsageError
from vitreous.jobs.run.folder import CONFIG, LOCK, OutputFolder, fingerprint


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


def test_finished_run_is_not_overwritten_unasked(folder):
    finished(folder)
    with pytest.raises(UsageError, match="finished run"), folder():
        pass
    with folder(overwrite=True) as out:
        assert not (out.root / "map.mrc").exists()
        assert config_of(out)["run"]["status"] == "running"


def test_overwrite_removes_own_files_and_checkpoints_only(folder):
    out = finished(folder)
    (out.root / "notes.txt").write_text("mine")
    out.checkpoints.joinpath("step").write_text("old")
    with folder(overwrite=True):
        pass
    assert sorted(p.name for p in out.root.iterdir()) == ["checkpoints", CONFIG, "notes.txt"]
    assert not list(out.checkpoints.iterdir())


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
