"""Does ``vitreous check`` name the one fault that was planted, and nothing else? Prints JSON.

    python benchmarks/doctor.py                     # three molecules, five seeds, all faults
    python benchmarks/doctor.py --molecules phantom --seeds 1 --faults voltage clean

Each set: 2,000 particles, box 64, -10 dB, real backgrounds, CTF with astigmatism of up to a fifth
of the defocus (or the angle of small astigmatism could not be judged), shifts of 2 px. It is
written to disk, one thing about table or images is changed, and the result is examined as the
command does. Fails (exit 1) where less than 95 % of the faults are named, or a clean set gives an
alarm. Needs the real data beside the checkout (``--data``).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from _public_data import BACKGROUND, BETAGAL, RIBOSOME, RIBOSOME_APIX
from vitreous.core.params import Optics
from vitreous.core.random import generator
from vitreous.data.particles import Particles
from vitreous.data.simulation_inputs import MicrographSet, load_background, load_volume
from vitreous.doctor.examine import examine
from vitreous.io.mrc import read_mrc, write_mrc
from vitreous.io.star import StarBlock, StarDocument, format_column, read_star, write_star
from vitreous.jobs.check.run import claims_of
from vitreous.jobs.simulate.dataset import draw_truth, write_dataset
from vitreous.physics.poses import GaussianShift, UniformPoses

BOX, PARTICLES, MICROGRAPHS, SNR_DB = 64, 2000, 100, -10.0
ASTIGMATISM = 0.2  # largest, as a share of the defocus
BAD = 20  # damaged images
NAMED = 0.95
Columns = dict[str, list[str]]
Images = np.ndarray


@dataclass(frozen=True)
class Molecule:
    """What is imaged, its pixel size, and that given to the background patches, Å."""

    source: str
    apix: float
    noise_apix: float


MOLECULES = {
    "beta-galactosidase": Molecule(BETAGAL, 3.6, 1.274),
    "ribosome": Molecule(RIBOSOME, RIBOSOME_APIX, 1.8),  # wider than the patches really are
    "phantom": Molecule("phantom:3", 3.6, 1.274),
}


def make(name: str, seed: int, data: Path, folder: Path) -> None:
    """Write one clean set."""
    molecule = MOLECULES[name]
    path = data / molecule.source
    volume = load_volume(
        str(path) if path.is_file() else molecule.source,
        box_size=BOX,
        pixel_size_angstrom=molecule.apix,
        input_apix=molecule.apix if path.suffix == ".mrc" else None,
    )
    draw = torch.rand(3, MICROGRAPHS, generator=generator(seed, "doctor benchmark"))
    mean = 8000 + 14000 * draw[0]
    split = 0.5 * ASTIGMATISM * mean * draw[1]
    optics = replace(
        Optics.uniform(MICROGRAPHS),
        defocus_u_angstrom=mean + split,
        defocus_v_angstrom=mean - split,
        defocus_angle_deg=180 * draw[2],
    )
    micrographs = MicrographSet(tuple(f"m{i:03d}.mrc" for i in range(MICROGRAPHS)), optics)
    background = load_background(
        data / BACKGROUND,
        box_size=BOX,
        pixel_size_angstrom=molecule.apix,
        n_micrographs=MICROGRAPHS,
        noise_apix=molecule.noise_apix,
    )
    truth = draw_truth(
        PARTICLES, micrographs, UniformPoses(), GaussianShift(2 * molecule.apix), seed
    )
    write_dataset(
        lambda part: folder / part,
        volume[None],
        truth,
        micrographs,
        pixel_size_angstrom=molecule.apix,
        snr_db=SNR_DB,
        seed=seed,
        background=background,
    )


class Patient:
    """A set on its way to the doctor: table, images, pixel size, and a stream for what is drawn."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.document = read_star(folder / "truth.star")
        self.rows: Columns = dict(self.document.blocks["particles"].columns)
        self.optics: Columns = dict(self.document.blocks["optics"].columns)
        self.images, header = read_mrc(folder / "particles.mrcs")
        self.apix = header.pixel_size_or(None)
        self.draw = np.random.default_rng(seed)

    def scale(self, columns: tuple[str, ...], factor: float) -> None:
        """Multiply columns of the particles."""
        for name in columns:
            self.rows[name] = format_column(np.array(self.rows[name], float) * factor)

    def swap(self, one: str, other: str) -> None:
        """Exchange two columns."""
        self.rows[one], self.rows[other] = self.rows[other], self.rows[one]

    def some(self) -> np.ndarray:
        """Places of images to damage."""
        return self.draw.choice(len(self.images), BAD, replace=False)

    def write(self, folder: Path) -> Path:
        """The set as files."""
        write_mrc(folder / "particles.mrcs", self.images, self.apix, is_stack=True)
        blocks = {"optics": StarBlock(self.optics), "particles": StarBlock(self.rows)}
        write_star(folder / "particles.star", StarDocument(blocks))
        return folder / "particles.star"


