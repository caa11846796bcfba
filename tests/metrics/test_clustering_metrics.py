import pytest
import torch

from vitreous.metrics.clustering import adjusted_rand, normalised_mutual_information


def test_names_of_clusters_do_not_matter() -> None:
    truth = torch.tensor([0, 0, 1, 1, 2, 2])
    found = torch.tensor([4, 4, -1, -1, 0, 0])
    assert normalised_mutual_information(truth, found) == pytest.approx(1.0)
    assert adjusted_rand(truth, found) == pytest.approx(1.0)


def test_chance_is_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(3, (2, 5000), generator=g)
    assert normalised_mutual_information(a, b) < 0.005
    assert abs(adjusted_rand(a, b)) < 0.005
    assert normalised_mutual_information(a, torch.zeros_like(a)) == 0


def test_against_the_formula() -> None:
    a, b = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    p = torch.tensor([[0.5, 0.25], [0.0, 0.25]])
    rows, columns = p.sum(1), p.sum(0)
    information = (p * (p / (rows[:, None] * columns)).clamp_min(1e-30).log()).sum()
    entropy = [-(q * q.log()).sum() for q in (rows, columns)]
    expected = float(2 * information / (entropy[0] + entropy[1]))
    assert normalised_mutual_information(a, b) == pytest.approx(expected, abs=1e-6)


def test_labels_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="labels must be"):
        adjusted_rand(torch.zeros(2), torch.zeros(3))
