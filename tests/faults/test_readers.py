"""Numbers that cannot be, and files that change while they are read."""

import gzip
import os

import numpy as np
import pytest
import torch

from vitreous.core.errors import InputError
from vitreous.core.params import Optics, Pose
from vitreous.data.particles import Particles
from vitreous.data.tables import make_document
from vitreous.io.bounds import BOUNDS
from vitreous.io.ctffind import read_ctffind
from vitreous.io.inflate import read_bounded
from vitreous.io.mrc import MrcStack, read_mrc, write_mrc
from vitreous.io.star import StarBlock, StarDocument, write_star


def write_particles(folder, **columns):
    """Write four particles; ``columns`` replace those of particles or optics."""
    images = np.random.default_rng(1).standard_normal((4, 8, 8), np.float32)
    write_mrc(folder / "p.mrcs", images, 2.0, is_stack=True)
    names = [f"{i}@p.mrcs" for i in range(1, 5)]
    pose = Pose(torch.eye(3).expand(4, 3, 3), torch.zeros(4, 2))
    document = make_document(
        names, Optics.uniform(4), pixel_size_angstrom=2.0, box_size=8, pose=pose
    )
    blocks = {}
    for name, block in document.blocks.items():
        table = dict(block.columns)
        for key, values in columns.items():
            if key in table:
                table[key] = values[: len(table[key])]
        blocks[name] = StarBlock(table)
    write_star(folder / "p.star", StarDocument(blocks))
    return folder / "p.star"


ABSURD = [
    *(("rlnAngleRot", v) for v in ("1e18", "1e308", "-2e4")),
    *(("rlnDefocusU", v) for v in ("1e12", "1e39", "-1e300")),
    *(("rlnOriginXAngst", v) for v in ("1e30", "-2e5")),
    *(("rlnVoltage", v) for v in ("1e-39", "0", "-300", "1e30")),
    *(("rlnImagePixelSize", v) for v in ("1e-300", "1e300", "0", "-1")),
    ("rlnSphericalAberration", "1e9"),
    ("rlnPhaseShift", "1e5"),
    ("rlnCtfBfactor", "1e30"),
]


@pytest.mark.parametrize(("name", "value"), ABSURD)
def test_fault_34_absurd_numbers_are_refused_with_row_and_bound(tmp_path, name, value):
    """A column of particles fails in its third row, one of optics in its first."""
    table = write_particles(tmp_path, **{name: [value, value, value, value]})
    with pytest.raises(InputError, match=rf"{name}.*, row 1: .* to ") as caught:
        Particles.open(table)
    assert "\n" not in str(caught.value)


def test_fault_34_the_third_row_is_named_and_ordinary_extremes_pass(tmp_path):
    with pytest.raises(InputError, match="_rlnDefocusU, row 3: must be from"):
        Particles.open(write_particles(tmp_path, rlnDefocusU=["1e4", "2e4", "3e7", "1e4"]))
    extremes = {"rlnDefocusU": ["-5000", "0", "99999", "1e5"], "rlnAngleRot": ["720"] * 4}
    assert len(Particles.open(write_particles(tmp_path, **extremes))) == 4
    assert all(low < high for low, high in BOUNDS.values())


@pytest.mark.parametrize("field", [1, 2, 3, 4])
def test_fault_34_absurd_ctffind_results_are_refused(tmp_path, field):
    row = ["1", "15000", "14000", "20", "0", "0.1", "4"]
    row[field] = "1e18"
    (tmp_path / "ctf.txt").write_text("# x\n" + " ".join(row) + "\n")
    with pytest.raises(InputError, match="must be from"):
        read_ctffind(tmp_path / "ctf.txt")


@pytest.mark.parametrize("change", ["cut", "pixels", "removed header", "swapped"])
def test_a_stack_that_changes_while_it_is_read_is_refused(tmp_path, change):
    images = np.zeros((600, 32, 32), np.float32)
    path = tmp_path / "p.mrcs"
    write_mrc(path, images, 2.0, is_stack=True)
    stack, before = MrcStack(path), path.stat()
    assert stack.read([0, 5, 1]).shape == (3, 32, 32)
    if change == "cut":
        os.truncate(path, 5000)
    elif change == "removed header":
        os.truncate(path, 0)
    elif change == "pixels":
        with path.open("r+b") as stream:
            stream.seek(4000)
            stream.write(b"abcd")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    if change == "swapped":  # the open file is the old one: nothing has changed for it
        write_mrc(tmp_path / "q.mrcs", images + 1, 2.0, is_stack=True)
        os.replace(tmp_path / "q.mrcs", path)
        assert not stack.read([599]).any()
        return
    with pytest.raises(InputError, match="while it was read; start again"):
        stack.read([599])


def test_images_are_those_of_the_file_in_any_order(tmp_path):
    images = np.random.default_rng(2).standard_normal((7, 6, 6), np.float32)
    write_mrc(tmp_path / "p.mrcs", images, 2.0, is_stack=True)
    stack = MrcStack(tmp_path / "p.mrcs")
    for order in ([], [3], [6, 0, 1, 2, 2, 5, 4], [0, 1, 2]):
        assert np.array_equal(stack.read(np.array(order, int)), images[order])
    assert np.array_equal(stack.read(slice(5, None)), images[5:])
    assert np.array_equal(stack.read_region(4, slice(1, 3), slice(2, 9)), images[4, 1:3, 2:9])


@pytest.mark.parametrize(
    ("tail", "sound"),
    [(b"", True), (b"\0" * 100_000, True), (b"garbage", False), (b"\0\0x", False)],
)
def test_fault_9_garbage_after_gzip_data_is_refused(tmp_path, tail, sound):
    write_mrc(tmp_path / "a.mrc", np.ones((4, 4, 4), np.float32), 2.0)
    for name, content in (("a.mrc.gz", (tmp_path / "a.mrc").read_bytes()), ("t.gz", b"text")):
        (tmp_path / name).write_bytes(gzip.compress(content) + tail)
    readers = (
        lambda: read_mrc(tmp_path / "a.mrc.gz"),
        lambda: read_bounded(tmp_path / "t.gz", 1000),
    )
    for read in readers:
        if sound:
            read()
            continue
        with pytest.raises(InputError, match="bytes after the gzip data"):
            read()
