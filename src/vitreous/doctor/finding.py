"""Result of one test of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "wrong", "unclear", "note"]


@dataclass(frozen=True)
class Fault:
    """Possible fault of a table.

    Args:
        fault: short name, for scripts; empty for the table's own statement.
        claim: the fault as a sentence.
        remedy: how to correct the table.
    """

    fault: str
    claim: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """Result of one test: verdict, evidence and remedy.

    Args:
        topic: property that was tested, as a heading: ``contrast``.
        verdict: ``wrong`` asks for action; ``unclear``: the data are not sufficient; ``note``:
            information.
        claim: the result in one sentence.
        evidence: numbers behind the claim.
        remedy: action to take; empty where there is none.
        fault: short name of the fault, for scripts; empty unless ``wrong``.
    """

    topic: str
    verdict: Verdict
    claim: str
    evidence: str = ""
    remedy: str = ""
    fault: str = ""
