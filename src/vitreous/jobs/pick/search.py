"""Search of micrographs for particles: coarse images, correlation, peaks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.core.fourier import fourier_resize
from vitreous.core.grid import soft_mask
from vitreous.core.random import generator, with_random_phases
from vitreous.data.backgrounds import Micrograph
from vitreous.data.micrographs import MicrographFiles, Picks
from vitreous.data.prepare import crop_window
from vitreous.data.stacks import open_stacks
from vitreous.io.mrc import MrcStack, read_header
from vitreous.io.star import read_star
from vitreous.jobs.pick.options import PickOptions
from vitreous.methods.pick.correlation import bad_regions, find_peaks, local_correlation
from vitreous.methods.pick.templates import as_imaged, rotated_templates, shell_templates

_ACROSS = 20  # least pixels of a coarse micrograph across a particle
_BOX, _MASK = 2.5, 1.25  # edge of templates and diameter of their mask, in particle diameters
_DISTANCE = 0.6  # least distance of particles, in diameters
_NAMES = ("rlnReferenceImage", "rlnImageName")  # columns of class averages
_CONTRAST_SHARE = 10  # one peak of so many is a particle, when contrast is decided


@dataclass(frozen=True)
class Search:
    """What is looked for, and in which micrographs."""

    files: MicrographFiles
    options: PickOptions
    pixel_size_angstrom: float  # of the micrographs
    templates: Tensor  # (k, n, n) in coarse pixels, protein positive
    dark: bool = True  # protein is dark in the micrographs

    @classmethod
    def planned(
        cls, files: MicrographFiles, options: PickOptions, pixel_size_angstrom: float
    ) -> Search:
        """Return the search that options describe, with its templates.

        Raises:
            InputError: templates that cannot be read.
        """
        search = cls(files, options, pixel_size_angstrom, torch.empty(0))
        box = 2 * round(_BOX * options.diameter_angstrom / search.coarse_pixel_angstrom / 2)
        radius = options.diameter_angstrom / 2 / search.coarse_pixel_angstrom
        templates = shell_templates(box, radius)
        if options.templates is not None:
            averages = _read_averages(options, box, search.coarse_pixel_angstrom)
            disc = soft_mask(box, 2, _MASK * radius)
            templates = rotated_templates(averages * disc, options.angle_step_degrees).double()
        return replace(search, templates=templates)

    @property
    def factor(self) -> int:
        """Micrograph pixels in a coarse pixel."""
        across = self.options.diameter_angstrom / self.pixel_size_angstrom
        return max(1, int(across / _ACROSS))

    @property
    def coarse_pixel_angstrom(self) -> float:
        """Pixel size of the coarse micrographs and of the templates in Å."""
        return self.factor * self.pixel_size_angstrom

    def coarse(self, number: int) -> tuple[Tensor, tuple[int, int]]:
        """Return a micrograph in coarse pixels ``(ny, nx)``, mean near 0, and its full shape.

        Raises:
            InputError: damaged, or smaller than the templates.
        """
        micrograph = Micrograph(MrcStack(self.files.paths[number]))
        image = torch.from_numpy(micrograph.low_passed(self.factor))
        if min(image.shape) <= self.templates.shape[-1]:
            ny, nx = micrograph.shape
            raise InputError(
                f"{micrograph.path}: {nx} x {ny} px are too few for particles of "
                f"{self.options.diameter_angstrom:g} Å; check `diameter_angstrom` and "
                "`micrograph_pixel_size_angstrom`"
            )
        return (image - micrograph.median) / micrograph.deviation, micrograph.shape

    def peaks(self, number: int) -> Picks:
        """Return all peaks of a micrograph, with scores above 0, the best first."""
        image, shape = self.coarse(number)
        picks = self._peaks_of(number, image)
        edge = self.options.edge_angstrom
        edge_px = self.options.diameter_angstrom / 2 if edge is None else edge
        edge_px /= self.pixel_size_angstrom
        last = np.array(shape[::-1]) - 1 - edge_px
        return picks[((picks.centres >= edge_px) & (picks.centres <= last)).all(1)]

    def noise_scores(self, number: int) -> NDArray[np.float64]:
        """Return the scores of peaks of noise with the power spectrum of a micrograph."""
        image = self.coarse(number)[0]
        noise = with_random_phases(image - image.mean(), generator(0, f"pick {number}"))
        return self._peaks_of(number, noise).scores

    def contrast(self, number: int) -> float:
        """Return the mean of the best scores of a micrograph."""
        scores = self._peaks_of(number, self.coarse(number)[0]).scores
        return float(scores[: max(1, len(scores) // _CONTRAST_SHARE)].mean()) if len(scores) else 0

    def _peaks_of(self, number: int, image: Tensor) -> Picks:
        diameter, pixel = self.options.diameter_angstrom, self.coarse_pixel_angstrom
        optics = None if self.files.optics is None else self.files.optics[number : number + 1]
        templates = as_imaged(self.templates, pixel, optics, diameter)
        signed = -image if self.dark else image
        scores = local_correlation(signed, templates, _MASK * diameter / 2 / pixel)
        score = scores.score
        if self.options.avoid_bad_regions:
            bad = bad_regions(scores, diameter / 2 / pixel)
            score = torch.where(bad, -torch.inf, score)
        distance = self.options.distance_angstrom
        distance = _DISTANCE * diameter if distance is None else distance
        places, pixels = find_peaks(score, distance / pixel)
        centres = places.numpy() * self.factor + (self.factor - 1) / 2
        best, which = score.flatten()[pixels].numpy(), scores.template.flatten()[pixels].numpy()
        return Picks(number, centres, best, which)


def _read_averages(options: PickOptions, box_size: int, pixel_size_angstrom: float) -> Tensor:
    """Read class averages, resampled and cropped or padded to a box."""
    path = options.templates
    assert path is not None
    if path.suffix == ".star":
        blocks = read_star(path).blocks.values()
        columns = [block.columns[name] for block in blocks for name in _NAMES if name in block]
        if not columns:
            raise InputError(f"{path}: columns {', '.join(_NAMES)}: missing; give class averages")
        source = open_stacks(columns[0], path)
        images, header = source.read(np.arange(len(source))), source.headers[0]
    else:
        images, header = MrcStack(path).read(slice(None)), read_header(path, warn=False)
    averages = torch.from_numpy(images)
    if header.pixel_size_angstrom is None or averages.shape[1] != averages.shape[2]:
        raise InputError(f"{path}: needs square images and a pixel size in the header")
    edge = averages.shape[-1] * header.pixel_size_angstrom / pixel_size_angstrom
    averages = fourier_resize(averages, max(2, 2 * round(edge / 2)), 2)
    margin = max(0, box_size - averages.shape[-1])
    before = (margin + 1) // 2
    padded = torch.nn.functional.pad(averages, (before, margin - before) * 2)
    return crop_window(padded, box_size)
