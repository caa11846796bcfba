"""Particles: images read when asked for, with what is known about each."""

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
from vitreous.core.random import generator
from vitreous.data.bad_images import BadImages, bad_images
from vitreous.data.formats import read_particles_document, select_rows
from vitreous.data.stacks import ArraySource, ImageReader, StackSource, name_from, open_stacks
from vitreous.data.tables import ParticleTable, make_document
from vitreous.data.working_images import SignedImages
from vitreous.io.star import StarBlock, StarDocument, format_column


@dataclass(frozen=True)
class MissingCtf:
    """Stands for the optics of particles whose table does not give a whole CTF.

    Args:
        reason: what is missing and the remedy, for whoever asks.
    """

    reason: str


@dataclass(frozen=True)
class Particles:
    """Images with optics, poses, micrographs and half sets.

    Made by :meth:`open` or :meth:`from_arrays`.

    Args:
        ctf: CTF parameters of each image, or why there are none; :attr:`optics` is what to ask for.
        pose: orientations and shifts where known.
        pixel_size_angstrom: Å.
        micrograph_id: long ``(n,)``, index into ``micrograph_names``.
        micrograph_names: names in order of appearance; kept whole by :meth:`select`.
        half_set: long ``(n,)``: 1 or 2 as ``rlnRandomSubset``, 0 where not assigned.
        ids: image names, ``000001@stack.mrcs``.
        excluded: ids left out by :meth:`without_bad`, by reason.
        stated_contrast: whether the file says that protein is ``dark`` or ``light`` in the images.

    >>> optics = Optics.uniform(3)
    >>> Particles.from_arrays(torch.zeros(3, 8, 8), optics, pixel_size_angstrom=2.0)
    Particles(3 of 8 px at 2 Å, with CTF, without poses)
    """

    ctf: Optics | MissingCtf
    pose: Pose | None
    pixel_size_angstrom: float
    micrograph_id: Tensor
    micrograph_names: tuple[str, ...]
    half_set: Tensor
    ids: tuple[str, ...]
    excluded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stated_contrast: Literal["dark", "light"] | None = None
    _source: ImageReader = field(repr=False, kw_only=True)
    _rows: NDArray[np.int64] = field(repr=False, kw_only=True)
    _table: ParticleTable | None = field(repr=False, default=None, kw_only=True)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        half_seed: int | None = None,
        passthrough: Sequence[Path | str] = (),
        pixel_size_angstrom: float | None = None,
        data_root: Path | str | None = None,
        allow_outside_root: bool = False,
        skip_bad: bool = False,
        permissive: bool = False,
    ) -> Self:
        """Open a particle file of any known format without reading images.

        Args:
            path: RELION ``.star``, cryoSPARC ``.cs``, a stack ``.mrcs`` or ``.mrc``, or a ``.txt``
                or ``.lst`` file with one stack per line.
            half_seed: seed of the half sets of particles that the file assigns to none; see
                :meth:`with_half_sets`. None leaves them at 0.
            passthrough: for ``.cs``: files with further fields of the same particles.
            pixel_size_angstrom: overrides the pixel size of table and MRC header, Å.
            data_root: folder that image names are relative to and must not leave.
            allow_outside_root: accept absolute names and names that leave the root.
            skip_bad: read every image once and leave out those with NaN or infinite pixels.
            permissive: accept stacks without a valid MAP id or machine stamp.

        Raises:
            InputError: the table or a stack is wrong; the text names file, field and remedy.
                A missing CTF is an error only when :attr:`optics` is read.
            UsageError: ``passthrough`` with another format than ``.cs``.

        >>> Particles.open("particles.star", half_seed=1)  # doctest: +SKIP
        Particles(10000 of 128 px at 1.31 Å, with CTF, without poses)
        """
        path = Path(path)
        stack_options: dict[str, Any] = {
            "data_root": None if data_root is None else Path(data_root),
            "allow_outside_root": allow_outside_root,
            "permissive": permissive,
        }
        document = read_particles_document(
            path, passthrough=passthrough, pixel_size_angstrom=pixel_size_angstrom, **stack_options
        )
        table = ParticleTable(document, path, pixel_size_angstrom=pixel_size_angstrom)
        table.refuse_unsupported()
        ctf = MissingCtf(table.ctf_fault) if table.missing_ctf else table.parse_optics()
        ids = table.text("rlnImageName")
        source = open_stacks(ids, path, **stack_options)
        table.check_box_size(source.box_size)
        pixel_size = _pixel_size(table, source)
        member, names = table.micrographs([name.partition("@")[2] or name for name in ids])
        particles = cls(
            ctf=ctf,
            pose=table.parse_pose(pixel_size),
            pixel_size_angstrom=pixel_size,
            micrograph_id=torch.from_numpy(member),
            micrograph_names=names,
            half_set=torch.from_numpy(table.half_sets()),
            ids=tuple(ids),
            stated_contrast=table.stated_contrast(),
            _source=source,
            _rows=np.arange(len(ids)),
            _table=table,
        )
        if skip_bad:
            particles = particles.without_bad(skip_bad=True)
        return particles if half_seed is None else particles.with_half_sets(half_seed)

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
        """Particles held in memory.

        Args:
            images: ``(n, y, x)``, square.
            optics: of each image.
            pixel_size_angstrom: Å.
            pose: of each image, where known.
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
        member = torch.zeros(n, dtype=torch.long) if micrograph_id is None else micrograph_id.long()
        count = int(member.max()) + 1 if n else 0
        names = micrograph_names or [f"micrograph_{i:05d}.mrc" for i in range(count)]
        lengths = {
            "optics": len(optics),
            "pose": n if pose is None else len(pose),
            "micrograph_id": len(member),
            "half_set": n if half_set is None else len(half_set),
            "ids": n if ids is None else len(ids),
        }
        wrong = {key: length for key, length in lengths.items() if length != n}
        if wrong or len(names) < count:
            raise ValueError(f"{n} images, {count} micrographs, but {wrong or len(names)}")
        if not (math.isfinite(pixel_size_angstrom) and pixel_size_angstrom > 0):
            raise ValueError(f"pixel size must be positive, got {pixel_size_angstrom}")
        return cls(
            ctf=optics,
            pose=pose,
            pixel_size_angstrom=float(pixel_size_angstrom),
            micrograph_id=member,
            micrograph_names=tuple(names),
            half_set=torch.zeros(n, dtype=torch.long) if half_set is None else half_set.long(),
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
        """What the first stack's header says, Å; None where it says nothing."""
        source = self._source
        return source.headers[0].pixel_size_angstrom if isinstance(source, StackSource) else None

    @property
    def has_ctf(self) -> bool:
        """Whether :attr:`optics` can be asked for."""
        return isinstance(self.ctf, Optics)

    @property
    def optics(self) -> Optics:
        """CTF parameters of each image.

        Raises:
            InputError: the table gives none, or not all; the missing columns are named.
        """
        if isinstance(self.ctf, MissingCtf):
            raise InputError(self.ctf.reason)
        return self.ctf

    @property
    def files(self) -> tuple[Path, ...]:
        """The stacks that the images are in; none for images in memory."""
        if not isinstance(self._source, StackSource):
            return ()
        return tuple(header.path for header in self._source.headers)

    def images(self, *, box_size: int | None = None, invert: bool | None = None) -> SignedImages:
        """Return the images with protein positive, Fourier-cropped to a box, read on demand.

        Args:
            box_size: pixels; the particles' own box by default.
            invert: whether protein is dark in the files; by default what the file states
                (cryoSPARC does), else no.

        Raises:
            UsageError: ``box_size`` is below 2 or larger than the images.

        >>> particles = Particles.from_arrays(
        ...     torch.ones(3, 8, 8), Optics.uniform(3), pixel_size_angstrom=2.0
        ... )
        >>> images = particles.images(box_size=4)
        >>> images[:].shape, images[[2, 0]].shape, images.pixel_size_angstrom
        (torch.Size([3, 4, 4]), torch.Size([2, 4, 4]), 4.0)
        """
        dark = self.stated_contrast == "dark" if invert is None else invert
        return SignedImages(self, invert=dark, box_size=box_size)

    def with_half_sets(self, seed: int) -> Self:
        """Return these particles with every one in half set 1 or 2; see :func:`assign_halves`.

        Raises:
            InputError: fewer than two particles in a half set.

        >>> optics = Optics.uniform(4)
        >>> particles = Particles.from_arrays(torch.ones(4, 8, 8), optics, pixel_size_angstrom=2.0)
        >>> sorted(particles.with_half_sets(1).half_set.tolist())
        [1, 1, 2, 2]
        """
        return replace(self, half_set=assign_halves(self, seed))

    def read(self, indices: Tensor | slice | Sequence[int] | NDArray[Any]) -> Tensor:
        """Images float32 ``(b, y, x)`` on the CPU, in the order asked for.

        Args:
            indices: places among these particles; negative ones count from the end; masks work.

        Raises:
            IndexError: past the end.
        """
        return torch.from_numpy(self._source.read(self._rows[_as_index(indices)]))

    def select(self, indices: Tensor | slice | Sequence[int] | NDArray[Any]) -> Self:
        """The particles at these places; images are shared, not copied."""
        return self._selected(indices, self.excluded)

    def _selected(self, indices: Any, excluded: Mapping[str, tuple[str, ...]]) -> Self:
        rows = self._rows[_as_index(indices)]
        place = torch.from_numpy(np.arange(len(self))[_as_index(indices)])
        return replace(
            self,
            ctf=self.ctf[place] if isinstance(self.ctf, Optics) else self.ctf,
            pose=None if self.pose is None else self.pose[place],
            micrograph_id=self.micrograph_id[place],
            half_set=self.half_set[place],
            ids=tuple(self.ids[i] for i in place.tolist()),
            excluded=excluded,
            _rows=rows,
        )

    def find_bad_images(
        self,
        progress: Callable[[int, int], None] | None = None,
        look: Callable[[Tensor], object] | None = None,
    ) -> BadImages:
        """Read every image once, piece by piece, and list what cannot be used.

        Args:
            progress: called with images done and images in all.
            look: shown every piece ``(b, n, n)``, in order.
        """
        return bad_images(self.read, len(self), self.box_size, progress, look)

    def without_bad(
        self,
        *,
        skip_bad: bool = False,
        progress: Callable[[int, int], None] | None = None,
        look: Callable[[Tensor], object] | None = None,
    ) -> Self:
        """Check every image; constant ones are left out with a warning and recorded.

        Args:
            skip_bad: leave out images that are not finite as well, instead of rejecting the set.
            progress, look: see :meth:`find_bad_images`.

        Raises:
            InputError: images with NaN or infinite pixels (their names are given), or none left.
        """
        bad = self.find_bad_images(progress, look)
        if not bad:
            return self
        where = self._table.path if self._table is not None else "particles"
        if bad.non_finite and not skip_bad:
            shown = ", ".join(f"{i} ({self.ids[i]})" for i in bad.non_finite[:10])
            more = f" and {len(bad.non_finite) - 10} more" if len(bad.non_finite) > 10 else ""
            raise InputError(
                f"{where}: images {shown}{more}: NaN or infinite pixels; leave them out with "
                "`skip_bad`"
            )
        dropped = {*bad.non_finite, *bad.constant}
        keep = [i for i in range(len(self)) if i not in dropped]
        if not keep:
            raise InputError(f"{where}: images: all {len(self)} are constant or not finite")
        warnings.warn(
            f"{where}: left out {len(bad.constant)} constant images and {len(bad.non_finite)} "
            "with NaN or infinite pixels",
            stacklevel=2,
        )
        reasons = {"non_finite": bad.non_finite, "constant": bad.constant}
        excluded = {
            reason: (*self.excluded.get(reason, ()), *(self.ids[i] for i in places))
            for reason, places in reasons.items()
        }
        return self._selected(keep, excluded)

    def to_star_document(
        self, *, relative_to: Path | str | None = None, **columns: Any
    ) -> StarDocument:
        """These particles as a RELION 3.1 document, input rows in order, unknown columns kept.

        Args:
            relative_to: folder that the document will be written to; image names are then made
                relative to the nearest of it and the folders above that holds the stack, where
                they are looked for (and where RELION is started). None keeps them as they were.
            columns: name -> ``(n,)`` strings or numbers, added or replacing (``rlnAngleRot=...``).

        Raises:
            ValueError: a column of the wrong length.
        """
        if self._table is None:
            document = self._made_document()
        else:
            document = select_rows(self._table.document, self._rows)
        table = dict(document.blocks["particles"].columns)
        if relative_to is not None:
            table["rlnImageName"] = self._relocated(Path(relative_to))
        for name, values in columns.items():
            if len(values) != len(self):
                raise ValueError(
                    f"column {name} has {len(values)} values for {len(self)} particles"
                )
            text = [v for v in values if isinstance(v, str)]
            table[name] = text if len(text) == len(self) else format_column(_to_numpy(values))
        blocks = {**document.blocks, "particles": StarBlock(table)}
        return StarDocument(blocks)

    def _made_document(self) -> StarDocument:
        return make_document(
            self.ids,
            self.optics,
            pixel_size_angstrom=self.pixel_size_angstrom,
            box_size=self.box_size,
            micrograph_names=[self.micrograph_names[i] for i in self.micrograph_id.tolist()],
            pose=self.pose,
            half_set=self.half_set.tolist() if bool(self.half_set.any()) else None,
        )

    def _relocated(self, folder: Path) -> list[str]:
        if not isinstance(self._source, StackSource):
            return list(self.ids)
        located = list(self._source.locate(self._rows))
        names = {path: name_from(folder, path) for path in {path for _, path in located}}
        return [f"{number:06d}@{names[path]}" for number, path in located]


