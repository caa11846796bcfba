"""The maps that a refinement starts from, and how far they can be believed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

_BEYOND_DOUBT = 16  # shells to which halves have not been seen to agree on noise or a wrong map
_OF_BOX = 0.43  # its edge in pixels: as good, where there are not many more shells
_AT_HALF = 0.5  # of those shells: halves that agree weakly everywhere share a map half right


def shells_beyond_doubt(box_size: int) -> float:
    """Return how far half maps must agree to be believed, in cycles per box.

    >>> shells_beyond_doubt(64), round(shells_beyond_doubt(32), 1)
    (16, 13.8)
    """
    return min(_BEYOND_DOUBT, _OF_BOX * box_size)


@dataclass(frozen=True)
class InitialModel:
    """Half maps that a refinement starts from.

    Args:
        half1, half2: ``(n, n, n)``, in one frame.
        resolution_angstrom: to which they are good.
        independent: whether each was made from its own half set alone.
        solved: whether they are worth refining.
        verdict: on independent half maps, one sentence; empty for a map of the user's.
        shells: how far independent half maps agree beyond their outline, in cycles per box.
        shells_at_half: how far their FSC stays above 0.5.
        certainty: that images show the map of the other half set, in standard errors.
        tries: number of tries.
        box_size: of the grid that holds all that is in them.
        misfits: of the random starts of the last try, half 1 before half 2; lower explains more.
        held_out: of half maps that are not solved, FSC by shell of ``box_size`` between maps whose
            shells took no part in finding poses (:mod:`vitreous.methods.em.held_out_shells`).
        used: number of particles that it was made of; 0 for a map of the user's.

    >>> import torch
    >>> start = torch.ones(8, 8, 8)
    >>> model = InitialModel(start, start, resolution_angstrom=40.0)
    >>> model.map.shape, model.independent
    (torch.Size([8, 8, 8]), False)
    """

    half1: Tensor
    half2: Tensor
    resolution_angstrom: float
    independent: bool = False
    solved: bool = True
    verdict: str = ""
    shells: float = 0.0
    shells_at_half: float = 0.0
    certainty: float = 0.0
    tries: int = 0
    box_size: int = 0
    misfits: tuple[float, ...] = ()
    held_out: tuple[float, ...] = ()
    used: int = 0

    @property
    def map(self) -> Tensor:
        """Mean of the half maps, ``(n, n, n)``."""
        return 0.5 * (self.half1 + self.half2)

    @property
    def beyond_doubt(self) -> bool:
        """Whether the halves agree further, and better, than wrong maps have been seen to."""
        needed = shells_beyond_doubt(self.box_size)
        return self.solved and self.shells >= needed and self.shells_at_half >= _AT_HALF * needed

    def better_than(self, other: InitialModel) -> bool:
        """Compare two models: solved first, then beyond doubt, then how far the halves agree."""
        mine, theirs = ((o.solved, o.beyond_doubt, o.shells) for o in (self, other))
        return mine > theirs


Start = Tensor | tuple[Tensor, Tensor] | InitialModel


def start_maps(start: Start, box_size: int) -> tuple[tuple[Tensor, Tensor], bool, float | None]:
    """Return a map for each half set, whether they are independent, and their resolution in Å.

    Args:
        start: one map for both half sets, one for each, or an initial model.
        box_size: that the maps must have.

    Raises:
        ValueError: another box.
    """
    if isinstance(start, InitialModel):
        maps, independent = (start.half1, start.half2), start.independent
        resolution: float | None = start.resolution_angstrom
    else:
        maps = (start, start) if isinstance(start, Tensor) else start
        independent, resolution = not isinstance(start, Tensor), None
    shape = (box_size,) * 3
    for volume in maps:
        if tuple(volume.shape) != shape:
            raise ValueError(f"start must be {shape} as the images are, got {tuple(volume.shape)}")
    return maps, independent, resolution
