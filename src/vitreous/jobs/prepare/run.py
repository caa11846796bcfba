"""The work of ``vitreous prepare``: stream particle images through a recipe into a new stack."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.data.bad_images import DAMAGE, finite_and_constant
from vitreous.data.particles import Particles
from vitreous.data.prepare import Geometry, Preparer, describe
from vitreous.data.prepared_table import prepared_document
from vitreous.data.windows import cut_particles
from vitreous.io.atomic import atomic_write_text
from vitreous.io.mrc_growing import JOURNAL, PART
from vitreous.io.star import read_star, write_star
from vitreous.jobs.inputs.particles import open_particles
from vitreous.jobs.prepare.options import PrepareOptions
from vitreous.jobs.prepare.stack import PreparedStack, recipe_of, write_stack
from vitreous.jobs.run.folder import OutputFolder, plain
from vitreous.jobs.run.streaming import Piece, cores, digest_of

STACK, TABLE, EXCLUDED = "particles.mrcs", "particles.star", "excluded.txt"
OUTPUTS = (STACK, TABLE, EXCLUDED, STACK + PART, STACK + JOURNAL)
PIECE_BYTES = 4 << 20
REASONS = {
    "non_finite": DAMAGE,
    "constant": "constant",
    "flat": "flat background, cannot be normalised",
}


@dataclass(frozen=True)
class Pieces:
    """Particle images in pieces of a size that depends on the boxes only."""

    particles: Particles  # all of them
    preparer: Preparer
    where: str  # for messages
    skip_bad: bool  # leave out images that are not finite instead of rejecting all
    _reading: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    @property
    def step(self) -> int:
        """Images in a piece."""
        box = max(self.particles.box_size, self.preparer.geometry.box_size)
        return max(1, PIECE_BYTES // (4 * box**2))

    def __len__(self) -> int:
        return math.ceil(len(self.particles) / self.step)

    def _read(self, piece: int) -> tuple[Tensor, Tensor]:
        start = piece * self.step
        place = torch.arange(start, min(start + self.step, len(self.particles)))
        with self._reading:
            return place, self.particles.read(place)

    def identity(self, piece: int) -> bytes:
        """Return a hash of the images of a piece as they are in the files."""
        return digest_of(self._read(piece)[1].numpy().data)

    def prepare(self, piece: int) -> Piece:
        """The usable images of a piece, prepared; and the places of the others, by reason.

        Raises:
            InputError: damaged images.
        """
        place, images = self._read(piece)
        finite, constant = finite_and_constant(images)
        if not self.skip_bad and not bool(finite.all()):
            raise self._rejected(place[~finite].tolist(), int(place[-1]) + 1)
        usable = finite & ~constant
        flips = self.preparer.recipe.phase_flip
        optics = self.particles.optics[place[usable]] if flips else None
        prepared, sound = self.preparer(images[usable], optics)
        bad = {
            "non_finite": place[~finite].tolist(),
            "constant": place[constant].tolist(),
            "flat": place[usable][~sound].tolist(),
        }
        return prepared[sound], {reason: places for reason, places in bad.items() if places}

    def _rejected(self, places: list[int], read: int) -> InputError:
        shown = ", ".join(f"{i + 1} ({self.particles.ids[i]})" for i in places[:10])
        more = f" and {len(places) - 10} more" if len(places) > 10 else ""
        return InputError(
            f"{self.where}: images {shown}{more} (of the first {read}): {DAMAGE}; leave them out "
            "with `skip_bad`"
        )


def prepare(options: PrepareOptions) -> PreparedStack:
    """Resample and normalise particle images into a new stack with its table.

    Raises:
        UsageError: options that do not fit the images.
        InputError: files that cannot be read, or bad images.
        ResourceError: disk full; what was saved stays.
        SystemExit: stopped by a signal, after saving.
    """
    recipe = recipe_of(options)
    if options.micrographs is None:
        particles = open_particles(options, need_ctf=False)
    else:
        particles = cut_particles(
            read_star(options.particles),
            options.particles,
            options.micrographs,
            options.window,
            pixel_size_angstrom=options.pixel_size_angstrom,
        )
    if options.first_rows is not None:
        particles = particles.select(slice(0, options.first_rows))
    geometry = recipe.plan(particles.box_size, particles.pixel_size_angstrom)
    if geometry.box_size > geometry.window:
        warnings.warn(
            f"{describe(geometry)}: a box larger than the images adds pixels, no information",
            stacklevel=2,
        )
    where = str(options.particles)
    pieces = Pieces(particles, Preparer(recipe, geometry), where, options.skip_bad)
    resolved = {
        "pixel_size_angstrom": particles.pixel_size_angstrom,
        "images": len(particles),
    }
    machine = {"threads": cores(options.threads)}
    folder = OutputFolder.of("prepare", options, OUTPUTS, resolved=resolved, machine=machine)
    with folder:

        def conclude(records: Mapping[int, Mapping[str, list[int]]], seconds: float) -> str:
            excluded: dict[str, list[int]] = {}  # places by reason
            for _, record in sorted(records.items()):
                for reason, places in record.items():
                    excluded.setdefault(reason, []).extend(places)
            _write_tables(folder, particles, geometry, excluded, recipe.phase_flip)
            return "\n".join(_summary(folder, particles, geometry, excluded, seconds))

        return write_stack(
            folder,
            STACK,
            options,
            geometry,
            pieces.prepare,
            len(pieces),
            pieces.identity,
            conclude,
            label="preparing",
            quiet=options.quiet,
        )


def _write_tables(
    folder: OutputFolder,
    particles: Particles,
    geometry: Geometry,
    excluded: Mapping[str, list[int]],
    phase_flipped: bool,
) -> None:
    dropped = {place: reason for reason, places in excluded.items() for place in places}
    kept = particles.select([i for i in range(len(particles)) if i not in dropped])
    document = prepared_document(kept, geometry, STACK, phase_flipped=phase_flipped)
    if dropped:
        lines = [f"{i + 1}\t{particles.ids[i]}\t{REASONS[dropped[i]]}" for i in sorted(dropped)]
        atomic_write_text(folder.path(EXCLUDED), "\n".join(["# row\timage\treason", *lines, ""]))
        names = {why: [particles.ids[i] for i in places] for why, places in excluded.items()}
        folder.config["run"]["excluded"] = plain(names)
    write_star(folder.path(TABLE), document)


def _summary(
    folder: OutputFolder,
    particles: Particles,
    geometry: Geometry,
    excluded: Mapping[str, list[int]],
    seconds: float,
) -> Iterator[str]:
    left_out = sum(map(len, excluded.values()))
    yield f"{len(particles) - left_out} particles in {folder.root}: {describe(geometry)}"
    if left_out:
        counts = ", ".join(f"{len(rows)} {REASONS[r]}" for r, rows in excluded.items())
        yield f"left out {left_out}: {counts}; listed in {EXCLUDED}"
    yield f"{len(particles) / max(seconds, 1e-3):.0f} images/s"
