"""What networks can tell of mixed particles when the true maps are known. Prints JSON.

    python benchmarks/what_critics_see.py FOLDER --data DATA

The three ribosomes of `mixed_particles.py` (`--shift-percent`, `--seeds`; made once in FOLDER),
at --box pixels, under their own distributions of pose, shift, CTF and noise:

* critics: a critic alone against images of fixed maps, all of them (`mixture`), their mean for all
  (`mean`), or the first for all (`whole`): its estimate of the Wasserstein distance over the last
  300 updates. Of the true mixture the distance is 0; what a critic finds there it knows by heart.
  With and without turning all images by random angles.
* readers: a network that is told the structure of endless simulated images, then reads that of the
  particles: what any encoder of this kind can find at most. Dense, dense on centred images, and
  the convolutional invariant one; with their numbers of updates.
* centring: how far particles are off centre along an axis, in Å (standard deviation and median),
  as they are and after dense networks' centring.
* hand: the highest resolution to which the mean map agrees with its own mirror image (FSC 0.5).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from _against_truth import against_truth, read_map
from _circumstances import where_and_when
from _mixtures import EDGE, column
from mixed_particles import particles
from vitreous.core.fourier import fourier_resize
from vitreous.core.images import ImageCache
from vitreous.data.particles import Particles
from vitreous.methods.adversarial.losses import gradient_penalty
from vitreous.methods.adversarial.matched_filter import (
    at_box,
    background_share,
    matched_weight,
    seen_by_critic,
)
from vitreous.methods.em.centring import best_centres, centred, centring_template
from vitreous.nn.encoder import DenseCritic, DenseEncoder, Encoder
from vitreous.physics.poses import TriangularShift
from vitreous.physics.projector import oversampled_spectrum
from vitreous.physics.simulator import Conditions, Simulator

CPU = torch.device("cpu")
VIEWS = 8  # mirrors and quarter turns that a reader's answer is averaged over


@dataclass
class Known:
    """Particles and all that made them."""

    images: ImageCache
    states: Tensor  # from 0
    simulator: Simulator
    maps: Tensor  # (3, n, n, n), in units of the images
    noise: float  # its deviation
    weight: Tensor
    stream: torch.Generator
    shift: Tensor  # true, of each particle, Å

    @classmethod
    def of(cls, folder: Path, n: int, shift: float) -> Known:
        """Scale and noise are what is left over under the true poses."""
        truth = Particles.open(folder / "truth.star")
        working = Particles.open(folder / "particles.star").images(invert=False)
        images, stream = ImageCache(working, n, CPU), torch.Generator().manual_seed(7)
        full = working.box_size
        conditions = Simulator(
            full, EDGE / full, truth.optics, truth.micrograph_id, shifts=TriangularShift(shift)
        )
        simulator = at_box(conditions, n)
        states = torch.from_numpy(column(folder / "truth.star", "rlnClassNumber")).long() - 1
        read = [read_map(folder / f"truth{k:02d}.mrc") for k in (1, 2, 3)]
        maps = torch.stack([fourier_resize(one, n, 3) for one in read])
        weight = matched_weight(images, simulator, background_share(images, CPU), stream)
        rows, pose = torch.arange(2000), truth.pose
        assert pose is not None
        known = cls(images, states, simulator, maps, 0.0, weight, stream, pose.shift_angstrom)
        asked = Conditions(pose.rotation[rows].float(), pose.shift_angstrom[rows].float(), rows)
        clean = known.imaged(maps, states[rows], asked)
        real = images.read(rows)
        known.maps = maps * float((real * clean).sum() / clean.square().sum())
        known.noise = float((real - known.imaged(known.maps, states[rows], asked)).std())
        return known

    def imaged(self, maps: Tensor, states: Tensor, conditions: Conditions) -> Tensor:
        """Noiseless images, each of its own map."""
        transfer = self.simulator.ctf(conditions.row)
        every = [self.simulator.clean(oversampled_spectrum(v), conditions, transfer) for v in maps]
        return torch.stack(every)[states, torch.arange(len(states))]

    def made(self, maps: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Simulated images, the rows of their CTF, and the map that each shows."""
        conditions = self.simulator.draw(count, poses=self.stream, optics=self.stream)
        states = torch.randint(len(maps), (count,), generator=self.stream)
        clean = self.imaged(maps, states, conditions)
        noise = torch.randn(clean.shape, generator=self.stream)
        return clean + self.noise * noise, conditions.row, states

    def seen(self, images: Tensor, row: Tensor, view: int, *, turned: bool = False) -> Tensor:
        """Images as networks see them."""
        share = torch.rand(len(images), generator=self.stream)
        angle = 2 * torch.pi * share if turned else None
        factor = self.weight * self.simulator.ctf(row)
        return seen_by_critic(images, factor, angle_rad=angle, turn=view)

    def number(self, below: int) -> int:
        """A random number."""
        return int(torch.randint(below, (1,), generator=self.stream))


