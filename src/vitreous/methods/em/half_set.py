"""A half set: which of its images a round of pose assignment uses, and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vitreous.core.random import numbered_generator
from vitreous.methods.em.config import Batches
from vitreous.methods.em.pose_posterior import PoseCandidates, SampledPoses


class HalfSet:
    """Its images, of which a round uses all or a part, and the poses found for them.

    Args:
        which: 0 or 1.
        rows: of its images among all, in order.
        device: of the poses.

    Attributes:
        now: rows that this round uses, in order.
        found: candidates of every image, without any where no round has used it; None before the
            first round.
        drawn: poses that this round has drawn for its images; None if none.
    """

    def __init__(self, which: int, rows: Tensor, device: torch.device) -> None:
        self.which, self.rows, self._device = which, rows, device
        self.now = rows
        self.found: PoseCandidates | None = None
        self.drawn: SampledPoses | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def deal(self, batches: Batches | None, turn: int, seed: int) -> None:
        """Choose the images of a round.

        Args:
            batches: of which the round uses one; None to use all images.
            turn: number of the round.
            seed: of the dealing.
        """
        if batches is None or batches.parts > len(self):
            self.now = self.rows
            return
        again, part = divmod(turn, batches.parts)
        stream = numbered_generator(torch.device("cpu"), seed, again, self.which)
        dealt = torch.randperm(len(self), generator=stream)
        self.now = self.rows[dealt[part :: batches.parts].sort().values]

    def start(self) -> PoseCandidates | None:
        """What is known of the images, if something is known of every one."""
        return self.found if self.found is not None and self.found.complete else None

    def place(self, rows: Tensor) -> Tensor:
        """Where some of its images are among them."""
        return torch.searchsorted(self.rows, rows).to(self._device)

    def keep(self, found: PoseCandidates, drawn: SampledPoses | None) -> None:
        """What was found for this round's images, beside what is known of the others."""
        if len(found) < len(self):
            others = len(self) if self.found is None else self.found
            found = found.among(self.place(self.now), others)
        self.found, self.drawn = found, drawn

    def found_now(self) -> PoseCandidates:
        """What this round has found, for its images."""
        assert self.found is not None
        return self.found if len(self.now) == len(self) else self.found[self.place(self.now)]

    def move(self, rotation: Tensor, shift_angstrom: Tensor) -> None:
        """Follow a map that was moved; see :meth:`PoseCandidates.moved`."""
        if self.found is not None:
            self.found = self.found.moved(rotation, shift_angstrom)
        if self.drawn is not None:
            self.drawn = self.drawn.moved(rotation, shift_angstrom)

    @property
    def _prefix(self) -> str:
        return f"found.{self.which}."

    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`restore` goes on with the next round."""
        found = {} if self.found is None else vars(self.found)
        return {self._prefix + name: value for name, value in found.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state`, which may be among other tensors."""
        fields = {
            name.removeprefix(self._prefix): value
            for name, value in tensors.items()
            if name.startswith(self._prefix)
        }
        self.found = PoseCandidates(**fields) if fields else None
