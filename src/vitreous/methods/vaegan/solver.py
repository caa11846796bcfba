"""VAE-GAN of mixed particles, without poses and without the number of structures.

Algorithms 6 and 7 and eqs. (5) to (7) of the thesis on noise-robust VAE-GANs for cryo-EM and of the
article at its end. A generator turns a latent vector and a pose into the spectrum of an image; the
simulator adds shift, CTF and noise; a critic compares simulated with real images, and an encoder
gives every real image a latent vector whose volume looks like it to the critic. No image is given a
pose: the reconstruction of an image has a random one, so the encoder can only transmit the
structure.

A reconstruction has the CTF of its image. The simulated images of the last critic update are used
for the generator too, under the updated critic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitreous.core.fourier import fourier_resize
from vitreous.core.images import ImageSource, normalise_images
from vitreous.core.random import cpu_generator
from vitreous.methods.adversarial.losses import (
    divergence_from_normal,
    gaussian_nll,
    gradient_penalty,
)
from vitreous.methods.adversarial.training import AdversarialTraining
from vitreous.methods.vaegan.config import SortingStage, VaeGanConfig
from vitreous.methods.vaegan.image_model import ImageModel
from vitreous.methods.vaegan.networks import encoder_box, make_critic, make_encoder
from vitreous.nn.encoder import DenseEncoder, Encoder
from vitreous.nn.layers import polar_view
from vitreous.nn.pose_network import coverage
from vitreous.physics.simulator import Simulator

__all__ = ["STREAMS", "SortingStage", "VaeGan", "VaeGanConfig"]

STREAMS = ("init", "batches", "poses", "ctf", "noise", "mix", "latent")
ENCODER_BATCH = 4  # times the batch: images of a step in which only the encoder learns
MAX_DIVERSITY = 0.5  # of the noise, eq. (39), beyond which it is not rewarded
VIEWS = 8  # mirrors and quarter turns that an embedding is averaged over
_PIECE = 256


@dataclass
class _Batch:
    """Real images, and simulated ones: drawn from the prior first, then reconstructions if any."""

    real: Tensor
    simulated: Tensor
    latent: Tensor
    mean: Tensor | None  # of the encoder, for the real images
    log_variance: Tensor | None
    diversity: Tensor


class VaeGan(AdversarialTraining):
    """Solver of the VAE-GAN, a :class:`~vitreous.methods.hetero.class_maps.LatentModel`.

    Args:
        images: particles, protein positive; row i belongs to row i of ``simulator.optics``.
        simulator: imaging conditions to draw from, at the particles' box and pixel size.
        config: settings.
        generators: one per name of :data:`STREAMS`, all on the simulator's device.
    """

    COUNTERS = (*AdversarialTraining.COUNTERS, "varied")

    def __init__(
        self,
        images: ImageSource,
        simulator: Simulator,
        config: VaeGanConfig,
        generators: Mapping[str, torch.Generator],
    ) -> None:
        super().__init__([stage.iterations for stage in config.stages], generators)
        self.images, self.config = images, config
        self.device = simulator.micrograph_id.device
        self.varied = int(config.latent_from == 0)
        self.imaging = ImageModel(images, simulator, config, self.generators)
        self.encoder: Encoder | DenseEncoder | None = None
        if config.latent:
            self.encoder = make_encoder(config, cpu_generator(self.generators["init"]))
            self.encoder.to(self.device)
        self._enter(0)

    @property
    def sorting(self) -> bool:
        """Whether the homogeneous iterations are over, so that latent vectors are used."""
        return self.encoder is not None and self.progress >= self.config.latent_from

    @property
    def encoder_alone(self) -> bool:
        """Whether the last iterations are reached, which train the encoder alone."""
        share = self.config.encoder_only
        return self.sorting and share > 0 and self.progress >= 1 - share

    @property
    def box_size(self) -> int:
        """Edge of the maps at the current stage, pixels."""
        return self.config.stages[self.stage].box_size

    def _enter(self, stage: int) -> None:
        """Set box size, band, critic and optimisers of a stage; other networks stay as they are."""
        c, adam = self.config, torch.optim.Adam
        self.stage = stage
        self.imaging.enter(stage)
        self.critic = make_critic(c, self.box_size, cpu_generator(self.generators["init"]))
        self.critic.to(self.device)
        self.optimisers = {
            "critic": adam(self.critic.parameters(), c.learning_rate_critic, betas=c.betas),
            "generator": adam(self.imaging.parameter_groups(), betas=c.betas),
        }
        if self.encoder is not None:
            self.optimisers["encoder"] = adam(
                self.encoder.parameters(), c.learning_rate_encoder, betas=c.betas
            )
        self._rates = {
            name: [float(group["lr"]) for group in optimiser.param_groups]
            for name, optimiser in self.optimisers.items()
        }
        self._keep_snapshot()

    def _encode(self, encoder: Encoder | DenseEncoder, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance for images as the critic sees them."""
        m = encoder_box(self.config)
        if images.shape[-1] != m:
            images = normalise_images(fourier_resize(images, m, 2))
        if self.config.encoder_view == "polar":
            images = polar_view(images)
        posterior: tuple[Tensor, Tensor] = encoder(images)
        return posterior

    def _turn(self) -> int:
        """Draw the mirror and quarter turn of all images of a step."""
        if not self.config.mirror:
            return 0
        stream = self.generators["batches"]
        return int(torch.randint(VIEWS, (1,), generator=stream, device=stream.device))

    def _batch(self) -> _Batch:
        """Return real images, as many drawn from the prior, as many reconstructions if used."""
        b, stream = self.config.batch_size, self.generators["batches"]
        row = torch.randint(len(self.images), (b,), generator=stream, device=stream.device)
        row, turn = row.to(self.device), self._turn()
        reconstructed = self.sorting and self.config.perceptual > 0
        conditions = self.imaging.draw(2 * b if reconstructed else b)
        real = self.imaging.real(row, turn)
        mean = log_variance = None
        latent = torch.zeros(b, self.imaging.generator.latent, device=self.device)
        if self.encoder is not None and self.sorting:
            mean, log_variance = self._encode(self.encoder, real)
            latent = self.imaging.normal(len(conditions.row), self.config.latent)
        if reconstructed and mean is not None and log_variance is not None:
            conditions.row[b:] = row
            encoded = mean + torch.exp(0.5 * log_variance) * latent[b:]  # eq. (4)
            latent = torch.cat([latent[:b], encoded])
        simulated, diversity = self.imaging.simulated(latent, conditions, turn)
        return _Batch(real, simulated, latent, mean, log_variance, diversity)

    def step(self) -> dict[str, float]:
        """Update the critic ``n_critic`` times, then generator and encoder; return statistics."""
        self._set_learning_rates()
        if self.encoder is not None and self.sorting and not self.varied:
            self.imaging.vary()
            self.varied = 1
        if self.encoder is not None and self.encoder_alone:
            stats = self._update_encoder(self.encoder)
            self._end_step(stats)
            return stats
        for _ in range(self.config.n_critic - 1):
            with torch.no_grad():
                batch = self._batch()
            self._update_critic(batch)
        batch = self._batch()
        stats = {
            "iteration": float(self.iteration),
            "box": float(self.box_size),
            "signal": float(self.imaging.log_signal.detach().exp()),
            "noise": float(self.imaging.log_noise.detach().exp()),
            **self._update_critic(batch),
            **self._update_generator(batch),
        }
        if self.config.camera == "learned":
            covered = coverage(self.imaging.moment)
            stats["camera_coverage"] = covered
            stats["camera_collapsed"] = float(covered < self.config.least_coverage)
        self._end_step(stats)
        return stats

    def _update_critic(self, batch: _Batch) -> dict[str, float]:
        """Update the critic, eq. (7); half of the simulated images are reconstructions."""
        c, b = self.config, len(batch.real)
        self.critic.requires_grad_(True)
        skip = b // 2 if len(batch.simulated) == 2 * b else 0
        simulated = batch.simulated.detach()[skip : skip + b]
        scores = self.critic(torch.cat([batch.real, simulated]))
        loss = scores[b:].mean() - scores[:b].mean()
        wasserstein = -float(loss.detach())
        if self.critic_updates % c.penalty_every == 0 and c.penalty > 0:
            mix = self.generators["mix"]
            alpha = torch.rand(b, generator=mix, device=mix.device).to(self.device)
            penalty = gradient_penalty(self.critic, batch.real, simulated, alpha)
            loss = loss + c.penalty * c.penalty_every * penalty
        self.critic_updates += 1
        parameters = list(self.critic.parameters())
        norm = self._apply("critic", parameters, torch.autograd.grad(loss, parameters))
        return {"wasserstein": wasserstein, "critic_gradient": norm}

    def _update_generator(self, batch: _Batch) -> dict[str, float]:
        """Update generator and encoder, eqs. (5) and (6), each loss for its own network."""
        c, b = self.config, len(batch.real)
        self.critic.requires_grad_(False)
        stats: dict[str, float] = {}
        features, vector, scores = self.critic.features_and_score(batch.simulated)
        loss = -scores.mean() - c.diversity * batch.diversity.clamp(max=MAX_DIVERSITY)
        encoder_loss = None
        if batch.mean is not None and batch.log_variance is not None and self.encoder is not None:
            divergence = divergence_from_normal(batch.mean, batch.log_variance)
            encoder_loss = c.kl * divergence
            stats["kl"] = float(divergence.detach())
            if len(batch.simulated) == 2 * b:
                with torch.no_grad():
                    real = self.critic.features_and_score(batch.real)
                on_map = c.perceptual_on == "map"
                own, target = (features, real[0]) if on_map else (vector, real[1])
                perceptual = (own[b:] - target).abs().mean()
                encoder_loss = encoder_loss + perceptual
                loss = loss + c.perceptual * perceptual  # KL has no gradient here
                stats["perceptual"] = float(perceptual.detach())
            if c.latent_loss > 0:
                nll = gaussian_nll(
                    batch.latent[:b], *self._encode(self.encoder, batch.simulated[:b])
                )
                encoder_loss = encoder_loss + c.latent_loss * nll
                loss = loss + c.latent_loss * nll
                stats["latent_loss"] = float(nll.detach())
        gradients: list[Tensor | None] = []
        weights: list[nn.Parameter] = []
        if encoder_loss is not None and self.encoder is not None:
            weights = list(self.encoder.parameters())
            gradients = list(torch.autograd.grad(encoder_loss, weights, retain_graph=True))
        parameters = [p for g in self.optimisers["generator"].param_groups for p in g["params"]]
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        stats["generator_loss"] = float(loss.detach())
        if weights:
            stats["encoder_gradient"] = self._apply("encoder", weights, gradients)
        stats["generator_gradient"] = self._apply("generator", parameters, slopes)
        self.imaging.follow()
        return stats

    def _update_encoder(self, encoder: Encoder | DenseEncoder) -> dict[str, float]:
        """Update the encoder alone by the latent vectors of simulated images."""
        count = ENCODER_BATCH * self.config.batch_size
        turn = self._turn()
        with torch.no_grad():
            latent = self.imaging.normal(count, self.config.latent)
            conditions = self.imaging.draw(count)
            simulated, _ = self.imaging.simulated(latent, conditions, turn, averaged=True)
        nll = gaussian_nll(latent, *self._encode(encoder, simulated))
        weights = list(encoder.parameters())
        norm = self._apply("encoder", weights, torch.autograd.grad(nll, weights))
        return {
            "iteration": float(self.iteration),
            "box": float(self.box_size),
            "latent_loss": float(nll.detach()),
            "encoder_gradient": norm,
        }

    def _apply(
        self, name: str, parameters: Sequence[Tensor], slopes: Sequence[Tensor | None]
    ) -> float:
        """Do an optimiser's step unless the gradient is not finite; return the gradient's norm."""
        norm = torch.nn.utils.get_total_norm([s for s in slopes if s is not None])
        if bool(torch.isfinite(norm)):
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.grad = slope
            self.optimisers[name].step()
            for parameter in parameters:
                parameter.grad = None
        return float(norm)

    def _set_learning_rates(self) -> None:
        c = self.config
        decay = c.learning_rate_end**self.progress
        begun = self.iteration - sum(stage.iterations for stage in c.stages[: self.stage])
        warm = min(1.0, (begun + 1) / max(1, c.warm_up))
        for name, optimiser in self.optimisers.items():
            factor = decay * (warm if name == "generator" else 1.0)
            if name == "encoder" and c.encoder_only > 0:  # decays while it is trained alone
                alone = max(0.0, self.progress - 1 + c.encoder_only) / c.encoder_only
                factor = c.learning_rate_end**alone
            for group, rate in zip(optimiser.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor

    @torch.no_grad()
    def embed(self, rows: Tensor) -> Tensor:
        """Return latent means, float32 ``(m, d)`` on the CPU, of particles ``rows (m,)``.

        They are averaged over mirrors and quarter turns if the model was trained on them, and zero,
        ``(m, 1)``, in a homogeneous run. No random numbers are drawn.
        """
        if self.encoder is None or len(rows) == 0:
            return torch.zeros(len(rows), self.config.latent or 1)
        encoder, batches = self.encoder.eval(), []
        views = VIEWS if self.config.mirror else 1
        for piece in torch.split(rows, _PIECE):
            row = piece.to(self.device)
            total = torch.zeros(len(row), self.config.latent, device=self.device)
            for turn in range(views):
                total += self._encode(encoder, self.imaging.real(row, turn, still=True))[0]
            batches.append((total / views).cpu())
        encoder.train()
        return torch.cat(batches)

    def volume(self, latent: Tensor) -> Tensor:
        """Return the map ``(n, n, n)`` of a latent vector ``(d,)``, from the averaged weights.

        In two dimensions it is an image ``(n, n)``.
        """
        return self.imaging.volume(latent)

    def result(self) -> "VaeGan":
        """Return the model itself, which embeds images and makes maps."""
        return self

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {"": self.imaging, "critic": self.critic}
        return modules if self.encoder is None else modules | {"encoder": self.encoder}
