"""The solvers of ``vitreous hetero`` made from options: the only place that knows them by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitreous.cli.working_set import Working, WorkingSet
from vitreous.core.errors import UsageError
from vitreous.core.params import Pose
from vitreous.solvers.images import ImageSource
from vitreous.solvers.sorter import Sorter

Method = Literal["gan", "align"]


@dataclass(frozen=True)
class Material:
    """What a sorter is trained on.

    Args:
        data: particles, half sets, working box and pixel size.
        working: options of the pass over them.
        images: protein positive, as on disk.
        pose: of each particle; None for the method that needs none.
    """

    data: WorkingSet
    working: Working
    images: ImageSource
    pose: Pose | None


def settle(
    method: Method, file: Path | None, overrides: Mapping[str, Any], data: WorkingSet
) -> dict[str, Any]:
    """All settings of a method: its defaults, the file's, the command line's.

    Args:
        method: ``gan`` or ``align``.
        file: TOML, or None.
        overrides: from the command line; None for what was not given.
        data: what they are to fit.

    Raises:
        UsageError: an unknown or impossible setting.
        InputError: the file cannot be read.
    """
    raise UsageError(f"--method {method}: not in this version")


def build(method: Method, settings: Mapping[str, Any], material: Material) -> Sorter:
    """A sorter that has not been trained yet.

    Args:
        method: ``gan`` or ``align``.
        settings: from :func:`settle`.
        material: what it is trained on.
    """
    raise UsageError(f"--method {method}: not in this version")
