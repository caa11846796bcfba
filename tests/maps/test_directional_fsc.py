import math

import torch

from vitreous.core.fourier import irfft_centered, rfft_centered
from vitreous.maps.directional_fsc import fsc_by_direction
from vitreous.maps.fsc import fsc

N = 32


def half_maps(empty_cone_deg):
    """Common noise, none of it within a double cone about z, and noise of each half."""
    generator = torch.Generator().manual_seed(0)
    common, *own = torch.randn(3, N, N, N, dtype=torch.float64, generator=generator)
    z, y = (torch.fft.fftfreq(N).reshape(shape) for shape in ((-1, 1, 1), (-1, 1)))
    across = (y**2 + torch.fft.rfftfreq(N) ** 2).sqrt()
    outside = torch.atan2(across.expand(N, -1, -1), z.abs()) > math.radians(empty_cone_deg)
    signal = irfft_centered(rfft_centered(common, 3) * outside, (N, N, N))
    return [signal + 0.3 * one for one in own]


def test_the_direction_without_signal_is_the_worst():
    directions, curves = fsc_by_direction(*half_maps(30.0))
    mean = curves[:, 6:15].mean(1)
    assert directions[mean.argmin(), 2] > 0.97
    assert mean.min() < 0.15
    assert mean[directions[:, 2] < 0.5].min() > 0.85


def test_alike_in_all_directions():
    halves = half_maps(0.0)
    curves = fsc_by_direction(*halves)[1]
    torch.testing.assert_close(curves[:, 6:].mean(0), fsc(*halves)[6:], atol=0.02, rtol=0)
    assert float(curves[:, 6:].std(0).max()) < 0.05
    same = fsc_by_direction(halves[0], halves[0])[1]
    torch.testing.assert_close(same, torch.ones_like(same))
