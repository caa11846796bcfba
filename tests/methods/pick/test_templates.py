"""Templates: shells, rotations, contrast with and without CTF."""

import torch

from vitreous.core.fourier import rfft_centered
from vitreous.core.params import Optics
from vitreous.methods.pick.templates import as_imaged, rotated_templates, shell_templates
from vitreous.physics.ctf import ctf_half


def test_ball_and_shell_have_their_mass():
    masses = shell_templates(64, 20.0).sum((1, 2))
    volume = [2 / 3 * torch.pi * (20 * k) ** 3 for k in (0.85, 1, 1.15)]  # half of the ball
    expected = [part for v in volume for part in (v, v * (1 - 0.6**3))]
    assert torch.allclose(masses, torch.tensor(expected).double(), rtol=0.01)


def test_rotations_are_in_the_plane():
    dot = torch.zeros(1, 17, 17)
    dot[0, 8, 12] = 1
    rotated = rotated_templates(dot, 90)
    places = [divmod(int(one.argmax()), 17) for one in rotated]
    assert places == [(8, 12), (12, 8), (8, 4), (4, 8)]


def test_ctf_multiplies_the_spectrum():
    optics = Optics.uniform(1, defocus_angstrom=15000.0)
    templates = shell_templates(32, 8.0)
    imaged = as_imaged(templates, 5.0, optics, 80.0)
    expected = rfft_centered(templates, 2) * ctf_half(32, 5.0, optics)[0].double()
    assert torch.allclose(
        rfft_centered(imaged, 2)[:, 1:16, 1:15], expected[:, 1:16, 1:15], atol=1e-6
    )


def test_without_ctf_contrast_rises_with_the_square_of_frequency():
    point = torch.zeros(1, 64, 64)
    point[0, 32, 32] = 1
    spectrum = rfft_centered(as_imaged(point, 5.0, None, 100.0), 2)[0, 0].real
    k = torch.arange(20) / 320
    expected = k.double() ** 2 * torch.exp(-((35 * k.double()) ** 2) / 2)
    assert torch.allclose(spectrum[:20], expected, rtol=1e-4, atol=1e-12)
