"""Maps and plots of the report of ``vitreous auto`` and ``vitreous refine``."""

from __future__ import annotations

from dataclasses import replace

import torch

from vitreous.jobs.inputs.working_set import WorkingSet
from vitreous.jobs.reconstruct.map_plots import (
    directional_plot,
    histogram,
    sharpening_plots,
    view_plot,
)
from vitreous.jobs.reconstruct.output import map_surfaces, sharpened_first
from vitreous.jobs.refine.micrographs_csv import CONTRAST, refined_columns
from vitreous.jobs.refine.stages import Solution
from vitreous.maps.half_map_pair import Halves
from vitreous.maps.postprocess import Postprocessed
from vitreous.report.html import ReportData
from vitreous.report.plots import Plot


def with_maps_and_plots(
    page: ReportData,
    data: WorkingSet,
    ended: Solution,
    halves: Halves,
    post: Postprocessed,
    symmetry: str,
) -> ReportData:
    """Return the page with surfaces and, where maps were refined, plots of poses and maps.

    Args:
        page: of the run; without resolutions where there is no structure.
        data, ended, symmetry: particles, results and point group of the run.
        halves, post: the maps as written, and their postprocessing.
    """
    surfaces = map_surfaces(halves, start=ended.start.map)
    if ended.refined is None:
        return replace(page, surfaces=surfaces)
    poses, solved = ended.refined.poses, bool(page.resolutions)
    views, missing = view_plot(poses.pose.rotation[poses.kept], symmetry)
    map_plots = []
    if solved:
        directional = directional_plot(halves, post.mask, data.pixel_size_angstrom)
        map_plots = [directional, *sharpening_plots(post)]
    return replace(
        page,
        surfaces=sharpened_first(post, surfaces) if solved else surfaces,
        warnings=(*page.warnings, *missing),
        more_title="Particles and map",
        more_plots=[
            views,
            *map_plots,
            *_optics_plots(data, ended),
        ],
    )


def _optics_plots(data: WorkingSet, ended: Solution) -> list[Plot]:
    """Return histograms of the refined defocus and contrast of particles."""
    assert ended.refined is not None
    columns = refined_columns(ended.refined.optics, data.particles)
    plots = []
    if "rlnDefocusU" in columns:
        defocus = torch.as_tensor(columns["rlnDefocusU"] + columns["rlnDefocusV"]) / 2e4
        caption = "Refined defocus of the particles, mean of U and V."
        plots.append(histogram("defocus", "Defocus", caption, defocus, "µm", "particles"))
    if CONTRAST in columns:
        caption = "Amplitude of the map in each particle, 1 on average."
        contrast = torch.as_tensor(columns[CONTRAST])
        plots.append(histogram("contrast", "Contrast", caption, contrast, "", "particles"))
    return plots
