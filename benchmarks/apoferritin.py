"""Real particles of a hollow shell: does `auto` find the right map, or say that it did not?

    python benchmarks/apoferritin.py FOLDER                          # auto, symmetry O, three seeds
    python benchmarks/apoferritin.py FOLDER --cases auto-C1 refine-40 refine-10 other noise
    python benchmarks/apoferritin.py FOLDER --cases relion cryodrgn --time-box 30

2,206 particles of apoferritin (`apoferritin_real` of --data), 80 px of 3 Å, dark, raw grey values.

* auto-O, auto-C1: `vitreous auto` with and without the symmetry told, and no other help;
* refine-40, refine-10: `vitreous refine` from the C-alpha model, good to 40 Å (the default) or 10;
* refine-10-tv: as refine-10, with `--prior tv`;
* other: `vitreous refine` from another octahedral molecule, good to 12 Å;
* noise, noise-from-model: the particles with random phases, which show nothing, to `auto`, and to
  `refine` from the model, good to 12 Å;
* relion: RELION's initial model and auto-refinement (symmetry O), each stopped after --time-box
  minutes;
* cryodrgn: `abinit` of cryoDRGN 4.3 (--cryodrgn PROGRAM) with `--zdim 0` and its defaults, which
  knows of no symmetry, stopped after --time-box minutes.

Every map is compared with the C-alpha model: FSC without the spherical mean, which any hollow shell
shares, in the better hand, from 30 Å on. Maps made without the symmetry are first turned and moved
to where they agree best with the model. Prints JSON. Fails (exit 1) where a map is called solved
that is right (0.5) to less than two thirds of the resolution claimed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vitreous as vt
from _against_truth import latest, read_map
from _circumstances import where_and_when
from _processes import measured
from vitreous.core.errors import InputError
from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import soft_mask
from vitreous.core.random import with_random_phases
from vitreous.data.particles import Particles
from vitreous.io.atoms import atoms_to_density
from vitreous.io.mrc import write_mrc
from vitreous.jobs.refine.options import AutoOptions, RefineOptions
from vitreous.jobs.refine.run import auto, refine
from vitreous.maps.align import align_maps
from vitreous.maps.fsc import fsc, fsc_resolution
from vitreous.maps.fsc_warnings import without_spherical_mean

BOX, PIXEL = 80, 3.0
SHELLS = (8, 12, 16, 20, 24, 28, 30)  # 30, 20, 15, 12, 10, 8.6 and 8 Å
REACH, EDGE_PX = 75.0, 4.0  # radius of the comparison's sphere, Å, and its soft edge
WRONG_CLAIM = 1.5  # where a solved map is right to, over the resolution claimed, Å over Å


def curve_with_model(volume: Tensor, model: Tensor, *, turned: bool) -> Tensor:
    """FSC with the model, both without their spherical mean, in the better hand.

    With ``turned`` the map lies in no orientation that the model shares, and is aligned first.
    """
    volume = fourier_resize(volume, BOX, 3)
    mask = soft_mask(BOX, 3, REACH / PIXEL, EDGE_PX)
    truth = without_spherical_mean(model.double())
    if turned:
        shape = without_spherical_mean(volume.double())
        volume = align_maps(shape, truth, pixel_size_angstrom=PIXEL).aligned
    truth = truth * mask
    hands = (volume, torch.roll(volume.flip(0), 1, 0))
    curves = [fsc(without_spherical_mean(one.double()) * mask, truth) for one in hands]
    return max(curves, key=lambda curve: float(curve[SHELLS[0] : SHELLS[-1]].sum()))


class Bench:
    """The data, and the folder to work in."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = (options.data / "apoferritin_real").resolve()
        self.star = self.data / "particles_80.star"
        density = atoms_to_density(
            self.data / "apoferritin_ca_model.pdb",
            box_size=BOX,
            pixel_size_angstrom=PIXEL,
            align_symmetry="O",
        )
        self.model = torch.from_numpy(density)
        write_mrc(self.folder / "model.mrc", self.model, PIXEL)
        write_mrc(self.folder / "other.mrc", vt.phantom(BOX, PIXEL, seed=5, symmetry="O"), PIXEL)

    def own(self, name: str, seed: int, symmetry: str, **start: Any) -> dict[str, Any]:
        """Run `auto`, or `refine` from a start, and judge the map."""
        given: dict[str, Any] = {
            "particles": self.noise(seed) if name.startswith("noise") else self.star,
            "symmetry": symmetry,
            "output": self.folder / f"{name}-{seed}",
            "seed": seed,
            "threads": self.options.threads,
            "overwrite": True,
            "quiet": True,
        }
        began, row = time.monotonic(), {"case": name, "seed": seed}
        try:
            found = refine(RefineOptions(**given, **start)) if start else auto(AutoOptions(**given))
        except InputError as error:
            return row | {"solved": False, "verdict": f"refused: {error}"}
        row |= {
            "minutes": round((time.monotonic() - began) / 60, 1),
            "solved": found.solved,
            "verdict": found.verdict,
            "claimed_angstrom": round(found.resolution_angstrom, 2),
        }
        if found.finer_shells is not None:
            row["finer_shells"] = vars(found.finer_shells)
        if found.refinement is not None:
            posterior = found.refinement.poses.posterior
            row["sure_poses"] = round(float((posterior > 0.5).float().mean()), 2)
            row |= self.judged(found.refinement.map.cpu(), turned=symmetry == "C1")
        return row

    def judged(self, volume: Tensor, *, turned: bool = False) -> dict[str, Any]:
        """Compare a map with the model."""
        curve = curve_with_model(volume, self.model, turned=turned)
        begun = curve.clone()
        begun[: SHELLS[0]] = 1.0  # shells that hold no shape
        return {
            "fsc_with_model": {f"{BOX * PIXEL / k:.1f}": round(float(curve[k]), 2) for k in SHELLS},
            "right_to_angstrom": round(fsc_resolution(begun, 0.5, BOX, PIXEL), 1),
        }

    def noise(self, seed: int) -> Path:
        """Write the particles with random phases: all that is left of them is their power."""
        star = self.folder / f"phases-{seed}" / self.star.name
        star.parent.mkdir(exist_ok=True)
        particles = Particles.open(self.star)
        images = particles.images(invert=True).read(torch.arange(len(particles)))
        noise = with_random_phases(images, torch.Generator().manual_seed(seed))
        write_mrc(star.with_suffix(".mrcs"), noise, PIXEL, is_stack=True)
        shutil.copyfile(self.star, star)
        return star

    def relion(self, seed: int) -> dict[str, Any]:
        """RELION's initial model and auto-refinement."""
        folder = self.folder / f"relion-{seed}"
        folder.mkdir(exist_ok=True)
        particles = Particles.open(self.star).with_half_sets(seed=seed)
        images = particles.images(invert=True).read(torch.arange(len(particles)))
        write_mrc(folder / "particles_80.mrcs", images, PIXEL, is_stack=True)
        shutil.copyfile(self.star, folder / "particles_80.star")
        common = [
            *("--i", "particles_80.star", "--ctf", "--sym", "O", "--flatten_solvent"),
            *("--zero_mask", "--particle_diameter", "150", "--random_seed", str(seed)),
            *("--dont_combine_weights_via_disc", "--pool", "3", "--pad", "2", "--skip_gridding"),
            *("--oversampling", "1"),
        ]
        model = [
            *("relion_refine", "--o", "./initial", "--sgd", "--denovo_3dref", "--K", "1"),
            *("--sgd_ini_iter", "50", "--sgd_inbetween_iter", "100", "--sgd_fin_iter", "50"),
            *("--sgd_write_iter", "10", "--sgd_ini_resol", "35", "--sgd_fin_resol", "12"),
            *("--sgd_ini_subset", "100", "--sgd_fin_subset", "500", "--healpix_order", "1"),
            *("--offset_range", "6", "--offset_step", "2", "--j", str(self.options.threads)),
        ]
        refined = [
            *("mpirun", "-n", "3", "--oversubscribe", "--allow-run-as-root", "--bind-to", "none"),
            *("relion_refine_mpi", "--o", "./refined", "--auto_refine", "--split_random_halves"),
            *("--ref", "start.mrc", "--firstiter_cc", "--ini_high", "15", "--healpix_order", "2"),
            *("--auto_local_healpix_order", "4", "--offset_range", "5", "--offset_step", "2"),
            *("--low_resol_join_halves", "40", "--norm", "--scale", "--j", "1"),
        ]
        row: dict[str, Any] = {"case": "relion", "seed": seed}
        for name, command in (("initial", model), ("refined", refined)):
            log, box = folder / f"{name}.log", 60 * self.options.time_box
            took = measured(command + common, folder, log, time_box=box, threads=1)
            maps = sorted(folder.glob(f"{name}_it*_class001.mrc"))
            row[name] = took.told | ({} if not maps else self.judged(read_map(maps[-1])))
            if not maps:
                break
            shutil.copyfile(maps[-1], folder / "start.mrc")
        return row

    def cryodrgn(self, seed: int) -> dict[str, Any]:
        """cryoDRGN's ab initio reconstruction of one structure, dark particles as they are."""
        folder = self.folder / f"cryodrgn-{seed}"
        folder.mkdir(exist_ok=True)
        program, stack = str(self.options.cryodrgn.resolve()), self.star.with_suffix(".mrcs")
        parse = [program, "parse_ctf_star", str(self.star), "--ps", "0", "-o", "ctf.pkl"]
        measured(parse, folder, folder / "ctf.log")
        command = [
            *(program, "abinit", str(stack), "--ctf", "ctf.pkl", "--zdim", "0", "-o", "out"),
            *("--seed", str(seed), "--checkpoint", "1", "--no-analysis"),
        ]
        took = measured(command, folder, folder / "abinit.log", time_box=60 * self.options.time_box)
        row: dict[str, Any] = {"case": "cryodrgn", "seed": seed} | took.told
        epoch, path = latest(folder / "out", r"reconstruct\.(\d+)\.mrc")
        if path is not None:
            row |= {"epoch": epoch} | self.judged(read_map(path), turned=True)
        return row


