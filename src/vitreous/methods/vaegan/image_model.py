"""Simulated and real images of the VAE-GAN, as its critic sees them."""

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitreous.core.grid import frequency_grid
from vitreous.core.images import ImageCache, ImageSource
from vitreous.core.random import cpu_generator
from vitreous.methods.adversarial.matched_filter import (
    at_box,
    background_share,
    matched_weight,
    seen_by_critic,
)
from vitreous.methods.em.centring import centred, centring_template
from vitreous.methods.vaegan.config import VaeGanConfig
from vitreous.methods.vaegan.networks import make_generator
from vitreous.nn.basis import BasisGenerator
from vitreous.nn.noise_network import NoiseNetwork, add_noise, diversity_loss
from vitreous.nn.pose_network import LearnedPoseDistribution, orientation_moment
from vitreous.physics.simulator import Conditions, Simulator

TEMPLATE_IMAGES = 2000
CAMERA_MEMORY = 0.95  # of the running moment of drawn orientations


class ImageModel(nn.Module):
    """Generator, noise network, pose distribution and scales, with the simulator's imaging model.

    The arguments are those of :class:`~vitreous.methods.vaegan.solver.VaeGan`.
    """

    simulator: Simulator
    weight: Tensor
    moment: Tensor
    template: Tensor | None
    radius: float

    def __init__(
        self,
        images: ImageSource,
        simulator: Simulator,
        config: VaeGanConfig,
        generators: Mapping[str, torch.Generator],
    ) -> None:
        super().__init__()
        self.config, self.streams = config, generators
        self._images, self._full = images, simulator
        self.device = device = simulator.micrograph_id.device
        first, init = config.stages[0].box_size, generators["init"]
        self.generator = make_generator(config, cpu_generator(init)).to(device)
        self.average = copy.deepcopy(self.generator)
        self.noise_network = NoiseNetwork(first, generator=cpu_generator(init)).to(device)
        self.camera = LearnedPoseDistribution(generator=cpu_generator(init)).to(device)
        self.log_signal = nn.Parameter(torch.zeros((), device=device))
        self.log_noise = nn.Parameter(torch.zeros((), device=device))
        self.register_buffer("weight", None)
        self.register_buffer("moment", torch.eye(4, device=device) / 4)
        self.register_buffer("template", None)

    def enter(self, stage: int) -> None:
        """Set box size, band and data of a stage; the networks stay as they are."""
        c = self.config
        n, device = c.stages[stage].box_size, self.device
        self.simulator = at_box(self._full, n)
        self._cache = ImageCache(self._images, n, self.device)
        self.radius = c.stages[stage].band * n / 2
        kx, ky = frequency_grid(n, 1.0 / n, device=device)
        self._band = ((kx**2 + ky**2) < self.radius**2).to(torch.float32)
        for source in (self.generator, self.average):
            source.set_box_size(n)
            if stage == 0 and c.latent_from > 0 and isinstance(source, BasisGenerator):
                source.freeze_variation()
        share = background_share(self._cache, self.device)
        self.weight = self._band.clone()
        if c.weighting == "matched":
            stream = self.streams["noise"]
            self.weight = self._band * matched_weight(self._cache, self.simulator, share, stream)
        self.template = None
        if c.invariant and "dense" in (c.critic, c.encoder):
            rows = torch.arange(len(self._images), device=device)
            rows = rows[:: max(1, len(rows) // TEMPLATE_IMAGES)]
            self.template = centring_template(self.real(rows, 0, still=True))
        self._match_scales(share, first=stage == 0)

    @torch.no_grad()
    def _match_scales(self, noise_share: float, *, first: bool) -> None:
        """Set the scales so that the noise has its share of the variance of the images.

        The scale of the signal is set at the first stage only; then it is learned.
        """
        conditions = self.draw(256)
        transfer = self.simulator.ctf(conditions.row)
        latent = self.normal(256, self.generator.latent)
        unit = self.simulator.noise_like(conditions.row, generator=self.streams["noise"])
        if self.config.noise == "network":
            z = self.normal(256, self.noise_network.latent)
            unit = unit * self.noise_network(z, unit.shape[-1])
        signal, noise = (
            torch.fft.irfft2(torch.fft.rfft2(x) * self._band, s=x.shape[-2:]).std()
            for x in (self._clean(latent, conditions, transfer), unit)
        )
        deviation = math.sqrt(1 - noise_share)
        if first and signal > 0:
            self.log_signal.copy_(math.log(deviation) - signal.log())
        elif signal > 0:
            deviation = float(self.log_signal.exp() * signal)
        ratio = math.sqrt(noise_share / (1 - noise_share))
        self.log_noise.copy_(math.log(deviation * ratio) - noise.log())

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers from the stream of latent vectors."""
        stream = self.streams["latent"]
        return torch.randn(shape, generator=stream, device=stream.device).to(self.device)

    def draw(self, count: int) -> Conditions:
        """Draw pose, shift and CTF of simulated images."""
        conditions = self.simulator.draw(
            count, poses=self.streams["poses"], optics=self.streams["ctf"]
        )
        if self.config.camera == "learned":
            rotations = self.camera(self.normal(count, 6))
            self.moment = self.moment.lerp(orientation_moment(rotations), 1 - CAMERA_MEMORY)
            conditions = dataclasses.replace(conditions, rotations=rotations)
        return conditions

    def _clean(
        self, latent: Tensor, conditions: Conditions, transfer: Tensor, *, averaged: bool = False
    ) -> Tensor:
        """Return noiseless images, before the learned scale."""
        source = self.average if averaged else self.generator
        slices = source.slices(latent, conditions.rotations, radius=self.radius)
        return self.simulator.clean_slices(slices, conditions, transfer)

    def simulated(
        self, latent: Tensor, conditions: Conditions, turn: int, *, averaged: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return images ``(b, n, n)`` as the critic sees them, and the diversity of their noise."""
        c = self.config
        transfer = self.simulator.ctf(conditions.row)
        images = self.log_signal.exp() * self._clean(
            latent, conditions, transfer, averaged=averaged
        )
        diversity = images.new_zeros(())
        if c.noise != "none":
            unit = self.simulator.noise_like(conditions.row, generator=self.streams["noise"])
            scale = self.log_noise.exp()
            if c.noise == "network":
                z = self.normal(len(latent), self.noise_network.latent)
                network, half = self.noise_network(z, images.shape[-1]), len(z) // 2
                scale = scale * network
                # the critic sees normalised images: a common factor would be no diversity
                network = network / network.mean().clamp_min(1e-6)
                diversity = diversity_loss(
                    network[:half], network[half : 2 * half], z[:half], z[half : 2 * half]
                )
            images = add_noise(images, scale, unit, c.noise_kind)
        return self._seen(images, transfer, turn), diversity

    def real(self, row: Tensor, turn: int, *, still: bool = False) -> Tensor:
        """Return the particles ``row (b,)`` as the critic sees them.

        They are rotated as configured unless ``still``.
        """
        return self._seen(self._cache.read(row), self.simulator.ctf(row), turn, still=still)

    def _seen(self, images: Tensor, transfer: Tensor, turn: int, *, still: bool = False) -> Tensor:
        c, angle_rad = self.config, None
        factor = self.weight * transfer if c.weighting == "matched" else self.weight
        if c.rotate:
            stream = self.streams["batches"]
            share = torch.zeros(len(images), device=stream.device)
            if not still:
                share = torch.rand(len(images), generator=stream, device=stream.device)
            angle_rad = 2 * math.pi * share.to(self.device)
        seen = seen_by_critic(images, factor, angle_rad=angle_rad, turn=turn)
        return seen if self.template is None else centred(seen, self.template)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters of the generator's optimiser, by group."""
        c = self.config
        rate = c.learning_rate_generator
        groups = [{"params": list(self.generator.parameters()), "lr": rate}]
        if c.noise == "network":
            groups.append({"params": list(self.noise_network.parameters()), "lr": rate})
        if c.camera == "learned":
            groups.append({"params": list(self.camera.parameters()), "lr": rate})
        scales = [self.log_signal] + [self.log_noise] * (c.noise == "scale")
        return [*groups, {"params": scales, "lr": c.learning_rate_scale}]

    def vary(self) -> None:
        """Start the maps other than the mean, from the averaged mean."""
        if isinstance(self.generator, BasisGenerator) and isinstance(self.average, BasisGenerator):
            self.generator.load_state_dict(self.average.state_dict())
            self.generator.start_variation(cpu_generator(self.streams["init"]))
            self.average.load_state_dict(self.generator.state_dict())

    @torch.no_grad()
    def follow(self) -> None:
        """Update the running average of the generator ("GAN unrolling")."""
        ours, theirs = self.average, self.generator
        for average, current in zip(ours.parameters(), theirs.parameters(), strict=True):
            average.lerp_(current, 1 - self.config.averaging)
        for kept, now in zip(ours.buffers(), theirs.buffers(), strict=True):
            kept.copy_(now)

    @torch.no_grad()
    def volume(self, latent: Tensor) -> Tensor:
        """Return the map of a latent vector ``(d,)`` from the averaged weights."""
        source = self.average.eval()
        volume = source.volume(latent.to(self.device, torch.float32), radius=self.radius)
        source.train()
        return volume * self.log_signal.exp()
