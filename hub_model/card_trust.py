"""The model card's chapter on trust: metrics.json in, Markdown out; a section for each thing that was measured."""

from __future__ import annotations

UNCURED = "none"
SURE_SHARE = 0.7


def trust_chapter(metrics: dict) -> str:
    """Return the sections, or an empty text when nothing of the kind was measured."""
    split = "test" if "test" in metrics["splits"] else "validation"
    sections = []
    if "conformal" in metrics["splits"][split]:
        sections += [_certainty(metrics["splits"][split], split, metrics["label_names"])]
    sections += [section(metrics[key]) for key, section in SECTIONS.items() if metrics.get(key)]
    return "\n\n".join(sections)


def _span(interval: list | None) -> str:
    return "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _certainty(part: dict, split: str, names: list[str]) -> str:
    after = part["calibrated"]
    point = min(part["accuracy_against_coverage"], key=lambda p: abs(p["coverage"] - SURE_SHARE))
    levels = list(part["conformal"])
    rows = []
    for name in [*names, "all"]:
        cells = [name]
        for level in levels:
            found = part["conformal"][level]
            for key in ("coverage", "mean_set_size"):
                value = found[key][name]
                cells.append("–" if value is None else f"{value:.3f}{_span(found['intervals'][key][name])}")
        rows.append(cells)
    head = ["class", *(f"{float(level):.0%} {what}" for level in levels for what in ("coverage", "set size"))]
    return f"""## How sure it is

`calibration.json`, fitted on validation, holds a temperature, by which the logits are divided, and thresholds for sets of classes: with
p = softmax(logits / temperature), class c belongs to the answer iff 1 − p_c ≤ its threshold. Measured on {split}: the calibration
error (ECE) falls from {part["ece"]:.3f}{_span(part["intervals"]["ece"])} to {after["ece"]:.3f}{_span(after["intervals"]["ece"])}; on the {point["coverage"]:.0%} of images that
the model is surest of, its accuracy is {point["accuracy"]:.3f}{_span(point["interval"])}.

{_table(head, rows)}

![reliability](figures/reliability.png)
![accuracy against coverage](figures/accuracy_against_coverage.png)"""


def _strangers(found: dict) -> str:
    rows = [
        [kind, f"{of['auroc']:.3f}{_span(of['intervals']['auroc'])}", f"{of['flagged']:.1%}"]
        for kind, of in found["kinds"].items()
    ]
    return f"""## What is no cell that it knows

`calibration.json` has a score ({found["score"].replace("_", " ")}) and a threshold, fitted on validation, above which an input is answered
with "not a cell I know". On test it turns {found["false_alarms"]:.1%} of {found["cells"]:,} real cells away. Foreign inputs, none of them used to
choose the score:

{_table(["input", "AUROC", "turned away"], rows)}

![scores](figures/out_of_distribution.png)"""


def _robustness(rows: list[dict]) -> str:
    cures = list(rows[0]["cures"])
    body = [
        [row["condition"], *(f"{row['cures'][cure]['balanced_accuracy']:.3f}" for cure in cures)]
        for row in rows
    ]
    return f"""## Other stains, cameras and microscopes

Balanced accuracy on {rows[0]["images"]:,} test crops that were altered, as the model answers ("{UNCURED}") and with cures at prediction time. The cures
are not part of the model.

{_table(["condition", *cures], body)}

![robustness](figures/robustness.png)"""


def _sizes(rows: list[dict]) -> str:
    body = [
        [f"{r['size']} px", f"{r['accuracy']:.3f}", f"{r['gmacs']:.3f}", f"{r['milliseconds']:.1f}"]
        for r in rows
    ]
    return f"""## Input size

These weights on the validation split at other sizes; one thread of a CPU.

{_table(["size", "accuracy", "GMAC", "ms an image"], body)}

![accuracy against cost](figures/size_curve.png)"""


def _prevalence(found: dict) -> str:
    rows = [[name, f"{error:.4f}"] for name, error in found["mean_absolute_error"].items()]
    return f"""## Counting cells

Mean absolute error of a class's share in {found["samples"]} simulated samples of {found["cells"]} test cells at the prevalence of the full archive, by
way of counting (`python -m hub_model prevalence`; `known` is told the true prevalence):

{_table(["method", "error"], rows)}"""


def _new_slide(found: dict) -> str:
    return f"""## A new patient's slide

No patient identifiers are public. With whole groups of like background colour held out in place of random images, a small model on
frozen features falls from {found["random"]["balanced_accuracy"]:.3f} to {found["grouped"]["balanced_accuracy"]:.3f} balanced accuracy (difference {found["drop"]:.3f}{_span(found["interval"])}):
expect a loss of that order on new slides."""


SECTIONS = {
    "out_of_distribution": _strangers,
    "robustness": _robustness,
    "size_curve": _sizes,
    "prevalence": _prevalence,
    "new_slide": _new_slide,
}  # of what was measured, by its name
