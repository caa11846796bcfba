"""Particles opened from their files, and all their images checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitreous.core.errors import InputError, UsageError
from vitreous.data.particles import Particles
from vitreous.data.stacks import StackSource
from vitreous.io.mrc import read_header
from vitreous.io.star import StarDocument
from vitreous.jobs.inputs.options import ParticleFileOptions, StackOpticsOptions
from vitreous.jobs.run.progress import RunProgress


def open_particles(
    options: ParticleFileOptions, *, need_ctf: bool = True, document: StarDocument | None = None
) -> Particles:
    """Open particles; no image is read yet.

    Args:
        options: where they are; of a stack, with the files of its CTF.
        need_ctf: refuse particles without CTF parameters.
        document: content of their STAR file, if that was read already.

    Raises:
        InputError: a file is bad, or a table has no CTF.
        UsageError: a stack without CTF, or a table with one.
    """
    path = options.particles
    stack = options if isinstance(options, StackOpticsOptions) else None
    described = stack is not None and bool(stack.ctf_file or stack.particles_per_micrograph)
    if path.suffix in (".mrcs", ".mrc") and (need_ctf or described):
        return _open_stack(path, stack)
    if described:
        raise UsageError("`ctf_file` and `particles_per_micrograph` go with a stack, not a table")
    particles = Particles.open(
        path,
        passthrough=options.passthrough,
        pixel_size_angstrom=options.pixel_size_angstrom,
        data_root=options.data_root,
        document=document,
    )
    if need_ctf:
        _ = particles.optics  # refuse a table without CTF before anything is written
    return particles


def _open_stack(path: Path, options: StackOpticsOptions | None) -> Particles:
    if options is None or options.ctf_file is None or options.particles_per_micrograph is None:
        way_out = "" if options is None else "`ctf_file` and `particles_per_micrograph`, or "
        raise UsageError(f"{path}: a stack alone has no CTF; give {way_out}a STAR or .cs table")
    from vitreous.data.simulation_inputs import load_micrographs, owners

    header = read_header(path)
    count, rows, columns = header.shape
    if rows != columns:
        raise InputError(f"{path}: data: images of {columns} x {rows} are not square")
    micrographs = load_micrographs(
        options.ctf_file,
        seed=0,
        voltage_kv=options.voltage_kv,
        cs_mm=options.cs_mm,
        amplitude_contrast=options.amplitude_contrast,
    )
    owner = owners(options.particles_per_micrograph, count)
    if int(owner.max()) >= len(micrographs.names):
        raise InputError(
            f"{options.particles_per_micrograph}: line {int(owner.max()) + 1}: {options.ctf_file} "
            f"has only {len(micrographs.names)} micrographs; give the tables of the same data"
        )
    index = np.arange(count)
    return Particles(
        ctf=micrographs.optics[owner],
        pose=None,
        pixel_size_angstrom=header.pixel_size_or(options.pixel_size_angstrom),
        micrograph_id=owner,
        micrograph_names=micrographs.names,
        half_set=torch.zeros(count, dtype=torch.long),
        ids=tuple(f"{i + 1:06d}@{path.name}" for i in range(count)),
        _source=StackSource([header], np.zeros_like(index), index),
        _rows=index,
    )


@dataclass(frozen=True)
class Checked:
    """Particles whose images were all read."""

    particles: Particles  # those whose images can be used
    rows: NDArray[np.int64]  # of these among all particles, ``(n,)``
    digest: str  # hash of all their pixels, by which changed data are recognised


def check_images(particles: Particles, *, skip_bad: bool, quiet: bool) -> Checked:
    """Read every image once, with progress shown.

    Args:
        particles: to check.
        skip_bad: leave out images that are not finite, as constant ones always are.
        quiet: show no progress.

    Raises:
        InputError: bad images that are not to be left out, or no other images.
    """
    hashes: list[bytes] = []

    def look(images: Tensor) -> None:
        pixels = np.ascontiguousarray(images.numpy())
        hashes.extend(hashlib.blake2b(one, digest_size=16).digest() for one in pixels)

    with RunProgress("checking the images", quiet=quiet) as bar:
        kept = particles.without_bad(
            skip_bad=skip_bad, progress=lambda done, total: bar.update(done / total), on_images=look
        )
    rows = np.arange(len(particles), dtype=np.int64)
    if len(kept) < len(particles):
        names = set(kept.ids)
        rows = np.array([i for i, name in enumerate(particles.ids) if name in names], np.int64)
    digest = hashlib.sha256(b"".join(hashes[i] for i in rows)).hexdigest()[:16]
    return Checked(kept, rows, digest)
