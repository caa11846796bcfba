"""Default settings of the VAE-GAN by box size."""

from typing import Any

from vitreous.methods.vaegan.config import SortingStage, VaeGanConfig

LARGEST_BOX = 16  # of maps and images, by default


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
