"""Settings of the VAE-GAN for mixed particles."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from vitreous.methods.adversarial.settings import BatchSize, BelowOne, Count, Rate, Share
from vitreous.optim.admm_config import STRICT

LARGEST_BOX = 16  # of maps and images, by default


@dataclass(frozen=True, config=STRICT)
class SortingStage:
    """A stage of the training at one box size and frequency band.

    Args:
        box_size: edge of images and volumes in pixels, a multiple of 4; the field of view never
            changes.
        iterations: number of generator updates.
        band: radius of the band that real and simulated images are limited to, in Nyquist
            frequencies of this box; a band that grows from stage to stage is frequency marching.
    """

    box_size: PositiveInt
    iterations: PositiveInt
    band: Share = 1.0


@dataclass(frozen=True, config=STRICT)
class VaeGanConfig:
    """Settings of :class:`~vitreous.methods.vaegan.solver.VaeGan`.

    Algorithms and equations are those of the thesis on noise-robust VAE-GANs for cryo-EM.

    Args:
        stages: boxes, bands and iterations, coarse to fine.
        latent: dimension of the latent space; 0: homogeneous, with a constant latent vector and no
            encoder.
        generator: "siren", :class:`~vitreous.nn.siren.SliceGenerator`, the thesis's; "basis",
            :class:`~vitreous.nn.basis.BasisGenerator`; "image",
            :class:`~vitreous.nn.image_generator.ImageGenerator`, two-dimensional, without poses.
        generator_width, generator_layers, coordinate_grid: of the first.
        basis_maps: of the second; mask_fraction: its mask's radius in box sizes; basis_mixture: its
            weights are positive and have a sum of 1.
        latent_from: share of the updates that are homogeneous: until then all particles have one
            map, the encoder is not trained, and half as many images are simulated.
        encoder_only: share of the updates at the end that train the encoder alone, on images of the
            generator's running average.
        invariant: whether encoder and critic are invariant to shifts; False is the thesis's
            ablation. Dense networks are made invariant by their input: all images are shifted to
            where they agree best with the mean of all
            (:func:`~vitreous.methods.em.centring.centred`).
        encoder_view: "image", or "polar": the encoder sees images in polar coordinates, where an
            in-plane rotation is a cyclic shift.
        encoder_box: edge of the images that the encoder sees; None: that of the first stage. It is
            the same at all stages, so that the encoder does not change with the box size.
        critic: "convolutional", the thesis's; "dense", CryoGAN's, which learns faster on centred
            particles. encoder: the same for the encoder.
        encoder_width, critic_width: channels of their first blocks; a dense critic has twelve times
            as many neurons in its first layer.
        noise: "network", a scale for each pixel from a latent vector; "scale", one learned number;
            "none".
        noise_kind: "gaussian", eq. (3) of the article, or "poisson", eq. (2).
        camera: "uniform" draws poses from the simulator; "learned" from a network.
        least_coverage: coverage of orientations below which learned poses count as collapsed, see
            :func:`~vitreous.nn.pose_network.coverage`.
        batch_size: real images of a step; as many are reconstructed, and as many drawn.
        n_critic: critic updates per generator update.
        penalty: weight of the gradient penalty; penalty_every: it is added at every so many critic
            updates, multiplied by that number.
        perceptual: weight of the encoder's loss within the generator's, eq. (6).
        perceptual_on: "vector" compares the critic's feature vectors of real and reconstructed
            images, means over the feature map; "map" compares the maps, as the thesis does, which
            depend on the pose.
        kl: weight of the Kullback-Leibler divergence, a mean over dimensions, in eq. (5).
        diversity: weight of eq. (39) in eq. (6).
        latent_loss: weight, for encoder and generator, of the negative log-likelihood of the latent
            vector of a simulated image under the encoder; not in the thesis, 0 leaves it out.
        learning_rate_generator, learning_rate_encoder, learning_rate_critic, learning_rate_scale:
            Adam steps at the start.
        learning_rate_end: factor reached exponentially at the end of the run.
        betas: of Adam.
        warm_up: generator updates over which its step grows to full size in each stage.
        averaging: running average of the generator's weights, from which volumes are made.
        weighting, mirror, rotate: as of :class:`~vitreous.methods.cryogan.config.CryoGanConfig`.

    >>> VaeGanConfig(stages=[{"box_size": 16, "iterations": 200}], latent=3).iterations
    200
    """

    stages: Annotated[tuple[SortingStage, ...], Field(min_length=1)]
    latent: NonNegativeInt = 8
    generator: Literal["siren", "basis", "image"] = "siren"
    generator_width: Count = 64
    generator_layers: Count = 3
    coordinate_grid: NonNegativeInt = 9
    basis_maps: NonNegativeInt = 8
    basis_mixture: bool = False
    latent_from: BelowOne = 0.0
    encoder_only: BelowOne = 0.0
    mask_fraction: Share = 0.45
    invariant: bool = True
    encoder_view: Literal["image", "polar"] = "image"
    encoder_box: PositiveInt | None = None
    critic: Literal["convolutional", "dense"] = "convolutional"
    encoder: Literal["convolutional", "dense"] = "convolutional"
    encoder_width: Count = 16
    critic_width: Count = 16
    noise: Literal["network", "scale", "none"] = "network"
    noise_kind: Literal["gaussian", "poisson"] = "gaussian"
    camera: Literal["uniform", "learned"] = "uniform"
    least_coverage: BelowOne = 0.05
    batch_size: BatchSize = 32
    n_critic: Count = 1
    penalty: NonNegativeFloat = 10.0
    penalty_every: Count = 4
    perceptual: NonNegativeFloat = 0.2
    perceptual_on: Literal["vector", "map"] = "vector"
    kl: NonNegativeFloat = 0.01
    diversity: NonNegativeFloat = 0.02
    latent_loss: NonNegativeFloat = 0.5
    learning_rate_generator: Rate = 1e-3
    learning_rate_encoder: Rate = 1e-3
    learning_rate_critic: Rate = 1e-3
    learning_rate_scale: Rate = 1e-3
    learning_rate_end: Share = 0.1
    betas: tuple[BelowOne, BelowOne] = (0.5, 0.9)
    warm_up: NonNegativeInt = 20
    averaging: BelowOne = 0.96
    weighting: Literal["matched", "none"] = "matched"
    mirror: bool = True
    rotate: bool = False

    @property
    def iterations(self) -> int:
        """Number of generator updates of all stages."""
        return sum(stage.iterations for stage in self.stages)


def default_config(box_size: int, *, flat: bool = False) -> VaeGanConfig:
    """Return settings for images of a box size, as measured in docs/hetero.md.

    Args:
        box_size: of the images.
        flat: in two dimensions: images instead of volumes.

    >>> [(stage.box_size, stage.iterations) for stage in default_config(64).stages]
    [(16, 5000)]
    """
    n = max(8, min(box_size, LARGEST_BOX) // 4 * 4)
    both: dict[str, Any] = {
        "critic": "dense",
        "encoder": "dense",
        "encoder_only": 0.2,
        "noise": "scale",
        "batch_size": 128,
        "perceptual": 0.0,
        "kl": 0.0,
        "diversity": 0.0,
        "latent_loss": 0.3,
        "learning_rate_critic": 3e-3,
        "averaging": 0.99,
    }
    if flat:
        return VaeGanConfig(stages=(SortingStage(n, 2500),), generator="image", **both)
    return VaeGanConfig(
        stages=(SortingStage(n, 5000),),
        latent=3,
        generator="basis",
        basis_maps=4,
        basis_mixture=True,
        latent_from=0.35,
        invariant=False,
        learning_rate_generator=3e-4,
        rotate=True,
        **both,
    )
