"""Results of ``classify2d``: stack of class averages, tables and report."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vitreous.core.params import Pose
from vitreous.core.rotation import axis_angle_to_matrix
from vitreous.data.tables import pose_columns
from vitreous.io.mrc import write_mrc
from vitreous.io.star import StarBlock, StarDocument, format_column, write_star
from vitreous.jobs.class2d.options import Classify2dOptions
from vitreous.jobs.inputs.working_set import WorkingSet
from vitreous.jobs.run.class_tables import CLASS, write_tables
from vitreous.jobs.run.job import Job
from vitreous.jobs.run.progress import duration
from vitreous.jobs.run.summary import JobResult, page_head, rows_of_text
from vitreous.maps.fsc import fsc_resolution
from vitreous.methods.class2d.class_averages import ClassAssignments, ClassAveragesResult
from vitreous.report.mixed import MixedReport, write_mixed_report

CLASSES = "classes.star"
CLASS_IMAGES = "classes.mrcs"
LOG_LIKELIHOOD_RATIO = "vitreousLogLikelihoodRatio"
_AGREEMENT = 0.143


@dataclass(frozen=True)
class Classify2dResult(JobResult):
    """A finished run of ``classify2d``."""

    classes: ClassAveragesResult  # class averages, and the assignments of all particles


@dataclass(frozen=True)
class ClassDetails:
    """Contents of tables and report that depend on how the classes were found."""

    verdict: str  # one sentence, without full stop
    columns: Mapping[str, Any] = field(default_factory=dict)  # of every particle
    class_columns: Mapping[str, list[str]] = field(default_factory=dict)  # of every class
    numbers: Mapping[str, Any] = field(default_factory=dict)  # for ``config.toml``
    # further fields of :class:`~vitreous.report.mixed.MixedReport`
    page: Mapping[str, Any] = field(default_factory=dict)


def class_count_text(count: int) -> str:
    """Return the number of classes in words."""
    return "one class image" if count == 1 else f"{count} class images"


def write_results(
    job: Job,
    options: Classify2dOptions,
    data: WorkingSet,
    classes: ClassAveragesResult,
    details: ClassDetails,
) -> Classify2dResult:
    """Write stack, tables and report, and finish the job.

    Raises:
        ResourceError: the disk is full.
    """
    particles, seconds = data.particles, job.seconds()
    sizes = torch.bincount(classes.assignments.label, minlength=len(classes.averages)).tolist()
    assignments = classes.assignments
    alignment = {} if particles.pose is not None else alignment_columns(assignments)
    columns = {
        CLASS: (assignments.label + 1).numpy(),
        LOG_LIKELIHOOD_RATIO: assignments.log_likelihood_ratio.numpy(),
        **details.columns,
    }
    table = write_tables(job.folder, particles, alignment | columns)
    stack = job.path(CLASS_IMAGES)
    write_mrc(stack, classes.averages.numpy(), data.pixel_size_angstrom, is_stack=True)
    _write_classes(job, data, classes, sizes, details)
    page = MixedReport(
        **page_head(job.folder, f"{options.particles.name}: class images", details.verdict),
        key_numbers={
            "particles": f"{len(particles):,}",
            "class images": str(len(sizes)),
            "time": duration(seconds),
        },
        particles=len(particles),
        table=table,
        label=(assignments.label + 1).numpy(),
        history=job.history.rows,
        images=classes.averages.numpy(),
        sizes=sizes,
        **details.page,
    )
    write_mixed_report(job.path("report.html"), page)
    numbers = {"sizes": sizes, "seconds": round(seconds, 1), **details.numbers}
    job.finish({"verdict": details.verdict, **numbers})
    folder = job.folder.root
    rows = {
        "time": duration(seconds),
        "images": f"{folder / stack.name}",
        "table": f"{folder / 'particles.star'}",
        "report": f"{folder / 'report.html'}",
    }
    return Classify2dResult(None, details.verdict, rows_of_text(rows), folder, classes)


def _write_classes(
    job: Job,
    data: WorkingSet,
    classes: ClassAveragesResult,
    sizes: list[int],
    details: ClassDetails,
) -> None:
    """Write ``classes.star``: size and resolution of every class."""
    n, pixel = classes.averages.shape[-1], data.pixel_size_angstrom
    table = {
        "rlnReferenceImage": [f"{k + 1:06d}@{CLASS_IMAGES}" for k in range(len(sizes))],
        CLASS: format_column(range(1, len(sizes) + 1)),
        "rlnClassDistribution": format_column([size / len(data.particles) for size in sizes]),
        "rlnEstimatedResolution": format_column(
            [fsc_resolution(curve, _AGREEMENT, n, pixel) for curve in classes.frc]
        ),
        **details.class_columns,
    }
    write_star(job.path(CLASSES), StarDocument({"model_classes": StarBlock(table)}))


def alignment_columns(assignments: ClassAssignments) -> dict[str, list[str]]:
    """Return ``rlnAnglePsi`` and origins, as in RELION's 2D classification."""
    axis = torch.zeros(len(assignments.label), 3, dtype=torch.float64)
    axis[:, 2] = assignments.angle_rad.double() % (2 * math.pi)
    columns = pose_columns(Pose(axis_angle_to_matrix(axis), assignments.shift_angstrom))
    return {name: columns[name] for name in ("rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")}
