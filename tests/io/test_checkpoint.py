"""Atomic writes and checkpoints under damage, kills at every stage and full disks (21, 22, 26)."""

from __future__ import annotations

import errno
import io
import itertools
import os
import resource
import signal
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vitreous.core.errors import InputError, ResourceError
from vitreous.io.atomic import atomic_file, atomic_write_text
from vitreous.io.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vitreous.io.mrc import MrcStackWriter, write_mrc


def state(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "weights": torch.randn(50, 40, generator=generator),
        "half": torch.randn(7, generator=generator).half(),
        "rng": generator.get_state(),
        "count": torch.tensor(step),
        "flags": torch.tensor([True, False]),
        "spectrum": torch.randn(3, 4, dtype=torch.complex128, generator=generator),
        "empty": torch.empty(0, 3),
    }


def assert_whole(found: Checkpoint | None, step: int) -> None:
    assert found is not None
    assert found.step == step
    assert found.meta == {"loss": step / 3, "names": ["a", None], "nested": {"x": True}}
    want = state(step)
    assert found.tensors.keys() == want.keys()
    for name, tensor in want.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def save(folder: Path, step: int) -> Path:
    meta = {"loss": step / 3, "names": ["a", None], "nested": {"x": True}}
    return save_checkpoint(folder, step, state(step), meta)


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked child; its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(77)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def test_round_trip_is_bitwise_and_two_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert load_checkpoint(folder) is None
    for step in (1, 2, 9, 10, 100_000_000):
        save(folder, step)
        assert_whole(load_checkpoint(folder), step)
    assert len(list(folder.glob("*.json"))) == len(list(folder.glob("*.safetensors"))) == 2
    assert len(list(folder.iterdir())) == 4
    save(folder, 11)  # rolled back: the abandoned future must not come back
    assert_whole(load_checkpoint(folder), 11)
    save(folder, 11)
    assert_whole(load_checkpoint(folder), 11)
    assert sorted(p.name for p in folder.glob("*.json")) == [
        "step_00000010.json",
        "step_00000011.json",
    ]


def test_views_shared_memory_and_gradients(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    tied = {
        "a": base,
        "b": base,
        "row": base.view(3, 4)[1],
        "t": base.view(3, 4).T,
        "p": torch.nn.Parameter(base[2:5]),
        "conj": torch.tensor([1 + 2j]).conj(),
    }
    save_checkpoint(tmp_path / "c", 0, tied, {})
    found = load_checkpoint(tmp_path / "c")
    assert found is not None
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tied.items())


