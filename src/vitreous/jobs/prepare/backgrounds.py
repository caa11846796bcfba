"""The work of ``vitreous backgrounds``: windows without particles, prepared as particles are."""

from __future__ import annotations

import dataclasses
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
from vitreous.data.prepare import DEFAULT_MASK_FRACTION, Geometry, Preparation, Preparer, describe
from vitreous.data.tables import make_document
from vitreous.io.mrc import MrcStack, read_header
from vitreous.io.mrc_growing import JOURNAL, PART
from vitreous.io.star import StarBlock, StarDocument, format_column, write_star
from vitreous.jobs.run.folder import OutputFolder
from vitreous.jobs.run.messages import say
from vitreous.jobs.run.streaming import Piece, cores, files_digest, stream_into

STACK, TABLE = "backgrounds.mrcs", "backgrounds.star"
OUTPUTS = (STACK, TABLE, STACK + PART, STACK + JOURNAL)
_CUT_BYTES = 8 << 20


@dataclass(frozen=True)
class Request:
    """What ``vitreous backgrounds`` was asked for."""

    table: Path
    particles: Particles
    recipe: Preparation
    micrographs: Path
    output: Path
    coordinates: Path | None = None
    micrograph_apix: float | None = None
    particle_diameter_angstrom: float | None = None
    float16: bool = False
    skip_bad: bool = False
    skip_missing: bool = False
    allow_outside_root: bool = False
    permissive: bool = False
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    threads: int = 0
    quiet: bool = False


