"""The interactive plots of `metrics.json`, `history.jsonl` and counts, as plotly figures.

Colours are the colour-blind-safe Okabe-Ito palette; text and grid are mid-tones that are readable on light and dark. Numbers
are formatted as in the visitor's language.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from space.desk import Row
from space.texts import number, say

COLOURS = ("#7b5bd6", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8a8a8a", "#d55e00", "#0072b2")
TEXT, NUMBER = "#767189", "#5d5572"  # contrast of 4.5:1 on light panels; style.css lightens both in dark mode
GRID = "rgba(133,128,154,0.22)"
ERROR, FLAT, CORRECTED = TEXT, "#b9a3f7", "#e9b44c"  # intervals are visible on both bars, light and dark
DARK = 0.3  # fraction of a row above which a cell of the confusion matrix is dark
BOXES = ("#6a45cf", "#9a5b00", "#00734f", "#a83f78", "#1f6f9f", "#5f5f5f", "#b3470a", "#005c99")
SPLITS = {"train": COLOURS[0], "validation": COLOURS[1], "test": COLOURS[2]}


def colour(i: int) -> str:
    """The colour of class `i`; white text on it has a contrast of at least 4.5:1."""
    return BOXES[i % len(BOXES)]


def plain(labels: Iterable[str]) -> list[str]:
    """Names with `<` and `&` escaped: plotly would render `<b>` or `<a href=…>` as markup."""
    return [escape(label, quote=False) for label in labels]


def _figure(
    language: str, *traces: Any, x: str = "", y: str = "", height: int = 320, **layout: Any
) -> go.Figure:
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "fixedrange": True, "automargin": True}
    figure = go.Figure(traces)
    figure.update_layout(
        template="none",
        separators=",." if language == "id" else ".,",
        height=height,
        margin={"l": 48, "r": 12, "t": 30, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": TEXT, "family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        xaxis={"title": {"text": x, "font": {"size": 13}}, "tickangle": 0, **axis},
        yaxis={"title": {"text": y, "font": {"size": 13}, "standoff": 14}, **axis},
        hoverlabel={"font": {"family": "system-ui, sans-serif"}},
    )
    return figure.update_layout(**layout)


def _bars(
    names: Iterable[str], values: Sequence[float], name: str, colour: str, hover: str, **more: Any
) -> go.Bar:
    return go.Bar(
        x=plain(names),
        y=values,
        name=name,
        marker_color=colour,
        hovertemplate=f"%{{x}}: {hover}<extra>%{{fullData.name}}</extra>",
        **more,
    )


def _curve(x: Sequence[float], y: Sequence[float | None], colour: str, **more: Any) -> go.Scatter:
    return go.Scatter(x=x, y=y, line={"color": colour, "width": 2}, **{"mode": "lines+markers", **more})


def count_chart(rows: Sequence[Row], language: str) -> go.Figure:
    """Differential count: as counted and corrected, side by side, with their intervals."""
    labels = [row.label for row in rows]

    def bars(key: str, colour: str, estimates: list[tuple[float, tuple[float, float]]]) -> go.Bar:
        error = {
            "type": "data",
            "symmetric": False,
            "array": [100 * (high - share) for share, (_, high) in estimates],
            "arrayminus": [100 * (share - low) for share, (low, _) in estimates],
            "color": ERROR,
            "thickness": 2,
            "width": 4,
        }
        percentages = [100 * share for share, _ in estimates]
        return _bars(labels, percentages, say(language, key), colour, "%{y:.1f}%", error_y=error)

    corrected = [(row.corrected or 0.0, row.corrected_interval or (0.0, 0.0)) for row in rows]
    return _figure(
        language,
        bars("count_flat", FLAT, [(row.share, row.interval) for row in rows]),
        bars("count_corrected", CORRECTED, corrected),
        y="%",
        barmode="group",
        yaxis_rangemode="tozero",
        xaxis_tickangle=-35 if max(map(len, labels)) > 5 else 0,  # long names would overlap
    )


def history_chart(history: Sequence[dict[str, Any]], measure: str, language: str) -> go.Figure:
    """One measure ("loss", "accuracy", "macro_f1") over the epochs, train and validation."""
    epochs = [row["epoch"] for row in history]
    lines = [
        _curve(
            epochs,
            [row.get(f"{split}_{measure}") for row in history],
            SPLITS[split],
            name=say(language, f"model_{split}"),
            mode="lines",
        )
        for split in ("train", "validation")
    ]
    return _figure(language, *lines, x=say(language, "model_epoch"), hovermode="x unified", height=280)


def confusion_chart(matrix: Sequence[Sequence[int]], labels: Sequence[str], language: str) -> go.Figure:
    """Confusion matrix [true, predicted]: coloured by fraction of the row, labelled with counts."""
    fractions = [[cell / max(1, sum(row)) for cell in row] for row in matrix]
    labels = plain(labels)
    heat = go.Heatmap(
        z=fractions,
        x=labels,
        y=labels,
        zmin=0,
        zmax=1,
        showscale=False,
        xgap=2,
        ygap=2,
        colorscale=[
            [0, "rgba(123,91,214,0.04)"],
            [DARK, "rgba(123,91,214,0.16)"],
            [DARK + 0.001, "#6a4fc9"],
            [1, "#3f2a86"],
        ],
        customdata=[[str(cell) for cell in row] for row in matrix],
        hovertemplate="%{y} → %{x}: %{customdata} (%{z:.0%})<extra></extra>",
    )
    numbers = [
        {
            "x": labels[j],
            "y": labels[i],
            "text": str(cell),
            "showarrow": False,
            "font": {"color": "#ffffff" if fractions[i][j] > DARK else NUMBER},
        }
        for i, row in enumerate(matrix)
        for j, cell in enumerate(row)
        if cell
    ]
    return _figure(
        language,
        heat,
        x=say(language, "model_answer"),
        y=say(language, "model_true"),
        height=400,
        annotations=numbers,
        yaxis_autorange="reversed",
        xaxis_showgrid=False,
        yaxis_showgrid=False,
    )


def per_class_chart(per_class: dict[str, dict[str, float]], language: str) -> go.Figure:
    """Precision, recall and F1 of each class."""
    bars = [
        _bars(per_class, [row[key] for row in per_class.values()], say(language, key), colour, "%{y:.3f}")
        for key, colour in zip(("precision", "recall", "f1"), COLOURS, strict=False)
    ]
    return _figure(language, *bars, barmode="group", yaxis_range=[0, 1.01], height=400)


def reliability_chart(bins: Sequence[dict[str, float]], language: str) -> go.Figure:
    """Accuracy against predicted probability, with the diagonal of perfect calibration."""
    ideal = _curve(
        [0, 1],
        [0, 1],
        TEXT,
        mode="lines",
        name=say(language, "model_ideal"),
        line_dash="dot",
        hoverinfo="skip",
    )
    measured = _curve(
        [b["confidence"] for b in bins],
        [b["accuracy"] for b in bins],
        COLOURS[0],
        customdata=[b["images"] for b in bins],
        name=say(language, "tab_model"),
        hovertemplate="%{x:.0%} → %{y:.0%} (%{customdata})<extra></extra>",
    )
    return _figure(
        language,
        ideal,
        measured,
        x=say(language, "model_confidence"),
        y=say(language, "accuracy"),
        xaxis_range=[0, 1.02],
        yaxis_range=[0, 1.02],
    )


def coverage_chart(points: Sequence[dict[str, float]], language: str) -> go.Figure:
    """Accuracy of the most confident predictions against the fraction of images they cover."""
    points = sorted(points, key=lambda point: point["coverage"])
    curve = _curve(
        [point["coverage"] for point in points],
        [point["accuracy"] for point in points],
        COLOURS[2],
        hovertemplate="%{x:.0%} → %{y:.1%}<extra></extra>",
    )
    return _figure(
        language,
        curve,
        x=say(language, "model_covered"),
        y=say(language, "accuracy"),
        xaxis_range=[0, 1.02],
    )


def class_bars(counts: dict[str, list[int]], labels: Sequence[str], language: str) -> go.Figure:
    """Images of each class, stacked by split, with the size of each split in the legend."""
    names = {
        split: f"{say(language, f'model_{split}')} ({number(language, sum(n))})"
        for split, n in counts.items()
    }
    bars = [_bars(labels, counts[split], name, SPLITS[split], "%{y}") for split, name in names.items()]
    return _figure(language, *bars, barmode="stack", y=say(language, "data_images"), yaxis_rangemode="tozero")


def share_pie(shares: dict[str, int], language: str) -> go.Figure:
    """Pie chart of counts by name."""
    pie = go.Pie(
        labels=plain(shares),
        values=list(shares.values()),
        sort=False,
        hole=0.45,
        marker={"colors": [COLOURS[i % len(COLOURS)] for i in range(len(shares))]},
        textinfo="label+percent",
        textposition="outside",
        automargin=True,
        hovertemplate="%{label}: %{value} (%{percent})<extra></extra>",
    )
    return _figure(language, pie, showlegend=False)
