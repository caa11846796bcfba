"""Findings of the test of CTF parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from vitreous.core.params import Optics
from vitreous.doctor.ctf import LEAST_GAIN, LEAST_Z, CtfTest, significance
from vitreous.doctor.finding import Finding

MOST_ALIKE = 3  # hypotheses that may remain (astigmatism and sign); with more, nothing is tested


def findings(test: CtfTest) -> list[Finding]:
    """Return the findings on pixel size and CTF."""
    totals, best = test.totals, test.best
    chosen = test.hypotheses[best]
    evidence = _evidence(test)
    sizes = [i for i, h in enumerate(test.hypotheses) if h.fault == "pixel-size"]
    rings = totals[best] > LEAST_GAIN and significance(test.gain[best]) > LEAST_Z
    if not rings and bool(test.shared.isnan().all()):
        return [
            Finding(
                "CTF",
                "unclear",
                "the images' power spectra show no Thon rings, so the CTF cannot be tested",
                evidence,
                "try more particles; if the images were CTF-corrected, use uncorrected ones",
            )
        ]
    if best == 0 and len(test.alike) > MOST_ALIKE:
        claim = (
            "cannot be told: the table's parameters fit, but others fit as well (too few images, "
            "too much noise, or defoci too much alike)"
        )
        remedy = "check with more particles, of more micrographs"
        return [Finding("CTF", "unclear", claim, evidence, remedy)]
    if best == 0:
        size = f"{chosen.pixel_size_angstrom:.4g} Å fits the rings"
        parameters = _statement(chosen.optics) + " explain the images' power"
        return [
            Finding("pixel size", "ok", size, _values(test, sizes)),
            Finding("CTF", "ok", parameters, evidence),
        ]
    topic = "pixel size" if chosen.fault == "pixel-size" else "CTF"
    other = "CTF" if topic == "pixel size" else "pixel size"
    return [
        Finding(topic, "wrong", chosen.claim, evidence, chosen.remedy, chosen.fault),
        Finding(other, "ok", "explains the images' power once that is corrected", ""),
    ]


def _statement(optics: Optics) -> str:
    """Return the parameters as text."""

    def span(values: Tensor, unit: str) -> str:
        low, high = float(values.min()), float(values.max())
        single = high - low < 1e-3 * abs(high)
        return f"{low:.5g} {unit}" if single else f"{low:.5g} to {high:.5g} {unit}"

    mean = (optics.defocus_u_angstrom + optics.defocus_v_angstrom) / 2
    voltage, cs = span(optics.voltage_kv, "kV"), span(optics.cs_mm, "mm")
    return f"{voltage}, Cs {cs}, defocus {span(mean, 'Å')}"


def _values(test: CtfTest, others: Sequence[int]) -> str:
    """Return log-likelihoods of the table's and other parameters, and information of half maps."""

    def value(i: int) -> str:
        shared = float(test.shared[i].mean())
        halves = "" if math.isnan(shared) else f" (half maps share {shared:.0f})"
        return f"{test.totals[i]:.0f}{halves}"

    text = f"log-likelihood ratio to no rings ({LEAST_GAIN:g} more decide): table {value(0)}"
    return text + "".join(f"; if {test.hypotheses[i].claim}, {value(i)}" for i in others)


def _evidence(test: CtfTest) -> str:
    """Return the values of the table and the best others, and the hypotheses not excluded."""
    totals = test.totals
    text = _values(test, sorted(range(1, len(totals)), key=lambda i: -totals[i])[:2])
    alike = test.alike
    if test.best == 0 and alike:
        text += f"; cannot be excluded: {'; '.join(alike[:3])}"
        text += f" and {len(alike) - 3} more" if len(alike) > 3 else ""
    return text
