"""Pose assignment from a low-passed start to a map: seconds, resolution, pose errors. Prints JSON.

    python benchmarks/pose_assignment.py --case ribosome --data ribosome70S_65.mrc
    python benchmarks/pose_assignment.py --case 5a1a --data 5a1a.cif.gz --symmetry D2

Simulated particles: CTFs with astigmatism, shifts, white noise. The start is the truth up to a
resolution, and nothing but it; or, with --phantom SEED, another molecule, unrelated but for its
symmetry and size, and every round searches among all poses. Maps are then aligned with the truth
before they are compared, and poses are not. Every round tells its seconds, the FSC of its map with
the truth (0.5 and 0.143) and the errors of its poses, against the nearest of the true one's
equivalents in the molecule's own group.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _circumstances import where_and_when
from vitreous.core.fourier import fourier_resize, irfft_centered, rfft_centered
from vitreous.core.grid import shell_index
from vitreous.core.images import ImagesInMemory
from vitreous.core.params import Optics
from vitreous.core.rotation import geodesic_distance_deg, random_rotations
from vitreous.core.symmetry import point_group
from vitreous.data.phantoms import protein_phantom
from vitreous.io.atoms import atoms_to_density
from vitreous.io.mrc import read_mrc
from vitreous.maps.align import align_maps
from vitreous.maps.fsc import fsc, fsc_resolution
from vitreous.methods.em.config import RefinementConfig
from vitreous.methods.em.refinement import Refinement
from vitreous.physics.noise import noise_sigma
from vitreous.physics.simulator import simulate

# edge of the box and resolution of the start in Å; the symmetry that the molecule has
CASES: dict[str, dict[str, Any]] = {
    "ribosome": {"box": 32, "edge": 325.0, "snr_db": 0.0, "start": 53.0, "symmetry": "C1"},
    "5a1a": {"box": 64, "edge": 230.4, "snr_db": -10.0, "start": 23.0, "symmetry": "D2"},
}


def molecule(options: argparse.Namespace, box: int, pixel: float) -> Tensor:
    if options.case == "ribosome":
        data, _ = read_mrc(options.data)
        return fourier_resize(torch.from_numpy(data).float(), box, 3)
    return torch.from_numpy(
        atoms_to_density(options.data, box_size=box, pixel_size_angstrom=pixel, align_symmetry="D2")
    )


def low_passed(volume: Tensor, shell: int) -> Tensor:
    n = volume.shape[-1]
    return irfft_centered(rfft_centered(volume, 3) * (shell_index(n, 3) <= shell), (n, n, n))


def other_molecule(options: argparse.Namespace, box: int, pixel: float) -> Tensor:
    return protein_phantom(
        box,
        pixel,
        seed=options.phantom,
        point_group=options.symmetry,
        diameter_angstrom=0.7 * box * pixel,
    )


def imaged(
    volume: Tensor, count: int, pixel: float, options: argparse.Namespace
) -> tuple[Tensor, Tensor, Tensor, Optics]:
    stream = torch.Generator().manual_seed(options.seed)
    rotation = random_rotations(count, generator=stream)
    shift = options.shift_px * pixel * (2 * torch.rand(count, 2, generator=stream) - 1)
    defocus = 8000 + 17000 * torch.rand(count, generator=stream)
    optics = replace(
        Optics.uniform(count),
        defocus_u_angstrom=defocus + 200,
        defocus_v_angstrom=defocus - 200,
        defocus_angle_deg=180 * torch.rand(count, generator=stream),
    )
    pieces = torch.split(torch.arange(count), 500)
    clean = torch.cat([simulate(volume, rotation[p], shift[p], optics[p], pixel) for p in pieces])
    sigma = noise_sigma(float(clean.var(dim=(1, 2)).mean()), snr_db=options.snr_db)
    return clean + sigma * torch.randn(clean.shape, generator=stream), rotation, shift, optics


def measure(options: argparse.Namespace) -> dict[str, object]:
    case = CASES[options.case]
    box = int(case["box"])
    pixel = case["edge"] / box
    options.snr_db = case["snr_db"] if options.snr_db is None else options.snr_db
    start = case["start"] if options.start is None else options.start
    truth = molecule(options, box, pixel)
    images, rotation, shift, optics = imaged(truth, options.particles, pixel, options)
    ab_initio = options.phantom is not None
    config = RefinementConfig(
        start_resolution_angstrom=start,
        symmetry=options.symmetry,
        shift_range_angstrom=1.5 * options.shift_px * pixel,
        rounds=options.rounds,
        searches=options.rounds if ab_initio else options.searches,
        certain=1.0 if ab_initio else 0.99,
        search_radius=options.search_radius,
        assignment=options.assignment,
        candidates=options.candidates,
    )
    group = point_group(case["symmetry"]).matrices.float()
    half = torch.arange(len(images)) % 2 + 1
    source, first = ImagesInMemory(images), low_passed(truth, round(case["edge"] / start))
    if ab_initio:
        first = other_molecule(options, box, pixel)
    warm = torch.arange(16)  # compiled loops are loaded once
    Refinement(
        ImagesInMemory(images[warm]),
        optics[warm],
        half[warm],
        first,
        config,
        pixel_size_angstrom=pixel,
    ).step()
    begin = time.perf_counter()
    task = Refinement(source, optics, half, first, config, pixel_size_angstrom=pixel)
    spent, rounds = time.perf_counter() - begin, []
    for _ in range(config.rounds):
        begin = time.perf_counter()
        stats = task.step()
        spent += time.perf_counter() - begin
        poses = task.poses()
        angle = geodesic_distance_deg(poses.pose.rotation[:, None], rotation[:, None] @ group).amin(
            1
        )
        shifted = (poses.pose.shift_angstrom - shift).norm(dim=1)
        errors = {
            "angle_median_deg": float(angle.median()),
            "angle_above_10_deg": float((angle > 10).float().mean()),
            "shift_median_angstrom": float(shifted.median()),
        }
        volume = task.maps()[2]
        if ab_initio:
            volume = align_maps(
                volume, truth, pixel_size_angstrom=pixel, point_group=options.symmetry
            ).aligned
        curve = fsc(volume, truth)
        told = {
            "seconds": spent,
            "fsc_0.5_angstrom": fsc_resolution(curve, 0.5, box, pixel),
            "fsc_0.143_angstrom": fsc_resolution(curve, 0.143, box, pixel),
            **({} if ab_initio else errors),
            **stats,
        }
        rounds.append({name: round(value, 3) for name, value in told.items()})
        if options.verbose:
            print(rounds[-1], flush=True)
    return {
        **where_and_when(),
        "case": options.case,
        "particles": options.particles,
        "box": box,
        "pixel_angstrom": round(pixel, 3),
        "nyquist_angstrom": round(2 * pixel, 3),
        "snr_db": options.snr_db,
        "start_angstrom": start,
        "start_map": "truth" if options.phantom is None else f"phantom {options.phantom}",
        "symmetry": options.symmetry,
        "seconds": round(spent, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=list(CASES), default="ribosome")
    parser.add_argument("--data", type=Path, required=True, help="map or atomic model of the case")
    parser.add_argument("--symmetry", default="C1", help="that is imposed")
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--snr-db", type=float, help="decibel; the case's own by default")
    parser.add_argument("--start", type=float, help="resolution of the start, Å; the case's own")
    parser.add_argument("--phantom", type=int, help="start from this phantom, not the truth")
    parser.add_argument("--shift-px", type=float, default=2.0, help="shifts are uniform up to this")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--searches", type=int, default=2)
    parser.add_argument("--search-radius", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--assignment", choices=["hard", "soft"], default="soft")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="tell every round as it ends")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(measure(options), indent=2))


if __name__ == "__main__":
    main()
