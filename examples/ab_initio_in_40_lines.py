"""Write an ab initio method: stochastic EM, which draws a pose of each image from its posterior."""

import torch

import vitreous as vt


class StochasticEM:
    def __init__(self, images, optics, symmetry, steps):
        self.images, self.optics, self.n, self.remaining = images, optics, images.box_size, steps
        self.group, self.stream = vt.point_group(symmetry), torch.Generator().manual_seed(1)
        self.volume = (0.06 * torch.randn((self.n,) * 3, generator=self.stream)).requires_grad_()
        self.optimiser = torch.optim.Adam([self.volume], lr=0.1)

    def step(self):
        rows = torch.randperm(len(self.images), generator=self.stream)[:150]
        y, poses = self.images[rows], vt.UniformPoses().sample(300, generator=self.stream)
        C = vt.CTF(self.optics[rows], self.n, self.images.pixel_size_angstrom)
        views = vt.Projector(poses, self.n)(self.result().detach())
        gain, power = C.multiplier.square(), torch.fft.rfft2(views, norm="ortho").abs().square()
        gain[..., 1 : (self.n + 1) // 2] *= 2  # columns that stand for two
        misfit = gain.flatten(1) @ power.flatten(1).T  # |C P x|^2 - 2 <y, C P x>: (images, poses)
        misfit -= 2 * C.adjoint(y).flatten(1) @ views.flatten(1).T
        posterior = torch.softmax(-misfit / (2 * y[:, 0].var()), 1)
        drawn = poses[torch.multinomial(posterior, 1, generator=self.stream)[:, 0]]
        loss = ((C @ vt.Projector(drawn, self.n))(self.result()) - y).square().mean()
        self.optimiser.zero_grad(), loss.backward(), self.optimiser.step()
        self.remaining -= 1
        return {"loss": loss.item()}

    done = property(lambda self: self.remaining == 0)

    def result(self):
        return vt.symmetrise(self.volume, self.group)


truth = vt.phantom(24, 9.0, symmetry="D2")
data = vt.simulate(truth, 500, 9.0, snr_db=0, seed=1)
volume = vt.run(StochasticEM(data.images(), data.optics, "D2", steps=100), callbacks=[print])
print(vt.fsc(vt.align(volume.detach(), truth, 9.0, symmetry="D2").aligned, truth))
