"""The rounds: to Nyquist from a blurred start, halves apart, soft and hard, every check."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from matching_case import BOX, PIXEL, Case, case
from vitreous.core.errors import DivergedError, InputError
from vitreous.core.grid import shell_index
from vitreous.core.images import ImagesInMemory, shell_power
from vitreous.core.resample import rotate_volume
from vitreous.core.rotation import axis_angle_to_matrix
from vitreous.data.phantoms import protein_phantom
from vitreous.io.nested import flatten_state, restore_state
from vitreous.maps.fsc import fsc, fsc_resolution
from vitreous.methods.em import expectation
from vitreous.methods.em import refinement as refinement_module
from vitreous.methods.em.config import Batches, RefinementConfig
from vitreous.methods.em.initial_model_result import InitialModel
from vitreous.methods.em.maximisation import inserted_poses
from vitreous.methods.em.refinement import Refinement
from vitreous.optim import loop

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = RefinementConfig(start_resolution_angstrom=45.0, shift_range_angstrom=9.0, rounds=4)


def task(
    data: Case,
    config: RefinementConfig = CONFIG,
    images: Tensor | None = None,
    start: tuple[Tensor, Tensor] | None = None,
) -> Refinement:
    images = data.images if images is None else images
    half = torch.arange(len(images)) % 2 + 1
    return Refinement(
        ImagesInMemory(images),
        data.optics,
        half,
        start or data.volume,
        config,
        pixel_size_angstrom=PIXEL,
    )


@pytest.mark.parametrize("assignment", [pytest.param("hard", marks=pytest.mark.slow), "soft"])
def test_from_a_blurred_start_to_nyquist(assignment: str) -> None:
    data = case(400, noise=1.0)
    run = task(data, replace(CONFIG, assignment=assignment))
    told: list[dict[str, float]] = []
    loop.run(run, [lambda _, stats: told.append(stats)])
    assert told[0]["band_angstrom"] == pytest.approx(48.0)
    assert told[-1]["band_angstrom"] < 20.0
    poses = run.poses()
    assert data.errors_deg(poses.pose.rotation[:, None]).median() < 1.5
    assert (poses.pose.shift_angstrom - data.shift).norm(dim=1).median() < 0.6
    torch.testing.assert_close(poses.candidates.posterior.sum(1), torch.ones(400))
    assert poses.posterior.min() > 0
    assert (poses.log_likelihood > 10).float().mean() > 0.95
    assert fsc_resolution(fsc(run.maps()[2], data.volume), 0.5, BOX, PIXEL) < 13.0


def test_noise_is_that_of_the_images() -> None:
    data = case(400, noise=1.0)
    run = task(data)
    for _ in range(3):
        run.step()
    noise = data.images - case(400).images
    truth = shell_power(ImagesInMemory(noise), torch.arange(400))
    known = slice(2, round(BOX * PIXEL / 22))
    ratio = run.noise_power[0][known] / truth[known]
    assert ratio.min() > 0.8
    assert ratio.max() < 1.25


@pytest.mark.parametrize("kept", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_half_set_sees_nothing_of_the_other_but_the_fsc(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = case(60, noise=1.0)
    other = data.images.clone()
    other[1 - kept :: 2] = torch.randn(30, BOX, BOX, generator=torch.Generator().manual_seed(9))
    curve = torch.linspace(1.0, 0.3, BOX // 2 + 1, dtype=torch.float64)
    monkeypatch.setattr(refinement_module, "fsc", lambda a, b: curve[: len(a) // 2 + 1])
    maps, poses = [], []
    for images in (data.images, other):
        run = task(data, images=images)
        for _ in range(3):
            run.step()
        maps.append(run.maps()[:2])
        poses.append(run.poses().pose.rotation)
    assert torch.equal(maps[0][kept], maps[1][kept])
    assert torch.equal(poses[0][kept::2], poses[1][kept::2])
    assert not torch.equal(maps[0][1 - kept], maps[1][1 - kept])


def other_halves(data: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """Images and rows of their optics: half 2 in another order, with more noise, or all noise."""
    count = len(data.images)
    noise = torch.randn(count // 2, BOX, BOX, generator=torch.Generator().manual_seed(9))
    same, order = torch.arange(count), torch.arange(count)
    order[1::2] = order[1::2].flip(0)
    found = {"as it is": (data.images, same), "in another order": (data.images[order], order)}
    for name, share in (("with twice the noise", 1.0), ("without particles", 0.0)):
        images = data.images.clone()
        images[1::2] = share * images[1::2] + noise
        found[name] = (images, same)
    return found


def half_map_1(data: Case, images: Tensor, rows: Tensor, rounds: int) -> Tensor:
    run = task(replace(data, optics=data.optics[rows]), images=images)
    for _ in range(rounds):
        run.step()
    return run.maps()[0]


def test_fault_31_half_2_reaches_half_1_by_the_fsc_curve_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = case(40, noise=1.0)
    curve = torch.linspace(1.0, 0.3, BOX // 2 + 1, dtype=torch.float64)
    monkeypatch.setattr(refinement_module, "fsc", lambda a, b: curve[: len(a) // 2 + 1])
    maps = {name: half_map_1(data, *other, rounds=2) for name, other in other_halves(data).items()}
    for name, one in maps.items():
        assert torch.equal(one, maps["as it is"]), name


@pytest.mark.slow
def test_fault_31_how_much_the_fsc_curve_passes() -> None:
    """The numbers of docs/refine.md."""
    data = case(120, noise=1.0)
    maps = {name: half_map_1(data, *other, rounds=4) for name, other in other_halves(data).items()}
    first = maps.pop("as it is")
    for name, one in maps.items():
        change = float((one - first).norm() / first.norm())
        print(f"half 2 {name}: half map 1 changes by {change:.2f} of its norm")
        assert 0 < change < 1


def test_poses_do_not_depend_on_threads_nor_batches_share_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expectation, "_BATCH_LIMITS", (8, 8))
    data = case(16, noise=1.0)
    twice = torch.arange(32) % 16
    data = replace(data, images=data.images[twice], optics=data.optics[twice])
    drawn = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        run = task(data, replace(CONFIG, draws=1))
        run.step()
        drawn.append(inserted_poses(run._halves, run._kept).rotation)
    assert torch.equal(*drawn)
    first, second = drawn[0][:16], drawn[0][16:]  # the same images, in batches of their own
    assert not torch.allclose(first, second)


def test_one_map_is_that_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    data = case(200, noise=1.0)
    apart, joined = (task(data, replace(CONFIG, one_map=one)) for one in (False, True))
    for run in (apart, joined):
        run.step()
    assert torch.equal(joined.references[0], joined.references[1])
    assert torch.equal(joined.noise_power[0], joined.noise_power[1])
    assert not torch.equal(*apart.noise_power)
    assert not torch.allclose(*apart.references)
    worst = min(fsc(one, data.volume)[6] for one in apart.references)
    assert fsc(joined.references[0], data.volume)[6] > worst
    # the first round knows no map of theirs, but only the noise of both
    assert fsc(apart.maps()[2], joined.maps()[2])[1:9].min() > 0.95
    with pytest.raises(ValueError, match="one start"):
        task(data, replace(CONFIG, one_map=True), start=(data.volume, data.volume))


@pytest.mark.slow
def test_halves_with_starts_of_their_own_are_brought_into_one_frame() -> None:
    data = case(300, noise=1.0)
    apart = axis_angle_to_matrix(torch.tensor([0.05, -0.04, 0.06]))
    away = torch.tensor([0.5, -0.3, 0.4])  # px
    half = torch.arange(300) % 2 + 1

    def refined(*, independent: bool) -> Refinement:
        run = Refinement(
            ImagesInMemory(data.images),
            data.optics,
            half,
            InitialModel(
                data.volume, rotate_volume(data.volume, apart, away), 45.0, independent=independent
            ),
            replace(CONFIG, start_resolution_angstrom=None),
            pixel_size_angstrom=PIXEL,
        )
        for _ in range(3):
            run.step()
        return run

    together, left = refined(independent=True), refined(independent=False)
    assert together.fsc[10] > left.fsc[10] + 0.1
    poses = together.poses().pose
    errors = data.errors_deg(poses.rotation[:, None])[:, 0]
    assert errors[half == 2].median() < 2.2
    shifts = (poses.shift_angstrom - data.shift).norm(dim=1)
    assert shifts[half == 2].median() < 0.8
    assert left.poses().pose.rotation.shape == poses.rotation.shape
    wrong = data.errors_deg(left.poses().pose.rotation[:, None])[:, 0]
    assert wrong[half == 2].median() > 3.0


def test_what_noise_explains_better_is_left_out() -> None:
    data = case(300, noise=1.0)
    images = data.images.clone()
    junk = torch.arange(300) % 10 == 0
    stream = torch.Generator().manual_seed(5)
    images[junk] = data.images.std() * torch.randn(30, BOX, BOX, generator=stream)
    run = task(data, replace(CONFIG, reject=True, searches=1), images=images)
    run.step()
    assert run.poses().kept.all() or int(run.poses().kept.sum()) > 200
    run.step()
    kept = run.poses().kept
    assert kept[~junk].float().mean() > 0.98
    assert kept[junk].float().mean() < 0.3
    assert task(data, images=images).config.reject is False


@pytest.mark.slow
def test_a_run_settles_and_misfit_tells_the_better_map() -> None:
    data = case(300, noise=1.0)
    good = task(data)
    bad = task(replace(data, volume=protein_phantom(BOX, PIXEL, seed=77)))
    assert not good.settled
    while not good.settled:
        good.step()
        assert good.round < 12
    assert good.round > good.config.searches
    for _ in range(2):
        bad.step()
    assert good.misfit(4) < bad.misfit(4) - 1


def test_slow_growth_grows_by_a_shell() -> None:
    run = task(case(60, noise=1.0), replace(CONFIG, start_resolution_angstrom=96.0, growth=1.1))
    assert run.radius == 2
    run.step()
    assert run.radius == 3


def test_rounds_of_parts_deal_all_images_and_whole_ones_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = case(60, noise=1.0)
    config = replace(CONFIG, searches=7, batches=Batches(parts=3, rounds=5, radius=4))
    run = task(data, config)
    rows, recentred, told = [], [], []
    real = refinement_module.ExpectationStep

    def assigner(*args: Any, **options: Any) -> expectation.ExpectationStep:
        recentred.append(options["recentre"])
        return real(*args, **options)

    monkeypatch.setattr(refinement_module, "ExpectationStep", assigner)
    for _ in range(7):
        told.append(run.step())
        rows.append(inserted_poses(run._halves, run._kept).row.unique())
    assert [len(some) for some in rows] == [20] * 5 + [60] * 2
    assert torch.equal(torch.cat(rows[:3]).sort().values, torch.arange(60))
    assert not torch.equal(rows[0], rows[3])  # dealt anew
    assert recentred[::2] == [False] * 3 + [True] * 4  # once shifts of all are known
    assert all(math.isfinite(value) for stats in told for value in stats.values())
    bands = [round(BOX * PIXEL / stats["band_angstrom"]) for stats in told]
    assert max(bands[:5]) == 4 < bands[6]
    assert run.poses().log_likelihood.isfinite().all()


@pytest.mark.parametrize(
    "done", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("parts", [0, 2])
def test_a_restored_task_goes_on_to_the_last_bit(done: int, parts: int) -> None:
    data = case(60, noise=1.0)
    config = replace(CONFIG, batches=Batches(parts=parts, rounds=2) if parts else None)
    whole, begun, resumed = (task(data, config) for _ in range(3))
    for _ in range(3):
        whole.step()
    for _ in range(done):
        begun.step()
    resumed.load_state_dict(restore_state(*flatten_state(begun.state_dict())))
    for _ in range(3 - done):
        resumed.step()
    for one, other in zip(whole.maps(), resumed.maps(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(whole.poses().pose.rotation, resumed.poses().pose.rotation)


def test_nothing_of_the_start_beyond_its_resolution_is_used() -> None:
    data = case(40, noise=1.0)
    spectrum = torch.fft.rfftn(data.volume)
    near = torch.fft.irfftn(spectrum * (shell_index(BOX, 3) <= 10), s=(BOX,) * 3)
    first, second = task(data), task(replace(data, volume=near))
    for run in (first, second):
        run.step()
    a, b = (run.poses().pose.rotation for run in (first, second))
    assert torch.allclose(a, b, atol=0.05)


def test_fault_28_what_is_not_finite_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    data = case(20)
    images = data.images.clone()
    images[3, 4, 4] = torch.nan
    with pytest.raises(InputError, match="images or start: not finite"):
        task(data, images=images)
    run = task(data)
    broken = (torch.full_like(data.volume, torch.nan),) * 2
    monkeypatch.setattr(run, "_find_poses", lambda *_: None)
    monkeypatch.setattr(run, "_reconstruct", lambda: setattr(run, "references", broken))
    with pytest.raises(DivergedError, match="round 1: the maps are not finite"):
        run.step()


def test_what_cannot_be_is_refused() -> None:
    data = case(4)
    run = task(data)
    with pytest.raises(RuntimeError, match="call step"):
        run.maps()
    with pytest.raises(RuntimeError, match="call step"):
        run.poses()
    with pytest.raises(ValueError, match="it must be at most 96"):
        task(data, replace(CONFIG, start_resolution_angstrom=150.0))
    source = ImagesInMemory(data.images)
    with pytest.raises(ValueError, match="both 1 and 2"):
        Refinement(
            source, None, torch.ones(4).long(), data.volume, CONFIG, pixel_size_angstrom=PIXEL
        )
    with pytest.raises(ValueError, match=r"start must be \(32, 32, 32\)"):
        Refinement(
            source,
            None,
            torch.tensor([1, 2, 1, 2]),
            torch.zeros(8, 8, 8),
            CONFIG,
            pixel_size_angstrom=PIXEL,
        )
    with pytest.raises(ValueError, match="pixel_size_angstrom: give it"):
        Refinement(source, None, torch.tensor([1, 2, 1, 2]), data.volume, CONFIG)
    with pytest.raises(ValueError, match="start_resolution_angstrom: say to which"):
        task(data, replace(CONFIG, start_resolution_angstrom=None))
