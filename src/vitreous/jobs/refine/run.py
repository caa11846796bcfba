"""The work of ``vitreous auto`` and ``vitreous refine``."""

from __future__ import annotations

from vitreous.core.errors import UsageError
from vitreous.jobs.inputs.working_set import WorkingSet, open_working_set
from vitreous.jobs.reconstruct.output import FILES
from vitreous.jobs.refine.given_map import read_start
from vitreous.jobs.refine.options import ROUNDS, AutoOptions, PoseOptions, RefineOptions
from vitreous.jobs.refine.output import RefineResult, write_results
from vitreous.jobs.refine.stages import (
    INITIAL_MODEL,
    Solution,
    confirmed_refinement,
    initial_model_stage,
    solution,
)
from vitreous.jobs.run.job import Job
from vitreous.methods.em.config import InitialModelConfig, RefinementConfig
from vitreous.methods.em.initial_model_result import InitialModel
from vitreous.methods.em.random_start import FEWEST_IMAGES

_MAPS = ("sharpened.mrc", "local_resolution.mrc", "mask.mrc", "start.mrc")
OUTPUTS = (*FILES, *_MAPS, "rejected.star", "micrographs.csv")


def auto(options: AutoOptions) -> RefineResult:
    """Find an initial model, refine poses and map until nothing is gained, write results.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal; steps that were finished are saved.
    """
    if options.only_start:
        options.refuse(ROUNDS, "`only_start` ends before the rounds of refinement")
    data = _open(options, fewest=FEWEST_IMAGES)
    with _job("auto", options, data) as job:
        search, config = _search(options, data), _config(options, data)
        if options.only_start:
            start = initial_model_stage(job, data, search)
            return write_results(job, options, data, config, Solution(start))
        return write_results(job, options, data, config, solution(job, data, search, config))


def refine(options: RefineOptions) -> RefineResult:
    """Refine poses and map from a rough map until nothing is gained, write results.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal; rounds that were finished are saved.
    """
    data = _open(options)
    coarsest, pixel = options.start_resolution_angstrom, data.pixel_size_angstrom
    edge = data.box_size * pixel
    if not 2 * pixel < coarsest <= edge / 2:
        raise UsageError(
            f"`start_resolution_angstrom` {coarsest:g}: must be finer than half the box, "
            f"{edge / 2:.0f} Å, and coarser than two pixels, {2 * pixel:.1f} Å"
        )
    with _job("refine", options, data) as job:
        config = _config(options, data)
        if INITIAL_MODEL not in job.state:
            start = read_start(options.start_map, data, coarsest, config)
            job.keep(INITIAL_MODEL, dict(vars(start)))
        start = InitialModel(**job.state[INITIAL_MODEL])
        ended = Solution(start, *confirmed_refinement(job, data, start, config))
        return write_results(job, options, data, config, ended)


def _open(options: PoseOptions, fewest: int = 2) -> WorkingSet:
    """Open the particles and check the options against them."""
    data = open_working_set(options, check_all=True, fewest=fewest)
    edge = data.box_size * data.pixel_size_angstrom
    farthest = options.shift_range_angstrom
    if farthest is not None and farthest > edge / 2:
        raise UsageError(
            f"`shift_range_angstrom` {farthest:g}: beyond the images' edge; at most {edge / 2:.0f}"
        )
    refined = options.refine_defocus != "no" or options.refine_aberrations
    if options.ignore_ctf and (refined or options.scale == "micrograph"):
        raise UsageError(
            "`ignore_ctf`: leaves no optics of micrographs to be refined; leave out "
            "`refine_defocus`, `refine_aberrations` and `scale=micrograph`"
        )
    return data


def _job(command: str, options: PoseOptions, data: WorkingSet) -> Job:
    return Job(
        command,
        options,
        outputs=OUTPUTS,
        resolved={
            "images_sha256": data.digest,
            "box_size": data.box_size,
            "pixel_size_angstrom": data.pixel_size_angstrom,
            "contrast": data.grey.contrast,
            "shift_range_angstrom": data.shift_range(options.shift_range_angstrom),
        },
        machine={"device": str(data.device)},
    )


def _search(options: AutoOptions, data: WorkingSet) -> InitialModelConfig:
    return InitialModelConfig(
        shift_range_angstrom=data.shift_range(options.shift_range_angstrom),
        diameter_angstrom=options.mask_diameter_angstrom,
        **options.model_dump(include={"images", "starts", "tries", "symmetry", "seed"}),
    )


def _config(options: PoseOptions, data: WorkingSet) -> RefinementConfig:
    shift_range = data.shift_range(options.shift_range_angstrom)
    return RefinementConfig(shift_range_angstrom=shift_range, **options.settings())
