"""Hand a prior of one's own to ADMM: any object with a value and a proximal map.

    python examples/own_prior.py

min over x of 1/2 |A x - y|^2 + R(x), from 40 images of known poses.
"""

import vitreous as vt


class Sparse:
    """R(x) = strength |x|_1 for x >= 0, infinite elsewhere: little of the box is density."""

    def __init__(self, strength):
        self.strength = strength

    def __call__(self, x):
        return self.strength * float(x.abs().sum())

    def prox(self, x, step):
        return (x - self.strength * step).clamp_min(0)


truth = vt.phantom(24, 9.0)
particles = vt.simulate(truth, 40, 9.0, snr_db=0, seed=1)
images, pose = particles.images(), particles.pose
n, px = images.box_size, images.pixel_size_angstrom
A = (
    vt.CTF(particles.optics, n, px)
    @ vt.Shift(pose.shift_angstrom, n, px)
    @ vt.Projector(pose.rotation, n)
)
for prior in (None, Sparse(4.0)):
    result = vt.admm(A, prior, vt.AdmmConfig(nonnegative=False, iterations=30), data=images[:])
    resolution = vt.fsc_resolution(vt.fsc(result.volume, truth), 0.5, n, px)
    print(f"{type(prior).__name__}: FSC 0.5 with the truth at {resolution:.1f} Å")
