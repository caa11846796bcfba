"""From particle images to a refined map; `make demo` simulates them. README prints this script."""

import torch

import vitreous as vt

particles = vt.Particles.open("demo/simulated/particles.star", half_seed=1)
images = particles.images(box_size=32)  # protein positive, streamed
start = vt.initial_model(images, particles.optics, particles.half_set, symmetry="D2", seed=1)
config = vt.RefinementConfig(symmetry="D2")
refinement = vt.Refinement(images, particles.optics, particles.half_set, start, config)
result = vt.run(refinement, callbacks=[print])  # half1, half2, map, poses
print(vt.fsc(result.half1, result.half2), result.resolution_angstrom)
vt.write_map("map.mrc", result.map, images.pixel_size_angstrom)

n, px, pose = images.box_size, images.pixel_size_angstrom, result.poses.pose
A = (
    vt.CTF(particles.optics, n, px)
    @ vt.Shift(pose.shift_angstrom, n, px)
    @ vt.Projector(pose.rotation, n)
)
volume = torch.zeros(n, n, n, requires_grad=True)
(A(volume) - images[:]).square().mean().backward()  # differentiable forward model
