"""What users read of the images' evidence for a map."""

from __future__ import annotations

from vitreous.core.resolution import angstrom
from vitreous.methods.em.finer_shells_test import (
    CERTAIN,
    LEAST,
    MOST,
    MOST_LEFT,
    STABLE,
    FinerShells,
)

EVIDENCE = "finer shells"  # its name among a run's numbers
_WRONG = "Both halves may share a wrong map, or particles are too few"
_UNFINISHED = "They show more than the map holds: another search would change poses"


def evidence(finer: FinerShells) -> str:
    """Return the images' four answers and what is needed of each."""
    return (
        f"{finer.z:.1f} standard errors ({CERTAIN:g} needed), {finer.ratio:.2f} of what the "
        f"map predicts ({LEAST:g} to {MOST:g} is right), stable poses {finer.stability:.2f} of "
        f"those predicted ({STABLE:g} needed), signal {finer.standing_out:.2f} of the map's "
        f"({MOST_LEFT:g} at most)"
    )


def refusal(finer: FinerShells | None, reached_angstrom: float) -> str:
    """Return in what the images do not bear a map out, or that there is none."""
    if finer is None:
        return "the half maps agree on nothing"
    answers = (
        (
            finer.z >= CERTAIN,
            f"poses found by shells up to {finer.coarse_angstrom:.1f} Å predict those to "
            f"{finer.finer_angstrom:.1f} Å by {finer.z:.1f} standard errors ({CERTAIN:g} are "
            "needed)",
        ),
        (
            LEAST <= finer.ratio <= MOST,
            f"the images show the finer shells {finer.ratio:.2f} times as strongly as images "
            f"simulated from the map ({LEAST:g} to {MOST:g} are right)",
        ),
        (
            finer.stability >= STABLE,
            "poses are found again under the other half map "
            f"{finer.stability:.2f} times as often as in simulated images ({STABLE:g} are needed)",
        ),
        (
            finer.standing_out <= MOST_LEFT,
            f"the images hold {finer.standing_out:.2f} times the signal that the map accounts for "
            f"({MOST_LEFT:g} at most)",
        ),
    )
    failed = "; ".join(text for passed, text in answers if not passed)
    return (
        f"the half maps agree to {angstrom(reached_angstrom)}, but the images do not bear it out: "
        f"{failed}. {_UNFINISHED if finer.unfinished else _WRONG}"
    )
