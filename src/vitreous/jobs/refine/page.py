"""Maps and plots of the report of ``vitreous auto`` and ``vitreous refine``."""

from __future__ import annotations

from dataclasses import replace

from vitreous.jobs.reconstruct.output import map_surfaces, sharpened_first
from vitreous.jobs.refine.stages import Solution
from vitreous.maps.half_map_pair import Halves
from vitreous.maps.postprocess import Postprocessed
from vitreous.report.html import ReportData


def with_surfaces(
    page: ReportData, ended: Solution, halves: Halves, post: Postprocessed, solved: bool
) -> ReportData:
    """Return the page with the map, half maps and start; of a structure first the sharpened map."""
    surfaces = map_surfaces(halves, start=ended.start.map)
    if solved and ended.refined is not None:
        surfaces = sharpened_first(post, surfaces)
    return replace(page, surfaces=surfaces)