DEFOCUS = ("rlnDefocusU", "rlnDefocusV")
ORIGIN = ("rlnOriginXAngst", "rlnOriginYAngst")


def inverse(patient: Patient) -> None:
    """Angles of the inverse rotations."""
    patient.swap("rlnAngleRot", "rlnAnglePsi")
    patient.scale(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), -1)


def pixel(patient: Patient, table: float, header: float) -> None:
    """Wrong pixel sizes in table and header."""
    patient.optics["rlnImagePixelSize"] = format_column([patient.apix * table])
    patient.apix *= header


def shuffled(patient: Patient) -> None:
    """Orientations of other particles."""
    order = patient.draw.permutation(len(patient.images))
    for name in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", *ORIGIN):
        patient.rows[name] = [patient.rows[name][i] for i in order]


def damaged(change: Callable[[Images, np.ndarray], None]) -> Callable[[Patient], None]:
    """Change a few images."""

    def plant(patient: Patient) -> None:
        patient.images = patient.images.copy()
        change(patient.images, patient.some())

    return plant


def nan(images: Images, some: np.ndarray) -> None:
    """A broken pixel in three images."""
    images[some[:3], 5, 7] = np.nan


def constant(images: Images, some: np.ndarray) -> None:
    """Five empty images."""
    images[some[:5]] = 1.0


def clipped(images: Images, some: np.ndarray) -> None:
    """Grey values cut off at two deviations."""
    limit = 2 * images[some].std()
    images[some] = images[some].clip(-limit, limit)


