"""The work of ``vitreous classify2d``: class averages by alignment, or by latents."""

import dataclasses

from vitreous.core.errors import InputError
from vitreous.core.random import generator
from vitreous.jobs.class2d.latent_classes import average_classes, classify_latents
from vitreous.jobs.class2d.options import Classify2dOptions
from vitreous.jobs.class2d.output import (
    CLASS_IMAGES,
    CLASSES,
    ClassDetails,
    Classify2dResult,
    class_count_text,
    write_results,
)
from vitreous.jobs.hetero import models
from vitreous.jobs.hetero.models import TrainingData, model_settings, training_job
from vitreous.jobs.hetero.passes import embedded, fewest_particles
from vitreous.jobs.inputs.working_set import WorkingSet, open_working_set
from vitreous.jobs.run.class_tables import PROBABILITY
from vitreous.jobs.run.config import load_config
from vitreous.methods.class2d.class_averages import (
    ClassAssignments,
    ClassAverages,
    ClassAveragesResult,
    ClassConfig,
)

FILES = ("particles.star", CLASSES, CLASS_IMAGES, "report.html")
_MIN_RATIO = 1.0  # median log-likelihood ratio; of noise it is 0, of particles tens or hundreds
_MAX_CLASSES, _PARTICLES_PER_CLASS = 50, 100  # by default
_LATENT = "latent"


def classify2d(options: Classify2dOptions) -> Classify2dResult:
    """Sort particles into 2D classes and average these.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal, after saving.
    """
    fewest = 2 if options.align else fewest_particles(options)
    data = open_working_set(options, check_all=True, fewest=fewest)
    return _by_alignment(options, data) if options.align else _by_latents(options, data)


def _by_alignment(options: Classify2dOptions, data: WorkingSet) -> Classify2dResult:
    """Find class, rotation and shift of every particle in rounds."""
    config = _config(options, data)
    settings = dataclasses.asdict(config)
    with training_job("classify2d", options, FILES, data, settings) as job:
        solver = ClassAverages(
            data.images,
            data.optics,
            data.half_set,
            config,
            generator=generator(options.seed, "class averages"),
            pixel_size_angstrom=data.pixel_size_angstrom,
            device=data.device,
        )
        classes = job.run(solver, "classes", label="classes")
        columns = {PROBABILITY: classes.assignments.posterior.numpy()}
        details = ClassDetails(_verdict(classes), columns)
        return write_results(job, options, data, classes, details)


def _by_latents(options: Classify2dOptions, data: WorkingSet) -> Classify2dResult:
    """Train a VAE-GAN of images, classify its latents, and align the particles of each class."""
    settings = model_settings("vaegan2d", options, data)
    training_data = TrainingData(data, options)
    with training_job("classify2d", options, FILES, data, settings) as job:
        if _LATENT not in job.state:
            model = models.build_model("vaegan2d", settings, training_data)
            job.run(model, "training", label="training")
            job.keep(_LATENT, embedded(job, model, training_data, "embedding"))
        label, details = classify_latents(job.state[_LATENT], options)
        shift_range = data.shift_range(options.shift_range_angstrom)
        job.report_progress(0.0, label="classifying")
        classes = average_classes(data, label, shift_range, job.report_progress)
        return write_results(job, options, data, classes, details)


def _config(options: Classify2dOptions, data: WorkingSet) -> ClassConfig:
    """Return all settings: defaults that fit the particles, the file's, the options'.

    Raises:
        UsageError: an unknown or impossible setting.
        InputError: the file cannot be read, or there are fewer particles than classes.
    """
    count = len(data.particles)
    defaults = {
        "classes": min(_MAX_CLASSES, max(1, count // _PARTICLES_PER_CLASS)),
        "shift_range_angstrom": data.shift_range(None),
    }
    given = {
        "classes": options.classes,
        "shift_range_angstrom": options.shift_range_angstrom,
        "diameter_angstrom": options.mask_diameter_angstrom,
    }
    config = load_config(ClassConfig, options.settings_file, given, defaults=defaults)
    if config.classes > count:
        raise InputError(
            f"{options.particles}: {count} particles for {config.classes} classes; ask for fewer "
            "`classes`"
        )
    rounds = max(config.last_rounds, round(options.effort * config.rounds))
    return dataclasses.replace(config, rounds=rounds)


def _verdict(classes: ClassAveragesResult) -> str:
    """Return the number of classes, and a warning if they explain nothing."""
    assignments: ClassAssignments = classes.assignments
    ratio = assignments.log_likelihood_ratio
    verdict = f"{class_count_text(len(classes.averages))} of {len(ratio):,} particles"
    if float(ratio.median()) < _MIN_RATIO:
        verdict += (
            ", which explain them no better than noise does: there is nothing to be seen in them "
            "(is protein dark, `invert`? is the CTF right? are there particles?)"
        )
    return verdict
