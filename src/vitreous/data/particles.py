"""Particle images, read on demand, with their CTFs, poses, micrographs and half sets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitreous.core.errors import InputError
from vitreous.core.params import Optics, Pose
from vitreous.data.aberrations import read_distortion, read_even_polynomial
from vitreous.data.bad_images import DAMAGE, BadImages, find_bad_images
from vitreous.data.common_grid import on_common_grid
from vitreous.data.copies import copies, joined_labels, split_labels, warn_of_copies
from vitreous.data.formats import read_particles_document, select_rows
from vitreous.data.grey_values import decide_grey_values
from vitreous.data.half_sets import assign_half_sets
from vitreous.data.particle_table import ParticleTable
from vitreous.data.stacks import ArraySource, StackSource, WindowSource, open_stacks
from vitreous.data.tables import ABERRATIONS, ORIGINS, make_document, with_optics_columns
from vitreous.data.working_images import Rows, SignedImages, as_index, to_numpy
from vitreous.io.cryosparc_jobs import particle_files
from vitreous.io.star import StarBlock, StarDocument, format_column
from vitreous.physics.aberrations import Distortion, distorted_shift, undistorted_shift


@dataclass(frozen=True)
class Particles:
    """Particle images with CTF parameters, poses, micrographs and half sets.

    :meth:`open` reads a file; :meth:`from_arrays` takes arrays. The images stay on disk until
    :meth:`images` or :meth:`read` asks for them.

    Args:
        ctf: CTF parameters of each image, or the reason why there are none; use :attr:`optics`.
        pose: rotation and shift of each image, where known.
        pixel_size_angstrom: pixel size of the images in Å.
        micrograph_id: long ``(n,)``, index into ``micrograph_names``.
        micrograph_names: in order of appearance; :meth:`select` keeps all of them.
        half_set: long ``(n,)``: 1 or 2 as ``rlnRandomSubset``, 0 where not assigned.
        ids: image names, ``000001@stack.mrcs``.
        excluded: ids that :meth:`without_bad` left out, by reason.
        stated_contrast: whether the file says that protein is ``dark`` or ``light``.

    >>> optics = Optics.uniform(3)
    >>> Particles.from_arrays(torch.zeros(3, 8, 8), optics, pixel_size_angstrom=2.0)
    Particles(3 of 8 px at 2 Å, with CTF, without poses)
    """

    ctf: Optics | str
    pose: Pose | None
    pixel_size_angstrom: float
    micrograph_id: Tensor
    micrograph_names: tuple[str, ...]
    half_set: Tensor
    ids: tuple[str, ...]
    excluded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stated_contrast: Literal["dark", "light"] | None = None
    _source: ArraySource | StackSource | WindowSource = field(repr=False, kw_only=True)
    _rows: NDArray[np.int64] = field(repr=False, kw_only=True)
    _table: ParticleTable | None = field(repr=False, default=None, kw_only=True)
    _distortion: Distortion | None = field(repr=False, default=None, kw_only=True)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        half_seed: int | None = None,
        passthrough: Sequence[Path | str] = (),
        pixel_size_angstrom: float | None = None,
        data_root: Path | str | None = None,
        skip_bad: bool = False,
        document: StarDocument | None = None,
    ) -> Self:
        """Open a particle file of any known format without reading images.

        Args:
            path: RELION ``.star``, cryoSPARC ``.cs``, ``.csg`` or a job's folder, a stack ``.mrcs``
                or ``.mrc``, or a ``.txt`` or ``.lst`` file with one stack per line.
            half_seed: seed for :meth:`with_half_sets`; None leaves unassigned particles at 0.
            passthrough: for ``.cs``: files with further fields of the same particles.
            pixel_size_angstrom: overrides the pixel size of table and MRC header, Å.
            data_root: folder that image names are relative to; by default the table's own, or
                the nearest above it.
            skip_bad: read every image once and leave out those with NaN or infinite pixels.
            document: content of the ``.star`` file, if it was read already.

        Raises:
            InputError: the table or a stack is wrong; the text names file, field and remedy.
                A missing CTF is an error only when :attr:`optics` is read.
            UsageError: ``passthrough`` with another format than ``.cs``.

        >>> particles = Particles.open("particles.star", half_seed=1)  # doctest: +SKIP
        """
        root, size = None if data_root is None else Path(data_root), pixel_size_angstrom
        path, passthrough = particle_files(path, passthrough)
        document = read_particles_document(
            path,
            passthrough=passthrough,
            pixel_size_angstrom=size,
            data_root=root,
            document=document,
        )
        table = ParticleTable(document, Path(path), pixel_size_angstrom=size)
        table.refuse_unsupported()
        source = open_stacks(table.text("rlnImageName"), table.path, data_root=root)
        particles = cls._from_table(table, source)
        if skip_bad:
            particles = particles.without_bad(skip_bad=True)
        return particles if half_seed is None else particles.with_half_sets(half_seed)

    @classmethod
    def _from_table(cls, table: ParticleTable, source: StackSource) -> Self:
        ctf = table.parse_optics()
        table.check_box_sizes(source.box_sizes)
        even, distortion = read_even_polynomial(table), read_distortion(table)
        if even is not None and isinstance(ctf, Optics):
            ctf = replace(ctf, even_turns=torch.from_numpy(even))
        source, pixel_size = on_common_grid(table, source, ctf, distortion)
        ids = table.text("rlnImageName")
        stacks = [name.partition("@")[2] or name for name in ids]
        micrograph_id, micrograph_names = table.micrographs(stacks)
        return cls(
            ctf=ctf,
            pose=_undistorted(table.parse_pose(pixel_size), distortion),
            pixel_size_angstrom=pixel_size,
            micrograph_id=torch.from_numpy(micrograph_id),
            micrograph_names=micrograph_names,
            half_set=torch.from_numpy(table.half_sets()),
            ids=tuple(ids),
            stated_contrast=table.stated_contrast(),
            _source=source,
            _rows=np.arange(len(ids)),
            _table=table,
            _distortion=distortion,
        )

    @classmethod
    def from_arrays(
        cls,
        images: Tensor | NDArray[Any],
        optics: Optics,
        *,
        pixel_size_angstrom: float,
        pose: Pose | None = None,
        micrograph_id: Tensor | None = None,
        micrograph_names: Sequence[str] | None = None,
        half_set: Tensor | None = None,
        ids: Sequence[str] | None = None,
    ) -> Self:
        """Make particles of images in memory.

        Args:
            images: ``(n, y, x)``, square.
            optics: CTF parameters of each image.
            pixel_size_angstrom: pixel size in Å.
            pose: pose of each image, where known.
            micrograph_id: long ``(n,)``; all from one micrograph by default.
            micrograph_names: one for each micrograph.
            half_set: long ``(n,)`` of 0, 1, 2; all 0 by default.
            ids: image names; ``000001@particles.mrcs`` and so on by default.

        Raises:
            ValueError: shapes or lengths that do not agree, or a pixel size not positive.

        >>> images = torch.zeros(3, 8, 8)
        >>> p = Particles.from_arrays(images, Optics.uniform(3), pixel_size_angstrom=2.0)
        >>> len(p), p.box_size, p.read([0, 2]).shape
        (3, 8, torch.Size([2, 8, 8]))
        """
        source = ArraySource(images.detach().cpu() if isinstance(images, Tensor) else images)
        n = len(source)
        zeros = torch.zeros(n, dtype=torch.long)
        micrograph_id = zeros if micrograph_id is None else micrograph_id.long()
        count = int(micrograph_id.max()) + 1 if n else 0  # micrographs
        names = micrograph_names or [f"micrograph_{i:05d}.mrc" for i in range(count)]
        columns: dict[str, Any] = {"optics": optics, "pose": pose, "half_set": half_set, "ids": ids}
        columns["micrograph_id"] = micrograph_id
        lengths = {key: len(column) for key, column in columns.items() if column is not None}
        wrong = {key: length for key, length in lengths.items() if length != n}
        if wrong or len(names) < count:
            raise ValueError(f"{n} images, {count} micrographs, but {wrong or len(names)}")
        if not (math.isfinite(pixel_size_angstrom) and pixel_size_angstrom > 0):
            raise ValueError(f"pixel size must be positive, got {pixel_size_angstrom}")
        return cls(
            ctf=optics,
            pose=pose,
            pixel_size_angstrom=float(pixel_size_angstrom),
            micrograph_id=micrograph_id,
            micrograph_names=tuple(names),
            half_set=zeros if half_set is None else half_set.long(),
            ids=tuple(ids or (f"{i + 1:06d}@particles.mrcs" for i in range(n))),
            _source=source,
            _rows=np.arange(n),
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return (
            f"Particles({len(self)} of {self.box_size} px at {self.pixel_size_angstrom:g} Å, "
            f"{'with' if self.has_ctf else 'without'} CTF, "
            f"{'without' if self.pose is None else 'with'} poses)"
        )

    @property
    def box_size(self) -> int:
        """Edge of the square images in pixels."""
        return self._source.box_size

    @property
    def header_pixel_size_angstrom(self) -> float | None:
        """Pixel size in the header of the first stack, Å; None where it has none."""
        source = self._source
        return source.headers[0].pixel_size_angstrom if isinstance(source, StackSource) else None

    @property
    def has_ctf(self) -> bool:
        """Whether the particles have CTF parameters, :attr:`optics`."""
        return isinstance(self.ctf, Optics)

    @property
    def optics(self) -> Optics:
        """CTF parameters of each image.

        Raises:
            InputError: the table has no complete CTF; the text names the missing columns.
        """
        if isinstance(self.ctf, str):
            raise InputError(self.ctf)
        return self.ctf

    @property
    def files(self) -> tuple[Path, ...]:
        """Stacks of the images; empty for images in memory."""
        if not isinstance(self._source, StackSource):
            return ()
        return tuple(header.path for header in self._source.headers)

    @property
    def source(self) -> object:
        """File of the particles, for messages."""
        return self._table.path if self._table is not None else "particles"

    def images(
        self,
        *,
        box_size: int | None = None,
        invert: bool | None = None,
        normalise: bool = True,
        diameter_angstrom: float | None = None,
    ) -> SignedImages:
        """Return the images with protein positive, Fourier-cropped to a box, read on demand.

        Args:
            box_size: edge in pixels; the particles' own box by default.
            invert: whether protein is dark in the files; by default a sample of the images tells.
            normalise: whether the background of every image is taken off and scaled to 1.
            diameter_angstrom: of the circle around the particle, outside which the background
                lies; 75 % of the edge by default.

        Raises:
            UsageError: ``box_size`` is below 2 or larger than the images.

        >>> particles = Particles.from_arrays(
        ...     torch.ones(3, 8, 8), Optics.uniform(3), pixel_size_angstrom=2.0
        ... )
        >>> images = particles.images(box_size=4)
        >>> images[:].shape, images[[2, 0]].shape, images.pixel_size_angstrom
        (torch.Size([3, 4, 4]), torch.Size([2, 4, 4]), 4.0)
        """
        grey = decide_grey_values(
            self, invert=invert, normalise=normalise, diameter_angstrom=diameter_angstrom
        )
        return SignedImages(self, grey, box_size=box_size)

    def read(self, indices: Rows) -> Tensor:
        """Read images as stored, float32 ``(b, y, x)`` on the CPU, in the order asked for.

        Indices are 0-based; negative ones count from the end; slices and masks work.

        Raises:
            IndexError: past the end.
        """
        return torch.from_numpy(self._source.read(self._rows[as_index(indices)]))

    def copies(self) -> Tensor:
        """Return labels, long ``(n,)``, equal for copies: of one image name, or equal pixels.

        Two lines of every image are read, and the rest of those that agree in them.
        """
        return copies(self._source, self._rows)

    def with_half_sets(self, seed: int, *, fewest: int = 2) -> Self:
        """Return these particles with unassigned ones assigned to half set 1 or 2 at random.

        Copies of an image (:meth:`copies`) and tilts of a particle stay in one half set. A warning
        names copies, and those that the table itself puts into both.

        Raises:
            InputError: fewer than ``fewest`` particles in a half set.

        >>> optics = Optics.uniform(4)
        >>> images = torch.arange(256.0).reshape(4, 8, 8)
        >>> particles = Particles.from_arrays(images, optics, pixel_size_angstrom=2.0)
        >>> sorted(particles.with_half_sets(1).half_set.tolist())
        [1, 1, 2, 2]
        """
        same = self.copies()
        warn_of_copies(self.source, self.half_set, same)
        labels, tilts = same, self.tilt_particles
        if tilts is not None:
            labels = joined_labels(same.tolist(), tilts)
            split = split_labels(self.half_set, labels)
            if len(split) > len(split_labels(self.half_set, same)):
                warnings.warn(
                    f"{self.source}: _rlnRandomSubset puts tilts of {len(split)} particles into "
                    "both half sets, and the FSC is too good; remove the column",
                    stacklevel=2,
                )
        half = assign_half_sets(
            self.half_set, seed, labels=labels, fewest=fewest, source=self.source
        )
        return replace(self, half_set=half)

    @property
    def optics_group(self) -> Tensor:
        """Number of each image's optics group, from 0 on, long ``(n,)``."""
        return torch.from_numpy(
            self._table.optics_group()[self._rows] if self._table else 0 * self._rows
        )

    @property
    def odd_phase(self) -> Tensor:
        """Coefficients p of the odd phase of each image, ``(n, 6)``, undone where they are read."""
        if self._distortion is None:
            return torch.zeros(len(self), 6, dtype=torch.float64)
        return self._distortion.odd_phase[torch.from_numpy(self._rows)]

    @property
    def tilt_particles(self) -> list[str] | None:
        """Particle that each image is a tilt of; None for images that are no tilt series."""
        names = None if self._table is None else self._table.tilt_particles()
        return None if names is None else [names[row] for row in self._rows.tolist()]

    def select(self, indices: Rows) -> Self:
        """Return the particles of these indices; images are shared, not copied."""
        index = np.arange(len(self))[as_index(indices)]
        chosen = torch.from_numpy(index)
        return replace(
            self,
            ctf=self.ctf[chosen] if isinstance(self.ctf, Optics) else self.ctf,
            pose=None if self.pose is None else self.pose[chosen],
            micrograph_id=self.micrograph_id[chosen],
            half_set=self.half_set[chosen],
            ids=tuple(self.ids[i] for i in index.tolist()),
            _rows=self._rows[index],
        )

    def find_bad_images(
        self,
        progress: Callable[[int, int], None] | None = None,
        on_images: Callable[[Tensor], object] | None = None,
    ) -> BadImages:
        """Read every image once and list those that cannot be used; see :func:`find_bad_images`."""
        return find_bad_images(self.read, len(self), self.box_size, progress, on_images)

    def without_bad(
        self,
        *,
        skip_bad: bool = False,
        progress: Callable[[int, int], None] | None = None,
        on_images: Callable[[Tensor], object] | None = None,
    ) -> Self:
        """Check every image; leave out constant ones with a warning, listed in ``excluded``.

        Args:
            skip_bad: leave out images that are not finite as well, instead of rejecting the set.
            progress, on_images: see :meth:`find_bad_images`.

        Raises:
            InputError: damaged images (the text names them), or none left.
        """
        bad = self.find_bad_images(progress, on_images)
        if not bad:
            return self
        source = self.source
        if not skip_bad:
            bad.refuse_non_finite(self.ids, source)
        dropped = {*bad.non_finite, *bad.constant}
        kept = [i for i in range(len(self)) if i not in dropped]
        if not kept:
            raise InputError(f"{source}: images: all {len(self)} are constant or not finite")
        warnings.warn(
            f"{source}: left out {len(bad.constant)} constant images and {len(bad.non_finite)} "
            f"with {DAMAGE}",
            stacklevel=2,
        )
        excluded = {
            reason: (*self.excluded.get(reason, ()), *(self.ids[i] for i in rows))
            for reason, rows in (("non_finite", bad.non_finite), ("constant", bad.constant))
        }
        return replace(self.select(kept), excluded=excluded)

    def to_star_document(
        self, *, relative_to: Path | str | None = None, **columns: Any
    ) -> StarDocument:
        """Return a RELION 3.1 document of these particles, in order, with unknown columns kept.

        Args:
            relative_to: folder that the document will be written to. Image names are made
                relative to the nearest folder that holds the stack: this one or one above it,
                where RELION is started. None keeps the names.
            columns: name -> ``(n,)`` strings or numbers, added or replacing (``rlnAngleRot=...``).
                New origins become those of the images as stored, if a magnification is undone.
                Aberrations go to the optics table.

        Raises:
            ValueError: a column of the wrong length.
        """
        if self._table is None:
            document = self._new_document()
        else:
            document = select_rows(self._table.document, self._rows)
        table = dict(document.blocks["particles"].columns)
        if relative_to is not None and isinstance(self._source, StackSource):
            table["rlnImageName"] = self._source.names_from(Path(relative_to), self._rows)
        for name, values in columns.items():
            if len(values) != len(self):
                raise ValueError(
                    f"column {name} has {len(values)} values for {len(self)} particles"
                )
            text = [v for v in values if isinstance(v, str)]
            table[name] = text if len(text) == len(self) else format_column(to_numpy(values))
        if self._distortion is not None and set(ORIGINS) <= set(columns):
            origins = np.array([table[name] for name in ORIGINS], dtype=np.float64).T
            matrices = self._distortion.magnification[torch.from_numpy(self._rows)]
            stored = distorted_shift(torch.from_numpy(origins), matrices).numpy()
            table |= {name: format_column(stored[:, i]) for i, name in enumerate(ORIGINS)}
        document = StarDocument({**document.blocks, "particles": StarBlock(table)})
        return with_optics_columns(document) if set(ABERRATIONS) & set(columns) else document

    def _new_document(self) -> StarDocument:
        return make_document(
            self.ids,
            self.optics,
            pixel_size_angstrom=self.pixel_size_angstrom,
            box_size=self.box_size,
            micrograph_names=[self.micrograph_names[i] for i in self.micrograph_id.tolist()],
            pose=self.pose,
            half_set=self.half_set.tolist() if bool(self.half_set.any()) else None,
        )


def _undistorted(pose: Pose | None, distortion: Distortion | None) -> Pose | None:
    """Return poses of images whose distortion is undone."""
    if pose is None or distortion is None:
        return pose
    shift = undistorted_shift(pose.shift_angstrom, distortion.magnification)
    return replace(pose, shift_angstrom=shift)
