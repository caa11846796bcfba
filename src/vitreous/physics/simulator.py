"""The cryo-EM physics simulator: project, shift, apply the CTF, add noise.

Algorithm 2 of CryoGAN (IEEE TCI 7, 2021): orientation, shift and CTF are drawn from their
distributions, the volume is imaged under them, and noise from the same micrograph is added. The
three linear steps cost one multiplication of each central slice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.physics.ctf import ctf_half
from vitreous.physics.noise import Noise, WhiteGaussian
from vitreous.physics.poses import NoShift, PoseSampler, ShiftSampler, UniformPoses
from vitreous.physics.projector import images_of_slices, oversampled_spectrum, project_spectrum
from vitreous.physics.shift import shift_phases


def simulate(
    volume: Tensor,
    rotations: Tensor,
    shift_angstrom: Tensor,
    optics: Optics,
    pixel_size_angstrom: float,
) -> Tensor:
    r"""Noiseless images :math:`H_\varphi x = C_c S_t P_\theta x`, eq. (2) of CryoGAN's paper.

    Args:
        volume: ``(n, n, n)``; differentiable, as are rotations and shifts.
        rotations: ``(b, 3, 3)``, volume to particle coordinates.
        shift_angstrom: ``(b, 2)``, (x, y) displacement of each projection in Å.
        optics: CTF of each image, ``(b,)``.
        pixel_size_angstrom: pixel size of volume and images, Å.

    Returns:
        real ``(b, n, n)``.

    >>> volume = torch.zeros(16, 16, 16); volume[8, 8, 8] = 1.0
    >>> simulate(volume, torch.eye(3)[None], torch.zeros(1, 2), Optics.uniform(1), 2.0).shape
    torch.Size([1, 16, 16])
    """
    n = volume.shape[-1]
    multiplier = ctf_half(n, pixel_size_angstrom, optics) * shift_phases(
        n, shift_angstrom, pixel_size_angstrom
    )
    return project_spectrum(oversampled_spectrum(volume), rotations, n, multiplier)


@dataclass(frozen=True)
class Conditions:
    """What was drawn for a batch of simulated images.

    Args:
        rotations: ``(b, 3, 3)``.
        shift_angstrom: ``(b, 2)``, None when the simulator does not shift.
        row: long ``(b,)``, which row of the simulator's optics each image uses.
    """

    rotations: Tensor
    shift_angstrom: Tensor | None
    row: Tensor


@dataclass(frozen=True)
class Simulator:
    """Draws imaging conditions and makes images of a volume under them (Algorithm 2).

    Args:
        box_size: edge of the images in pixels.
        pixel_size_angstrom: pixel size of volume and images, Å.
        optics: the CTFs to draw from, with equal chance: one row per particle or per micrograph.
        micrograph_id: long, the micrograph of each row; noise patches are drawn from it.
        poses, shifts, noise: the samplers of steps 1, 2 and 5.
        transfers: CTFs of all rows, where they were worked out in advance (:meth:`tabulated`).

    >>> simulator = Simulator(16, 4.0, Optics.uniform(10), torch.zeros(10, dtype=torch.long))
    >>> stream = torch.Generator().manual_seed(0)
    >>> drawn = simulator.draw(5, poses=stream, optics=stream)
    >>> spectrum = oversampled_spectrum(torch.zeros(16, 16, 16))
    >>> simulator.clean(spectrum, drawn, simulator.transfer(drawn.row)).shape
    torch.Size([5, 16, 16])
    """

    box_size: int
    pixel_size_angstrom: float
    optics: Optics
    micrograph_id: Tensor
    poses: PoseSampler = field(default_factory=UniformPoses)
    shifts: ShiftSampler = field(default_factory=NoShift)
    noise: Noise = field(default_factory=WhiteGaussian)
    transfers: Tensor | None = field(default=None, repr=False, compare=False)

    def tabulated(self, *, most_bytes: int = 2**29) -> Simulator:
        """The same with the CTFs of all rows worked out once, where they fit into memory."""
        n = self.box_size
        too_large = len(self.optics) * n * (n // 2 + 1) * 4 > most_bytes
        if self.transfers is not None or too_large:
            return self
        pieces = torch.split(torch.arange(len(self.optics), device=self.micrograph_id.device), 256)
        return replace(self, transfers=torch.cat([self.transfer(piece) for piece in pieces]))

    def draw(self, count: int, *, poses: torch.Generator, optics: torch.Generator) -> Conditions:
        """Steps 1 to 3: orientations and shifts from one stream, CTF rows from another."""
        device = self.micrograph_id.device
        row = torch.randint(len(self.optics), (count,), generator=optics, device=optics.device).to(
            device
        )
        rotations = self.poses.sample(count, generator=poses, device=device)
        if isinstance(self.shifts, NoShift):
            return Conditions(rotations, None, row)
        return Conditions(rotations, self.shifts.sample(count, generator=poses, device=device), row)

    def transfer(self, row: Tensor) -> Tensor:
        """CTF of these rows ``(b,)`` on the Hermitian half, ``(b, n, n // 2 + 1)``, real."""
        if self.transfers is not None:
            return self.transfers[row]
        return ctf_half(self.box_size, self.pixel_size_angstrom, self.optics[row])

    def clean(self, spectrum: Tensor, conditions: Conditions, transfer: Tensor) -> Tensor:
        """Step 4: noiseless images ``(b, n, n)``.

        Args:
            spectrum: the volume's, from :func:`~vitreous.physics.projector.oversampled_spectrum`.
            conditions: from :meth:`draw`.
            transfer: from :meth:`transfer`, or any other half-spectrum multiplier.
        """
        shifted = self._shifted(conditions, transfer)
        return project_spectrum(spectrum, conditions.rotations, self.box_size, shifted)

    def clean_slices(self, slices: Tensor, conditions: Conditions, transfer: Tensor) -> Tensor:
        """Step 4 for projections whose spectra are known: noiseless images ``(b, n, n)``.

        Args:
            slices: ``(b, n, n // 2 + 1)``, laid out as by
                :func:`~vitreous.physics.projector.central_slices`; their rotations have been
                applied.
            conditions: of which the shifts are used.
            transfer: as for :meth:`clean`.
        """
        return images_of_slices(slices, self.box_size, self._shifted(conditions, transfer))

    def _shifted(self, conditions: Conditions, transfer: Tensor) -> Tensor:
        """A half-spectrum multiplier that also moves each image by its shift."""
        if conditions.shift_angstrom is None:
            return transfer
        return transfer * shift_phases(
            self.box_size, conditions.shift_angstrom, self.pixel_size_angstrom
        )

    def noise_like(self, row: Tensor, *, generator: torch.Generator) -> Tensor:
        """Step 5: unit-variance noise ``(b, n, n)`` from the micrographs of these rows ``(b,)``."""
        return self.noise.sample(
            len(row),
            self.box_size,
            micrograph_id=self.micrograph_id[row],
            generator=generator,
            device=self.micrograph_id.device,
        )
