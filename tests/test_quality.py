"""From particle files to a map, end to end, with thresholds fixed in advance."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from vitreous.io.mrc import read_mrc
from vitreous.maps.align import align_maps
from vitreous.maps.fsc import fsc, fsc_resolution

PIXEL = 7.2


def _vitreous(*arguments: str) -> None:
    program = Path(sys.executable).with_name("vitreous")
    subprocess.run([program, *arguments, "--quiet"], check=True, stdout=subprocess.DEVNULL)


def _map(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_mrc(path)[0].copy()).float()


@pytest.mark.slow
def test_a_phantom_is_found_from_its_images(tmp_path: Path) -> None:
    """Box 32, D2, 6,000 images, 0 dB, a quarter of the default iterations."""
    simulated, found = tmp_path / "simulated", tmp_path / "found"
    size = ("--box", "32", "--apix", str(PIXEL), "--n", "6000", "--seed", "11")
    _vitreous("simulate", "phantom:11", "--sym", "D2", *size, "-o", str(simulated))
    particles = str(simulated / "particles.star")
    run = ("--sym", "D2", "--effort", "0.25", "--seed", "11")
    _vitreous("abinit", particles, *run, "-o", str(found))

    assert tomllib.loads((found / "config.toml").read_text())["run"]["solved"]
    truth = _map(simulated / "truth.mrc")
    aligned = align_maps(_map(found / "map.mrc"), truth, pixel_size_angstrom=PIXEL).aligned
    assert fsc_resolution(fsc(aligned, truth), 0.5, 32, PIXEL) < 25.0


@pytest.mark.slow
def test_raw_particles_become_a_refined_map(tmp_path: Path) -> None:
    """Box 48, C1, 2,000 images at -6 dB, shifted: within 10 % of Nyquist."""
    simulated, found = tmp_path / "simulated", tmp_path / "found"
    size = ("--box", "48", "--apix", "4.8", "--n", "2000", "--snr-db=-6", "--seed", "12")
    _vitreous("simulate", "phantom:12", *size, "--shift", "triangular:15", "-o", str(simulated))
    particles = str(simulated / "particles.star")
    _vitreous("auto", particles, "--seed", "12", "-o", str(found))

    run = tomllib.loads((found / "config.toml").read_text())["run"]
    assert run["solved"]
    truth = _map(simulated / "truth.mrc")
    aligned = align_maps(_map(found / "map.mrc"), truth, pixel_size_angstrom=4.8).aligned
    reached = fsc_resolution(fsc(aligned, truth), 0.5, 48, 4.8)
    assert reached < 10.6
    assert run["resolution_05_angstrom"] > 0.9 * reached
