"""Half sets: the images that a round of refinement uses, and the candidate poses of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vitreous.core.images import ImageSource, read_ahead
from vitreous.core.params import Optics
from vitreous.core.random import numbered_generator
from vitreous.core.threads import parallel_map
from vitreous.methods.em.config import Batches
from vitreous.methods.em.expectation import ExpectationStep, images_at_once
from vitreous.methods.em.pose_posterior import ExpectationResult, PoseCandidates, SampledPoses


class HalfSet:
    """Images of a half set, all or a part of which a round uses, and their candidate poses.

    Args:
        index: 0 or 1.
        rows: of its images among all images, in order.
        device: of the poses.

    Attributes:
        round_rows: rows that this round uses, in order.
        candidates: poses of every image, minus infinity for images that no round has used; None
            before the first round.
        sampled: poses that this round has sampled for its images; None if none.
    """

    def __init__(self, index: int, rows: Tensor, device: torch.device) -> None:
        self.index, self.rows, self._device = index, rows, device
        self.round_rows = rows
        self.candidates: PoseCandidates | None = None
        self.sampled: SampledPoses | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def select_batch(self, batches: Batches | None, round_number: int, seed: int) -> None:
        """Choose the images of a round.

        Args:
            batches: of which the round uses one; None to use all images.
            round_number: from 0 on.
            seed: of the random parts.
        """
        if batches is None or batches.parts > len(self):
            self.round_rows = self.rows
            return
        epoch, part = divmod(round_number, batches.parts)
        generator = numbered_generator(torch.device("cpu"), seed, epoch, self.index)
        order = torch.randperm(len(self), generator=generator)
        self.round_rows = self.rows[order[part :: batches.parts].sort().values]

    def starting_candidates(self) -> PoseCandidates | None:
        """Return the candidates of all images; None while an image has none."""
        complete = self.candidates is not None and self.candidates.complete
        return self.candidates if complete else None

    def positions(self, rows: Tensor) -> Tensor:
        """Return the positions of some of its rows within the half set."""
        return torch.searchsorted(self.rows, rows).to(self._device)

    def store(self, candidates: PoseCandidates, sampled: SampledPoses | None) -> None:
        """Store the poses of this round's images beside the candidates of the others."""
        if len(candidates) < len(self):
            others = len(self) if self.candidates is None else self.candidates
            candidates = candidates.among(self.positions(self.round_rows), others)
        self.candidates, self.sampled = candidates, sampled

    def round_candidates(self) -> PoseCandidates:
        """Return the candidates of this round's images."""
        assert self.candidates is not None
        if len(self.round_rows) == len(self):
            return self.candidates
        return self.candidates[self.positions(self.round_rows)]

    def move(self, rotation: Tensor, shift_angstrom: Tensor) -> None:
        """Follow a map that was moved; see :meth:`PoseCandidates.moved`."""
        if self.candidates is not None:
            self.candidates = self.candidates.moved(rotation, shift_angstrom)
        if self.sampled is not None:
            self.sampled = self.sampled.moved(rotation, shift_angstrom)

    def state_dict(self) -> dict[str, Any]:
        """Return the state before the next round."""
        candidates = self.candidates
        return {"candidates": None if candidates is None else dict(vars(candidates))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of the same half set."""
        saved = state["candidates"]
        self.candidates = None if saved is None else PoseCandidates(**saved).to(self._device)


def expectation_of_halves(
    expectation: ExpectationStep,
    halves: Sequence[HalfSet],
    images: ImageSource,
    optics: Optics | None,
    scale: Tensor | None,
    *,
    recentre: bool,
    stream: Callable[[HalfSet, Tensor], torch.Generator | None],
    device: torch.device,
) -> Iterator[tuple[HalfSet, Tensor, Tensor, ExpectationResult]]:
    """Yield half set, rows, images and result of every batch of a round.

    Args:
        expectation: under the map that the half sets share.
        halves: whose images of the round are used.
        images: of all half sets.
        optics: CTF parameters of each; None for none.
        scale: contrast of each image ``(b,)``; None: the best for each pose.
        recentre: whether the half sets' candidates are known and serve as the start.
        stream: returns the random stream of the samples of a half set's batch of rows; None for no
            samples.
        device: where to compute.
    """
    starts = {half: half.starting_candidates() if recentre else None for half in halves}

    def batches() -> Iterator[tuple[HalfSet, Tensor, Tensor]]:
        most = images_at_once(device, sum(len(half.round_rows) for half in halves))
        for half in halves:
            for rows, read in read_ahead(images, half.round_rows, max_batch=most):
                yield half, rows, read

    def assign(
        batch: tuple[HalfSet, Tensor, Tensor],
    ) -> tuple[HalfSet, Tensor, Tensor, ExpectationResult]:
        half, rows, read = batch[0], batch[1], batch[2].to(device, torch.float32)
        start = starts[half]
        result = expectation(
            read,
            None if optics is None else optics[rows].to(device),
            start=None if start is None else start[half.positions(rows)],
            scale=None if scale is None else scale[rows],
            generator=stream(half, rows),
        )
        return half, rows, read, result

    return parallel_map(assign, batches(), device)
