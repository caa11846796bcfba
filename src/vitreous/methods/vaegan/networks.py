"""Networks of the VAE-GAN, made from its settings."""

import torch

from vitreous.methods.vaegan.config import VaeGanConfig
from vitreous.nn.basis import BasisGenerator
from vitreous.nn.encoder import DenseCritic, DenseEncoder, Encoder, SortingCritic
from vitreous.nn.image_generator import ImageGenerator
from vitreous.nn.siren import SliceGenerator
from vitreous.nn.slice_source import SliceSource

DENSE = 12  # neurons of a dense first layer for each channel of a convolutional one


def make_generator(config: VaeGanConfig, seed: torch.Generator) -> SliceSource:
    """Return the generator, at the box size of the first stage; ``seed`` draws its weights."""
    c, latent = config, max(1, config.latent)
    first = c.stages[0].box_size
    largest = max(stage.box_size for stage in c.stages)
    if c.generator == "basis":
        return BasisGenerator(
            first,
            latent,
            c.basis_maps,
            mask_fraction=c.mask_fraction,
            mixture=c.basis_mixture,
            generator=seed,
        )
    if c.generator == "siren":
        source: SliceSource = SliceGenerator(
            largest,
            latent,
            c.generator_width,
            c.generator_layers,
            grid=c.coordinate_grid,
            generator=seed,
        )
    else:
        source = ImageGenerator(largest, latent, mask_fraction=c.mask_fraction, generator=seed)
    source.set_box_size(first)
    return source


def make_encoder(config: VaeGanConfig, seed: torch.Generator) -> Encoder | DenseEncoder:
    """Return the encoder; ``seed`` draws its weights, on the CPU."""
    c = config
    if c.encoder == "dense":
        return DenseEncoder(encoder_box(c), c.latent, DENSE * c.encoder_width, generator=seed)
    return Encoder(encoder_box(c), c.latent, c.encoder_width, invariant=c.invariant, generator=seed)


def make_critic(
    config: VaeGanConfig, box_size: int, seed: torch.Generator
) -> SortingCritic | DenseCritic:
    """Return the critic of a stage; ``seed`` draws its weights, on the CPU."""
    c = config
    if c.critic == "dense":
        return DenseCritic(box_size, DENSE * c.critic_width, generator=seed)
    return SortingCritic(box_size, c.critic_width, invariant=c.invariant, generator=seed)


def encoder_box(config: VaeGanConfig) -> int:
    """Return the edge of the images that the encoder sees, pixels."""
    return config.encoder_box or config.stages[0].box_size