@dataclass(frozen=True)
class Cutter:
    """Cuts and prepares the windows of one micrograph after another.

    Args:
        micrographs: of the table.
        preparer: made for images of the particles' box and pixel size.
        pixel_size_angstrom: of the micrographs, Å.
        particle_diameter_angstrom: what windows keep away from, Å.
        seed: of the run.
        skip_bad: leave out damaged micrographs instead of rejecting all.
        permissive: see :func:`vitreous.io.mrc.MrcStack`.
    """

    micrographs: list[PickedMicrograph]
    preparer: Preparer
    pixel_size_angstrom: float
    particle_diameter_angstrom: float
    seed: int
    skip_bad: bool = False
    permissive: bool = False

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
            micrograph = Micrograph(MrcStack(picked.path, permissive=self.permissive))
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
                raise
            return self._nothing(), {"fault": str(error)}
        corners = windows.corners[sound.numpy()]
        return images[sound], {"corners": corners.tolist(), "overlapping": windows.overlapping}

    def _nothing(self) -> Tensor:
        box = self.preparer.geometry.box_size
        return torch.empty(0, box, box)

    def _prepared(
        self, micrograph: Micrograph, corners: np.ndarray[Any, np.dtype[np.int64]]
    ) -> tuple[Tensor, Tensor]:
        step = max(1, _CUT_BYTES // (4 * self.size**2))
        images, sound = [self._nothing()], [torch.ones(0, dtype=torch.bool)]
        for start in range(0, len(corners), step):
            patches = torch.from_numpy(micrograph.cut(corners[start : start + step], self.size))
            level = micrograph.levels.median
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


def backgrounds(request: Request) -> None:
    """Run ``vitreous backgrounds``.

    Raises:
        VitreousError: by exit code, as the command line documents them.
        SystemExit: stopped by a signal, after saving.
    """
    particles = request.particles
    geometry = request.recipe.plan(particles.box_size, particles.pixel_size_angstrom)
    micrographs = picked_micrographs(
        particles,
        request.table,
        request.micrographs,
        coordinates=request.coordinates,
        allow_outside_root=request.allow_outside_root,
        skip_missing=request.skip_missing,
    )
    cutter = _cutter(request, geometry, micrographs)
    with _folder(request, cutter) as folder:

        def conclude(records: Mapping[int, dict[str, Any]], seconds: float) -> None:
            write_star(folder.path(TABLE), _document(particles, cutter, records))
            _report(request, cutter, records, seconds)

        stream_into(
            folder,
            STACK,
            geometry,
            cutter.cut,
            len(micrographs),
            conclude,
            float16=request.float16,
            threads=request.threads,
            label="cutting",
            quiet=request.quiet,
        )


def _cutter(request: Request, geometry: Geometry, micrographs: list[PickedMicrograph]) -> Cutter:
    document = request.particles.to_star_document()
    first = read_header(micrographs[0].path, permissive=request.permissive)
    pixel = micrograph_pixel_size(document, first, request.micrograph_apix)
    edge = geometry.input_box * geometry.input_pixel_angstrom
    diameter = request.particle_diameter_angstrom or DEFAULT_MASK_FRACTION * edge
    return Cutter(
        micrographs,
        Preparer(request.recipe, geometry),
        pixel,
        diameter,
        request.seed,
        skip_bad=request.skip_bad,
        permissive=request.permissive,
    )


def _folder(request: Request, cutter: Cutter) -> OutputFolder:
    paths = [picked.path for picked in cutter.micrographs]
    centres = np.concatenate([picked.centres for picked in cutter.micrographs])
    options = {
        **dataclasses.asdict(request.recipe),
        "input_box": request.particles.box_size,
        "input_apix": request.particles.pixel_size_angstrom,
        "micrograph_apix": cutter.pixel_size_angstrom,
        "particle_diameter_angstrom": cutter.particle_diameter_angstrom,
        "micrographs": len(paths),
        "files": files_digest(paths),
        "picks": f"{len(centres)} {centres.sum():.3f}",
        "float16": request.float16,
        "skip_bad": request.skip_bad,
        "seed": request.seed,
    }
    return OutputFolder(
        request.output,
        "backgrounds",
        options,
        inputs={"particles": request.table},
        outputs=OUTPUTS,
        machine={"threads": cores(request.threads)},
        overwrite=request.overwrite,
        resume=request.resume,
        resumable=True,
        changeable=False,
    )


def _document(
    particles: Particles, cutter: Cutter, records: Mapping[int, Mapping[str, Any]]
) -> StarDocument:
    """Rows of the windows: micrograph, the CTF of its first particle, the window's centre."""
    rows: list[int] = []
    names: list[str] = []
    centres: list[list[float]] = []
    for piece, record in sorted(records.items()):
        picked = cutter.micrographs[piece]
        for x, y in record.get("corners", []):
            rows.append(picked.rows[0])
            names.append(picked.name)
            centres.append([x + cutter.size // 2, y + cutter.size // 2])
    geometry = cutter.preparer.geometry
    document = make_document(
        [f"{i + 1:06d}@{STACK}" for i in range(len(rows))],
        particles.optics[torch.tensor(rows)],
        pixel_size_angstrom=geometry.pixel_size_angstrom,
        box_size=geometry.box_size,
        micrograph_names=names,
    )
    columns = dict(document.blocks["particles"].columns)
    x, y = np.array(centres).T
    columns |= {"rlnCoordinateX": format_column(x), "rlnCoordinateY": format_column(y)}
    return StarDocument({**document.blocks, "particles": StarBlock(columns)})


def _report(
    request: Request,
    cutter: Cutter,
    records: Mapping[int, Mapping[str, Any]],
    seconds: float,
) -> None:
    counts = {piece: len(record.get("corners", [])) for piece, record in records.items()}
    faults = [record["fault"] for record in records.values() if "fault" in record]
    bare = [cutter.micrographs[i].name for i, count in counts.items() if not count]
    short = [i for i, count in counts.items() if 0 < count < len(cutter.micrographs[i].rows)]
    overlapping = sum(record.get("overlapping", 0) for record in records.values())
    for fault in faults:
        say(f"warning: left out: {fault}")
    if len(bare) > len(faults):
        say(
            f"warning: {len(bare) - len(faults)} micrographs have no room for a window between "
            f"their particles ({bare[0]} ...); a smaller --particle-diameter leaves more"
        )
    if short:
        say(f"warning: {len(short)} micrographs have fewer windows than particles")
    if overlapping:
        say(f"warning: {overlapping} windows overlap others, for want of room")
    if not request.quiet:
        say(
            f"{sum(counts.values())} backgrounds of {len(counts) - len(bare)} micrographs in "
            f"{request.output}: windows of {cutter.size} px of {cutter.pixel_size_angstrom:.5g} Å; "
            f"{describe(cutter.preparer.geometry)}; "
            f"{len(counts) / max(seconds, 1e-3):.2g} micrographs/s"
        )
