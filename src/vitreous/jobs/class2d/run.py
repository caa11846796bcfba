"""The run behind ``vitreous classify2d``: class averages by alignment."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from vitreous.core.errors import InputError
from vitreous.core.images import ImageCache
from vitreous.core.random import generator
from vitreous.data.working_images import SignedImages
from vitreous.jobs.class2d.output import (
    CLASS_IMAGES,
    CLASSES,
    ClassImages,
    Shown,
    write_class_images,
)
from vitreous.jobs.inputs.particles import ParticleFiles
from vitreous.jobs.inputs.working_set import ProcessingOptions, WorkingSet, open_working_set
from vitreous.jobs.run.class_tables import PROBABILITY
from vitreous.jobs.run.config import load_config
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.signals import StopSignals
from vitreous.jobs.run.summary import Done
from vitreous.jobs.run.training import RunState, Training
from vitreous.methods.class2d.class_averages import ClassAverages, ClassConfig

FILES = ("particles.star", CLASSES, CLASS_IMAGES, "history.jsonl", "report.html")
_LEAST_GAIN = 1.0  # median; of noise it is 0, of particles tens or hundreds
_MOST_CLASSES, _EACH = 50, 100  # by default: so many classes, or one for so many particles


@dataclass(frozen=True)
class Request:
    """The options of the command; see its help."""

    files: ParticleFiles
    output: Path
    working: ProcessingOptions
    classes: int | None = None
    shift_range_angstrom: float | None = None
    effort: float = 1.0
    config: Path | None = None
    overwrite: bool = False
    resume: bool = False
    quiet: bool = False

    def settings(self, data: WorkingSet) -> ClassConfig:
        """All settings: defaults that fit the particles, the file's, the command line's.

        Raises:
            UsageError: an unknown or impossible setting.
            InputError: the file cannot be read, or fewer particles than classes.
        """
        count = len(data.particles)
        defaults = {
            "classes": min(_MOST_CLASSES, max(1, count // _EACH)),
            "shift_range_angstrom": data.shift_range(None),
        }
        given = {
            "classes": self.classes,
            "shift_range_angstrom": self.shift_range_angstrom,
            "diameter_angstrom": self.working.mask_diameter_angstrom,
        }
        config = load_config(ClassConfig, self.config, given, defaults=defaults)
        if config.classes > count:
            raise InputError(
                f"{self.files.path}: {count} particles for {config.classes} classes; ask for fewer "
                "(--classes)"
            )
        rounds = max(config.last_rounds, round(self.effort * config.rounds))
        return dataclasses.replace(config, rounds=rounds)


def run(request: Request) -> Done:
    """Rounds of assignment and averaging, then stack, tables and page.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal, after saving.
    """
    data = open_working_set(request.files, request.working, check_all=True, quiet=request.quiet)
    settings = request.settings(data)
    with _folder(request, settings, data) as folder, StopSignals() as stop:
        if folder.was_finished:
            say(f"{folder.root}: the run was finished already; its results are written once more")
        solver, journal = _solver(request, settings, data), RunState(folder)
        training = Training(solver, journal, {}, stop, label="classes", quiet=request.quiet)
        with journal.history() as history:
            training.run(history)
            journal.save(training.state(), done=True)
            result = solver.result()
            classes = ClassImages(result.averages, result.frc, result.assignments)
            done = write_class_images(
                folder,
                data.particles,
                classes,
                Shown(_verdict(classes), {PROBABILITY: result.assignments.posterior.numpy()}),
                pixel_size_angstrom=data.pixel_size_angstrom,
                title=f"{request.files.path.name}: class images",
                history=history.rows,
                seconds=journal.seconds(),
            )
        folder.finish()
    return done


def _verdict(classes: ClassImages) -> str:
    """How many there are, and whether there is anything in them."""
    log_likelihood_ratio = classes.found.log_likelihood_ratio
    words = f"{classes.words} of {len(log_likelihood_ratio):,} particles"
    if float(log_likelihood_ratio.median()) < _LEAST_GAIN:
        words += (
            ", which explain them no better than noise does: there is nothing to be seen in them "
            "(is protein dark, --invert? is the CTF right? are there particles?)"
        )
    return words


def _solver(request: Request, settings: ClassConfig, data: WorkingSet) -> ClassAverages:
    images = SignedImages(data.particles, invert=request.working.invert)
    return ClassAverages(
        ImageCache(images, data.box_size, torch.device("cpu")),
        None if request.working.ignore_ctf else data.particles.optics,
        data.pixel_size_angstrom,
        data.half_set,
        settings,
        generator=generator(request.working.seed, "class averages"),
        device=data.device,
    )


def _folder(request: Request, settings: ClassConfig, data: WorkingSet) -> OutputFolder:
    working = request.working
    options = {
        "images_sha256": data.digest,
        "method": "averages",
        "box": data.box_size,
        "pixel_size": data.pixel_size_angstrom,
        "invert": working.invert,
        "ignore_ctf": working.ignore_ctf,
        "skip_bad": working.skip_bad,
        "seed": working.seed,
        "solver": dataclasses.asdict(settings),
    }
    return OutputFolder(
        request.output,
        "classify2d",
        options,
        inputs={"particles": request.files.path},
        outputs=FILES,
        machine={"device": str(data.device), "threads": torch.get_num_threads()},
        overwrite=request.overwrite,
        resume=request.resume,
        resumable=True,
        changeable=False,
    )
