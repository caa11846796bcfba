"""Alignments of jobs with several classes or references, reduced to each particle's best class.

Such jobs write no ``alignments3D`` but one set of fields for each class
(``alignments_class_0/pose`` or ``alignments_class3D_0/pose``), or one with a dimension for the
classes (``alignments3D_multi/pose``).
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from vitreous.core.errors import InputError
from vitreous.data.cryosparc.links import CsFields, Fields

BEST = "alignments3D"
_MULTI = "alignments3D_multi/"
_OF_CLASS = re.compile(r"alignments(?:_class)?(?:3D)?_(\d+)/(\w+)")
_NEEDED = ("pose", "shift", "class_posterior")
_KEPT = (*_NEEDED, "psize_A", "split")


def with_best_class(a: CsFields) -> CsFields:
    """Return the fields with ``alignments3D`` of the class of highest posterior, if it is missing.

    Raises:
        InputError: classes whose fields differ in shape, or posteriors that are not finite.
    """
    if f"{BEST}/pose" in a:
        return a
    classes = _classes(a)
    numbers = sorted(k for k, fields in classes.items() if all(n in fields for n in _NEEDED))
    if not numbers:
        return a
    names = [n for n in _KEPT if all(n in classes[k] for k in numbers)]
    try:
        stacked = {name: np.stack([classes[k][name] for k in numbers], axis=1) for name in names}
    except ValueError as error:
        raise InputError(f"{a.path}: alignments of classes: differ in shape ({error})") from error
    posterior = stacked["class_posterior"].astype(np.float64)
    if posterior.ndim != 2 or not np.isfinite(posterior).all():
        raise InputError(f"{a.path}: class_posterior: one finite number for each class expected")
    best = posterior.argmax(axis=1)
    added: Fields = {f"{BEST}/{n}": v[np.arange(len(best)), best] for n, v in stacked.items()}
    added[f"{BEST}/class"] = np.array(numbers, dtype=np.uint32)[best]
    added = {name: values for name, values in added.items() if name not in a}
    return replace(a, columns={**a.columns, **added}, names=[*a.names, *added])


def _classes(a: CsFields) -> dict[int, Fields]:
    """Return the fields of each class by their last name."""
    classes: dict[int, Fields] = {}
    for name, values in a.columns.items():
        if match := _OF_CLASS.fullmatch(name):
            classes.setdefault(int(match[1]), {})[match[2]] = values
        elif name.startswith(_MULTI) and values.ndim > 1:
            for k in range(values.shape[1]):
                classes.setdefault(k, {})[name.removeprefix(_MULTI)] = values[:, k]
    return classes
