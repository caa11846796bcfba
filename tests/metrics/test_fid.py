import pytest
import torch

from vitreous.metrics.fid import frechet_distance, image_distance, train_features


def discs(label: torch.Tensor, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Discs of two sizes somewhere in noise."""
    n = 24
    axis = torch.arange(n) - n // 2
    place = torch.randint(-3, 4, (2, len(label), 1, 1), generator=generator)
    radius = (axis[:, None] - place[0]).square() + (axis - place[1]).square()
    clean = (radius < torch.where(label == 0, 9, 36)[:, None, None]).float()
    return clean + noise * torch.randn(clean.shape, generator=generator)


def test_gaussians_against_the_closed_form(generator: torch.Generator) -> None:
    x = torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    moved = x * torch.tensor([2.0, 1.0]) + torch.tensor([0.0, 3.0])
    assert frechet_distance(x, moved) == pytest.approx(9 + (2 - 1) ** 2, abs=0.03)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="expected"):
        frechet_distance(x, x[:1])


@pytest.mark.slow
def test_distance_grows_with_what_is_wrong_with_images(generator: torch.Generator) -> None:
    label = torch.arange(400) % 2
    real = discs(label, 0.3, generator)
    network = train_features(real, label, generator, steps=60)
    test = discs(label, 0.3, generator)
    assert (network(test).argmax(1) == label).float().mean() > 0.95
    distance = [
        image_distance(real, made, network.features)
        for made in (test, discs(label, 0.6, generator), discs(0 * label, 0.3, generator))
    ]
    assert distance[0] < 0.2 * min(distance[1:])


def test_training_repeats_itself_and_refuses_one_class() -> None:
    images = torch.randn(20, 16, 16, generator=torch.Generator().manual_seed(1))
    label = torch.arange(20) % 2
    first, second = (
        train_features(images, label, torch.Generator().manual_seed(2), steps=3, batch=8)
        for _ in range(2)
    )
    assert torch.equal(first.features(images), second.features(images))
    with pytest.raises(ValueError, match="of 1 classes"):
        train_features(images, 0 * label, torch.Generator())
