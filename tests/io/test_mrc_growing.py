"""A stack written over several runs is the stack written in one."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from vitreous.core.errors import InputError, ResourceError
from vitreous.io.mrc import MrcStack, MrcStackWriter
from vitreous.io.mrc_growing import JOURNAL, PART, GrowingStack

BOX = 8


def images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(5, 2, (3, BOX, BOX)).astype(np.float32)


def growing(path, **more):
    return GrowingStack(path, BOX, 1.5, **more)


@pytest.mark.parametrize("mode", [2, 12])
def test_equals_a_stack_written_at_once(tmp_path, mode):
    with MrcStackWriter(tmp_path / "whole.mrcs", 1.5, mode=mode) as writer:
        for seed in range(4):
            writer.append(images(seed))
    path = tmp_path / "a.mrcs"
    for run in range(4):
        with growing(path, mode=mode, resume=run > 0) as stack:
            assert stack.notes == ({"next": run} if run else {})
            stack.append(images(run))
            stack.save({"next": run + 1})
            stack.append(images(99))  # comes after the journal: must not survive
            assert not path.exists()
    with growing(path, mode=mode, resume=True) as stack:
        stack.finish({"next": 4})
    assert path.read_bytes() == (tmp_path / "whole.mrcs").read_bytes()
    stack.forget()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mrcs", "whole.mrcs"]


def test_killed_between_the_name_and_what_follows(tmp_path):
    with growing(tmp_path / "a.mrcs") as stack:
        stack.append(images(0))
        stack.finish({"next": 1})
    with growing(tmp_path / "a.mrcs", resume=True) as again:
        assert again.is_whole
        assert again.notes == {"next": 1}
    assert len(MrcStack(tmp_path / "a.mrcs")) == 3


def test_without_a_journal_it_starts_afresh(tmp_path):
    with growing(tmp_path / "a.mrcs") as stack:
        stack.append(images(0))
    with growing(tmp_path / "a.mrcs", resume=True) as stack:
        assert (len(stack), stack.notes) == (0, {})


def test_damage_is_named(tmp_path):
    part, journal = tmp_path / f"a.mrcs{PART}", tmp_path / f"a.mrcs{JOURNAL}"
    with growing(tmp_path / "a.mrcs") as stack:
        stack.append(images(0))
        stack.save({})
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(InputError, match="journal counts"), growing(stack.path, resume=True):
        pass
    for text in ("{", "[" * 100_000, '{"images": Infinity}'):
        journal.write_text(text)
        with pytest.raises(InputError, match="damaged"), growing(stack.path, resume=True):
            pass


def test_refuses_other_shapes_and_an_empty_stack(tmp_path):
    with growing(tmp_path / "a.mrcs") as stack:
        with pytest.raises(ValueError, match="8 px"):
            stack.append(np.zeros((1, 4, 4)))
        with pytest.raises(ValueError, match="no image"):
            stack.finish({})


def test_links_are_not_followed(tmp_path):
    other, part = tmp_path / "other", tmp_path / f"a.mrcs{PART}"
    other.write_bytes(b"mine")
    part.symlink_to(other)
    with growing(tmp_path / "a.mrcs") as stack:
        stack.append(images(0))
        stack.save({})
    assert other.read_bytes() == b"mine"
    part.rename(other)
    part.symlink_to(other)
    with pytest.raises(InputError, match="a link"), growing(stack.path, resume=True):
        pass


def test_a_full_disk_keeps_what_was_saved(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space")

    with growing(tmp_path / "a.mrcs") as stack:
        stack.append(images(0))
        stack.save({"next": 1})
        stack.append(images(1))
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="disk full"):
            stack.save({"next": 2})
    with growing(tmp_path / "a.mrcs", resume=True) as stack:
        assert (len(stack), stack.notes) == (3, {"next": 1})
