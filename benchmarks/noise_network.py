"""Algorithm 5 of the thesis: the noise network finds a planted noise level. Prints JSON.

One clean image of 64 px, a projection of a built-in phantom with unit deviation, is all the signal
there is; real images are this one plus fresh white noise of deviation 1. An image generator
(latent 10), a noise network (latent 100) and a shift-invariant critic are trained against each
other; nobody is told the level. The level found is the root of the mean of the squared scales over
pixels and latent vectors. The thesis finds 1.03 for 1 after 10,000 steps at batch 1; these are
fewer steps on larger batches.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch
from torch import Tensor

from _circumstances import where_and_when
from vitreous.core.rotation import random_rotations
from vitreous.data.phantoms import protein_phantom
from vitreous.metrics.image import psnr
from vitreous.models.encoder import SortingCritic
from vitreous.models.generator2d import ImageGenerator
from vitreous.models.noise_net import NoiseNetwork, add_noise, diversity_loss
from vitreous.physics.projector import project
from vitreous.solvers.losses import gradient_penalty

PENALTY, PENALTY_EVERY = 10.0, 4


def clean_image(box: int) -> Tensor:
    """A projection with mean 0 and deviation 1."""
    rotation = random_rotations(1, generator=torch.Generator().manual_seed(7))
    image = project(protein_phantom(box, 256 / box, seed=3), rotation)[0]
    return (image - image.mean()) / image.std()


class Game:
    """Generator, noise network and critic of algorithm 5."""

    def __init__(self, image: Tensor, level: float, args: argparse.Namespace) -> None:
        self.image, self.level, self.batch = image, level, args.batch
        self.diversity = args.diversity
        self.random = torch.Generator().manual_seed(args.seed)
        box = image.shape[-1]
        self.generator = ImageGenerator(box, 10, 8, batch_norm=False, generator=self.random)
        self.noise = NoiseNetwork(box, generator=self.random)
        self.critic = SortingCritic(box, 8, generator=self.random)
        self.makers = torch.optim.Adam(self.generator.parameters(), args.rate, betas=(0.5, 0.9))
        self.louder = torch.optim.Adam(self.noise.parameters(), args.rate_noise, betas=(0.5, 0.9))
        self.judge = torch.optim.Adam(self.critic.parameters(), args.rate, betas=(0.5, 0.9))
        self.rates = {
            self.makers: args.rate,
            self.louder: args.rate_noise,
            self.judge: args.rate_critic,
        }

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def step(self, i: int, steps: int) -> None:
        """One update of the critic, one of the generators."""
        for optimiser, rate in self.rates.items():
            optimiser.param_groups[0]["lr"] = rate * 0.03 ** (i / steps)
        b, shape = self.batch, (self.batch, *self.image.shape)
        real = self.image + self.level * self._normal(*shape)
        z = self._normal(b, self.noise.latent)
        scale = self.noise(z)
        made = add_noise(self.generator(self._normal(b, 10)), scale, self._normal(*shape))
        self.critic.requires_grad_(True)
        self.judge.zero_grad()
        loss = self.critic(made.detach()).mean() - self.critic(real).mean()
        if i % PENALTY_EVERY == 0:
            alpha = torch.rand(b, generator=self.random)
            slope = gradient_penalty(self.critic, real, made.detach(), alpha)
            loss = loss + PENALTY * PENALTY_EVERY * slope
        loss.backward()
        self.judge.step()
        self.critic.requires_grad_(False)
        self.makers.zero_grad()
        self.louder.zero_grad()
        h = b // 2
        spread = diversity_loss(scale[:h], scale[h : 2 * h], z[:h], z[h : 2 * h])
        (-self.critic(made).mean() - self.diversity * spread).backward()
        self.makers.step()
        self.louder.step()

    @torch.no_grad()
    def found(self) -> float:
        """The noise level as the network has it."""
        scale = self.noise(torch.randn(256, 100, generator=torch.Generator().manual_seed(0)))
        return float(scale.square().mean().sqrt())

    @torch.no_grad()
    def signal(self) -> Tensor:
        """The mean image of the generator."""
        z = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
        return self.generator(z).mean(0)

    @torch.no_grad()
    def spread(self) -> float:
        """Deviation of the generator's images over latent vectors: noise it takes for signal."""
        z = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
        return float(self.generator(z).std(0).square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--rate-noise", type=float, default=5e-4)
    parser.add_argument("--rate-critic", type=float, default=3e-3)
    parser.add_argument("--diversity", type=float, default=0.02)
    parser.add_argument("--levels", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    image = clean_image(args.box)
    rows = []
    for level in args.levels:
        start = time.perf_counter()
        game = Game(image, level, args)
        course = []
        for i in range(args.steps):
            if i % max(1, args.steps // 10) == 0:
                course.append(round(game.found(), 4))
            game.step(i, args.steps)
        found = game.found()
        rows.append(
            {
                "planted": level,
                "found": round(found, 4),
                "error": round(found / level - 1, 4),
                "psnr_of_signal_db": round(float(psnr(game.signal(), image, 2)), 2),
                "spread_of_signal": round(game.spread(), 4),
                "seconds": round(time.perf_counter() - start, 1),
                "course": course,
            }
        )
    result = where_and_when() | vars(args) | {"rows": rows}
    result["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
