"""What a critic of CryoGAN is worth: does it send the volume towards the truth? Prints JSON.

    python benchmarks/critic_power.py                       # the default critic, phantom 5, -10 dB
    python benchmarks/critic_power.py --critics dense strided --seconds 10 30 90 --snr-db 0

The volume is what the truth holds up to shell 4, and stays so. The critic alone is trained, and
after --seconds of processor time its gradient with respect to the volume is compared with what is
missing, shell by shell: 1 where the volume would move straight to the truth, 0 where the critic
does not know the way. The same gradient from other images tells chance from bias: where the two
agree and neither points to the truth, more or larger batches do not help.

Particles and settings are those of ``ablations.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from _circumstances import where_and_when
from ablations import BOX, ROWS, data
from vitreous.maps.fsc import fsc
from vitreous.maps.shell_filter import weight_shells
from vitreous.methods.cryogan.config import CryoGanConfig, TrainingStage
from vitreous.methods.cryogan.solver import STREAMS, CryoGan
from vitreous.physics.projector import oversampled_spectrum

KNOWN = 4  # shells that the volume holds
BATCHES = 20  # of either gradient
CRITICS = {
    "dense": ROWS["default"],
    "strided": ROWS["strided critic"],
    "paper": ROWS["paper's critic"],
}


def gradient(solver: CryoGan, volume: Tensor) -> Tensor:
    """The way that the critic sends the volume, over some batches."""
    total = torch.zeros_like(volume)
    for _ in range(BATCHES):
        moving = volume.clone().requires_grad_()
        images = solver._simulated(oversampled_spectrum(moving), solver.config.batch_size)
        total += torch.autograd.grad(solver.critic(images).mean(), moving)[0]
    return total


def train(solver: CryoGan, spectrum: Tensor, seconds: float) -> None:
    """Update the critic alone."""
    began = time.process_time()
    solver.critic.requires_grad_(True)
    while time.process_time() - began < seconds:
        solver._update_critic(spectrum)
    solver.critic.requires_grad_(False)


def measured(critic: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What the critic is worth after each number of seconds."""
    truth, images, simulator = data(options.phantom, options.symmetry, options.snr_db)
    settings = CRITICS[critic] | {"stages": (TrainingStage(BOX, 4000),)}
    config = CryoGanConfig(symmetry=options.symmetry, **settings)
    streams = {name: torch.Generator().manual_seed(i) for i, name in enumerate(STREAMS)}
    solver = CryoGan(images, simulator, config, streams)
    solver._enter(0, truth.float())  # scales of signal and noise that are right for the truth
    inside = (solver.volume().detach() != 0).float()
    known = (KNOWN + 0.5 - torch.arange(BOX // 2 + 1)).clamp(0, 1)
    volume = weight_shells(truth.float(), known) * inside
    missing = (truth - volume) * inside
    spectrum, done = oversampled_spectrum(volume), 0.0
    for seconds in options.seconds:
        train(solver, spectrum, seconds - done)
        done = seconds
        first, second = (gradient(solver, volume) * inside for _ in range(2))
        shells = slice(KNOWN + 1, BOX // 2)
        towards, again = fsc(first + second, missing)[shells], fsc(first, second)[shells]
        yield {
            "critic": critic,
            "cpu_seconds": seconds,
            "updates": solver.critic_updates,
            "towards_truth": round(float(towards.mean()), 3),
            "again": round(float(again.mean()), 3),
            "towards_truth_by_shell": [round(float(one), 2) for one in towards],
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--critics", nargs="+", default=["dense"], choices=CRITICS)
    parser.add_argument("--seconds", nargs="+", type=float, default=[10.0, 30.0])
    parser.add_argument("--phantom", type=int, default=5)
    parser.add_argument("--symmetry", default="D2")
    parser.add_argument("--snr-db", type=float, default=-10.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for critic in options.critics:
        for row in measured(critic, options):
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    print(json.dumps({"rows": rows, **where_and_when()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