def test_meta_that_json_cannot_hold_changes_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 2, {}, {"x": object()})
    with pytest.raises(ValueError, match="negative"):
        save_checkpoint(tmp_path, -1, {}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_fault_21_damage_falls_back_then_rejects(tmp_path: Path, kind: str, damage: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def spoil(step: int) -> None:
        (path,) = tmp_path.glob(f"step_{step:08d}*.{kind}")
        raw = bytearray(path.read_bytes())
        if damage == "flip":
            raw[len(raw) * 2 // 3] ^= 0x10
        elif damage == "truncate":
            raw = raw[:-3]
        elif damage == "empty":
            raw = bytearray()
        path.write_bytes(raw)
        if damage == "remove":
            path.unlink()

    spoil(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_whole(load_checkpoint(tmp_path), 1)
    if (kind, damage) == ("json", "remove"):  # as if the step had never been saved
        return
    assert len(caught) == 1
    assert "checkpoint skipped" in str(caught[0].message)
    spoil(1)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(InputError, match="none of 2 checkpoints is sound"),
    ):
        load_checkpoint(tmp_path)


def test_every_single_bit_of_the_json_matters(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, {"x": torch.ones(2)}, {"lr": 0.001, "n": 12})
    raw = path.read_bytes()
    for place in range(0, len(raw), 7):
        spoiled = bytearray(raw)
        spoiled[place] ^= 1 << (place % 8)
        path.write_bytes(spoiled)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = load_checkpoint(tmp_path)
            except InputError:
                continue
        assert found is not None
        assert found.meta == {"lr": 0.001, "n": 12}  # only layout blanks may change unseen


def test_a_damaged_newer_one_never_pushes_out_the_last_sound_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step_00000007.json").write_text("{}")
    save(tmp_path, 2)
    (next(tmp_path.glob("step_00000002*.safetensors"))).write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped"):
        assert_whole(load_checkpoint(tmp_path), 1)


def test_fault_22_death_at_every_call_of_a_save(tmp_path: Path) -> None:
    """A child dies at its k-th operating-system call; the old or the new one must be whole."""
    steps_seen = set()
    for death in itertools.count(1):
        folder = tmp_path / f"k{death}"
        save(folder, 1)
        save(folder, 2)

        def die_at(death: int = death, folder: Path = folder) -> None:
            calls = itertools.count(1)

            def deadly(function: Callable[..., object]) -> Callable[..., object]:
                def wrapper(*args: object, **kwargs: object) -> object:
                    if next(calls) == death:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*args, **kwargs)

                return wrapper

            for name in ("open", "fdopen", "fsync", "replace", "close", "unlink"):
                setattr(os, name, deadly(getattr(os, name)))
            save(folder, 3)

        status = in_child(die_at)
        found = load_checkpoint(folder)
        assert found is not None
        assert_whole(found, found.step)
        steps_seen.add(found.step)
        save(folder, 4)
        assert_whole(load_checkpoint(folder), 4)
        assert not list(folder.glob(".*"))
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            break
    assert steps_seen == {2, 3}
    assert death > 10


@pytest.mark.parametrize("size", [0, 1, 700, 5000, 10_000])
def test_fault_22_death_in_the_middle_of_a_write(tmp_path: Path, size: int) -> None:
    """The kernel kills the child when a file grows past ``size`` bytes."""
    save(tmp_path, 1)

    def die() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        save(tmp_path, 2)

    status = in_child(die)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGXFSZ
    assert list(tmp_path.glob(".*"))  # the dead child's unfinished file
    assert_whole(load_checkpoint(tmp_path), 1)
    save(tmp_path, 2)
    assert_whole(load_checkpoint(tmp_path), 2)
    assert not list(tmp_path.glob(".*"))


def limited(work: Callable[[], object]) -> int:
    """Exit code of ``work`` in a child whose files may not grow past 20 kB."""

    def run() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            work()
        except ResourceError as error:
            os._exit(error.exit_code if "disk full" in str(error) else 78)

    return os.WEXITSTATUS(in_child(run))


def test_fault_26_disk_full_leaves_the_old_and_no_parts(tmp_path: Path) -> None:
    big = np.zeros((30, 30, 30), np.float32)
    path = tmp_path / "map.mrc"
    path.write_bytes(b"old")

    def stream(images: int) -> None:
        with MrcStackWriter(path, 1.0) as writer:
            for _ in range(images):
                writer.append(big[:1])

    jobs: list[Callable[[], object]] = [
        lambda: write_mrc(path, big, 1.0),
        lambda: stream(30),
        lambda: stream(6),  # fails only when the buffer is flushed at the end
        lambda: atomic_write_text(path, "x" * 30_000),
    ]
    for job in jobs:
        assert limited(job) == 4
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["map.mrc"]
    folder = tmp_path / "c"
    save(folder, 1)
    before = sorted(p.name for p in folder.iterdir())
    assert limited(lambda: save_checkpoint(folder, 2, {"x": torch.zeros(9000)}, {})) == 4
    assert sorted(p.name for p in folder.iterdir()) == before
    assert_whole(load_checkpoint(folder), 1)


def test_fault_26_full_at_the_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        atomic_write_text(tmp_path / "a", "x")
    with pytest.raises(ResourceError), MrcStackWriter(tmp_path / "a.mrcs", 1.0) as writer:
        writer.append(np.zeros((1, 4, 4)))
    assert not list(tmp_path.iterdir())


def test_atomic_file_appears_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_file(path) as stream:
        stream.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    def fail(stream: io.BufferedIOBase) -> None:
        stream.write(b"half")
        raise KeyError("inside")

    with pytest.raises(KeyError), atomic_file(path) as stream:
        fail(stream)  # type: ignore[arg-type]  # BinaryIO is a wider stream
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(InputError, match="cannot be written"):
        atomic_write_text(tmp_path / "no" / "a.txt", "x")