def copied(images: Images, some: np.ndarray) -> None:
    """Ten images twice."""
    images[some[: BAD // 2]] = images[some[BAD // 2 :]]


def contaminated(images: Images, some: np.ndarray) -> None:
    """Ice: a disc far brighter than anything else."""
    y, x = np.mgrid[:BOX, :BOX]
    disc = (y - 20) ** 2 + (x - 44) ** 2 < 36
    images[some] += 15 * images.std() * disc


def filtered(patient: Patient) -> None:
    """Nothing beyond two thirds of Nyquist."""
    k = np.hypot(np.fft.fftfreq(BOX)[:, None], np.fft.rfftfreq(BOX)[None])
    spectra = np.fft.rfft2(patient.images) * (k < 1 / 3)
    patient.images = np.fft.irfft2(spectra, s=(BOX, BOX)).astype(np.float32)


def drifted(patient: Patient) -> None:
    """Every micrograph with its own grey level and gain."""
    names = patient.rows["rlnMicrographName"]
    level = {name: patient.draw.normal() for name in sorted(set(names))}
    gain = {name: np.exp(0.2 * patient.draw.normal()) for name in sorted(set(names))}
    deviation = patient.images.std()
    levels = np.array([level[name] for name in names], np.float32)[:, None, None]
    gains = np.array([gain[name] for name in names], np.float32)[:, None, None]
    patient.images = patient.images * gains + 0.4 * deviation * levels


# fault as the doctor names it -> how it is planted; what follows a slash tells variants apart
FAULTS: dict[str, Callable[[Patient], None]] = {
    "clean": lambda p: None,
    "contrast": lambda p: setattr(p, "images", -p.images),
    "pixel-size": lambda p: pixel(p, 2, 2),
    "pixel-size/table only": lambda p: pixel(p, 2, 1),
    "header-pixel-size": lambda p: pixel(p, 1, 2),
    "defocus-axes": lambda p: p.swap(*DEFOCUS),
    "defocus-axes/angle off by 90": lambda p: p.rows.update(
        rlnDefocusAngle=format_column(np.array(p.rows["rlnDefocusAngle"], float) + 90)
    ),
    "defocus-sign": lambda p: p.scale(DEFOCUS, -1),
    "defocus-unit/nm": lambda p: p.scale(DEFOCUS, 0.1),
    "defocus-unit/um": lambda p: p.scale(DEFOCUS, 1e-4),
    "voltage": lambda p: p.optics.update(rlnVoltage=["200"]),
    "euler-inverse": inverse,
    "euler-order": lambda p: p.swap("rlnAngleRot", "rlnAnglePsi"),
    "euler-psi-sign": lambda p: p.scale(("rlnAnglePsi",), -1),
    "euler-rot-sign": lambda p: p.scale(("rlnAngleRot",), -1),
    "shift-sign": lambda p: p.scale(ORIGIN, -1),
    "shift-unit/pixels": lambda p: p.scale(ORIGIN, 1 / p.apix),
    "shift-unit/too large": lambda p: p.scale(ORIGIN, p.apix),
    "shift-axes": lambda p: p.swap(*ORIGIN),
    "poses-unrelated": shuffled,
    "non-finite": damaged(nan),
    "constant": damaged(constant),
    "saturated": damaged(clipped),
    "duplicates": damaged(copied),
    "outliers": damaged(contaminated),
    "band-limit": filtered,
    "drift": drifted,
}


def diagnose(clean: Path, fault: str, seed: int) -> dict[str, object]:
    """Plant a fault, examine, compare."""
    patient = Patient(clean, seed)
    FAULTS[fault](patient)
    with tempfile.TemporaryDirectory(prefix="vitreous-bench-") as folder:
        particles = Particles.open(patient.write(Path(folder)))
        start = time.perf_counter()
        found = examine(particles, claims_of(particles, invert=False), generator(0, "check"))
        seconds = time.perf_counter() - start
    wanted = [] if fault == "clean" else [fault.partition("/")[0]]
    right = list(found.faults) == wanted
    return {"named": list(found.faults), "right": right, "seconds": round(seconds, 1)}


def main() -> int:
    """Plant and examine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--seeds", type=int, nargs="*", default=[21, 22, 23, 24, 25])
    parser.add_argument("--molecules", nargs="*", choices=MOLECULES, default=list(MOLECULES))
    parser.add_argument("--faults", nargs="*", choices=FAULTS, default=list(FAULTS))
    options = parser.parse_args()
    missed, counts = [], {fault: 0 for fault in options.faults}
    seconds = []
    for name in options.molecules:
        for seed in options.seeds:
            with tempfile.TemporaryDirectory(prefix="vitreous-bench-") as folder:
                make(name, seed, options.data, Path(folder))
                for fault in options.faults:
                    told = diagnose(Path(folder), fault, seed)
                    counts[fault] += bool(told["right"])
                    seconds.append(float(str(told["seconds"])))
                    if not told["right"]:
                        missed.append({"set": f"{name} {seed}", "planted": fault, **told})
                        print(f"missed: {missed[-1]}", file=sys.stderr, flush=True)
            print(f"{name} {seed}: done", file=sys.stderr, flush=True)
    sets = len(options.molecules) * len(options.seeds)
    planted = [fault for fault in options.faults if fault != "clean"]
    share = sum(counts[fault] for fault in planted) / max(1, sets * len(planted))
    passed = share >= NAMED and counts.get("clean", sets) == sets
    print(
        json.dumps(
            {
                "sets": sets,
                "faults_planted": len(planted),
                "share_named_alone": round(share, 4),
                "false_alarms_on_clean_sets": sets - counts.get("clean", sets),
                "right_by_fault": counts,
                "median_seconds": float(np.median(seconds)),
                "missed": missed,
                "passed": passed,
            },
            indent=1,
        )
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
