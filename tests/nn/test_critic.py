"""Critics: shapes and depth at every box, the paper's network to the letter, seeded weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vitreous.nn.critic import Critic, CriticKind

KINDS: list[CriticKind] = ["dense", "strided", "paper"]


def _seeded(kind: CriticKind, seed: int, box_size: int = 16) -> Critic:
    return Critic(box_size, 6, kind, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("box_size", [8, 9, 15, 16, 32, 45])
def test_one_score_for_each_image(kind: CriticKind, box_size: int) -> None:
    critic = Critic(box_size, 4, kind)
    assert critic(torch.randn(5, box_size, box_size)).shape == (5,)
    assert critic(torch.randn(0, box_size, box_size)).shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_scored_alone(kind: CriticKind, generator: torch.Generator) -> None:
    critic = _seeded(kind, 1)
    images = torch.randn(4, 16, 16, generator=generator)
    alone = torch.cat([critic(image[None]) for image in images])
    assert torch.allclose(critic(images), alone, atol=1e-6)


@pytest.mark.parametrize(
    ("box_size", "blocks", "left"),
    [(8, 2, 2), (16, 3, 2), (32, 4, 2), (48, 4, 3), (64, 5, 2), (128, 6, 2), (256, 6, 4)],
)
@pytest.mark.parametrize("kind", ["strided", "paper"])
def test_depth_follows_the_box(kind: CriticKind, box_size: int, blocks: int, left: int) -> None:
    with torch.device("meta"):
        critic = Critic(box_size, 4, kind)
    convolutions = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [4 * 2**i for i in range(blocks)]
    linear = [m for m in critic.modules() if isinstance(m, nn.Linear)]
    assert linear[0].in_features == convolutions[-1].out_channels * left**2


@pytest.mark.parametrize(("box_size", "left"), [(180, 2), (184, 2), (192, 3)])
def test_the_papers_network(box_size: int, left: int) -> None:
    """Figure 2: six blocks of 96 to 3072 channels, 3 x 3 filters, ten neurons, one number."""
    with torch.device("meta"):
        critic = Critic(box_size, 96, "paper")
        assert critic(torch.empty(2, box_size, box_size)).shape == (2,)
    kinds = [type(m) for m in critic.features]
    assert kinds == [nn.Conv2d, nn.MaxPool2d, nn.LeakyReLU] * 6 + [nn.Flatten]
    convolutions = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [96, 192, 384, 768, 1536, 3072]
    assert {(c.kernel_size, c.padding, c.stride) for c in convolutions} == {
        ((3, 3), (1, 1), (1, 1))
    }
    assert {m.negative_slope for m in critic.modules() if isinstance(m, nn.LeakyReLU)} == {0.1}
    # 960 + 166 080 + 663 936 + 2 654 976 + 10 618 368 + 42 470 400, by hand from the figure
    expected = 56_574_720 + (3072 * left**2 * 10 + 10) + 11
    assert sum(p.numel() for p in critic.parameters()) == expected


def test_dense_network_has_two_hidden_layers() -> None:
    critic = Critic(16, 20, "dense")
    linear = [m for m in critic.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [
        (256, 20),
        (20, 10),
        (10, 10),
        (10, 1),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_from_the_generator_alone(kind: CriticKind) -> None:
    torch.manual_seed(1)
    first = _seeded(kind, 5).state_dict()
    torch.manual_seed(2)
    again = _seeded(kind, 5).state_dict()
    other = _seeded(kind, 6).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_pytorchs_default_distribution(kind: CriticKind) -> None:
    """Uniform within one over the root of the fan-in, weights and biases alike."""
    critic = Critic(16, 64, kind, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    reference = Critic(16, 64, kind)
    for (name, ours), theirs in zip(critic.named_parameters(), reference.parameters(), strict=True):
        if ours.numel() < 500:
            continue
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1), name
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.02), name
    layer = next(m for m in critic.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    bound = 1 / math.sqrt(layer.weight[0].numel())
    assert layer.bias is not None
    assert layer.bias.abs().max().item() <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_penalties_reach_every_weight(kind: CriticKind, generator: torch.Generator) -> None:
    """A loss on the slope can be differentiated again, down to the first layer."""
    critic = _seeded(kind, 2)
    images = torch.randn(8, 16, 16, generator=generator, requires_grad=True)
    (slope,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    slope.square().sum().backward()
    weights = {k: p for k, p in critic.named_parameters() if k.endswith("weight")}
    for name, weight in weights.items():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize(("box_size", "width"), [(7, 8), (16, 1)])
def test_impossible_networks_are_refused(box_size: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"got {box_size if box_size < 8 else width}"):
        Critic(box_size, width)
