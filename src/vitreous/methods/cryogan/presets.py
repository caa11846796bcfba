"""Ready settings of CryoGAN: the package's own, and the papers'."""

from __future__ import annotations

from vitreous.core.symmetry import point_group
from vitreous.methods.cryogan.config import CryoGanConfig, TrainingStage

LARGEST_DEFAULT_BOX = 64
_ITERATIONS = {16: 12000, 32: 28000, 64: 12000}
_BEYOND = 10000
_PAPER_BATCH, _PAPER_CRITIC_UPDATES, _PAPER_EPOCHS = 8, 4, 15


def default_stages(box_size: int, symmetry: str = "C1") -> tuple[TrainingStage, ...]:
    """Return stages of boxes 16, 32, 64, ... below ``box_size``, then ``box_size`` itself.

    A symmetric molecule is seen from several sides in every image: with a group of order four or
    more half of the iterations are enough.

    >>> [stage.box_size for stage in default_stages(48)]
    [16, 32, 48]
    """
    boxes = [16 * 2**i for i in range(16) if 16 * 2**i < 0.9 * box_size]
    boxes.append(box_size)
    share = {1: 1.0, 2: 0.75, 3: 0.75}.get(point_group(symmetry).order, 0.5)
    # the iterations of the smallest box that is about as large
    of_box = [next((i for p, i in _ITERATIONS.items() if n <= 1.25 * p), _BEYOND) for n in boxes]
    return tuple(TrainingStage(n, round(share * i)) for n, i in zip(boxes, of_box, strict=True))


def default_config(box_size: int, symmetry: str = "C1") -> CryoGanConfig:
    """Return the settings that were best for each second of computing (``docs/ablations.md``)."""
    return CryoGanConfig(stages=default_stages(box_size, symmetry), symmetry=symmetry)


def paper_config(box_size: int, half_size: int, symmetry: str = "C1") -> CryoGanConfig:
    """Return the papers' settings for real data.

    Section VI.E of the paper (IEEE TCI 7, 2021) and appendix A.6.6 of the thesis: one box, batch 8,
    four critic updates, Adam at 1e-3 falling by 8 % an epoch, 15 epochs, both scales started at 1,
    images blurred by a Gaussian of 2 px that narrows by 2 % an epoch. Their number for the gradient
    penalty, 1, went with a norm taken over single pixels.

    Args:
        box_size: of images and volume.
        half_size: particles of a half set; an epoch is one pass over them.
        symmetry: point group.
    """
    per_epoch = max(1, half_size // (_PAPER_BATCH * _PAPER_CRITIC_UPDATES))
    return CryoGanConfig(
        stages=(TrainingStage(box_size, _PAPER_EPOCHS * per_epoch),),
        symmetry=symmetry,
        batch_size=_PAPER_BATCH,
        n_critic=_PAPER_CRITIC_UPDATES,
        penalty=1.0,
        penalty_every=1,
        critic="paper",
        width=96,
        learning_rate_critic=1e-3,
        learning_rate_volume=1e-3,
        learning_rate_scale=1e-3,
        learning_rate_end=0.92**_PAPER_EPOCHS,
        warm_up=1,
        mask_fraction=171 / 2 / 180,
        clip_critic=1e6,
        clip_epochs=2.0,
        noise_start="one",
        weighting="none",
        mirror=False,
        rotate=False,
        smoothing_px=2.0,
        smoothing_decay=0.98,
        averaging=0.0,
    )
