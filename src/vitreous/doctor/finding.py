"""A finding: one claim about a data set, tested against its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "wrong", "unclear", "note"]


@dataclass(frozen=True)
class Finding:
    """What was tested, how it came out, on what evidence, and what to do.

    Args:
        topic: what was tested, as a heading: ``contrast``.
        verdict: ``wrong`` asks for action; ``unclear`` says that the data cannot tell; ``note`` is
            worth knowing.
        claim: the outcome in one sentence.
        evidence: the numbers behind it.
        remedy: what to do; empty where there is nothing to do.
        fault: short name of what is wrong, for scripts; empty unless ``wrong``.
    """

    topic: str
    verdict: Verdict
    claim: str
    evidence: str = ""
    remedy: str = ""
    fault: str = ""
