"""Correlation, PSNR and SNR at values known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitreous.metrics.image import correlation, psnr, snr_db


def test_correlation_matches_numpy(generator: torch.Generator) -> None:
    a = torch.randn(4, 9, 9, generator=generator, dtype=torch.float64)
    b = a + torch.randn(4, 9, 9, generator=generator, dtype=torch.float64)
    expected = [np.corrcoef(x.flatten(), y.flatten())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(correlation(a, b, 2).numpy(), expected)
    whole = np.corrcoef(a.flatten(), b.flatten())[0, 1]
    assert correlation(a, b, 3).item() == pytest.approx(whole)
    assert correlation(a[0], torch.ones(9, 9), 2) == 0
    with pytest.raises(ValueError, match="must agree"):
        correlation(a, b[..., :8], 2)


def test_psnr_by_hand() -> None:
    reference = torch.zeros(2, 4, 4)
    reference[:, 0, 0] = 2.0
    image = reference + torch.tensor([0.2, 0.02])[:, None, None]
    assert psnr(image, reference, 2).tolist() == pytest.approx([20.0, 40.0], abs=1e-4)
    assert psnr(reference, reference, 2).isinf().all()


def test_snr_is_a_power_ratio_over_the_data_set(generator: torch.Generator) -> None:
    clean = torch.randn(64, 32, 32, generator=generator)
    clean[:32] *= 2  # mean variance 2.5
    noise = torch.randn(64, 32, 32, generator=generator)
    assert snr_db(clean, clean + noise + 7, 2).item() == pytest.approx(3.98, abs=0.1)
