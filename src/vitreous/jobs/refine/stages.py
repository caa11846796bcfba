"""The stages of ``auto`` and ``refine``: an initial model, then rounds until nothing is gained."""

from __future__ import annotations

from dataclasses import replace

from vitreous.jobs.inputs.working_set import WorkingSet
from vitreous.jobs.run.job import Job
from vitreous.methods.em.config import InitialModelConfig, RefinementConfig
from vitreous.methods.em.initial_model import InitialModelSearch
from vitreous.methods.em.initial_model_result import InitialModel
from vitreous.methods.em.refinement import Refinement
from vitreous.methods.em.refinement_result import RefinementResult

INITIAL_MODEL, REFINEMENT = "initial_model", "refinement"  # names of the stages in checkpoints


def initial_model_stage(
    job: Job, data: WorkingSet, config: InitialModelConfig, share: tuple[float, float] = (0.0, 1.0)
) -> InitialModel:
    """Return the initial model of a job, searched for or taken from its checkpoint.

    Args:
        job: entered.
        data: the particles.
        config: settings of the search.
        share: of the progress bar.
    """
    if INITIAL_MODEL not in job.state:
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
            INITIAL_MODEL,
            label="initial model",
            share=share,
            rows=None,
            numbered=False,
            allow_infinite=True,
        )
        job.keep(INITIAL_MODEL, dict(vars(model)))
    return InitialModel(**job.state[INITIAL_MODEL])


def refinement_stage(
    job: Job,
    data: WorkingSet,
    start: InitialModel,
    config: RefinementConfig,
    share: tuple[float, float] = (0.0, 1.0),
) -> RefinementResult:
    """Return what refinement makes of an initial model, from the checkpoint if there is one.

    Args:
        job: entered.
        data: the particles.
        start: the initial model.
        config: settings; of a start beyond doubt only the first round searches all poses.
        share: of the progress bar.
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
        micrograph_id=data.particles.micrograph_id,
        progress=job.report_progress,
    )
    return job.run(
        refinement, REFINEMENT, label="refinement", share=share, rows=None, allow_infinite=True
    )
