"""Local correlation against direct sums, peaks, and regions that are left out."""

import numpy as np
import torch

from vitreous.core.grid import radius_grid
from vitreous.methods.pick.correlation import bad_regions, find_peaks, local_correlation


def test_scores_are_correlations_under_the_mask():
    rng = torch.Generator().manual_seed(1)
    image = 5 + torch.randn(40, 44, generator=rng, dtype=torch.float64)
    templates = torch.randn(2, 11, 11, generator=rng, dtype=torch.float64)
    scores = local_correlation(image, templates, 4.0)
    inside = radius_grid(11, 2) <= 4.0
    for y, x in ((5, 5), (20, 31), (33, 12)):
        patch = image[y - 5 : y + 6, x - 5 : x + 6][inside]
        expected = [float(torch.corrcoef(torch.stack([patch, t[inside]]))[0, 1]) for t in templates]
        assert np.isclose(float(scores.score[y, x]), max(expected))
        assert int(scores.template[y, x]) == int(np.argmax(expected))
        assert np.isclose(float(scores.mean[y, x]), float(patch.mean()))
        assert np.isclose(float(scores.deviation[y, x]), float(patch.std(correction=0)))


def test_level_and_contrast_do_not_matter():
    image = torch.randn(32, 32, generator=torch.Generator().manual_seed(2))
    templates = torch.randn(1, 9, 9, generator=torch.Generator().manual_seed(3))
    one = local_correlation(image, templates, 4.0).score
    other = local_correlation(100 + 7 * image, 3 + 2 * templates, 4.0).score
    assert torch.allclose(one, other, atol=1e-6)


def test_peaks_keep_their_distance_and_their_place():
    y, x = np.mgrid[:60, :60]
    bumps = [(20.3, 30.6, 1.0), (24.0, 34.0, 0.8), (45.0, 10.0, 0.5)]
    score = sum(h * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 8) for cx, cy, h in bumps)
    places, pixels = find_peaks(torch.from_numpy(score), 10.0)
    assert torch.allclose(places[:2], torch.tensor([[20.3, 30.6], [45.0, 10.0]]).double(), atol=0.3)
    assert pixels[:2].tolist() == [31 * 60 + 21, 10 * 60 + 45]
    assert len(find_peaks(torch.from_numpy(score), 3.0)[0]) >= 3


def test_ice_and_padding_are_bad_and_plain_gradients_are_not():
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:128, :128]
    image = rng.normal(size=(128, 128)) + 0.05 * x
    image[np.hypot(x - 40, y - 90) < 10] -= 15
    image[:, 118:] = image.mean()
    templates = torch.from_numpy(rng.normal(size=(1, 17, 17)))
    bad = bad_regions(local_correlation(torch.from_numpy(image), templates, 8.0), 7.0)
    assert bad[90, 40]
    assert bad[60, 127]
    far = (np.hypot(x - 40, y - 90) > 26) & (x < 105)
    assert bad[torch.from_numpy(far)].double().mean() < 0.01
