"""Simulator of particle images: project, shift, apply the CTF, add noise.

Algorithm 2 of CryoGAN (IEEE TCI 7, 2021): orientation, shift and CTF are drawn from their
distributions, the volume is imaged, and noise from the same micrograph is added. Shift and CTF cost
one multiplication of each central slice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vitreous.core.params import Optics
from vitreous.physics.ctf import ctf_half
from vitreous.physics.noise import Noise, WhiteGaussian
from vitreous.physics.poses import NoShift, PoseSampler, ShiftSampler, UniformPoses
from vitreous.physics.projector import oversampled_spectrum, project_spectrum, slices_to_images
from vitreous.physics.shift import shift_phases

_MAX_TABLE_BYTES = 2**29


def simulate(
    volume: Tensor,
    rotations: Tensor,
    shift_angstrom: Tensor,
    optics: Optics | None,
    pixel_size_angstrom: float,
) -> Tensor:
    r"""Return noiseless images :math:`H_\varphi x = C_c S_t P_\theta x` (CryoGAN, eq. (2)).

    Of a volume ``(n, n, n)`` under rotations ``(b, 3, 3)``, volume to particle coordinates, and
    shifts ``(b, 2)`` (x, y) in Å; differentiable in these three. ``optics`` holds the CTF of each
    image; None for none.

    >>> volume = torch.zeros(16, 16, 16); volume[8, 8, 8] = 1.0
    >>> simulate(volume, torch.eye(3)[None], torch.zeros(1, 2), Optics.uniform(1), 2.0).shape
    torch.Size([1, 16, 16])
    """
    n = volume.shape[-1]
    multiplier = shift_phases(n, shift_angstrom, pixel_size_angstrom)
    if optics is not None:
        multiplier = ctf_half(n, pixel_size_angstrom, optics) * multiplier
    return project_spectrum(oversampled_spectrum(volume), rotations, n, multiplier)


@dataclass(frozen=True)
class Conditions:
    """Imaging conditions of a batch: rotations ``(b, 3, 3)`` and shifts ``(b, 2)``, None without.

    ``row (b,)`` is the row of the simulator's optics of each image.
    """

    rotations: Tensor
    shift_angstrom: Tensor | None
    row: Tensor


@dataclass(frozen=True)
class Simulator:
    """Simulator of images of a volume under random imaging conditions (Algorithm 2).

    Args:
        box_size: edge of the images in pixels.
        pixel_size_angstrom: pixel size of volume and images, Å.
        optics: CTFs to draw from uniformly, one row per particle or per micrograph.
        micrograph_id: long, the micrograph of each row, for noise that depends on it.
        poses, shifts, noise: samplers of steps 1, 2 and 5.
        ctf_table: CTFs of all rows, computed in advance by :meth:`with_ctf_table`.

    >>> simulator = Simulator(16, 2.0, Optics.uniform(3), torch.zeros(3, dtype=torch.long))
    >>> stream = torch.Generator().manual_seed(0)
    >>> conditions = simulator.draw(5, poses=stream, optics=stream)
    >>> spectrum = oversampled_spectrum(torch.zeros(16, 16, 16))
    >>> simulator.clean(spectrum, conditions, simulator.ctf(conditions.row)).shape
    torch.Size([5, 16, 16])
    """

    box_size: int
    pixel_size_angstrom: float
    optics: Optics
    micrograph_id: Tensor
    poses: PoseSampler = field(default_factory=UniformPoses)
    shifts: ShiftSampler = field(default_factory=NoShift)
    noise: Noise = field(default_factory=WhiteGaussian)
    ctf_table: Tensor | None = field(default=None, repr=False, compare=False)

    def with_ctf_table(self) -> Simulator:
        """Return the simulator with the CTFs of all rows computed once, if memory allows."""
        n = self.box_size
        too_large = len(self.optics) * n * (n // 2 + 1) * 4 > _MAX_TABLE_BYTES
        if self.ctf_table is not None or too_large:
            return self
        rows = torch.split(torch.arange(len(self.optics), device=self.micrograph_id.device), 256)
        return replace(self, ctf_table=torch.cat([self.ctf(part) for part in rows]))

    def draw(self, count: int, *, poses: torch.Generator, optics: torch.Generator) -> Conditions:
        """Draw orientations and shifts from one stream, CTF rows from another (steps 1 to 3)."""
        device = self.micrograph_id.device
        row = torch.randint(len(self.optics), (count,), generator=optics, device=optics.device).to(
            device
        )
        rotations = self.poses.sample(count, generator=poses, device=device)
        if isinstance(self.shifts, NoShift):
            return Conditions(rotations, None, row)
        return Conditions(rotations, self.shifts.sample(count, generator=poses, device=device), row)

    def ctf(self, row: Tensor) -> Tensor:
        """Return the real CTFs ``(b, n, n // 2 + 1)`` of optics rows ``(b,)``."""
        if self.ctf_table is not None:
            return self.ctf_table[row]
        return ctf_half(self.box_size, self.pixel_size_angstrom, self.optics[row])

    def clean(self, spectrum: Tensor, conditions: Conditions, ctf: Tensor) -> Tensor:
        """Return noiseless images ``(b, n, n)`` (step 4).

        ``spectrum`` is the volume's :func:`~vitreous.physics.projector.oversampled_spectrum`,
        ``ctf`` that of :meth:`ctf` or any other half-spectrum multiplier.
        """
        shifted = self._shifted(conditions, ctf)
        return project_spectrum(spectrum, conditions.rotations, self.box_size, shifted)

    def clean_slices(self, slices: Tensor, conditions: Conditions, ctf: Tensor) -> Tensor:
        """Return noiseless images ``(b, n, n)`` of given slices (step 4).

        Slices are rotated and laid out as by :func:`~vitreous.physics.projector.central_slices`; of
        the conditions only the shifts are used.
        """
        return slices_to_images(slices, self.box_size, self._shifted(conditions, ctf))

    def _shifted(self, conditions: Conditions, ctf: Tensor) -> Tensor:
        """Return a half-spectrum multiplier times the phases of each image's shift."""
        if conditions.shift_angstrom is None:
            return ctf
        return ctf * shift_phases(
            self.box_size, conditions.shift_angstrom, self.pixel_size_angstrom
        )

    def noise_like(self, row: Tensor, *, generator: torch.Generator) -> Tensor:
        """Draw unit-variance noise ``(b, n, n)`` of the micrographs of optics rows (step 5)."""
        return self.noise.sample(
            len(row),
            self.box_size,
            micrograph_id=self.micrograph_id[row],
            generator=generator,
            device=self.micrograph_id.device,
        )