def distance(known: Known, maps: Tensor, updates: int, *, turned: bool) -> dict[str, float]:
    """A critic's estimate of how far images of maps are from the particles."""
    n, b = known.images.box_size, 32
    critic = DenseCritic(n, 192, generator=torch.Generator().manual_seed(1))
    adam = torch.optim.Adam(critic.parameters(), 6e-3, betas=(0.5, 0.9))
    found = []
    for i in range(updates):
        adam.param_groups[0]["lr"] = 6e-3 * 0.05 ** (i / updates)
        view, row = known.number(8), torch.randint(len(known.images), (b,), generator=known.stream)
        images, rows, _ = known.made(maps, b)
        fake = known.seen(images, rows, view, turned=turned)
        real = known.seen(known.images.read(row), row, view, turned=turned)
        scores = critic(torch.cat([real, fake]))
        loss = scores[b:].mean() - scores[:b].mean()
        found.append(-float(loss.detach()))
        if i % 4 == 0:
            mix = torch.rand(b, generator=known.stream)
            loss = loss + 40 * gradient_penalty(critic, real, fake, mix)
        adam.zero_grad()
        loss.backward()
        adam.step()
    last = torch.tensor(found[-300:])
    return {
        "distance": round(float(last.mean()), 3),
        "standard_error": round(float(last.std() / len(last) ** 0.5), 3),
        "of_one_batch": round(float(last.std()), 3),
    }


def read_off(known: Known, kind: str, updates: int) -> float:
    """Share of the particles whose structure a network reads that was taught on simulated ones."""
    n, seed = known.images.box_size, torch.Generator().manual_seed(1)
    net: nn.Module = DenseEncoder(n, 3, 256, generator=seed)
    if kind == "convolutional":
        net = Encoder(n, 3, 16, generator=seed)
    arrange: Callable[[Tensor], Tensor] = lambda x: x  # noqa: E731
    if kind == "centred":
        rows = torch.arange(0, len(known.images), 4)
        template = centring_template(known.seen(known.images.read(rows), rows, 0))
        arrange = lambda x: centred(x, template)  # noqa: E731
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    for i in range(updates):
        adam.param_groups[0]["lr"] = 1e-3 * 0.05 ** (i / updates)
        images, row, states = known.made(known.maps, 96)
        logits = net(arrange(known.seen(images, row, known.number(8))))[0]
        adam.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(logits, states))
        adam.step()
    net.eval()
    right = 0
    with torch.no_grad():
        for row in torch.split(torch.arange(len(known.images)), 500):
            images = known.images.read(row)
            views = [net(arrange(known.seen(images, row, view)))[0] for view in range(VIEWS)]
            found = torch.stack([v.log_softmax(-1) for v in views]).sum(0).argmax(-1)
            right += int((found == known.states[row]).sum())
    return round(right / len(known.images), 3)


def off_centre(known: Known) -> dict[str, dict[str, float]]:
    """Of 3,000 particles, before and after centring."""
    rows, n = torch.arange(3000), known.images.box_size
    seen = known.seen(known.images.read(rows), rows, 0)
    found = (best_centres(seen, centring_template(seen)) - n // 2) * (EDGE / n)
    return {
        name: {"deviation": round(float(x.std()), 1), "median": round(float(x.abs().median()), 1)}
        for name, x in (("as they are", known.shift[rows]), ("centred", known.shift[rows] - found))
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-results/mixed"))
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--shift-percent", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101])
    parser.add_argument("--box", type=int, default=16, help="of the images that networks see")
    parser.add_argument("--critic-updates", type=int, default=4000)
    parser.add_argument("--reader-updates", type=int, default=3000)
    parser.add_argument("--only", choices=["critics", "readers", "centring", "hand"])
    options = parser.parse_args()
    options.folder, options.data = options.folder.resolve(), options.data.resolve()
    options.molecule, options.particles, options.snr_db = "ribosome", 3000, 0.0
    options.images_box, options.box = options.box, 32
    return options


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All measurements on one set of particles."""
    n, shift = options.images_box, 2 * options.shift_percent / 100 * EDGE
    known = Known.of(particles(options, seed), n, shift)
    mean = known.maps.mean(0, keepdim=True)
    row: dict[str, Any] = {"seed": seed}
    if options.only in (None, "hand"):
        fine = fourier_resize(mean[0], 32, 3)
        mirrored = fine.flip(0, 1, 2).roll((1, 1, 1), (0, 1, 2))
        other = against_truth(mirrored, fine, EDGE / 32, allow_mirror=False)
        row["hand"] = {"fsc_0.5_angstrom": other["sphere"]["fsc_0.5_angstrom"]}
    if options.only in (None, "centring"):
        row["centring"] = off_centre(known)
    if options.only in (None, "critics"):
        against = {"mixture": known.maps, "mean": mean, "whole": known.maps[:1]}
        row["critics"] = {
            f"{name}, {'turned' if turned else 'not turned'}": distance(
                known, maps, options.critic_updates, turned=turned
            )
            for turned in (True, False)
            for name, maps in against.items()
        }
    if options.only in (None, "readers"):
        row["readers"] = {}
        for kind in ("dense", "centred", "convolutional"):
            start = time.process_time()
            right = read_off(known, kind, options.reader_updates)
            spent = round(time.process_time() - start, 1)
            row["readers"][kind] = {"right": right, "cpu_seconds": spent}
    return row


def main() -> None:
    options = parse()
    rows = [measure(options, seed) for seed in options.seeds]
    print(
        json.dumps(
            {
                "benchmark": "what_critics_see",
                **where_and_when(),
                "box": options.images_box,
                "shift_percent": options.shift_percent,
                "updates": [options.critic_updates, options.reader_updates],
                "runs": rows,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
