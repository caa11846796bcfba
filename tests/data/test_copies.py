"""Copies of images and tilts of particles stay in one half set (row 31 of the faults)."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import vitreous as vt
from vitreous.core.params import Optics
from vitreous.data.copies import joined_labels, split_labels
from vitreous.data.half_sets import assign_half_sets
from vitreous.data.particles import Particles
from vitreous.data.tables import make_document
from vitreous.io.mrc import write_mrc
from vitreous.io.star import StarBlock, StarDocument, write_star

COUNT = 20


def table(folder: Path, names: list[str], **columns: list[str]) -> Path:
    optics = Optics.uniform(len(names))
    document = make_document(names, optics, pixel_size_angstrom=4.0, box_size=16)
    particles = StarBlock({**document.blocks["particles"].columns, **columns})
    write_star(folder / "p.star", StarDocument({**document.blocks, "particles": particles}))
    return folder / "p.star"


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Images of noise in a stack, and a second stack with copies of the first five."""
    images = np.random.default_rng(0).normal(size=(COUNT, 16, 16)).astype(np.float32)
    images[-2:] = 0.0
    write_mrc(tmp_path / "a.mrcs", images, 4.0, is_stack=True)
    write_mrc(tmp_path / "b.mrcs", images[:5], 4.0, is_stack=True)
    (tmp_path / "link.mrcs").symlink_to("a.mrcs")
    return [f"{i + 1:06d}@a.mrcs" for i in range(COUNT)]


@pytest.mark.parametrize(
    ("more", "copies"),
    [
        (lambda names: names, COUNT),  # a table joined with itself
        (lambda names: names[:3] * 3, 9),  # expanded by symmetry
        (lambda names: [f"{i}@b.mrcs" for i in range(1, 6)], 5),  # equal pixels of another stack
        (lambda names: [f"{i}@link.mrcs" for i in (2, 19)], 2),  # another name of the file
    ],
)
def test_copies_stay_in_one_half_set_and_are_named(tmp_path, names, more, copies) -> None:
    names = names + more(names)
    with pytest.warns(UserWarning, match=rf"{copies} of {len(names)} images are copies.*`unique`"):
        particles = Particles.open(table(tmp_path, names), half_seed=1)
    labels = particles.copies()
    assert len(labels.unique()) == COUNT
    assert not len(split_labels(particles.half_set, labels))
    assert abs(int((particles.half_set == 1).sum()) - len(names) // 2) <= 3


def test_constant_images_are_no_copies_and_ordinary_tables_are_dealt_as_before(
    tmp_path: Path, names: list[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        particles = Particles.open(table(tmp_path, names), half_seed=3)
    assert torch.equal(particles.half_set, assign_half_sets(torch.zeros(COUNT).long(), 3))
    images = torch.randn(6, 8, 8, generator=torch.Generator().manual_seed(0))
    optics = Optics.uniform(6)
    held = Particles.from_arrays(images[[0, 1, 2, 3, 4, 0]], optics, pixel_size_angstrom=2.0)
    with pytest.warns(UserWarning, match="1 of 6 images"):
        half = held.with_half_sets(1).half_set
    assert half[0] == half[5]


def test_half_sets_of_the_table_are_kept_and_contradictions_named(
    tmp_path: Path, names: list[str]
) -> None:
    twice, halves = names + names[:4], ["1", "2"] * 10 + ["1", "2", "2", "2"]
    path = table(tmp_path, twice, rlnRandomSubset=halves)
    with pytest.warns(UserWarning, match="copies of 1 images into both half sets.*too good"):
        particles = Particles.open(path, half_seed=1)
    assert [str(h) for h in particles.half_set.tolist()] == halves
    halves = ["0", "2"] * 10 + ["1", "2", "1", "2"]
    with pytest.warns(UserWarning, match="copies of an image stay in one half set"):
        half = Particles.open(table(tmp_path, twice, rlnRandomSubset=halves), half_seed=1).half_set
    assert half[[0, 1, 2, 20, 21, 22]].tolist() == [1, 2, 1, 1, 2, 1]


def test_groups_of_a_tilt_series_stay_together_and_those_of_micrographs_do_not(
    tmp_path: Path, names: list[str]
) -> None:
    group = [f"TS_{i // 4}" for i in range(COUNT)]
    dose = [f"{-4.0 * (i % 4)}" for i in range(COUNT)]
    scale = ["0.9"] * COUNT
    tilts = {"rlnGroupName": group, "rlnCtfBfactor": dose, "rlnCtfScalefactor": scale}
    particles = Particles.open(table(tmp_path, names, **tilts), half_seed=1)
    assert not len(split_labels(particles.half_set, joined_labels(group)))
    assert particles.optics.b_factor_angstrom2[:4].tolist() == [0.0, 4.0, 8.0, 12.0]
    assert particles.optics.scale[0].item() == pytest.approx(0.9)
    tilts["rlnCtfBfactor"] = ["20"] * COUNT  # of micrographs, as RELION fits it
    particles = Particles.open(table(tmp_path, names, **tilts), half_seed=1)
    assert particles.tilt_particles is None
    assert len(split_labels(particles.half_set, joined_labels(group)))
    named = {"rlnTomoParticleName": group, "rlnRandomSubset": ["1", "2"] * 10}
    with pytest.warns(UserWarning, match="tilts of 5 particles into both"):
        Particles.open(table(tmp_path, names, **named), half_seed=1)


def test_fault_31_half_2_changes_nothing_of_half_1_where_halves_are_compared_at_the_end() -> None:
    particles = vt.simulate(vt.phantom(16, 8.0), 40, 8.0, snr_db=0, seed=1).with_half_sets(1)
    images, half = particles.images()[:], particles.half_set
    other = images.clone()
    other[half == 2] = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    maps = [
        vt.reconstruct(
            one, particles.pose, particles.optics, pixel_size_angstrom=8.0, half_set=half
        )
        for one in map(vt.ImagesInMemory, (images, other))
    ]
    assert torch.equal(maps[0].half1, maps[1].half1)
    assert not torch.equal(maps[0].half2, maps[1].half2)
