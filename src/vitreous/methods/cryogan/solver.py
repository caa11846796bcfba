"""CryoGAN: a map whose simulated images a critic cannot tell from the real ones.

Algorithm 1 of H. Gupta, M. T. McCann, L. Donati, M. Unser, IEEE TCI 7 (2021), with appendices A.6.5
and A.6.6 of L. Donati's thesis (EPFL, 2020): a critic learns to tell real images from images that
the physics simulator makes of the present volume; the volume follows the critic's gradient. No pose
of an image is estimated.

What the papers leave open was chosen by measurement (``docs/ablations.md``): small boxes first, a
dense critic that is given matched-filtered images, a penalty at every fourth update, the noise
level started from the particles' backgrounds. ``paper_config`` holds the papers' own settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitreous.core.grid import frequency_grid, nyquist_disc
from vitreous.core.images import ImageCache, ImageSource
from vitreous.core.memory import in_memory
from vitreous.core.random import cpu_generator
from vitreous.methods.adversarial.losses import gradient_penalty
from vitreous.methods.adversarial.matched_filter import (
    at_box,
    background_share,
    matched_weight,
    seen_by_critic,
)
from vitreous.methods.adversarial.training import AdversarialTraining
from vitreous.methods.cryogan.config import CryoGanConfig
from vitreous.nn.critic import Critic
from vitreous.nn.volume import VoxelVolume
from vitreous.physics.projector import oversampled_spectrum
from vitreous.physics.simulator import Conditions, Simulator

__all__ = ["STREAMS", "CryoGan", "CryoGanConfig", "ImageSource"]

ROTATE_FROM = 0.6  # share of noise in the images
STREAMS = ("init", "batches", "poses", "ctf", "noise", "mix")


class CryoGan(AdversarialTraining):
    """Reconstruction of one half set, a :class:`~vitreous.optim.loop.Solver`.

    Args:
        images: the half set's particles, protein positive; row i belongs to row i of
            ``simulator.optics``.
        simulator: imaging conditions to draw from, at the particles' box and pixel size.
        config: settings.
        generators: one per name of :data:`STREAMS`, all on the simulator's device.
    """

    COUNTERS = (*AdversarialTraining.COUNTERS, "pieces")
    remedy = (
        "lower the learning rates (`learning_rate_volume`, `learning_rate_critic`, with "
        "`allow_config_change` if you `resume`) or look for broken particles"
    )

    def __init__(
        self,
        images: ImageSource,
        simulator: Simulator,
        config: CryoGanConfig,
        generators: Mapping[str, torch.Generator],
    ) -> None:
        super().__init__([stage.iterations for stage in config.stages], generators)
        self.images = images
        self.full_simulator = simulator
        self.config = config
        self.device = simulator.micrograph_id.device
        self.pieces = 1
        self._enter(0)

    # ---------------------------------------------------------------- stages

    @property
    def epoch(self) -> float:
        """Passes over the half set so far, counted in images shown to the critic."""
        return self.critic_updates * self.config.batch_size / len(self.images)

    def _advance(self) -> None:
        self._enter(self.stage + 1, self.result())

    def _enter(self, stage: int, start: Tensor | None = None) -> None:
        """Set up box, data, networks and optimisers of a stage from the last stage's volume."""
        c = self.config
        self.stage = stage
        n = c.stages[stage].box_size
        self.n = n
        self.simulator = at_box(self.full_simulator, n)
        self._cache = ImageCache(self.images, n, self.device)
        kx, ky = frequency_grid(n, device=self.device)
        self._squared_frequency = kx**2 + ky**2  # in cycles per pixel
        self._band = nyquist_disc(n, device=self.device)
        self.volume = VoxelVolume(n, c.symmetry, c.mask_fraction * n, start=start).to(self.device)
        self.average = self.volume.free.detach().clone()
        share = background_share(self._cache, self.device)
        self.rotates = share >= ROTATE_FROM if c.rotate is None else c.rotate
        self._weight = self._band
        if c.weighting == "matched":
            noise = self.generators["noise"]
            self._weight = matched_weight(self._cache, self.simulator, share, noise)
        self.log_signal, self.log_noise = (torch.zeros((), device=self.device) for _ in range(2))
        if c.noise_start == "background":
            self.log_signal, self.log_noise = self._matching_scales(share)
        self.log_noise.requires_grad_()
        self.log_signal.requires_grad_()
        self.critic = Critic(n, c.width, c.critic, generator=cpu_generator(self.generators["init"]))
        self.critic.to(self.device)
        self._scales = (self.log_signal, self.log_noise)
        adam = torch.optim.Adam
        self.optimisers = {
            "critic": adam(self.critic.parameters(), c.learning_rate_critic, betas=c.betas),
            "volume": adam([self.volume.free], c.learning_rate_volume, betas=c.betas),
            "scale": adam(self._scales, c.learning_rate_scale, betas=c.betas),
        }
        self._keep_snapshot()

    @torch.no_grad()
    def _matching_scales(self, noise_share: float) -> tuple[Tensor, Tensor]:
        """Return log scales at which signal and noise have their shares of the unit variance."""
        conditions = self._draw(256)
        transfer = self.simulator.ctf(conditions.row)
        clean = self._clean(oversampled_spectrum(self.volume()), conditions, transfer)
        noise = self.simulator.noise_like(conditions.row, generator=self.generators["noise"])
        deviations = [
            torch.fft.irfft2(torch.fft.rfft2(x) * self._band, s=(self.n, self.n)).std()
            for x in (clean, noise)
        ]
        signal, log_noise = torch.zeros_like(deviations[0]), -deviations[1].log()
        if deviations[0] > 0:
            signal = 0.5 * math.log(1 - noise_share) - deviations[0].log()
        return signal, log_noise + 0.5 * math.log(noise_share)

    # ---------------------------------------------------------------- images

    def _draw(self, count: int) -> Conditions:
        return self.simulator.draw(
            count, poses=self.generators["poses"], optics=self.generators["ctf"]
        )

    def _clean(self, spectrum: Tensor, conditions: Conditions, transfer: Tensor) -> Tensor:
        """Return noiseless images; 4 / n keeps grey values near 1 and equal at every box."""
        return self.simulator.clean(spectrum, conditions, transfer * (4.0 / self.n))

    def _simulated(self, spectrum: Tensor, count: int) -> Tensor:
        """Return simulated images (algorithm 2, with learned scales of signal and noise)."""
        conditions = self._draw(count)
        transfer = self.simulator.ctf(conditions.row)
        clean = self._clean(spectrum, conditions, transfer)
        noise = self.simulator.noise_like(conditions.row, generator=self.generators["noise"])
        images = self.log_signal.exp() * clean + self.log_noise.exp() * noise
        return self._seen(images, transfer)

    def _real(self, count: int) -> Tensor:
        """Return a random batch of particle images as the critic is given them."""
        generator = self.generators["batches"]
        row = torch.randint(
            len(self.images), (count,), generator=generator, device=generator.device
        )
        return self._seen(self._cache.read(row), self.simulator.ctf(row.to(self.device)))

    def _seen(self, images: Tensor, transfer: Tensor) -> Tensor:
        """Apply band limit, matched filter, blur, rotations and mirrors, then normalisation."""
        c = self.config
        factor = self._weight
        if c.weighting == "matched":
            factor = factor * transfer
        blur = c.smoothing_px * c.smoothing_decay**self.epoch
        if blur > 0:
            factor = factor * torch.exp(-2 * (math.pi * blur) ** 2 * self._squared_frequency)
        generator = self.generators["batches"]
        angle_rad, turn = None, 0
        if self.rotates:
            share = torch.rand(len(images), generator=generator, device=generator.device)
            angle_rad = 2 * math.pi * share
        if c.mirror:
            turn = int(torch.randint(8, (1,), generator=generator, device=generator.device))
        return seen_by_critic(images, factor, angle_rad=angle_rad, turn=turn)

    # ---------------------------------------------------------------- Algorithm 1

    def step(self) -> dict[str, float]:
        """Update the critic ``n_critic`` times and the volume once; return the statistics.

        Where memory runs out, batches are from then on split into twice as many pieces, with
        gradients added up, and the step is begun anew.
        """
        updates, self.pieces = in_memory(self._updates, self.pieces, self.config.batch_size)
        stats = {
            "iteration": float(self.iteration),
            "box": float(self.n),
            "epoch": self.epoch,
            "pieces": float(self.pieces),
            "signal": float(self.log_signal.detach().exp()),
            "noise": float(self.log_noise.detach().exp()),
            **updates,
        }
        self._end_step(stats)
        return stats

    def _updates(self, pieces: int) -> dict[str, float]:
        """Do the updates of one step, with batches in so many pieces."""
        self.pieces = pieces
        self._set_learning_rates()
        self.critic.requires_grad_(True)
        spectrum = oversampled_spectrum(self.volume())
        fixed = spectrum.detach()
        updates = [self._update_critic(fixed) for _ in range(self.config.n_critic)]  # lines 2 to 7
        critic_stats = {k: sum(one[k] for one in updates) / len(updates) for k in updates[0]}
        return critic_stats | self._update_volume(spectrum)  # lines 8 and 9

    def _batch_pieces(self) -> list[int]:
        """Return the sizes of the pieces of a batch."""
        size, remainder = divmod(self.config.batch_size, self.pieces)
        return [size + (i < remainder) for i in range(self.pieces)]

    def _update_critic(self, spectrum: Tensor) -> dict[str, float]:
        c, wasserstein = self.config, 0.0
        optimiser = self.optimisers["critic"]
        optimiser.zero_grad(set_to_none=True)
        for m in self._batch_pieces():
            share = m / c.batch_size
            with torch.no_grad():
                real = self._real(m)
                simulated = self._simulated(spectrum, m)
            scores = self.critic(torch.cat([real, simulated]))
            loss = scores[m:].mean() - scores[:m].mean()
            wasserstein -= share * float(loss.detach())
            if self.critic_updates % c.penalty_every == 0:
                mix = self.generators["mix"]
                alpha = torch.rand(m, generator=mix, device=mix.device)
                penalty = gradient_penalty(self.critic, real, simulated, alpha)
                loss = loss + c.penalty * c.penalty_every * penalty
            (share * loss).backward()
        limit = c.clip_critic * self._clip_ramp()
        norm = torch.nn.utils.clip_grad_norm_(self.critic.parameters(), limit)
        if bool(torch.isfinite(norm)):
            optimiser.step()
        self.critic_updates += 1
        return {"wasserstein": wasserstein, "critic_gradient": float(norm)}

    def _update_volume(self, spectrum: Tensor) -> dict[str, float]:
        c, total = self.config, 0.0
        self.critic.requires_grad_(False)
        for name in ("volume", "scale"):
            self.optimisers[name].zero_grad(set_to_none=True)
        shared = spectrum.detach().requires_grad_()  # so that the padding is undone only once
        for m in self._batch_pieces():
            loss = -(m / c.batch_size) * self.critic(self._simulated(shared, m)).mean()
            loss.backward()
            total += float(loss.detach())
        torch.autograd.backward(spectrum, shared.grad)
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in (self.volume.free, *self._scales) if p.grad is not None]
        )
        if bool(torch.isfinite(norm)):
            limit = c.clip_volume * self._clip_ramp()
            torch.nn.utils.clip_grad_value_(self.volume.free, limit)
            torch.nn.utils.clip_grad_value_(self._scales, c.clip_scale)
            self.optimisers["volume"].step()
            self.optimisers["scale"].step()
            self._constrain()
        return {"volume_loss": total, "volume_gradient": float(norm)}

    @torch.no_grad()
    def _constrain(self) -> None:
        """Apply the papers' clipping constraint (A.6.5), then update the running average."""
        c, free = self.config, self.volume.free
        if c.floor_centre is not None:
            radius = self.volume.radius_px / (c.mask_fraction * self.n)
            share = c.floor_centre * self.progress + c.floor_edge * radius
            free.copy_(torch.maximum(free, -share * free.max().clamp_min(0)))
        self.average.lerp_(free.detach(), 1 - c.averaging)

    def _clip_ramp(self) -> float:
        epochs = self.config.clip_epochs
        return 1.0 if epochs <= 0 else max(1e-6, min(1.0, self.epoch / epochs))

    def _set_learning_rates(self) -> None:
        c = self.config
        decay = c.learning_rate_end**self.progress
        begun = self.iteration - sum(stage.iterations for stage in c.stages[: self.stage])
        warm = min(1.0, (begun + 1) / max(1, c.warm_up))
        rates = {
            "critic": c.learning_rate_critic,
            "volume": c.learning_rate_volume * warm,
            "scale": c.learning_rate_scale,
        }
        for name, rate in rates.items():
            self.optimisers[name].param_groups[0]["lr"] = rate * decay

    # ---------------------------------------------------------------- result, state

    @torch.no_grad()
    def result(self) -> Tensor:
        """Return the averaged volume ``(n, n, n)`` at the present box.

        Once :attr:`done`, in units of the noise deviation; before, as the parameters are.
        """
        scale = torch.exp(self.log_signal - self.log_noise) if self.done else 1.0
        volume: Tensor = self.volume(self.average)
        return volume * scale

    def _modules(self) -> dict[str, nn.Module]:
        return {"critic": self.critic}

    def _other_tensors(self) -> dict[str, Tensor]:
        return {
            "volume": self.volume.free.detach(),
            "average": self.average,
            "weight": self._weight,
            "log_signal": self.log_signal.detach(),
            "log_noise": self.log_noise.detach(),
        }

    def _load_other_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.volume.free.copy_(tensors["volume"])
        self.average.copy_(tensors["average"])
        self._weight = tensors["weight"].to(self.device)
        self.log_signal.copy_(tensors["log_signal"])
        self.log_noise.copy_(tensors["log_noise"])
