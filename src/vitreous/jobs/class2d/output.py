"""Class images of particles as files: stack, tables and page, whichever way classes were found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vitreous.core.images import ImageSubset
from vitreous.core.params import Pose
from vitreous.core.random import generator
from vitreous.core.rotation import axis_angle_to_matrix
from vitreous.data.particles import Particles
from vitreous.data.tables import pose_columns
from vitreous.io.mrc import write_mrc
from vitreous.io.star import StarBlock, StarDocument, format_column, write_star
from vitreous.jobs.run.class_tables import CLASS, write_tables
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.progress import duration
from vitreous.jobs.run.summary import Done, settings_shown, subtitle
from vitreous.maps.fsc import fsc_resolution
from vitreous.methods.class2d.class_averages import ClassAssignments, ClassAverages, ClassConfig
from vitreous.report.mixed import MixedReport, write_mixed_report

CLASSES = "classes.star"
CLASS_IMAGES = "classes.mrcs"
LOG_LIKELIHOOD_RATIO = "vitreousLogLikelihoodRatio"
_AGREE = 0.143
_ROUNDS_OF_ONE = 12  # of a class whose particles are known


@dataclass(frozen=True)
class ClassImages:
    """Class images, and every particle's place under its own.

    Args:
        images: ``(k, n, n)``, protein positive.
        frc: between the halves of each, ``(k, n // 2 + 1)``.
        found: of every particle.
    """

    images: Tensor
    frc: Tensor
    found: ClassAssignments

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sizes(self) -> list[int]:
        """Particles of each."""
        return torch.bincount(self.found.label, minlength=len(self)).tolist()

    @property
    def words(self) -> str:
        """How many, for a sentence."""
        return "one class image" if len(self) == 1 else f"{len(self)} class images"


@dataclass(frozen=True)
class Shown:
    """What else tables and page hold, by how classes were found.

    Args:
        verdict: one sentence, without its end.
        columns: of every particle.
        class_columns: of every class.
        numbers: for the page and ``config.toml``.
        page: more fields of :class:`~vitreous.report.mixed.MixedReport`.
    """

    verdict: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    class_columns: Mapping[str, list[str]] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    page: Mapping[str, Any] = field(default_factory=dict)


def aligned_classes(
    solver: ClassAverages, label: Tensor, seed: int, notify: Callable[[float], object]
) -> ClassImages:
    """Averages of classes that are known, the particles of each brought onto one another.

    Args:
        solver: of all particles, whose images, CTFs and settings are used; no step of it was done.
        label: long ``(n,)``, class from 0 on; every class has particles.
        seed: of what is drawn.
        notify: told the share that is done.
    """
    images, frc, found = [], [], ClassAssignments.zeros(len(label))
    count = int(label.max()) + 1
    config = ClassConfig(
        **{**vars(solver.config), "classes": 1, "rounds": _ROUNDS_OF_ONE, "images_per_class": 1000}
    )
    for k in range(count):
        rows = (label == k).nonzero().flatten()
        one = ClassAverages(
            ImageSubset(solver.images, rows),
            None if solver.optics is None else solver.optics[rows],
            solver.pixel_size_angstrom,
            solver.half[rows],
            config,
            generator=generator(seed, f"class {k}"),
            device=solver.device,
        )
        while not one.done:
            one.step()
            notify((k + one.progress) / count)
        images.append(one.averages)
        frc.append(one.frc)
        mine = vars(one.assignments) | {"label": torch.full((len(rows),), k)}
        found = found.updated(rows, ClassAssignments(**mine))
    return ClassImages(torch.cat(images), torch.cat(frc), found)


def write_class_images(
    folder: OutputFolder,
    particles: Particles,
    classes: ClassImages,
    shown: Shown,
    *,
    pixel_size_angstrom: float,
    title: str,
    history: Sequence[Mapping[str, Any]],
    seconds: float,
) -> Done:
    """Write images, tables and page.

    Raises:
        ResourceError: the disk is full.
    """
    sizes, found = classes.sizes, classes.found
    columns = {
        CLASS: (found.label + 1).numpy(),
        LOG_LIKELIHOOD_RATIO: found.log_likelihood_ratio.numpy(),
        **shown.columns,
    }
    write_tables(folder, particles, in_plane(particles, found) | columns)
    stack = folder.path(CLASS_IMAGES)
    write_mrc(stack, classes.images.numpy(), pixel_size_angstrom, is_stack=True)
    n = classes.images.shape[-1]
    resolution = [fsc_resolution(curve, _AGREE, n, pixel_size_angstrom) for curve in classes.frc]
    table = {
        "rlnReferenceImage": [f"{k + 1:06d}@{CLASS_IMAGES}" for k in range(len(sizes))],
        CLASS: format_column(range(1, len(sizes) + 1)),
        "rlnClassDistribution": format_column([size / len(particles) for size in sizes]),
        "rlnEstimatedResolution": format_column(resolution),
        **shown.class_columns,
    }
    write_star(folder.path(CLASSES), StarDocument({"model_classes": StarBlock(table)}))
    folder.config["run"] |= {
        "verdict": shown.verdict,
        "sizes": sizes,
        "seconds": round(seconds, 1),
        **shown.numbers,
    }
    page = MixedReport(
        title=title,
        subtitle=subtitle("classify2d"),
        verdict=shown.verdict + ".",
        key_numbers={
            "particles": f"{len(particles):,}",
            "class images": str(len(sizes)),
            "time": duration(seconds),
        },
        settings=settings_shown(folder.config["options"]),
        particles=len(particles),
        history=history,
        images=classes.images.numpy(),
        sizes=sizes,
        **shown.page,
    )
    write_mixed_report(folder.path("report.html"), page)
    lines = (
        f"time         {duration(seconds)}",
        f"images       {stack}",
        f"table        {folder.root / 'particles.star'}",
        f"report       {folder.root / 'report.html'}",
    )
    return Done(shown.verdict, "\n".join(lines))


def in_plane(particles: Particles, found: ClassAssignments) -> dict[str, list[str]]:
    """``rlnAnglePsi`` and origins, as of RELION's 2D classes; none where there are 3D poses."""
    if particles.pose is not None:
        return {}
    axis = torch.zeros(len(found.label), 3, dtype=torch.float64)
    axis[:, 2] = found.angle_rad.double() % (2 * math.pi)
    columns = pose_columns(Pose(axis_angle_to_matrix(axis), found.shift_angstrom))
    wanted = ("rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
    return {name: columns[name] for name in wanted}
