"""The stages of ``auto`` and ``refine``: an initial model, then rounds until nothing is gained."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vitreous.core.grid import radius_grid
from vitreous.core.random import generator
from vitreous.core.symmetry import point_group
from vitreous.jobs.inputs.working_set import WorkingSet
from vitreous.jobs.run.job import Job
from vitreous.jobs.run.messages import say
from vitreous.maps.align import align_maps
from vitreous.maps.postprocess import Postprocessed, automatic_mask, postprocess
from vitreous.methods.em.config import InitialModelConfig, RefinementConfig
from vitreous.methods.em.finer_shells_test import CERTAIN, FinerShells, finer_shells_test
from vitreous.methods.em.initial_model import InitialModelSearch
from vitreous.methods.em.initial_model_result import InitialModel
from vitreous.methods.em.micrograph_optics import ImageGroups
from vitreous.methods.em.refinement import Refinement
from vitreous.methods.em.refinement_result import RefinementResult
from vitreous.methods.reconstruct.half_maps import sphere

# names in checkpoints
INITIAL_MODEL, REFINEMENT, AGAIN = "initial_model", "refinement", ", again"
FINER_START = "finer start"
MOST_AGAIN = 5  # refinements after the first
_LAST_SHARE = 0.95  # of a refinement's progress, from which those after the first begin
# parts of the progress that end where: initial model and its refinement; starts at finer shells
_START_SHARE, _FIRST_SHARE, _FINER_SHARE = 0.3, 0.3, 0.8
_FINER_ORDER = 12  # least order of the point group for starts at finer shells
_DOUBTFUL = 1.5  # times what the map predicts: true maps were seen to reach it, as blends do
_MORE_LEFT = 1.3  # times the map's mean square in the images: of true maps 1.23 was the most
_COARSER = 1.5  # than the resolution of the maps that another refinement starts from


def initial_model_stage(
    job: Job,
    data: WorkingSet,
    config: InitialModelConfig,
    share: tuple[float, float] = (0.0, 1.0),
    *,
    stage: str = INITIAL_MODEL,
) -> InitialModel:
    """Return the initial model of a job, searched for or taken from its checkpoint.

    Args:
        job: entered.
        data: the particles.
        config: settings of the search.
        share: of the progress bar.
        stage: its name in checkpoints.
    """
    if stage not in job.state:
        search = InitialModelSearch(
            data.images,
            data.optics,
            data.half_set,
            config,
            pixel_size_angstrom=data.pixel_size_angstrom,
            device=data.device,
            progress=job.report_progress,
        )
        model = job.run(
            search,
            stage,
            label="initial model",
            share=share,
            rows=None,
            numbered=False,
            allow_infinite=True,
        )
        job.keep(stage, dict(vars(model)))
    return InitialModel(**job.state[stage])


def refinement_stage(
    job: Job,
    data: WorkingSet,
    start: InitialModel,
    config: RefinementConfig,
    share: tuple[float, float] = (0.0, 1.0),
    *,
    stage: str = REFINEMENT,
) -> RefinementResult:
    """Return what refinement makes of an initial model, from the checkpoint if there is one.

    Args:
        job: entered.
        data: the particles.
        start: the initial model.
        config: settings; of a start beyond doubt only the first round searches all poses.
        share: of the progress bar.
        stage: its name in checkpoints.
    """
    device = data.device
    if start.beyond_doubt:
        config = replace(config, searches=1)
    refinement = Refinement(
        data.images,
        data.optics,
        data.half_set,
        replace(start, half1=start.half1.to(device), half2=start.half2.to(device)),
        replace(config, start_resolution_angstrom=start.resolution_angstrom),
        pixel_size_angstrom=data.pixel_size_angstrom,
        groups=ImageGroups(data.particles.micrograph_id, data.particles.optics_group),
        progress=job.report_progress,
    )
    return job.run(
        refinement, stage, label="refinement", share=share, rows=None, allow_infinite=True
    )


@dataclass(frozen=True)
class Solution:
    """Where an ``auto`` job ended: its initial model, and what refinement made of it, if any."""

    start: InitialModel
    refined: RefinementResult | None = None
    finer: FinerShells | None = None  # evidence of the images
    finer_start_angstrom: float | None = None  # where starts at finer shells began, if there were

    @property
    def confirmed(self) -> bool:
        """Whether the images bear the map out."""
        return self.finer is not None and self.finer.shown

    @property
    def solved(self) -> bool:
        """Whether both half sets found a map and, where it was refined, the images bear it out."""
        return self.start.solved and (self.refined is None or self.confirmed)


def solution(
    job: Job, data: WorkingSet, search: InitialModelConfig, config: RefinementConfig
) -> Solution:
    """Return a refined map of particles without poses.

    Where symmetry is so high that a search of fine shells is cheap, only the first try starts at
    coarse shells, which may tell no orientation. If its map is not borne out by the images, the
    other tries start at finer shells.

    Args:
        job: entered.
        data: the particles.
        search: settings of the initial model.
        config: settings of the refinement.
    """
    can_go_finer = search.tries > 1 and point_group(search.symmetry).order >= _FINER_ORDER
    end = _FIRST_SHARE if can_go_finer else 1.0
    if FINER_START not in job.state:
        coarse = replace(search, tries=1) if can_go_finer else search
        first = _solution_from(job, data, coarse, config, (0.0, end))
        if first.confirmed or not can_go_finer:
            return first
        say(
            "the images do not bear out a map from starts at coarse shells: now from finer ones, "
            "which takes longer"
        )
        diameter = search.diameter_angstrom or _diameter(first, data)
        job.keep(FINER_START, {"diameter_angstrom": diameter})
    within = job.state[FINER_START]
    search, config = replace(search, **within), replace(config, **within)
    edge = data.box_size * data.pixel_size_angstrom
    search = replace(search, tries=search.tries - 1)
    finer = search.at_finer_shells(edge, (data.box_size - 1) // 2)
    second = _solution_from(job, data, finer, config, (end, 1.0), f"{FINER_START}: ")
    return replace(second, finer_start_angstrom=edge / finer.start_radius)


def _solution_from(
    job: Job,
    data: WorkingSet,
    search: InitialModelConfig,
    config: RefinementConfig,
    share: tuple[float, float],
    prefix: str = "",
) -> Solution:
    """Return an initial model and what refinement makes of it; ``prefix`` is of the stages."""
    middle = share[0] + (_FINER_SHARE if prefix else _START_SHARE) * (share[1] - share[0])
    stage = f"{prefix}{INITIAL_MODEL}"
    start = initial_model_stage(job, data, search, (share[0], middle), stage=stage)
    if not start.solved:
        return Solution(start)
    stage = f"{prefix}{REFINEMENT}"
    return Solution(
        start, *confirmed_refinement(job, data, start, config, (middle, share[1]), stage=stage)
    )


def _diameter(solution: Solution, data: WorkingSet) -> float:
    """Return the diameter of the sphere that holds a map, Å; its mask leaves room about it."""
    average = (solution.refined or solution.start).map.cpu()
    mask = automatic_mask(average, data.pixel_size_angstrom)
    radius = float(radius_grid(len(mask), 3)[mask > 0.5].max())
    edge = data.box_size * data.pixel_size_angstrom
    return min(2 * radius * data.pixel_size_angstrom, edge)


def confirmed_refinement(
    job: Job,
    data: WorkingSet,
    start: InitialModel,
    config: RefinementConfig,
    share: tuple[float, float] = (0.0, 1.0),
    *,
    stage: str = REFINEMENT,
) -> tuple[RefinementResult, FinerShells | None]:
    """Refine, and begin anew from the maps while the images show more than the maps hold.

    A refinement searches all poses in its first rounds only. Where it began far from the end, the
    poses of some images stay wrong; another search corrects them. Arguments are as of
    :func:`refinement_stage`.

    Returns:
        result, and whether the images show the finer shells of its map; None where the half maps
        agree on nothing.
    """
    first, last = share
    while True:
        again = job.state.get(f"{stage}{AGAIN}", {"count": 0})
        begin = InitialModel(**again["start"]) if again["count"] else start
        number = again["count"] + 1
        part = share if number == 1 else (first + _LAST_SHARE * (last - first), last)
        refined = refinement_stage(job, data, begin, config, part, stage=f"{stage} {number}")
        finer = images_evidence(job, data, refined, config)
        if finer is None or not search_again(finer, again["count"]):
            return refined, finer
        say("another search would change the map; the poses are searched again")
        after = start_again(refined, finer, config, data.pixel_size_angstrom)
        after = replace(after, independent=start.independent)
        job.keep(f"{stage}{AGAIN}", {"count": number, "start": dict(vars(after))})


def start_again(
    refined: RefinementResult,
    finer: FinerShells,
    config: RefinementConfig,
    pixel_size_angstrom: float,
) -> InitialModel:
    """Return the half maps of a refinement as the start of another one, of one hand.

    From a start that has no hand each half set may come to another one.
    """
    half1, half2 = refined.half1.cpu(), refined.half2.cpu()
    found = align_maps(
        half2, half1, pixel_size_angstrom=pixel_size_angstrom, point_group=config.symmetry
    )
    resolution = min(_COARSER * finer.finer_angstrom, len(half1) * pixel_size_angstrom / 3)
    return InitialModel(half1, found.aligned if found.mirrored else half2, resolution)


def search_again(finer: FinerShells, times: int) -> bool:
    """Return whether to refine anew from maps that were refined anew ``times`` times."""
    doubtful = finer.z >= CERTAIN and finer.ratio > _DOUBTFUL and finer.standing_out > _MORE_LEFT
    return (finer.unfinished and times < MOST_AGAIN) or (doubtful and times == 0)


def images_evidence(
    job: Job, data: WorkingSet, refined: RefinementResult, config: RefinementConfig
) -> FinerShells | None:
    """Return whether the images show the finer shells, up to where the half maps agree by 0.5.

    Beyond, up to the resolution that is claimed, errors of the poses hide even a true map. None
    where the half maps agree on nothing.
    """
    at_0143, at_05 = masked_halves(refined, config, data.pixel_size_angstrom, local=False).headline
    reached = at_05 if math.isfinite(at_05) else at_0143
    if not math.isfinite(reached):
        return None
    return finer_shells_test(
        refined,
        refined.optics.images(data.images, data.pixel_size_angstrom),
        refined.optics.optics() if refined.optics else data.optics,
        data.half_set,
        reached,
        config,
        pixel_size_angstrom=data.pixel_size_angstrom,
        progress=lambda _: job.report_progress(1.0),
    )


def masked_halves(
    maps: RefinementResult | InitialModel,
    config: RefinementConfig,
    pixel_size_angstrom: float,
    *,
    local: bool = True,
) -> Postprocessed:
    """Return half maps with their FSC within a mask: the sphere of the diameter, if that is known.

    ``local`` computes the local resolution too.
    """
    half1, half2 = maps.half1.cpu(), maps.half2.cpu()
    diameter, mask = config.diameter_angstrom, None
    if diameter is not None:
        mask = sphere(len(half1), diameter, pixel_size_angstrom)
    return postprocess(
        half1,
        half2,
        pixel_size_angstrom=pixel_size_angstrom,
        generator=generator(config.seed, "phases"),
        mask=mask,
        local=local,
    )