def _pixel_size(table: ParticleTable, source: StackSource) -> float:
    """Pixel size of a set: the override, else STAR, else MRC; a disagreement is warned about."""
    if table.pixel_size_override_angstrom is not None:
        return table.pixel_size_override_angstrom
    first = source.headers[0]
    stated = table.pixel_size_angstrom()
    if stated is None:
        return first.pixel_size_or(None)
    held = first.pixel_size_angstrom
    if held is not None and abs(held - stated) > 0.01 * stated:
        warnings.warn(
            f"{table.path}: pixel size {stated:g} Å is used; {first.path} says {held:g} Å",
            stacklevel=3,
        )
    return stated


def _as_index(indices: Tensor | slice | Sequence[int] | NDArray[Any]) -> Any:
    if isinstance(indices, slice):
        return indices
    index = _to_numpy(indices)
    if index.size == 0:
        return np.empty(0, dtype=np.int64)
    if index.ndim != 1 or index.dtype.kind not in "iub":
        raise TypeError(f"indices must be a row of whole numbers, got {index.dtype} {index.shape}")
    return index


def _to_numpy(values: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def assign_halves(particles: Particles, seed: int) -> Tensor:
    """Half set 1 or 2 of every particle: ``rlnRandomSubset`` where given, else at random.

    Returns:
        long ``(n,)``.

    Raises:
        InputError: fewer than two particles in a half.
    """
    half = particles.half_set.clone()
    free = (half == 0).nonzero().flatten()
    order = free[torch.randperm(len(free), generator=generator(seed, "abinit halves"))]
    lacking = max(0, min(len(free), len(half) // 2 - int((half == 1).sum())))
    half[order[:lacking]] = 1
    half[order[lacking:]] = 2
    sizes = [int((half == h).sum()) for h in (1, 2)]
    if min(sizes) < 2:
        raise InputError(
            f"particles: half sets of {sizes[0]} and {sizes[1]}: two independent halves need at "
            "least two particles each; check _rlnRandomSubset"
        )
    return half
