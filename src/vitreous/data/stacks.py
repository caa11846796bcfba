"""Sources of images: stacks on disk, checked and mapped on demand, or an array in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from os.path import relpath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError
from vitreous.data.backgrounds import Micrograph
from vitreous.io.mrc import MrcStack, read_header, warn_of_remarks
from vitreous.io.mrc_header import MrcHeader

_WALK_UP = 4  # a job's STAR file is two folders below the root of its RELION project
_PIECE = 4096  # images whose lines are read at once
_OPEN_MICROGRAPHS = 16
_OPEN_STACKS = 64  # mapped at the same time, below the limit of open files


class ArraySource:
    """Square images ``(n, y, x)`` held in memory, read by 0-based index."""

    def __init__(self, images: Any) -> None:
        self._images = np.asarray(images)
        if self._images.ndim != 3 or self._images.shape[1] != self._images.shape[2]:
            raise ValueError(f"images must be (n, y, y), got {self._images.shape}")
        self.box_size = int(self._images.shape[-1])

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return a float32 copy of images ``(b, y, x)``."""
        return self._images[indices].astype(np.float32)

    def identities(self, indices: NDArray[np.int64]) -> list[Hashable]:
        """Return the indices."""
        return list(indices.tolist())

    def fingerprints(self, indices: NDArray[np.int64]) -> list[int]:
        """Return a hash of two lines of each image."""
        return _hashes(self._images[indices, _lines(self.box_size)])


class StackSource:
    """Square images of several stacks, each opened on first use, read by 0-based index.

    ``stack_of`` and ``index_in``, ``(n,)``, are the stack of each image and its 0-based index in
    it.
    """

    def __init__(
        self,
        headers: Sequence[MrcHeader],
        stack_of: NDArray[np.int64],
        index_in: NDArray[np.int64],
    ) -> None:
        self.headers = tuple(headers)
        self.box_size = headers[0].shape[-1]
        self._stack_of, self._index_in = stack_of, index_in
        self._open: OrderedDict[int, MrcStack] = OrderedDict()

    @property
    def box_sizes(self) -> NDArray[np.int64]:
        """Edge of each image in pixels, ``(n,)``."""
        return np.array([header.shape[-1] for header in self.headers])[self._stack_of]

    def __len__(self) -> int:
        return len(self._stack_of)

    def names_from(self, folder: Path, indices: NDArray[np.int64]) -> list[str]:
        """Return the names ``000001@stack`` of images as a STAR file in a folder holds them."""
        stacks = self._stack_of[indices].tolist()
        numbers = (self._index_in[indices] + 1).tolist()
        names = {s: name_from(folder, self.headers[s].path) for s in set(stacks)}
        return [f"{i:06d}@{names[s]}" for i, s in zip(numbers, stacks, strict=True)]

    def _stack(self, number: int) -> MrcStack:
        if number in self._open:
            self._open.move_to_end(number)
        else:
            stack = MrcStack(self.headers[number].path, warn=False)
            if stack.header.identity != self.headers[number].identity:
                raise InputError(f"{stack.header.path}: changed while it was read; start again")
            self._open[number] = stack
            if len(self._open) > _OPEN_STACKS:
                self._open.popitem(last=False)
        return self._open[number]

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read images in the order asked for; each stack is read once, from front to back."""
        box = self.headers[int(self._stack_of[indices[0]])].shape[-1] if len(indices) else 0
        images = np.empty((len(indices), box or self.box_size, box or self.box_size), np.float32)
        for group, stack, inside in self._by_stack(indices):
            images[group] = stack.read(inside)
        return images

    def identities(self, indices: NDArray[np.int64]) -> list[Hashable]:
        """Return file, links followed, and index of each image."""
        files = [header.path.resolve() for header in self.headers]
        stacks, inside = self._stack_of[indices].tolist(), self._index_in[indices].tolist()
        return [(files[stack], index) for stack, index in zip(stacks, inside, strict=True)]

    def fingerprints(self, indices: NDArray[np.int64]) -> list[int]:
        """Return a hash of two lines of each image; little else is read from disk."""
        found = np.zeros(len(indices), dtype=np.int64)
        for group, stack, inside in self._by_stack(indices):
            for piece in np.array_split(np.arange(len(group)), len(group) // _PIECE + 1):
                lines = stack.read_region(inside[piece], _lines(stack.shape[1]), slice(None))
                found[group[piece]] = _hashes(lines)
        return list(found.tolist())

    def _by_stack(
        self, indices: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], MrcStack, NDArray[np.int64]]]:
        """Yield positions in ``indices``, stack, and ascending indices in it, for each stack."""
        stacks, inside = self._stack_of[indices], self._index_in[indices]
        order = np.lexsort((inside, stacks))
        cuts = np.flatnonzero(np.diff(stacks[order])) + 1
        for group in np.split(order, cuts):
            if len(group):
                yield group, self._stack(int(stacks[group[0]])), inside[group]


class WindowSource:
    """Square windows of micrographs, read by 0-based index; see :class:`ArraySource`.

    Args:
        paths: files of the micrographs.
        micrograph_of: micrograph of each window, ``(n,)``.
        corners: lowest x and y of each, ``(n, 2)`` pixels.
        box_size: edge in pixels.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        micrograph_of: NDArray[np.int64],
        corners: NDArray[np.int64],
        box_size: int,
    ) -> None:
        self.box_size = box_size
        self._micrograph_of, self._corners = micrograph_of, corners
        self._open = lru_cache(_OPEN_MICROGRAPHS)(
            lambda number: Micrograph(MrcStack(paths[number]))
        )

    def __len__(self) -> int:
        return len(self._corners)

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return windows ``(b, n, n)``; defect pixels are the micrograph's median."""
        images = np.empty((len(indices), self.box_size, self.box_size), np.float32)
        owner = self._micrograph_of[indices]
        for number in np.unique(owner).tolist():
            rows = owner == number
            images[rows] = self._open(number).cut(self._corners[indices[rows]], self.box_size)
        return images

    def identities(self, indices: NDArray[np.int64]) -> list[Hashable]:
        """Return micrograph and corner of each window."""
        owners, corners = self._micrograph_of[indices].tolist(), self._corners[indices].tolist()
        return [(owner, *corner) for owner, corner in zip(owners, corners, strict=True)]

    def fingerprints(self, indices: NDArray[np.int64]) -> list[int]:
        """Return a hash of two lines of each window."""
        return _hashes(self.read(indices)[:, _lines(self.box_size)])


