"""The model-based methods of ``vitreous reconstruct``: sum, choose the strength, solve.

After the sums and the strength of every scale a checkpoint is written; ``--continue`` goes on from
there, so that images are not read again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.io.checkpoint import load_checkpoint, save_checkpoint
from vitreous.jobs.reconstruct.image_pass import Sums, pass_over_images
from vitreous.jobs.reconstruct.plan import Plan
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.history import HistoryFile
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.progress import RunProgress
from vitreous.jobs.run.signals import StopSignals
from vitreous.methods.reconstruct import gridding as direct
from vitreous.methods.reconstruct.model_based import (
    ModelBasedConfig,
    ModelBasedMaps,
    ModelBasedStage,
    accumulate,
    final_maps,
    find_strength,
)
from vitreous.optim.loop import Callback, Stats
from vitreous.physics.kaiser_bessel.normal_equations import ConvolutionOperator, NormalEquations

Pair = tuple[NormalEquations, NormalEquations]
_USUAL_TRIES = {True: 9, False: 4}  # strengths that the first scale and later ones try


@dataclass
class _Progress:
    """How far the run is, and all that it takes to go on from there.

    Args:
        step: 1 after the direct half maps, 2 k after the sums of scale k = 1, 2 ..., 2 k + 1 after
            its strength.
        direct: half maps without prior.
        equations: of the scale whose sums were made last.
        stage: of the scale whose strength was found last.
        digest: of all pixels, from the first pass over them.
        constant: images without contrast.
        rows: of the history.
    """

    step: int = 0
    direct: tuple[Tensor, Tensor] | None = None
    equations: Pair | None = None
    stage: ModelBasedStage | None = None
    digest: str = ""
    constant: int = 0
    rows: list[Stats] = field(default_factory=list)


@dataclass(frozen=True)
class Solved:
    """A finished run.

    Args:
        maps: of both halves and of all images.
        direct: half maps without prior, by which to judge the others.
        digest: of the images.
        history: rows.
    """

    maps: ModelBasedMaps
    direct: tuple[Tensor, Tensor]
    digest: str
    history: Sequence[Mapping[str, Any]]


def solve(plan: Plan, folder: OutputFolder, stop: StopSignals) -> Solved:
    """Run from coarse to fine.

    Raises:
        InputError: images that cannot be used, or changed while the run was interrupted.
        SystemExit: stopped by a signal.
    """
    config = plan.request.prior
    assert config is not None
    state = _restored(plan, folder) if folder.resuming else _Progress()
    if state.step:
        say(f"goes on after {_told(state, config)}")
    if state.step < 1:
        first, second = _read(plan, state, "reading images", stop, direct.accumulate)
        state.direct = direct.half_map(first), direct.half_map(second)
        _save(folder, state, 1)
    for k, scale in enumerate(config.stages, start=1):
        if state.step < 2 * k:
            way = partial(accumulate, window=config.basis, scale=scale)
            state.equations = _read(plan, state, f"reading images for scale {scale}", stop, way)
            _save(folder, state, 2 * k)
        if state.step < 2 * k + 1:
            assert state.equations is not None
            state.stage = _find(plan, state, scale, config, stop)
            _save(folder, state, 2 * k + 1)
    if state.constant:
        say(f"warning: {state.constant} images are constant; leave them out with --skip-bad")
    return _solve_last(plan, folder, state, config, stop)


def _told(state: _Progress, config: ModelBasedConfig) -> str:
    if state.step == 1:
        return "the maps without prior"
    scale = config.stages[state.step // 2 - 1]
    return f"the {'strength' if state.step % 2 else 'sums'} of scale {scale}"


def _read(
    plan: Plan, state: _Progress, label: str, stop: StopSignals, accumulate: Callable[..., Sums]
) -> Sums:
    """Pass over the images once; they must be those of earlier passes."""
    passed = pass_over_images(plan, label, stop, accumulate)
    if state.digest not in ("", passed.digest):
        raise InputError(
            f"{plan.request.files.path}: the images changed during the run; start it anew "
            "(--overwrite)"
        )
    state.digest, state.constant = passed.digest, passed.constant
    return passed.sums


def _find(
    plan: Plan, state: _Progress, scale: int, config: ModelBasedConfig, stop: StopSignals
) -> ModelBasedStage:
    """The strength at a scale, tried ones being recorded."""
    assert state.equations is not None
    usual = _USUAL_TRIES[state.stage is None or state.stage.strength is None]
    tried = 0
    label = f"choosing the strength at scale {scale}"
    with RunProgress(label, quiet=plan.request.quiet) as bar:

        def notify(strength: float, score: float) -> None:
            nonlocal tried
            tried += 1
            state.rows.append({"scale": scale, "strength": strength, "score": score})
            bar.update(min(tried / usual, 0.99))

        def heed(step: int, stats: Stats) -> None:
            stop.exit_if_requested()

        return find_strength(
            state.equations,
            plan.box_size,
            scale,
            config,
            coarser=state.stage,
            radius_px=plan.mask_radius_px,
            notify=notify,
            callbacks=(heed,),
        )


def _solve_last(
    plan: Plan,
    folder: OutputFolder,
    state: _Progress,
    config: ModelBasedConfig,
    stop: StopSignals,
) -> Solved:
    """The three maps, with the history of all that led to them."""
    assert state.equations is not None
    assert state.stage is not None
    assert state.direct is not None
    history = HistoryFile(folder.path("history.jsonl"), keep=False)
    with history, RunProgress("solving", quiet=plan.request.quiet) as bar:
        for row in state.rows:
            history.add(row)
        notify = _solutions(history, bar, config.iterations, stop)
        maps = final_maps(
            state.equations,
            plan.box_size,
            state.stage,
            config,
            radius_px=plan.mask_radius_px,
            callbacks=(notify,),
        )
    return Solved(maps, state.direct, state.digest, history.rows)


def _solutions(
    history: HistoryFile, bar: RunProgress, iterations: int, stop: StopSignals
) -> Callback:
    """Follows the solutions for half 1, half 2 and all images, each of which begins at step 0."""
    solution = 0

    def notify(step: int, stats: Stats) -> None:
        nonlocal solution
        solution += step == 0
        which = {"half": solution} if solution < 3 else {}
        history.add({"step": step, **which, **stats})
        bar.update((solution - 1 + (step + 1) / iterations) / 3)
        stop.exit_if_requested()

    return notify


# ---------------------------------------------------------------- checkpoints


def _save(folder: OutputFolder, state: _Progress, step: int) -> None:
    state.step = step
    tensors: dict[str, Tensor] = {}
    meta: dict[str, object] = {
        "digest": state.digest,
        "constant": state.constant,
        "rows": state.rows,
    }
    assert state.direct is not None
    tensors["direct1"], tensors["direct2"] = state.direct
    sizes = []
    for half, equations in enumerate(state.equations or (), start=1):
        tensors[f"spectrum{half}"] = equations.operator.spectrum
        tensors[f"right_hand_side{half}"] = equations.right_hand_side
        sizes.append([equations.operator.diagonal, equations.images, equations.sum_of_squares])
    meta["equations"] = sizes
    if state.stage is not None:
        tensors["half1"], tensors["half2"] = state.stage.halves
        meta["stage"] = [state.stage.scale, state.stage.strength, state.stage.tried]
    save_checkpoint(folder.checkpoints, step, tensors, meta)


def _restored(plan: Plan, folder: OutputFolder) -> _Progress:
    found = load_checkpoint(folder.checkpoints)
    if found is None:
        say("no checkpoint yet, starts from the beginning")
        return _Progress()
    tensors = {name: tensor.to(plan.device) for name, tensor in found.tensors.items()}
    halves = []
    for half, (diagonal, images, squares) in enumerate(found.meta["equations"], start=1):
        h = tensors[f"right_hand_side{half}"]
        operator = ConvolutionOperator.of_spectrum(tensors[f"spectrum{half}"], len(h), diagonal)
        halves.append(NormalEquations(operator, h, images, squares))
    stage = None
    if "stage" in found.meta:
        scale, strength, tried = found.meta["stage"]
        pairs = tuple((float(a), float(b)) for a, b in tried)
        stage = ModelBasedStage(scale, strength, pairs, (tensors["half1"], tensors["half2"]))
    return _Progress(
        step=found.step,
        direct=(tensors["direct1"], tensors["direct2"]),
        equations=(halves[0], halves[1]) if halves else None,
        stage=stage,
        digest=found.meta["digest"],
        constant=found.meta["constant"],
        rows=found.meta["rows"],
    )
