"""Tables of numbers as CSV text, column by column."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitreous.core.errors import InputError


def read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the columns of a CSV file of numbers by their names, in their order.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            names, *rows = list(csv.reader(stream))
        values = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: no table of numbers ({error}); make it again") from error
    return dict(zip(names, values.T, strict=True))


def csv_text(columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> str:
    """Return columns of equal lengths as CSV text, numbers with fractions to six digits.

    >>> csv_text({"shell": [0, 1], "fsc": [1.0, 0.123456789]})
    'shell,fsc\\n0,1\\n1,0.123457\\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])
    return text.getvalue()
