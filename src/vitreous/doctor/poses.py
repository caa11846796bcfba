r"""Test of the stated orientations and shifts against the images.

Both half sets are reconstructed directly under each convention that the table may use, and the half
maps are compared. Only the true convention aligns the images, so that the information that one half
map has about the other,

.. math::

    I = -\tfrac12 \sum_s n_s \log (1 - \mathrm{FSC}_s^2),

with :math:`n_s` entries in shell s, is many times larger than under any other. Randomly permuted
poses show how much half maps share by their outline alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.core.params import Optics, Pose
from vitreous.core.rotation import euler_to_matrix, matrix_to_euler
from vitreous.doctor.finding import Fault, Finding
from vitreous.maps.fsc import fsc, shell_sums
from vitreous.methods.reconstruct.gridding import reconstruct_halves

BOX_SIZE = 40  # finer detail costs time and does not separate conventions better
CLEARLY_MORE = 1.25  # ratio of information that prefers a convention to the table's
LEAST_INFORMATION = 100.0
OF_CHANCE = 1.5  # ratio to the information of random poses, below which poses are unrelated


class Convention(Fault):
    """Convention in which orientations or shifts may be written."""


STATED = Convention("", "as stated", "")
EULER: dict[Convention, Callable[[Tensor], Tensor]] = {
    STATED: lambda e: e,
    Convention(
        "euler-inverse",
        "the angles describe the inverse (transposed) rotations",
        "replace (rot, tilt, psi) by (-psi, -tilt, -rot)",
    ): lambda e: -e.flip(-1),
    Convention(
        "euler-order", "rot and psi are swapped", "swap rlnAngleRot and rlnAnglePsi"
    ): lambda e: e.flip(-1),
    Convention(
        "euler-psi-sign", "psi has the wrong sign", "change the sign of rlnAnglePsi"
    ): lambda e: e * e.new_tensor([1, 1, -1]),
    Convention(
        "euler-rot-sign", "rot has the wrong sign", "change the sign of rlnAngleRot"
    ): lambda e: e * e.new_tensor([-1, 1, 1]),
    Convention(
        "images-mirrored",
        "rot and psi have the wrong sign, or the images are mirrored",
        "change the signs of rlnAngleRot and rlnAnglePsi, or flip the images",
    ): lambda e: e * e.new_tensor([-1, 1, -1]),
    Convention(
        "euler-radians", "the angles are in radians, not in degrees", "multiply them by 180 / pi"
    ): torch.rad2deg,
}
SHIFT: dict[Convention, Callable[[Tensor, float], Tensor]] = {
    STATED: lambda t, pixel: t,
    Convention(
        "shift-sign", "the origins have the wrong sign", "change the signs of rlnOriginX/YAngst"
    ): lambda t, pixel: -t,
    Convention(
        "shift-unit",
        "the origins are in pixels, not in Å",
        "multiply rlnOriginX/YAngst by the pixel size",
    ): lambda t, pixel: t * pixel,
    Convention(
        "shift-unit",
        "the origins are too large by the pixel size: Å taken for pixels",
        "divide rlnOriginX/YAngst by the pixel size",
    ): lambda t, pixel: t / pixel,
    Convention(
        "shift-axes", "the origins' x and y are swapped", "swap rlnOriginXAngst and rlnOriginYAngst"
    ): lambda t, pixel: t.flip(-1),
    Convention(
        "shift-ignored", "without the origins", "set the origins to 0: they were applied already"
    ): lambda t, pixel: torch.zeros_like(t),
}


@dataclass(frozen=True)
class PoseTest:
    """Information shared by half maps under every pair of conventions.

    Args:
        euler, shift: best convention of orientations and of shifts.
        information: (orientation, shift) -> I.
        chance: I of the best pair's orientations permuted at random, with or without shifts.
        curves: label -> FSC of the half maps, ``(BOX_SIZE // 2 + 1,)``.
        box_size, pixel_size_angstrom: box in pixels and pixel size in Å of the reconstructions.
    """

    euler: Convention
    shift: Convention
    information: dict[tuple[Convention, Convention], float]
    chance: float
    curves: dict[str, Tensor]
    box_size: int
    pixel_size_angstrom: float

    @property
    def stated(self) -> float:
        """I of the table's own conventions."""
        return self.information[STATED, STATED]

    @property
    def best(self) -> float:
        """I of the best pair."""
        return self.information[self.euler, self.shift]


def information(curve: Tensor, box_size: int) -> float:
    """Return I of an FSC curve, over shells 1 to Nyquist.

    >>> information(torch.zeros(5), 8)
    0.0
    """
    n = box_size
    entries = shell_sums(torch.ones(n, n, n // 2 + 1), (n, n, n))
    shells = slice(1, box_size // 2)
    shared = curve[shells].double().clamp(0, 0.999)
    # an entry and its Friedel mate are not independent: half of them count
    return float(-0.25 * (entries[shells] * torch.log(1 - shared.square())).sum()) + 0.0


def apply(euler: Convention, shift: Convention, pose: Pose, pixel_size_angstrom: float) -> Pose:
    """Return the true poses if the table uses these conventions."""
    rotation = pose.rotation
    if euler is not STATED:
        angles = EULER[euler](matrix_to_euler(rotation.double()))
        rotation = euler_to_matrix(angles).to(pose.rotation)
    return Pose(rotation, SHIFT[shift](pose.shift_angstrom, pixel_size_angstrom))


def compare(
    images: Tensor,
    pose: Pose,
    optics: Optics | None,
    pixel_size_angstrom: float,
    table_pixel_size_angstrom: float,
    generator: torch.Generator,
    notify: Callable[[float], None] = lambda fraction: None,
) -> PoseTest:
    """Reconstruct half maps under every pair of conventions and compare them.

    Args:
        images: ``(b, n, n)``, of a small box (:data:`BOX_SIZE`).
        pose: stated pose of each image.
        optics: CTF parameters of each image; None leaves the CTF out.
        pixel_size_angstrom: pixel size of these images in Å.
        table_pixel_size_angstrom: pixel size of the table's images in Å.
        generator: random numbers for half sets and permuted poses.
        notify: called with the fraction done.
    """
    n, pixel = images.shape[-1], pixel_size_angstrom
    half = 1 + torch.randperm(len(images), generator=generator) % 2
    shifted = bool((pose.shift_angstrom.abs() > 0.25 * table_pixel_size_angstrom).any())
    shifts = [s for s in SHIFT if shifted or s is STATED]
    pairs = [(euler, shift) for euler in EULER for shift in shifts]
    curves = {}

    for done, (euler, shift) in enumerate(pairs):
        notify(done / (len(pairs) + 2))
        one = apply(euler, shift, pose, table_pixel_size_angstrom)
        curves[euler, shift] = _curve(images, one, optics, pixel, half)
    shared = {pair: information(values, n) for pair, values in curves.items()}
    best = max(shared, key=lambda pair: shared[pair])
    corrected = apply(*best, pose, table_pixel_size_angstrom)
    permuted = corrected.rotation[torch.randperm(len(images), generator=generator)]
    chances = [
        _curve(images, Pose(permuted, shift), optics, pixel, half)
        for shift in (corrected.shift_angstrom, torch.zeros_like(corrected.shift_angstrom))
    ]
    chance = max(chances, key=lambda values: information(values, n))
    if shared[best] < CLEARLY_MORE * shared[STATED, STATED] + LEAST_INFORMATION:
        best = STATED, STATED
    labelled = {"as stated": curves[STATED, STATED], "poses at random": chance}
    if best != (STATED, STATED):
        labelled["corrected"] = curves[best]
    return PoseTest(*best, shared, information(chance, n), labelled, n, pixel)


def _curve(
    images: Tensor, pose: Pose, optics: Optics | None, pixel_size_angstrom: float, half: Tensor
) -> Tensor:
    """Return the FSC of the half maps of direct reconstruction."""
    data = (images, pose.rotation, pose.shift_angstrom, optics, pixel_size_angstrom)
    return fsc(*reconstruct_halves(*data, half))


def shared_under(
    images: Tensor,
    pose: Pose,
    tried: Sequence[tuple[Optics, float]],
    splits: int,
    generator: torch.Generator,
    notify: Callable[[float], None] = lambda fraction: None,
) -> Tensor:
    """Compute the information shared by half maps under several CTFs, ``(tried, splits)``.

    Args:
        images: ``(b, n, n)``, of a small box.
        pose: pose of each image.
        tried: for each CTF the optics of each image and the pixel size of these images in Å.
        splits: number of random splits into half sets, the same for all CTFs.
        generator: random numbers of the splits.
        notify: called with the fraction done.
    """
    n = images.shape[-1]
    halves = [1 + torch.randperm(len(images), generator=generator) % 2 for _ in range(splits)]
    shared = torch.zeros(len(tried), splits)
    for row, (optics, pixel) in enumerate(tried):
        notify(row / len(tried))
        for column, half in enumerate(halves):
            shared[row, column] = information(_curve(images, pose, optics, pixel, half), n)
    return shared


def findings(test: PoseTest) -> list[Finding]:
    """Return the findings on orientations and shifts."""
    evidence = (
        f"information shared by half maps (to fit, {OF_CHANCE:g} times that of poses at random "
        f"and {LEAST_INFORMATION:g} more): table {test.stated:.0f}, poses at random "
        f"{test.chance:.0f}"
    )
    if test.best < OF_CHANCE * test.chance + LEAST_INFORMATION:
        claim = "orientations do not fit the images under any convention"
        remedy = "check that the rows of table and stack belong together; search the poses again"
        return [Finding("poses", "wrong", claim, evidence, remedy, "poses-unrelated")]
    others = sorted((i, p) for p, i in test.information.items() if p != (test.euler, test.shift))
    if test.best > test.stated:
        needed = f"{CLEARLY_MORE:g} times the table's and {LEAST_INFORMATION:g} more decide"
        evidence += f", corrected {test.best:.0f} ({needed})"
    elif others:
        claims = "; ".join(c.claim for c in others[-1][1] if c is not STATED)
        evidence += f"; the best other convention ({claims}) {others[-1][0]:.0f}"
    untested = len({shift for _, shift in test.information}) == 1
    results = []
    for topic, convention in (("orientations", test.euler), ("shifts", test.shift)):
        if convention is not STATED:
            verdict = (convention.claim, evidence, convention.remedy, convention.fault)
            results.append(Finding(topic, "wrong", *verdict))
        elif topic == "shifts" and untested:
            results.append(Finding(topic, "note", "none, or too small to matter"))
        else:
            results.append(Finding(topic, "ok", "fit the images in RELION's convention", evidence))
    return results
