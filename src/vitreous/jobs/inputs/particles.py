"""What ``vitreous abinit`` starts from: particles, background patches and half sets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitreous.core.errors import InputError, UsageError
from vitreous.data.particles import Particles
from vitreous.data.stacks import StackSource
from vitreous.io.mrc import read_header
from vitreous.jobs.inputs.options import ParticleFileOptions, StackOpticsOptions
from vitreous.jobs.run.progress import RunProgress

_FIELDS = {  # of an option, its field in ParticleFiles
    "ctf": "ctf",
    "particles_per_micrograph": "per_micrograph",
    "kv": "voltage_kv",
    "cs": "cs_mm",
    "q0": "amplitude_contrast",
    "data_root": "data_root",
    "allow_outside_root": "allow_outside_root",
    "permissive": "permissive",
}


@dataclass(frozen=True)
class ParticleFiles:
    """Where particles are, so that every process of a run can open them for itself.

    Args:
        path: a STAR or .cs file; or a stack, whose micrographs and CTF the next two give.
        ctf: CTFFIND4 results, a row for each micrograph.
        per_micrograph: how many particles each micrograph has, in the order of ``ctf``.
        voltage_kv, cs_mm, amplitude_contrast: with ``ctf``; None takes the file's or 300, 2.7, 0.1.
        apix: pixel size in Å, instead of the files' own.
        data_root, allow_outside_root: where a table's images may lie.
        passthrough: for a .cs file: files with further fields of the same particles.
        permissive: accept stacks without a valid MAP id or machine stamp.
    """

    path: Path
    ctf: Path | None = None
    per_micrograph: Path | None = None
    voltage_kv: float | None = None
    cs_mm: float | None = None
    amplitude_contrast: float | None = None
    apix: float | None = None
    data_root: Path | None = None
    allow_outside_root: bool = False
    passthrough: tuple[Path, ...] = ()
    permissive: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From all options of a command, by the names that :mod:`particle_options` gives them."""
        told = {field: options[name] for name, field in _FIELDS.items() if name in options}
        apix = options["input_apix" if "input_apix" in options else "apix"]
        passthrough = tuple(options.get("passthrough") or ())
        return cls(options["particles"], apix=apix, passthrough=passthrough, **told)

    def open(self, *, need_ctf: bool = True) -> Particles:
        """Open the particles; see :func:`open_particles`."""
        options = StackOpticsOptions(
            particles=self.path,
            pixel_size_angstrom=self.apix,
            passthrough=self.passthrough,
            data_root=self.data_root,
            allow_outside_root=self.allow_outside_root,
            permissive=self.permissive,
            ctf_file=self.ctf,
            particles_per_micrograph=self.per_micrograph,
            voltage_kv=self.voltage_kv,
            cs_mm=self.cs_mm,
            amplitude_contrast=self.amplitude_contrast,
        )
        return open_particles(options, need_ctf=need_ctf)


def open_particles(options: ParticleFileOptions, *, need_ctf: bool = True) -> Particles:
    """Open particles; no image is read yet.

    Args:
        options: where they are; of a stack, with the files of its CTF.
        need_ctf: refuse particles without CTF parameters.

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
        allow_outside_root=options.allow_outside_root,
        permissive=options.permissive,
    )
    if need_ctf:
        _ = particles.optics  # refuse a table without CTF before anything is written
    return particles


def _open_stack(path: Path, options: StackOpticsOptions | None) -> Particles:
    if options is None or options.ctf_file is None or options.particles_per_micrograph is None:
        way_out = "" if options is None else "`ctf_file` and `particles_per_micrograph`, or "
        raise UsageError(f"{path}: a stack alone has no CTF; give {way_out}a STAR or .cs table")
    from vitreous.data.simulation_inputs import load_micrographs, owners

    header = read_header(path, permissive=options.permissive)
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
        _source=StackSource([header], np.zeros_like(index), index, permissive=options.permissive),
        _rows=index,
    )


@dataclass(frozen=True)
class Checked:
    """Particles whose images were all looked at.

    Args:
        particles: those whose images can be used.
        rows: their places among those that were looked at, ``(n,)``.
        digest: a hash of all their pixels, to tell changed data by.
    """

    particles: Particles
    rows: NDArray[np.int64]
    digest: str


def check_images(particles: Particles, *, skip_bad: bool, quiet: bool) -> Checked:
    """Read every image once, with progress shown.

    Args:
        particles: to be checked.
        skip_bad: leave out images that are not finite, as constant ones always are.
        quiet: show no progress.

    Raises:
        InputError: bad images that are not to be left out, or none left.
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
