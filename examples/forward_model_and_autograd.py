"""Fit a map to images of known poses by gradient descent through the forward model.

    python examples/forward_model_and_autograd.py [particles_with_poses.star]

The forward model is a linear operator with an exact adjoint; autograd also reaches poses and CTF.
"""

import sys

import torch

import vitreous as vt

if len(sys.argv) > 1:
    particles = vt.Particles.open(sys.argv[1])
else:
    particles = vt.simulate(vt.phantom(24, 9.0), 200, 9.0, snr_db=10, seed=1)
images = particles.images()  # protein positive
n, px, pose = images.box_size, images.pixel_size_angstrom, particles.pose
ctf, projector = vt.CTF(particles.optics, n, px), vt.Projector(pose.rotation, n)
A = ctf @ vt.Shift(pose.shift_angstrom, n, px) @ projector

volume = torch.zeros(n, n, n, requires_grad=True)
optimiser = torch.optim.Adam([volume], lr=0.1)
for step in range(40):
    loss = (A(volume) - images[:]).square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    if step % 10 == 0:
        print(f"step {step}: mean squared residual {loss.item():.4f}")
vt.write_map("fitted.mrc", volume, px)

shift = pose.shift_angstrom.clone().requires_grad_()  # the same for rotations, or for the defocus
B = ctf @ vt.Shift(shift, n, px) @ projector
(B(volume.detach()) - images[:]).square().sum().backward()
print(f"gradient of the first image's shift: {shift.grad[0].tolist()}")
