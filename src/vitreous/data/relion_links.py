"""What RELION needs of a particle table beyond what other programs write: suffixes and columns."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

from vitreous.core.errors import InputError
from vitreous.data.particle_table import ParticleTable
from vitreous.data.stacks import find_stack, name_from, split_image_names
from vitreous.io.star import StarDocument

_SUFFIX = ".mrcs"
_NEEDED = (
    *("rlnMicrographName", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"),
    *("rlnImagePixelSize", "rlnImageSize", "rlnDefocusU"),
)


def linked(
    document: StarDocument, source: Path, output: Path, *, data_root: Path | None = None
) -> StarDocument:
    """Link stacks that RELION would not take, and return the document with the links' names.

    These are stacks of another suffix, and those that are not below the folder of the table, where
    RELION is to be started. The links lie in ``OUT_stacks`` beside the table ``output`` and are
    relative. Micrographs are named after the stacks where the document, read from ``source``, names
    none.

    Raises:
        InputError: a stack is not found, or something else has the name of a link.
    """
    folder = output.absolute().parent
    links = folder / f"{output.stem}_stacks"
    block = document.blocks["particles"]
    names = block.text("rlnImageName", source)
    numbers, stacks = split_image_names(names, str(source))
    paths = {name: find_stack(name, source, data_root=data_root) for name in dict.fromkeys(stacks)}
    taken: set[str] = set()
    renamed: dict[str, str] = {}
    for name, path in paths.items():
        if path.suffix.lower() == _SUFFIX and path.absolute().is_relative_to(folder):
            renamed[name] = name_from(folder, path)
            continue
        stem, count = path.stem, 1
        while f"{stem}{_SUFFIX}" in taken:
            count += 1
            stem = f"{path.stem}_{count}"
        taken.add(f"{stem}{_SUFFIX}")
        link = links / f"{stem}{_SUFFIX}"
        _make_link(link, path)
        renamed[name] = name_from(folder, link)
    pairs = zip(numbers.tolist(), stacks, strict=True)
    columns = {**block.columns, "rlnImageName": [f"{i:06d}@{renamed[s]}" for i, s in pairs]}
    if "rlnMicrographName" not in columns:
        columns["rlnMicrographName"] = list(stacks)
    return StarDocument({**document.blocks, "particles": replace(block, columns=columns)})


def _make_link(link: Path, target: Path) -> None:
    """Make a relative link, which goes on working when both are moved together."""
    link.parent.mkdir(exist_ok=True)
    if link.is_symlink() and link.resolve() == target.resolve():
        return
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise InputError(f"{link}: is in the place of a link to {target}; move it away")
    link.symlink_to(os.path.relpath(target.resolve(), link.parent.resolve()))


def warn_of_relion_gaps(document: StarDocument, output: Path) -> None:
    """Warn of what keeps RELION from using a table that was written."""
    block, optics = document.blocks["particles"], document.blocks["optics"]
    _, stacks = split_image_names(block.text("rlnImageName", output), str(output))
    other = [name for name in dict.fromkeys(stacks) if not name.lower().endswith(_SUFFIX)]
    if other:
        warnings.warn(
            f"{output}: RELION takes stacks for what they are by the suffix {_SUFFIX} only, and "
            f"{len(other)} here end otherwise ({other[0]}); `link` makes links for it",
            stacklevel=3,
        )
    if ParticleTable(document, output).stated_contrast() == "dark":
        warnings.warn(
            f"{output}: protein is dark in these images (blob/sign -1), and RELION takes it for "
            "white: its maps come out with the other sign; `vitreous prepare` and `invert` write "
            "white images",
            stacklevel=3,
        )
    missing = [f"_{name}" for name in _NEEDED if name not in block and name not in optics]
    if missing:
        remedy = "; `link` names micrographs after the stacks" if len(missing) == 1 else ""
        remedy = remedy if missing[0] == "_rlnMicrographName" else ""
        warnings.warn(
            f"{output}: columns that RELION asks for are missing, as in the input: "
            f"{', '.join(missing)}{remedy}",
            stacklevel=3,
        )
