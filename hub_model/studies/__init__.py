"""Studies of a model beyond its metrics, one module each, with its command, its figure and its section of the card.

A study of images writes `measurements/KEY.json` beside the weights; `build` copies it into `metrics.json` under the same KEY,
draws `figures/KEY.png` and adds its section to the card.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from hub_model.studies import (
    calibration,
    calibration_report,
    input_size,
    label_issues,
    ood,
    prevalence,
    robustness,
    shift,
)

COMMANDS = (calibration, ood, shift, robustness, input_size, prevalence, label_issues)
STUDIES = {study.KEY: study for study in (ood, shift, robustness, input_size, prevalence)}
SECTIONS = {key: study.section for key, study in STUDIES.items()}
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "axes.axisbelow": True}


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add every study's command. `run(arguments)` of the parsed arguments runs it and returns the exit status."""
    for study in COMMANDS:
        study.add_command(commands)


def card_sections(metrics: dict) -> str:
    """The card's sections Calibration and Robustness; one without measurements is omitted."""
    sections = {key: section(metrics[key]) for key, section in SECTIONS.items() if metrics.get(key)}
    calibrated = [calibration_report.section(metrics), sections.pop(prevalence.KEY, "")]
    texts = {"Calibration": calibrated, "Robustness": list(sections.values())}
    return "\n\n".join(
        f"## {title}\n\n" + "\n\n".join(filter(None, text)) for title, text in texts.items() if any(text)
    )


def draw_figures(metrics: dict, folder: Path) -> None:
    """Write every figure whose data are in `metrics` into `folder`."""
    figures = calibration_report.figures(metrics) | {
        key: (study.draw, metrics[key], study.FIGURE_SIZE)
        for key, study in STUDIES.items()
        if metrics.get(key) and hasattr(study, "draw")
    }
    with matplotlib.rc_context(STYLE):
        for name, (draw, data, size) in figures.items():
            figure = Figure(figsize=size, layout="constrained")
            draw(figure.subplots(), data)
            figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
