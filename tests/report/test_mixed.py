from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vitreous.report import mixed
from vitreous.report.mixed import (
    ClusterSummary,
    MixedReport,
    embedding_plot,
    render_mixed_report,
    stat_plots,
    write_mixed_report,
)


@pytest.fixture
def report() -> MixedReport:
    generator = np.random.default_rng(0)
    maps = generator.standard_normal((3, 8, 8, 8)).astype(np.float32)
    return MixedReport(
        title="<b>stack</b>.star",
        verdict="2 clusters.",
        plane=generator.standard_normal((50, 2)),
        axes=("UMAP 1", "UMAP 2"),
        label=np.arange(50) % 3,
        columns={"defocus (Å)": np.linspace(1e4, 2e4, 50), "odd": np.full(50, np.nan)},
        clusters=[
            ClusterSummary("class 1", 30, maps[0], "8.0 Å at 0.143", tuple(maps), 0.4),
            ClusterSummary("class 2", 15),
        ],
        particles=50,
        history=[{"step": i, "kl": 1.0 / (i + 1), "box": 16} for i in range(4)],
    )


def test_page_holds_everything_and_asks_for_nothing(report: MixedReport, tmp_path: Path) -> None:
    write_mixed_report(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "default-src 'none'" in page
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(?:src|href)=\"(?!data:)", body)
    assert "&lt;b&gt;stack&lt;/b&gt;.star" in body
    assert body.count("class 1, slice") == 2 * 3  # alt and title
    assert body.count("class 1, map") == 2 * 3
    assert "class 2, slice" not in body
    assert "40 % of the variance" in body
    held = re.search(r'id="plots">(.*?)</script>', page, flags=re.DOTALL)
    assert held is not None
    assert [plot["key"] for plot in json.loads(held[1])] == ["stat-kl", "embedding"]


def test_embedding_is_coloured_by_any_column(report: MixedReport) -> None:
    assert report.plane is not None
    plot = embedding_plot(report.plane, report.label, report.columns, report.axes)
    buttons = plot.layout["updatemenus"][0]["buttons"]
    assert [button["label"] for button in buttons] == ["class", "defocus (Å)", "odd"]
    assert plot.data[0]["marker"]["color"] == (np.arange(50) % 3).tolist()
    colour = buttons[1]["args"][0]["marker.color"]
    assert colour == [[float(f"{v:.6g}") for v in np.linspace(1e4, 2e4, 50)]]
    assert buttons[2]["args"][0]["marker.color"] == [[None] * 50]
    with pytest.raises(ValueError, match="another length"):
        embedding_plot(report.plane, None, {"short": np.zeros(3)})


def test_few_points_are_shown_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed, "MAX_SHOWN", 100)
    plot = embedding_plot(np.zeros((1001, 2)), None, {"row": np.arange(1001.0)})
    shown = plot.data[0]["marker"]["color"]
    assert (len(shown), shown[0], shown[-1]) == (100, 0, 1000)
    assert "100 of 1,001 are shown" in plot.caption
    assert plot.layout["updatemenus"] == []


def test_one_plot_for_each_number() -> None:
    rows = [{"step": 1, "a": 1.0}, {"step": 2, "a": None, "b": 3.0}, {"round": 1, "c": 1.0}]
    plots = stat_plots(rows)
    assert [plot.title for plot in plots] == ["a", "b"]
    assert plots[0].data[0]["x"] == [1.0]


def test_empty_parts_are_left_out() -> None:
    page = render_mixed_report(MixedReport("t", "nothing."))
    assert "<section" not in page
