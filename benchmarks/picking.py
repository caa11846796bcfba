"""`vitreous pick` against particles marked by hand, and RELION's LoG picker: prints JSON.

Real micrographs of apoferritin, of which the diameter alone is told (130 Å), with and without CTF,
and by class averages where --templates names them. Settings were chosen on the first five
micrographs by name; the others are reported. So is RELION's threshold: the best of a row on the
first five. Exits with 1 where recall or precision on the others is below 90 %.

A pick is right if it can be paired with a mark within 25 px, one to one, such that most pairs come
about. Picks keep 65 Å (43 px) from the edges; marks count as missed only if they are 25 px farther
in, and serve all picks as partners.

    python benchmarks/picking.py OUT --data FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from _circumstances import where_and_when
from vitreous.io.boxes import read_coordinates
from vitreous.io.mrc import read_mrc, write_mrc
from vitreous.jobs.pick.options import PickOptions
from vitreous.jobs.pick.run import pick

DIAMETER_ANGSTROM, PIXEL_ANGSTROM = 130.0, 1.5
TOLERANCE_PX, GOAL = 25.0, 0.9
CHOSEN_ON = 5  # micrographs
LOG_THRESHOLDS = (-2.0, -1.0, -0.5, 0.0, 0.5)

Points = NDArray[np.float64]


def marks_of(folder: Path) -> dict[str, Points]:
    """Centres (x, y) in pixels by the stem of the micrograph, in order of names."""
    suffix = ".png-points.csv"
    paths = sorted((folder / "hand_labels").glob(f"*{suffix}"))
    return {path.name.removesuffix(suffix): np.loadtxt(path, delimiter=",") for path in paths}


def inside(points: Points, edge_px: float, shape: tuple[int, int] = (1200, 1240)) -> Any:
    last = np.array(shape[::-1]) - 1 - edge_px
    return ((points >= edge_px) & (points <= last)).all(1)


def counts(picks: Points, marks: Points) -> dict[str, int]:
    """Right and wrong picks, and marks found and missed, of one micrograph."""
    edge = DIAMETER_ANGSTROM / 2 / PIXEL_ANGSTROM
    distance = np.linalg.norm(picks[:, None] - marks[None], axis=-1)
    rows, columns = linear_sum_assignment(np.where(distance <= TOLERANCE_PX, distance, 1e6))
    near = distance[rows, columns] <= TOLERANCE_PX
    right, found = np.zeros(len(picks), bool), np.zeros(len(marks), bool)
    right[rows[near]], found[columns[near]] = True, True
    kept, counted = inside(picks, edge - 1), inside(marks, edge + TOLERANCE_PX)
    return {
        "picks": int(kept.sum()),
        "right": int((right & kept).sum()),
        "marks": int(counted.sum()),
        "found": int((found & counted).sum()),
    }


def rates(each: list[dict[str, int]]) -> dict[str, float]:
    total = {key: sum(one[key] for one in each) for key in ("picks", "right", "marks", "found")}
    recall = total["found"] / max(1, total["marks"])
    precision = total["right"] / max(1, total["picks"])
    return {**total, "recall": round(recall, 4), "precision": round(precision, 4)}


def compared(picks: Mapping[str, Points], marks: Mapping[str, Points]) -> dict[str, Any]:
    each = {name: counts(picks.get(name, np.empty((0, 2))), marks[name]) for name in marks}
    names = list(each)
    return {
        "chosen_on": rates([each[name] for name in names[:CHOSEN_ON]]),
        "others": rates([each[name] for name in names[CHOSEN_ON:]]),
        "worst_recall": min(one["found"] / one["marks"] for one in each.values()),
        "worst_precision": min(one["right"] / max(1, one["picks"]) for one in each.values()),
    }


def ours(out: Path, data: Path, threads: int, diameter: float, **more: Any) -> dict[str, Any]:
    """Pick all micrographs with default settings."""
    started = time.monotonic()
    result = pick(
        PickOptions(
            micrographs=data / "micrographs",
            diameter_angstrom=diameter,
            edge_angstrom=DIAMETER_ANGSTROM / 2,  # the default for the right diameter
            output=out,
            overwrite=True,
            threads=threads,
            quiet=True,
            **more,
        )
    )
    seconds = (time.monotonic() - started) / result.micrographs
    suffix = "_autopick.star"
    files = (out / "coordinates").glob(f"*{suffix}")
    picks = {path.name.removesuffix(suffix): read_coordinates(path) for path in files}
    stated = {"threshold": round(result.threshold, 3), "seconds_a_micrograph": round(seconds, 2)}
    return compared(picks, marks_of(data)) | stated


def relion_log(out: Path, data: Path) -> dict[str, Any]:
    """Pick with RELION's Laplacian of Gaussian, diameters 117 to 143 Å, its best threshold.

    RELION 3.1.3 misreads the unsigned 16-bit micrographs, so it gets them as float32.
    """
    shutil.rmtree(out, ignore_errors=True)
    (out / "mics").mkdir(parents=True)
    marks = marks_of(data)
    for name in marks:
        image = read_mrc(data / "micrographs" / f"{name}.mrc")[0][0].astype(np.float32)
        write_mrc(
            out / "mics" / f"{name}.mrc", (image - image.mean()) / image.std(), PIXEL_ANGSTROM
        )

    def picked(names: list[str], threshold: float) -> dict[str, Any]:
        (out / "mics.star").write_text(
            "data_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n"
            "_rlnMicrographPixelSize #3\n_rlnVoltage #4\n_rlnSphericalAberration #5\n"
            f"_rlnAmplitudeContrast #6\ng 1 {PIXEL_ANGSTROM} 300 2.7 0.07\n\n"
            "data_micrographs\n\nloop_\n_rlnMicrographName #1\n_rlnOpticsGroup #2\n"
            + "".join(f"mics/{name}.mrc 1\n" for name in names)
            + "\n"
        )
        folder = f"T{len(names)}_{threshold}"
        command = "relion_autopick --i mics.star --LoG --LoG_diam_min 117 --LoG_diam_max 143"
        command += f" --lowpass 20 --odir {folder}/ --LoG_adjust_threshold {threshold}"
        started = time.monotonic()
        subprocess.run(command.split(), cwd=out, capture_output=True, check=True)
        seconds = (time.monotonic() - started) / len(names)
        files = (out / folder).rglob("*_autopick.star")
        picks = {path.name.removesuffix("_autopick.star"): read_coordinates(path) for path in files}
        stated = {"threshold": threshold, "seconds_a_micrograph": round(seconds, 2)}
        return compared(picks, {name: marks[name] for name in names}) | stated

    tried = {one: picked(list(marks)[:CHOSEN_ON], one)["chosen_on"] for one in LOG_THRESHOLDS}
    best = max(tried, key=lambda one: tried[one]["recall"] + tried[one]["precision"])
    return {**picked(list(marks), best), "tried": tried}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the apoferritin data")
    parser.add_argument("--templates", type=Path, help="class averages")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--diameter", type=float, default=DIAMETER_ANGSTROM, help="told, in Å")
    options = parser.parse_args()
    ctf = {"ctf_file": options.data / "ctf.tsv", "amplitude_contrast": 0.07}
    ways: dict[str, dict[str, Any]] = {"shells": ctf, "shells, no CTF": {}}
    if options.templates is not None:
        ways["class averages"] = {**ctf, "templates": options.templates}
    results = {
        name: ours(
            options.out / name.replace(" ", "_"),
            options.data,
            options.threads,
            options.diameter,
            **more,
        )
        for name, more in ways.items()
    }
    if shutil.which("relion_autopick") and options.diameter == DIAMETER_ANGSTROM:
        results["RELION LoG"] = relion_log(options.out / "relion", options.data)
    passed = all(
        min(results[name]["others"][rate] for rate in ("recall", "precision")) >= GOAL
        for name in ways
    )
    print(json.dumps({"passed": passed, **results, **where_and_when()}, indent=2))
    sys.exit(not passed)


if __name__ == "__main__":
    main()
