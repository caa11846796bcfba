"""Refine poses and half maps from a start that is a tensor, with an image source of one's own.

python examples/refine_from_tensor.py
"""

import vitreous as vt


class MyImages:
    """All that a solver asks of images: their box, their number, and some of them at a time."""

    def __init__(self, stack):
        self.stack, self.box_size = stack, stack.shape[-1]

    def __len__(self):
        return len(self.stack)

    def read(self, rows):
        return self.stack[rows]  # or from a database, a camera, a network


def show(step, stats):
    """Print progress; a true answer would stop the refinement."""
    print(f"round {step + 1}: half maps agree to {stats['resolution_angstrom']:.1f} Å")


truth = vt.phantom(32, 7.0, symmetry="D2")
particles = vt.simulate(truth, 300, 7.0, snr_db=-3, seed=1).with_half_sets(seed=1)
refinement = vt.Refinement(
    MyImages(particles.read(slice(None))),
    particles.optics,
    particles.half_set,
    truth,  # of which only what is coarser than 45 Å is used
    vt.RefinementConfig(symmetry="D2", start_resolution_angstrom=45.0, rounds=4),
    pixel_size_angstrom=7.0,
)
result = vt.run(refinement, callbacks=[show])
vt.write_map("refined.mrc", result.map, 7.0)
