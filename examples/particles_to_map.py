"""From particle images to a refined map: the example of the README.

    vitreous simulate phantom:1 --sym D2 --box 64 --apix 3.6 --n 5000 --snr-db=-10 \
        --shift triangular:14 --seed 1 -o DATA
    python examples/particles_to_map.py DATA/truth.star D2
"""

import sys

import torch

import vitreous as vt

path, symmetry = sys.argv[1:3]
particles = vt.Particles.open(path, half_seed=1)
images = particles.images(box_size=64)  # protein positive, read when needed
n, px, pose = images.box_size, images.pixel_size_angstrom, particles.pose

A = (
    vt.CTF(particles.optics, n, px)
    @ vt.Shift(pose.shift_angstrom, n, px)
    @ vt.Projector(pose.rotation, n)
)
volume = torch.zeros(n, n, n, requires_grad=True)
(A(volume) - images[:]).square().mean().backward()  # differentiable forward model

start = vt.initial_model(images, particles.optics, particles.half_set, symmetry=symmetry, seed=1)
config = vt.RefinementConfig(symmetry=symmetry)
refinement = vt.Refinement(images, particles.optics, particles.half_set, start, config)
result = vt.run(refinement, callbacks=[print])  # half1, half2, map, poses
print(vt.fsc(result.half1, result.half2), result.resolution_angstrom)
vt.write_map("map.mrc", result.map, px)
