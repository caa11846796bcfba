"""Optics groups of several pixel sizes and boxes on one grid; multiplied images restored."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import vitreous as vt
from vitreous.core.fourier import fourier_resize
from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import euler_to_matrix
from vitreous.data.common_grid import Grid, common_grid, resample, undo_multiplication
from vitreous.data.maps import resample_map
from vitreous.data.particles import Particles
from vitreous.io.mrc import write_mrc
from vitreous.io.star import StarBlock, StarDocument, write_star
from vitreous.physics.ctf import ctf_half


def blob(box: int, pixel: float) -> np.ndarray:
    """Analytic image: two Gaussians, off the centre."""
    axis = (np.arange(box) - box // 2) * pixel
    y, x = np.meshgrid(axis, axis, indexing="ij")
    parts = [np.exp(-((x - a) ** 2 + (y - b) ** 2) / 128) for a, b in ((10, -6), (-14, 9))]
    return np.asarray(parts[0] + 0.6 * parts[1], dtype=np.float32)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((32, 4.0), (24, 16 / 3), (24, 16 / 3)),
        ((32, 4.0), (32, 4.01), (32, 4.01)),
        ((32, 4.0), (24, 4.0), (24, 4.0)),
        ((33, 4.0), (32, 3.0), (24, 4.0)),
        ((32, 4.0), (32, 4.003), (32, 4.0)),
    ],
)
def test_groups_are_brought_to_the_coarsest_pixel_and_the_smallest_field(
    tmp_path: Path, first: tuple[int, float], second: tuple[int, float], expected: tuple[int, float]
) -> None:
    names = []
    for stack, (box, pixel) in zip("ab", (first, second), strict=True):
        write_mrc(tmp_path / f"{stack}.mrcs", blob(box, pixel)[None], pixel, is_stack=True)
        names.append(f"1@{stack}.mrcs")
    optics = {
        "rlnOpticsGroup": ["1", "2"],
        "rlnImagePixelSize": [str(first[1]), str(second[1])],
        "rlnImageSize": [str(first[0]), str(second[0])],
    }
    particles = {"rlnImageName": names[::-1], "rlnOpticsGroup": ["2", "1"]}
    document = StarDocument({"optics": StarBlock(optics), "particles": StarBlock(particles)})
    write_star(tmp_path / "p.star", document)
    same = abs(first[1] / second[1] - 1) < 1.001e-3 and first[0] == second[0]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        opened = Particles.open(tmp_path / "p.star")
    assert bool(told) is not same
    assert (opened.box_size, opened.pixel_size_angstrom) == pytest.approx(expected, rel=1e-3)
    want = torch.from_numpy(blob(*expected))
    for image in opened.read(slice(None)):
        assert (image - want).abs().max() < (0.01 if same else 2e-3)


def test_resampling_is_a_fourier_crop_where_the_field_stays_and_exact_for_any_ratio() -> None:
    images = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        resample(images, 3.0, Grid(24, 4.0)), fourier_resize(images, 24, 2), atol=1e-5, rtol=0
    )
    fine = torch.from_numpy(blob(48, 2.0))[None]
    assert (
        resample(fine, 2.0, Grid(25, 3.7))[0] - torch.from_numpy(blob(25, 3.7))
    ).abs().max() < 1e-3
    volume = vt.phantom(32, 4.0)
    coarse = resample_map(volume, 4.0, 40, 4.4)  # wider than the map: zero outside
    back = resample_map(coarse, 4.4, 32, 4.0)
    assert np.corrcoef(back.flatten(), volume.flatten())[0, 1] > 0.99
    assert coarse[0].abs().max() == 0
    assert common_grid([Grid(31, 2.0)]) == Grid(31, 2.0)


def test_optics_groups_of_two_sizes_reconstruct_what_one_would() -> None:
    """Half of the particles are given at another pixel size: the map stays that of all."""
    truth = vt.phantom(32, 4.0)
    angles = torch.rand(60, 3, generator=torch.Generator().manual_seed(0)) * 180
    pose = Pose(euler_to_matrix(angles), torch.zeros(60, 2))
    images = vt.Projector(pose.rotation, 32)(truth)
    finer = fourier_resize(images[30:], 40, 2)
    mixed = torch.cat([images[:30], resample(finer, 3.2, Grid(32, 4.0))])
    half = torch.arange(60) % 2 + 1
    maps = [
        vt.reconstruct(
            vt.ImagesInMemory(one), pose, None, pixel_size_angstrom=4.0, half_set=half
        ).average
        for one in (images, mixed)
    ]
    assert np.corrcoef(*(one.flatten() for one in maps))[0, 1] > 0.999


@pytest.mark.parametrize("phases_only", [False, True])
def test_multiplication_by_the_ctf_is_undone(phases_only: bool) -> None:
    images = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(0))
    optics = Optics(
        **{
            **vars(Optics.uniform(4, defocus_angstrom=18000.0)),
            "scale": torch.tensor([1.0, 0.5, 0.8, 1.0]),
            "exposure_e_per_angstrom2": torch.tensor([0.0, 20.0, 60.0, 0.0]),
        }
    )
    transfer = ctf_half(32, 4.0, optics)
    factor = transfer.sign() if phases_only else transfer
    multiplied = torch.fft.irfft2(torch.fft.rfft2(images) * factor, s=(32, 32))
    back = undo_multiplication(multiplied, optics, 4.0, phases_only=phases_only)
    difference = torch.fft.rfft2(back - images).abs() / torch.fft.rfft2(images).abs()
    known = transfer.abs() > 0.1
    known[..., 16], known[:, 16] = False, False
    assert difference[known].max() < 1e-3
    assert back.var() == pytest.approx(float(images.var()), rel=0.1)
