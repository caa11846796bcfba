"""What the test of CTF parameters comes to, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from vitreous.core.params import Optics
from vitreous.doctor.ctf import LEAST_GAIN, LEAST_Z, CtfTest, significance
from vitreous.doctor.finding import Finding

MOST_ALIKE = 3  # hypotheses not excluded (those of astigmatism and sign), or nothing was tested


def findings(test: CtfTest) -> list[Finding]:
    """Verdicts on pixel size and CTF."""
    totals, best = test.totals, test.best
    chosen = test.hypotheses[best]
    evidence = _evidence(test)
    sizes = [i for i, h in enumerate(test.hypotheses) if h.fault == "pixel-size"]
    seen = totals[best] > LEAST_GAIN and significance(test.gain[best]) > LEAST_Z
    if not seen and bool(test.shared.isnan().all()):
        return [
            Finding(
                "CTF",
                "unclear",
                "no rings of a CTF are seen in the images' power, so it cannot be judged",
                evidence,
                "try more particles; if the images were CTF-corrected, use uncorrected ones",
            )
        ]
    if best == 0 and len(test.alike) > MOST_ALIKE:
        claim = "fits, but so would other parameters: too few images, or too noisy, to tell"
        return [Finding("CTF", "unclear", claim, evidence, "check with more particles")]
    if best == 0:
        return [
            Finding(
                "pixel size",
                "ok",
                f"{chosen.pixel_size_angstrom:.4g} Å fits the rings",
                _values(test, sizes),
            ),
            Finding(
                "CTF", "ok", _statement(chosen.optics) + " explain the images' power", evidence
            ),
        ]
    topic = "pixel size" if chosen.fault == "pixel-size" else "CTF"
    other = "CTF" if topic == "pixel size" else "pixel size"
    return [
        Finding(topic, "wrong", chosen.claim, evidence, chosen.remedy, chosen.fault),
        Finding(other, "ok", "explains the images' power once that is mended", ""),
    ]


def _statement(optics: Optics) -> str:
    """The parameters in words."""

    def span(values: Tensor, unit: str) -> str:
        low, high = float(values.min()), float(values.max())
        return (
            f"{low:.5g} {unit}"
            if high - low < 1e-3 * abs(high)
            else f"{low:.5g} to {high:.5g} {unit}"
        )

    mean = (optics.defocus_u_angstrom + optics.defocus_v_angstrom) / 2
    return ", ".join(
        [
            f"{span(optics.voltage_kv, 'kV')}",
            f"Cs {span(optics.cs_mm, 'mm')}",
            f"defocus {span(mean, 'Å')}",
        ]
    )


def _values(test: CtfTest, others: Sequence[int]) -> str:
    """Log-likelihood of the table's parameters and of others; what half maps share under them."""

    def value(i: int) -> str:
        shared = float(test.shared[i].mean())
        halves = "" if math.isnan(shared) else f" (half maps share {shared:.0f})"
        return f"{test.totals[i]:.0f}{halves}"

    text = f"log-likelihood above no rings: table {value(0)}"
    return text + "".join(f"; if {test.hypotheses[i].claim}, {value(i)}" for i in others)


def _evidence(test: CtfTest) -> str:
    """The table's parameters, the best others, and what cannot be told apart."""
    totals = test.totals
    text = _values(test, sorted(range(1, len(totals)), key=lambda i: -totals[i])[:2])
    alike = test.alike
    if test.best == 0 and alike:
        text += f"; cannot be excluded: {'; '.join(alike[:3])}"
        text += f" and {len(alike) - 3} more" if len(alike) > 3 else ""
    return text
