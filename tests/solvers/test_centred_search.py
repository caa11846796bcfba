"""Which shifts are searched at all frequencies, by what few frequencies have told of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from vitreous.solvers.band import Band
from vitreous.solvers.centred_search import CentredSearch
from vitreous.solvers.circle_search import Places


@dataclass
class Told:
    """A search that finds what it was told, and remembers what it was asked."""

    band: Band
    found: Places
    range_angstrom: float = 99.0
    asked: list[tuple[float, list[float], Tensor | None]] = field(default_factory=list)

    def with_shifts(self, range_angstrom: float) -> Told:
        return Told(self.band, self.found, range_angstrom, self.asked)

    def __call__(
        self, images: Tensor, optics: object, scale: object = None, *,
        centre: Tensor | None = None, draws: int = 0, generator: object = None,
    ) -> Places:  # fmt: skip
        which = images[:, 0, 0].tolist()
        self.asked.append((self.range_angstrom, which, centre))
        return self.found[torch.tensor(which).long()] if len(which) < 4 else self.found


def places(shifts: list[list[list[float]]], gains: list[list[float]]) -> Places:
    gain = torch.tensor(gains)
    return Places(torch.zeros(gain.shape).long(), 0 * gain, torch.tensor(shifts), gain)


def test_rivals_are_searched_together_where_they_are_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    coarse_band, fine_band = Band(32, 6.0, 4), Band(32, 6.0, 12)
    step = coarse_band.shift_step_angstrom  # 11.5 Å
    shifts = [
        [[0.0, 0.0], [0.0, 3 * step]],  # far, but far worse
        [[3.0, 0.0], [3.0, 0.9 * step]],  # a rival within a step: clear
        [[0.0, 0.0], [step, step]],  # a rival beyond it, not far from the middle
        [[0.0, 0.0], [0.0, 3 * step]],  # a rival far away
    ]
    first = places(shifts, [[50.0, 30.0], [50.0, 45.0], [50.0, 45.0], [50.0, 45.0]])
    asked: list[tuple[float, list[float], Tensor | None]] = []
    fine = Told(fine_band, places(shifts, [[float(i), 0.0] for i in range(4)]), asked=asked)
    monkeypatch.setattr(Band, "images", lambda self, images: images)
    search = CentredSearch(Told(coarse_band, first), fine)
    images = torch.arange(4.0)[:, None, None].expand(4, 8, 8)
    found = search(images, None)
    assert found.gain[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]  # in the images' order again
    near = fine_band.shift_step_angstrom
    assert [which for _, which, _ in asked] == [[0.0, 1.0], [2.0], [3.0]]
    assert [reach for reach, _, _ in asked] == pytest.approx([near, near + 0.75 * step, 99.0])
    assert torch.equal(asked[0][2], torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    assert torch.allclose(asked[1][2], torch.tensor([[step / 2, step / 2]]))
    assert asked[2][2] is None