def _lines(box_size: int) -> slice:
    return slice(box_size // 2, box_size // 2 + 2)


def _hashes(lines: NDArray[Any]) -> list[int]:
    return [hash(part.tobytes()) for part in lines]


def split_image_names(names: Sequence[str], where: str) -> tuple[NDArray[np.int64], list[str]]:
    """Split names ``000001@stack.mrcs`` into 1-based image numbers and stack names.

    Raises:
        InputError: the part before ``@`` is no number above 0; the text names the row.

    >>> split_image_names(["2@a.mrcs", "b.mrc"], "x.star")[1]
    ['a.mrcs', 'b.mrc']
    """
    numbers = np.ones(len(names), dtype=np.int64)
    stacks = []
    for row, name in enumerate(names):
        before, at, stack = name.partition("@")
        if at:
            number = before.isascii() and before.isdigit() and len(before) <= 18
            if not number or int(before) == 0 or not stack:
                raise InputError(
                    f"{where}: column _rlnImageName, row {row + 1}: {name!r} must be an image "
                    "number from 1 on, @, and a stack"
                )
            numbers[row] = int(before)
        stacks.append(stack if at else name)
    return numbers, stacks


def _search_folders(here: Path) -> list[Path]:
    """Folders that stacks are searched in: a STAR file's and those above it, without the root."""
    above = list(here.parents)[:_WALK_UP]
    return [here, *(folder for folder in above if folder.parent != folder)]


def name_from(folder: Path, stack: Path) -> str:
    """Return the name by which a STAR file in ``folder`` finds ``stack``; with ``..`` if not below.

    >>> name_from(Path("/data/job/out"), Path("/data/job/sim/particles.mrcs"))
    'sim/particles.mrcs'
    """
    here, path = folder.absolute(), stack.absolute()
    for base in _search_folders(here):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return relpath(path, here)


def find_stack(name: str, star: Path, *, data_root: Path | None = None) -> Path:
    """Find the stack of a name in a STAR file; absolute names and links are followed.

    The search covers the STAR file's folder and up to four folders above it (RELION's names start
    at the project's root). With ``data_root`` it covers that folder, those between it and the
    table, and then ``data_root`` without the first folders of the name, one by one, so that a
    project that was moved, or a part of it, is found.

    Raises:
        InputError: not found, or ``data_root`` is no folder.
    """
    folders = _search_folders(star.absolute().parent)
    names = [name]
    if data_root is not None:
        if not data_root.is_dir():
            raise InputError(f"`data_root` {data_root}: no such folder; check the path")
        root = data_root.absolute()
        folders = [root, *(f for f in folders if f != root and f.is_relative_to(root))]
        parts = [part for part in Path(name).parts if part not in (Path(name).anchor, "..")]
        names += ["/".join(parts[first:]) for first in range(len(parts))]
    for candidate in names:
        for folder in folders[: None if candidate == name else 1]:
            if (folder / candidate).is_file():
                return folder / candidate
    if data_root is not None:
        raise InputError(
            f"{star}: image path {name!r}: not found in `data_root` {data_root} or between it and "
            "the table; give the folder that the path is relative to"
        )
    raise InputError(
        f"{star}: image path {name!r}: not found in {folders[0]} or above; name the folder "
        "with `data_root`"
    )


def find_stack_or_none(name: str, star: Path, *, data_root: Path | None = None) -> Path | None:
    """Find a stack as :func:`find_stack` does; None where it is not found."""
    try:
        return find_stack(name, star, data_root=data_root)
    except InputError:
        return None


def open_stacks(names: Sequence[str], star: Path, *, data_root: Path | None = None) -> StackSource:
    """Find and check every stack that a column of image names mentions, without mapping it.

    Raises:
        InputError: a stack missing or damaged; an image number past its end; images that
            are not square.
    """
    numbers, stacks = split_image_names(names, str(star))
    index = {name: i for i, name in enumerate(dict.fromkeys(stacks))}
    headers = [
        read_header(find_stack(name, star, data_root=data_root), warn=False) for name in index
    ]
    warn_of_remarks(headers)
    stack_of = np.array([index[name] for name in stacks], dtype=np.int64)
    lengths = np.array([header.shape[0] for header in headers], dtype=np.int64)
    past = np.flatnonzero(numbers > lengths[stack_of])
    if past.size:
        row = int(past[0])
        raise InputError(
            f"{star}: column _rlnImageName, row {row + 1}: {names[row]!r} is past the end of the "
            f"stack, which holds {lengths[stack_of[row]]} images"
        )
    for header in headers:
        ny, nx = header.shape[1:]
        if ny != nx:
            raise InputError(f"{star}: images must be square, found {nx} x {ny} in {header.path}")
    return StackSource(headers, stack_of, numbers - 1)
