"""Expectation step of half sets: the images of a round, batch by batch, and their poses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vitreous.core.images import ImageSource, read_ahead
from vitreous.core.params import Optics
from vitreous.core.threads import parallel_map
from vitreous.methods.em.expectation import ExpectationStep, images_at_once
from vitreous.methods.em.half_set import HalfSet
from vitreous.methods.em.pose_posterior import ExpectationResult

ImageBatch = tuple[HalfSet, Tensor, Tensor]  # with the rows of the images, and the images
RandomStream = Callable[[HalfSet, Tensor], torch.Generator | None]


def expectation_of_halves(
    expectation: ExpectationStep,
    halves: Sequence[HalfSet],
    images: ImageSource,
    optics: Optics | None,
    scale: Tensor | None,
    *,
    recentre: bool,
    stream: RandomStream,
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

    def batches() -> Iterator[ImageBatch]:
        most = images_at_once(device, sum(len(half.round_rows) for half in halves))
        for half in halves:
            for rows, read in read_ahead(images, half.round_rows, max_batch=most):
                yield half, rows, read

    def assign(batch: ImageBatch) -> tuple[HalfSet, Tensor, Tensor, ExpectationResult]:
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
