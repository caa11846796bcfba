"""Data that change between a run and its continuation: known by content, not by name or time."""

import os
import shutil
from contextlib import suppress

import numpy as np
import pytest

from vitreous.core.errors import InputError
from vitreous.io.mrc import read_mrc, write_mrc
from vitreous.io.mrc_growing import GrowingStack
from vitreous.jobs.prepare import run as prepare_run
from vitreous.jobs.prepare.options import PrepareOptions
from vitreous.jobs.prepare.run import prepare


class Stopped(BaseException):
    """The run ends here."""


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run of ``prepare`` that was killed after two pieces, and its options."""
    images = np.random.default_rng(1).standard_normal((40, 16, 16), np.float32)
    write_mrc(tmp_path / "p.mrcs", images, 2.0, is_stack=True)
    monkeypatch.setattr(prepare_run, "PIECE_BYTES", 8 * 16 * 16 * 4)
    monkeypatch.setattr("vitreous.jobs.run.streaming.SAVE_SECONDS", 0.0)
    (tmp_path / "p.star").write_text(
        "data_particles\nloop_\n_rlnImageName\n" + "".join(f"{i}@p.mrcs\n" for i in range(1, 41))
    )
    options = {"particles": tmp_path / "p.star", "box_size": 8, "threads": 1, "quiet": True}
    prepare(PrepareOptions(**options, output=tmp_path / "WHOLE"))
    saves = iter(range(10))
    save = GrowingStack.save

    def saved(stack, notes):
        save(stack, notes)
        if next(saves) == 1:
            raise Stopped

    with monkeypatch.context() as patch, suppress(Stopped):
        patch.setattr(GrowingStack, "save", saved)
        prepare(PrepareOptions(**options, output=tmp_path / "OUT"))
    return {**options, "output": tmp_path / "OUT", "resume": True}


def changed(path, place):
    """Change a pixel in place; size and time stays as they were."""
    before = path.stat()
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"\x00\x00\x80\x3f")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_fault_25_a_changed_pixel_of_the_same_time_stamp_is_refused(stopped, tmp_path):
    changed(tmp_path / "p.mrcs", 1024 + 400)
    for _ in range(2):  # what was saved stays
        with pytest.raises(InputError, match="images have changed since the run was stopped"):
            prepare(PrepareOptions(**stopped))
    assert (tmp_path / "OUT" / "config.toml").is_file()


def test_fault_25_a_faithful_copy_is_taken(stopped, tmp_path):
    (tmp_path / "copy").mkdir()
    for name in ("p.mrcs", "p.star"):
        shutil.copy(tmp_path / name, tmp_path / "copy")  # another place and another time
        os.unlink(tmp_path / name)
    prepare(PrepareOptions(**{**stopped, "particles": tmp_path / "copy" / "p.star"}))
    results = [tmp_path / name / "particles.mrcs" for name in ("OUT", "WHOLE")]
    assert results[0].read_bytes()[:100] == results[1].read_bytes()[:100]
    assert np.array_equal(read_mrc(results[0])[0], read_mrc(results[1])[0])


def test_a_stack_cut_under_a_run_is_named(tmp_path, monkeypatch):
    write_mrc(tmp_path / "p.mrcs", np.random.default_rng(1).random((40, 16, 16)), 2.0)
    monkeypatch.setattr(prepare_run, "PIECE_BYTES", 8 * 16 * 16 * 4)
    append = GrowingStack.append

    def appended(stack, images):
        append(stack, images)
        os.truncate(tmp_path / "p.mrcs", 3000)

    monkeypatch.setattr(GrowingStack, "append", appended)
    options = {"particles": tmp_path / "p.mrcs", "box_size": 8, "threads": 1, "quiet": True}
    with pytest.raises(InputError, match=r"p\.mrcs: changed while it was read"):
        prepare(PrepareOptions(**options, output=tmp_path / "OUT"))
    assert not (tmp_path / "OUT").exists()
