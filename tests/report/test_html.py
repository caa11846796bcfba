import json
import math
import re

import numpy as np
import pytest

from vitreous.report.html import ReportData, Resolution, _script_json, render_report
from vitreous.report.plots import MAX_POINTS, fsc_plot, history_plots

HOSTILE = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>"


def full_data(text="a run"):
    rng = np.random.default_rng(0)
    frequency = np.arange(9) / 16 / 5.0
    images = rng.normal(size=(10, 16, 16))
    history = [
        {
            "half": half,
            "step": step,
            "wasserstein": 1.0 / (step + 1),
            "snr_db": -step,
            "signal": 1.0,
        }
        for half in (1, 2)
        for step in range(4)
    ]
    return ReportData(
        title=text,
        subtitle=text,
        verdict=text,
        warnings=[text],
        pixel_size_angstrom=5.0,
        key_numbers={text: text},
        settings={text: text},
        volume=rng.normal(size=(16, 16, 16)),
        fsc_curves={text: (frequency, np.linspace(1, 0, 9))},
        resolutions=[Resolution(text, 10.04, 12.5)],
        history=history,
        clean_projections=images,
        ctf_projections=images,
        simulated_images=images,
        real_images=images,
    )


def without_scripts(page):
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def plots_of(page):
    inside = re.search(r'<script type="application/json" id="plots">(.*?)</script>', page, re.S)
    return json.loads(inside.group(1))


def test_hostile_strings_stay_text():
    page = render_report(full_data(HOSTILE))
    # unpacking, surfaces, viewer, plotly, plots, their program: nothing added, nothing cut short
    assert len(re.findall(r"<script", page)) == 6
    assert len(re.findall(r"</script>", page)) == 6
    assert "<img src=http" not in page
    assert "onerror=alert(2)&gt;" in without_scripts(page)
    # plotly interprets tags in trace names, so they are escaped there as well
    name = plots_of(page)[0]["data"][0]["name"]
    assert name.startswith("&lt;/script&gt;")


def test_json_cannot_end_its_script_element():
    value = {"a": [HOSTILE, "<!--", "&", "\u2028"]}
    written = str(_script_json(value))
    assert not set("<>&\u2028") & set(written)
    assert json.loads(written) == value


def test_page_may_not_and_does_not_load_anything():
    page = render_report(full_data())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "http" not in policy
    addresses = re.findall(r'(?:src|href|srcset|action)\s*=\s*"([^"]*)"', without_scripts(page))
    assert len(addresses) == 1 + 6 + 1 + 4 * 8
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "@import" not in page.split("</style>", maxsplit=1)[0]


def test_everything_given_is_shown():
    page = render_report(full_data("visible words"))
    assert page.count("visible words") >= 8
    assert "10.0 Å" in page
    assert {plot["key"] for plot in plots_of(page)} == {"fsc", "wasserstein", "scale", "snr"}
    assert all(f'id="plot-{plot["key"]}"' in page for plot in plots_of(page))
    assert all(alt for alt in re.findall(r'<img [^>]*alt="([^"]*)"', page))


def test_no_resolution_is_none():
    page = render_report(ReportData("t", "v", 1.0, resolutions=[Resolution("x", math.inf, 40.0)]))
    assert '<td class="number">none</td><td class="number">40.0 Å</td>' in page


def test_empty_report_has_no_plotly():
    page = render_report(ReportData("t", "v", 1.0))
    assert len(page) < 20_000
    assert "<script" not in page


def test_nan_becomes_a_gap_not_invalid_json():
    data = ReportData(
        "t",
        "v",
        1.0,
        fsc_curves={"x": (np.array([0.0, 0.1]), np.array([1.0, np.nan]))},
        history=[{"step": 0, "half": 1, "snr_db": float("inf")}, {"step": 1, "snr_db": None}],
        volume=np.full((4, 4, 4), np.nan),
    )
    fsc, snr = plots_of(render_report(data))
    assert fsc["data"][0]["y"] == [1.0, None]
    assert snr["data"][0]["y"] == [None]


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="must be"):
        render_report(ReportData("t", "v", 1.0, volume=np.zeros((4, 4))))
    with pytest.raises(ValueError, match=r"real images must be \(k, n, n\)"):
        render_report(ReportData("t", "v", 1.0, real_images=np.zeros((4, 4))))


def test_long_history_is_thinned_and_halves_kept_apart():
    rows = [{"half": h, "step": s, "signal": h} for s in range(10 * MAX_POINTS) for h in (1, 2)]
    (plot,) = history_plots(rows)
    assert [trace["name"] for trace in plot.data] == ["signal, half 1", "signal, half 2"]
    assert all(len(trace["x"]) <= MAX_POINTS for trace in plot.data)
    assert set(plot.data[1]["y"]) == {2.0}


def test_fsc_axis_ends_at_nyquist():
    plot = fsc_plot({"a": (np.arange(9) / 16 / 5.0, np.ones(9))})
    assert plot.layout["xaxis"]["range"] == [0.0, pytest.approx(0.1)]
    assert plot.data[0]["customdata"][-1] == "10.0"
