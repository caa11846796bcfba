"""Encoder and critic: exact invariance to cyclic shifts, the ablation, shapes, seeded weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vitreous.nn.encoder import DenseEncoder, Encoder, Norm, SortingCritic, Trunk
from vitreous.nn.layers import GaborLayer, PolyphaseDown

SHIFTS = [(0, 1), (1, 0), (3, 5), (13, 22), (31, 31), (32, 17), (47, 40), (63, 2)]


def _departure(network: nn.Module, image: Tensor) -> float:
    """Largest difference of feature vectors between the image and shifted ones."""
    moved = torch.stack([image, *(image.roll(shift, (-2, -1)) for shift in SHIFTS)])
    with torch.no_grad():
        _, vector = network(moved)
    return float((vector - vector[0]).abs().max())


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_cyclic_shifts_leave_the_feature_vector(norm: Norm, generator: torch.Generator) -> None:
    image = torch.randn(64, 64, generator=generator)
    trunk = Trunk(64, 4, norm=norm, generator=generator).eval()
    assert _departure(trunk, image) < 1e-5
    plain = Trunk(64, 4, norm=norm, invariant=False, generator=generator).eval()
    assert _departure(plain, image) > 1e-3


def test_a_batch_of_shifted_images_has_shifted_statistics(generator: torch.Generator) -> None:
    """Batch norm in training sees sums over maps, which a shift does not change."""
    images = torch.randn(5, 16, 16, generator=generator)
    trunk = Trunk(16, 4, norm="batch", generator=generator).train()
    first = trunk(images)[1]
    moved = torch.stack([image.roll((i, 3 * i), (-2, -1)) for i, image in enumerate(images)])
    assert torch.allclose(trunk(moved)[1], first, atol=1e-5)


@pytest.mark.parametrize(
    ("box_size", "blocks", "left"),
    [(16, 2, 4), (32, 3, 4), (36, 2, 9), (48, 4, 3), (64, 4, 4), (128, 5, 4)],
)
def test_depth_follows_the_box(box_size: int, blocks: int, left: int) -> None:
    with torch.device("meta"):
        trunk = Trunk(box_size, 4)
        features, vector = trunk(torch.empty(2, box_size, box_size))
    assert features.shape == (2, 4 * 2 ** (blocks - 1), left, left)
    assert vector.shape == (2, trunk.channels)
    assert sum(isinstance(m, PolyphaseDown) for m in trunk.modules()) == blocks


def test_the_ablation_has_none_of_the_invariant_layers() -> None:
    kinds = [type(m) for m in Trunk(32, 4, invariant=False).modules()]
    assert GaborLayer not in kinds
    assert PolyphaseDown not in kinds
    convolutions = [m for m in Trunk(32, 4, invariant=False).modules() if isinstance(m, nn.Conv2d)]
    assert convolutions[0].kernel_size == (5, 5)
    assert {c.padding_mode for c in convolutions} == {"zeros"}


def test_the_vector_is_the_mean_of_the_map(generator: torch.Generator) -> None:
    critic = SortingCritic(16, 4, generator=generator)
    images = torch.randn(3, 16, 16, generator=generator)
    features, vector, score = critic.features_and_score(images)
    assert torch.allclose(features.mean((-2, -1)), vector)
    assert torch.equal(critic(images), score)


def test_the_critic_scores_an_image_alone(generator: torch.Generator) -> None:
    critic = SortingCritic(16, 4, generator=generator)
    images = torch.randn(4, 16, 16, generator=generator)
    alone = torch.cat([critic(image[None]) for image in images])
    assert torch.allclose(critic(images), alone, atol=1e-5)


def test_penalties_reach_every_weight(generator: torch.Generator) -> None:
    critic = SortingCritic(16, 4, generator=generator)
    images = torch.randn(4, 16, 16, generator=generator, requires_grad=True)
    (slope,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    slope.square().sum().backward()
    for name, parameter in critic.named_parameters():
        if name.endswith(("weight", "omega", "theta", "psi", "sigma")):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_the_encoder_begins_near_the_prior(generator: torch.Generator) -> None:
    encoder = Encoder(16, 6, 4, generator=generator)
    mean, log_variance = encoder(torch.randn(64, 16, 16, generator=generator))
    assert mean.shape == log_variance.shape == (64, 6)
    assert mean.abs().max() < 3
    assert log_variance.abs().max() < 3


def test_weights_come_from_the_generator_alone() -> None:
    def made(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed + 7 * len(seen))
        seen.append(seed)
        return Encoder(16, 4, 4, generator=torch.Generator().manual_seed(seed)).state_dict()

    seen: list[int] = []
    first, again, other = made(5), made(5), made(6)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["head.0.weight"], other["head.0.weight"])


@pytest.mark.parametrize("box_size", [4, 18, 33])
def test_boxes_that_cannot_be_halved_are_refused(box_size: int) -> None:
    with pytest.raises(ValueError, match=f"got {box_size}"):
        Trunk(box_size, 4)


def test_a_dense_encoder_begins_near_the_prior_and_is_seeded(generator: torch.Generator) -> None:
    images = torch.randn(50, 16, 16, generator=generator)
    made = [DenseEncoder(16, 3, 32, generator=torch.Generator().manual_seed(k)) for k in (1, 1, 2)]
    with torch.no_grad():
        (mean, log_variance), again, other = (one(images) for one in made)
    assert mean.shape == log_variance.shape == (50, 3)
    assert mean.abs().max() < 2
    assert log_variance.abs().max() < 2
    assert torch.equal(mean, again[0])
    assert not torch.equal(mean, other[0])
