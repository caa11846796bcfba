"""The work of ``vitreous backgrounds``: windows without particles, prepared as particles are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.core.fourier import fourier_resize
from vitreous.core.random import stream_seed
from vitreous.data.backgrounds import Micrograph, choose_windows
from vitreous.data.particles import Particles
from vitreous.data.picks import PickedMicrograph, micrograph_pixel_size, picked_micrographs
from vitreous.data.prepare import DEFAULT_MASK_FRACTION, Preparer, describe
from vitreous.data.tables import make_document
from vitreous.data.windows import cut_particles, has_images
from vitreous.io.mrc import MrcStack, read_header
from vitreous.io.mrc_growing import JOURNAL, PART
from vitreous.io.star import StarBlock, StarDocument, format_column, read_star, write_star
from vitreous.jobs.inputs.particles import open_particles
from vitreous.jobs.prepare.options import BackgroundsOptions
from vitreous.jobs.prepare.stack import PreparedStack, recipe_of, write_stack
from vitreous.jobs.run.folder import OutputFolder, fingerprint
from vitreous.jobs.run.streaming import Piece, cores

STACK, TABLE = "backgrounds.mrcs", "backgrounds.star"
OUTPUTS = (STACK, TABLE, STACK + PART, STACK + JOURNAL)
_CUT_BYTES = 8 << 20


@dataclass(frozen=True)
class Cutter:
    """Cuts and prepares the windows of one micrograph after another."""

    micrographs: list[PickedMicrograph]  # of the table
    preparer: Preparer  # made for images of the particles' box and pixel size
    pixel_size_angstrom: float  # of the micrographs
    particle_diameter_angstrom: float  # what windows keep away from
    seed: int  # of the run
    skip_bad: bool = False  # leave out damaged micrographs instead of rejecting all

    @property
    def size(self) -> int:
        """Edge of the windows in pixels of the micrograph: the particles' field of view."""
        geometry = self.preparer.geometry
        edge = geometry.input_box * geometry.input_pixel_angstrom
        if abs(geometry.input_pixel_angstrom / self.pixel_size_angstrom - 1) < 1e-3:
            return geometry.input_box
        return 2 * round(edge / self.pixel_size_angstrom / 2)

    def cut(self, piece: int) -> Piece:
        """The prepared windows of a micrograph, with their corners and how many overlap.

        Raises:
            InputError: a damaged micrograph, or coordinates outside it.
        """
        picked = self.micrographs[piece]
        try:
            micrograph = Micrograph(MrcStack(picked.path))
            self._check_centres(picked, micrograph.shape)
            windows = choose_windows(
                micrograph,
                self.size,
                len(picked.rows),
                picked.centres,
                self.particle_diameter_angstrom / self.pixel_size_angstrom / 2,
                np.random.default_rng(stream_seed(self.seed, f"backgrounds {picked.name}")),
            )
            images, sound = self._prepared(micrograph, windows.corners)
        except InputError as error:
            if not self.skip_bad:
                remedy = "leave damaged micrographs out with `skip_bad`"
                raise InputError(f"{error}; {remedy}") from error
            return torch.empty(0, *[self.preparer.geometry.box_size] * 2), {"fault": str(error)}
        corners = windows.corners[sound.numpy()]
        return images[sound], {"corners": corners.tolist(), "overlapping": windows.overlapping}

    def _prepared(
        self, micrograph: Micrograph, corners: np.ndarray[Any, np.dtype[np.int64]]
    ) -> tuple[Tensor, Tensor]:
        step = max(1, _CUT_BYTES // (4 * self.size**2))
        box = self.preparer.geometry.box_size
        images, sound = [torch.empty(0, box, box)], [torch.ones(0, dtype=torch.bool)]
        for start in range(0, len(corners), step):
            patches = torch.from_numpy(micrograph.cut(corners[start : start + step], self.size))
            level = micrograph.median
            patches = fourier_resize(patches - level, self.preparer.geometry.input_box, 2)
            done = self.preparer(patches + level)
            images.append(done[0])
            sound.append(done[1])
        return torch.cat(images), torch.cat(sound)

    def _check_centres(self, picked: PickedMicrograph, shape: tuple[int, int]) -> None:
        ny, nx = shape
        edge = np.array([nx, ny]) + self.size / 2
        outside = ((picked.centres < -self.size / 2) | (picked.centres > edge)).any(1)
        if outside.any():
            x, y = picked.centres[int(outside.argmax())]
            raise InputError(
                f"{picked.path}: a particle at x = {x:g}, y = {y:g} px is outside its {nx} x {ny} "
                "pixels; give the micrographs that the coordinates were picked on, unbinned"
            )


def backgrounds(options: BackgroundsOptions) -> PreparedStack:
    """Cut windows without particles from micrographs, and prepare them as particles are.

    Raises:
        UsageError: options that do not fit the images.
        InputError: files that cannot be read, or damaged micrographs.
        ResourceError: disk full; what was saved stays.
        SystemExit: stopped by a signal, after saving.
    """
    recipe = recipe_of(options)
    path = options.particles
    document = read_star(path) if path.suffix == ".star" else None
    if document is None or has_images(document):
        particles = open_particles(options, need_ctf=False, document=document)
    else:
        particles = cut_particles(
            document,
            path,
            options.micrographs,
            options.window,
            pixel_size_angstrom=options.micrograph_pixel_size_angstrom,
            skip_missing=options.skip_missing,
            inside_only=False,
        )
    geometry = recipe.plan(particles.box_size, particles.pixel_size_angstrom)
    micrographs = picked_micrographs(
        particles.to_star_document().blocks["particles"],
        path,
        options.micrographs,
        coordinates=options.coordinates,
        skip_missing=options.skip_missing,
    )
    cutter = _cutter(options, particles, Preparer(recipe, geometry), micrographs)
    with _folder(options, particles, cutter) as folder:

        def conclude(records: Mapping[int, dict[str, Any]], seconds: float) -> str:
            write_star(folder.path(TABLE), _document(particles, cutter, records))
            _warn(cutter, records)
            return _summary(folder.root, cutter, records, seconds)

        return write_stack(
            folder,
            STACK,
            options,
            geometry,
            cutter.cut,
            len(micrographs),
            lambda piece: bytes.fromhex(fingerprint(micrographs[piece].path)["sha256"]),
            conclude,
            label="cutting",
            quiet=options.quiet,
        )


def _cutter(
    options: BackgroundsOptions,
    particles: Particles,
    preparer: Preparer,
    micrographs: list[PickedMicrograph],
) -> Cutter:
    geometry = preparer.geometry
    document = particles.to_star_document()
    first = read_header(micrographs[0].path, warn=False)
    pixel = micrograph_pixel_size(document, first, options.micrograph_pixel_size_angstrom)
    edge = geometry.input_box * geometry.input_pixel_angstrom
    diameter = options.particle_diameter_angstrom or DEFAULT_MASK_FRACTION * edge
    return Cutter(micrographs, preparer, pixel, diameter, options.seed, options.skip_bad)


def _folder(options: BackgroundsOptions, particles: Particles, cutter: Cutter) -> OutputFolder:
    centres = np.concatenate([picked.centres for picked in cutter.micrographs])
    resolved = {
        "input_box": particles.box_size,
        "pixel_size_angstrom": particles.pixel_size_angstrom,
        "micrograph_pixel_size_angstrom": cutter.pixel_size_angstrom,
        "particle_diameter_angstrom": cutter.particle_diameter_angstrom,
        "micrographs": len(cutter.micrographs),
        "picks": f"{len(centres)} {centres.sum():.3f}",
    }
    machine = {"threads": cores(options.threads)}
    return OutputFolder.of("backgrounds", options, OUTPUTS, resolved=resolved, machine=machine)


def _document(
    particles: Particles, cutter: Cutter, records: Mapping[int, Mapping[str, Any]]
) -> StarDocument:
    """Rows of the windows: micrograph, the CTF of its first particle, the window's centre."""
    windows = [
        (cutter.micrographs[piece], corner)
        for piece, record in sorted(records.items())
        for corner in record.get("corners", [])
    ]
    geometry = cutter.preparer.geometry
    document = make_document(
        [f"{i + 1:06d}@{STACK}" for i in range(len(windows))],
        particles.optics[torch.tensor([picked.rows[0] for picked, _ in windows])],
        pixel_size_angstrom=geometry.pixel_size_angstrom,
        box_size=geometry.box_size,
        micrograph_names=[picked.name for picked, _ in windows],
    )
    columns = dict(document.blocks["particles"].columns)
    x, y = np.array([corner for _, corner in windows]).T + cutter.size // 2
    columns |= {"rlnCoordinateX": format_column(x), "rlnCoordinateY": format_column(y)}
    return StarDocument({**document.blocks, "particles": StarBlock(columns)})


def _warn(cutter: Cutter, records: Mapping[int, Mapping[str, Any]]) -> None:
    """Warn of micrographs that gave fewer windows than they have particles."""
    counts = {piece: len(record.get("corners", [])) for piece, record in records.items()}
    faults = [record["fault"] for record in records.values() if "fault" in record]
    bare = [cutter.micrographs[i].name for i, count in counts.items() if not count]
    short = [i for i, count in counts.items() if 0 < count < len(cutter.micrographs[i].rows)]
    overlapping = sum(record.get("overlapping", 0) for record in records.values())
    for fault in faults:
        warnings.warn(f"left out: {fault}", stacklevel=2)
    if len(bare) > len(faults):
        warnings.warn(
            f"{len(bare) - len(faults)} micrographs have no room for a window between their "
            f"particles ({bare[0]} ...); a smaller `particle_diameter_angstrom` leaves more",
            stacklevel=2,
        )
    if short:
        warnings.warn(f"{len(short)} micrographs have fewer windows than particles", stacklevel=2)
    if overlapping:
        warnings.warn(f"{overlapping} windows overlap others, for want of room", stacklevel=2)


def _summary(
    folder: Path, cutter: Cutter, records: Mapping[int, Mapping[str, Any]], seconds: float
) -> str:
    counts = [len(record.get("corners", [])) for record in records.values()]
    return (
        f"{sum(counts)} backgrounds of {len(counts) - counts.count(0)} micrographs in {folder}: "
        f"windows of {cutter.size} px of {cutter.pixel_size_angstrom:.5g} Å; "
        f"{describe(cutter.preparer.geometry)}; "
        f"{len(counts) / max(seconds, 1e-3):.2g} micrographs/s"
    )
