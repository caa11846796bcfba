"""Settings of CryoGAN: one box after another, and Algorithm 1 at each of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from vitreous.methods.adversarial.settings import BatchSize, BelowOne, Count, Rate, Share, Steps
from vitreous.optim.admm_config import STRICT


@dataclass(frozen=True, config=STRICT)
class TrainingStage:
    """Part of the run at one box size.

    Args:
        box_size: edge of images and volume in pixels; the field of view never changes.
        iterations: volume updates.
    """

    box_size: Annotated[int, Field(ge=8, le=4096)]
    iterations: PositiveInt


@dataclass(frozen=True, config=STRICT)
class CryoGanConfig:
    """Settings of Algorithm 1; the defaults are for the command line's ``abinit``.

    Args:
        stages: boxes and iterations, coarse to fine.
        symmetry: point group, imposed by construction.
        batch_size: M of eq. (14).
        n_critic: critic updates per volume update.
        penalty: lambda of eq. (13); the norm is over all pixels of an image.
        penalty_every: take the penalty at every so many critic updates, times as many.
        critic, width: kind and size of the network, see :class:`~vitreous.nn.critic.Critic`.
        learning_rate_critic, learning_rate_volume, learning_rate_scale: Adam steps at the start.
        learning_rate_end: factor reached exponentially at the end of the run.
        betas: of Adam.
        warm_up: volume updates over which its step grows to full size.
        mask_fraction: radius of the spherical mask, in box sizes.
        floor_centre, floor_edge: clipping constraint. At distance r the volume may be no lower
            than ``-(floor_centre t + floor_edge r / R)`` times its maximum, t the share of the run
            that is done, R the mask's radius; None: no constraint.
        clip_volume, clip_critic, clip_scale: bounds on the gradient per voxel, on the norm of the
            critic's and on that of the scales; the first two grow from 0 over ``clip_epochs``.
        noise_start: "background" estimates the share of noise from the particles' corners;
            "one" starts both scales at 1.
        weighting: "matched" filters every image, real and simulated alike, by its own CTF and by
            the data's signal and noise in each shell
            (:func:`~vitreous.methods.adversarial.matched_filter.matched_weight`), so that the
            critic spends itself where there is signal; "none" does not.
        mirror: mirror and transpose batches, real and simulated alike, at random, which makes
            eight real images of one; the mirror of a projection is a projection too.
        rotate: rotate every image, real and simulated alike, by a random angle in its plane, so
            that the critic cannot memorise the real images; None: where 60 % or more of the images'
            variance is noise.
        smoothing_px: deviation of the Gaussian that blurs real and simulated images, 0 for none;
            smoothing_decay: factor per epoch.
        averaging: of the volume over updates (exponential, 0 for none).

    >>> CryoGanConfig(stages=[{"box_size": 16, "iterations": 200}], symmetry="D2").iterations
    200
    """

    stages: Annotated[tuple[TrainingStage, ...], Field(min_length=1)]
    symmetry: str = "C1"
    batch_size: BatchSize = 32
    n_critic: Count = 1
    penalty: NonNegativeFloat = 10.0
    penalty_every: Count = 4
    critic: Literal["dense", "strided", "paper"] = "dense"
    width: Count = 192
    learning_rate_critic: Rate = 6e-3
    learning_rate_volume: Rate = 0.1
    learning_rate_scale: Rate = 1e-3
    learning_rate_end: Share = 0.05
    betas: tuple[BelowOne, BelowOne] = (0.5, 0.9)
    warm_up: Steps = 20
    mask_fraction: Share = 0.45
    floor_centre: NonNegativeFloat | None = 0.1
    floor_edge: NonNegativeFloat = 0.1
    clip_volume: PositiveFloat = 1e3
    clip_critic: PositiveFloat = 1e6
    clip_scale: PositiveFloat = 10.0
    clip_epochs: NonNegativeFloat = 0.0
    noise_start: Literal["background", "one"] = "background"
    weighting: Literal["matched", "none"] = "matched"
    mirror: bool = True
    rotate: bool | None = None
    smoothing_px: NonNegativeFloat = 0.0
    smoothing_decay: Annotated[float, Field(ge=0, le=1)] = 0.98
    averaging: BelowOne = 0.999

    @property
    def iterations(self) -> int:
        """Volume updates of the whole run."""
        return sum(stage.iterations for stage in self.stages)