def believed_wrongly(row: dict[str, Any]) -> bool:
    """Return whether a map is called solved that is wrong, or right much less far than claimed."""
    if not row.get("solved"):
        return False
    return row["right_to_angstrom"] > WRONG_CLAIM * row["claimed_angstrom"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--time-box", type=float, default=20.0, help="minutes, for others' steps")
    parser.add_argument("--cryodrgn", type=Path, metavar="PROGRAM", help="cryodrgn, installed")
    parser.add_argument("--cases", nargs="+", default=["auto-O"])
    options = parser.parse_args()
    if "cryodrgn" in options.cases and options.cryodrgn is None:
        parser.error("cryodrgn needs --cryodrgn PROGRAM")
    bench = Bench(options)
    model, other = ({"start_map": bench.folder / f"{name}.mrc"} for name in ("model", "other"))
    cases: dict[str, Callable[[int], dict[str, Any]]] = {
        "auto-O": lambda seed: bench.own("auto-O", seed, "O"),
        "auto-C1": lambda seed: bench.own("auto-C1", seed, "C1"),
        "refine-40": lambda seed: bench.own("refine-40", seed, "O", **model),
        "refine-10": lambda seed: bench.own(
            "refine-10", seed, "O", **model, start_resolution_angstrom=10.0
        ),
        "refine-10-tv": lambda seed: bench.own(
            "refine-10-tv", seed, "O", **model, start_resolution_angstrom=10.0, prior="tv"
        ),
        "other": lambda seed: bench.own(
            "other", seed, "O", **other, start_resolution_angstrom=12.0
        ),
        "noise": lambda seed: bench.own("noise", seed, "O"),
        "noise-from-model": lambda seed: bench.own(
            "noise-from-model", seed, "O", **model, start_resolution_angstrom=12.0
        ),
        "relion": bench.relion,
        "cryodrgn": bench.cryodrgn,
    }
    rows = []
    for name in options.cases:
        for seed in options.seeds:
            rows.append(cases[name](seed))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"runs": rows, **where_and_when()}))
    return int(any(map(believed_wrongly, rows)))


if __name__ == "__main__":
    sys.exit(main())
