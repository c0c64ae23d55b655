"""The README's figures, from the files that hold them: hub_model/release/metrics.json and bench/results.json in, the marked
parts of README.md out.

python -m runs.readme            # writes it
python -m runs.readme --check    # exits 1 when the README says something else
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from bench.__main__ import PARTS, read_results, rows_of
from bench.compare import markdown

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
METRICS = ROOT / "hub_model" / "release" / "metrics.json"
MARKED = r"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)"


def results(metrics: dict) -> str:
    """Return the results as Markdown: one table of the released model, one of its classes."""
    test, model, data = metrics["splits"]["test"], metrics["model"], metrics["dataset"]["splits"]
    size = model["input_size"][-1]
    lines = [
        f"{model['architecture']}, {model['parameters'] / 1e6:.1f} million parameters, {size}×{size} pixels; trained on "
        f"{data['train']:,} images, chosen on {data['validation']:,}, tested once on {test['images']:,}. "
        "95% bootstrap intervals in brackets.",
        "",
        "| on the test set | value |",
        "|---|---|",
    ]
    rows = (
        ("accuracy", "accuracy"),
        ("macro-F1", "macro_f1"),
        ("balanced accuracy", "balanced_accuracy"),
        ("AUC, one against rest", "auc"),
    )
    for name, key in rows:
        low, high = test["intervals"][key]
        lines.append(f"| {name} | {test[key]:.3f} [{low:.3f}, {high:.3f}] |")
    lines += ["", "| class | precision | recall | F1 | images |", "|---|---|---|---|---|"]
    for name, of in test["per_class"].items():
        full = metrics["label_descriptions"].get(name, name)
        lines.append(
            f"| {name} {full} | {of['precision']:.3f} | {of['recall']:.3f} | {of['f1']:.3f} | {of['support']} |"
        )
    return "\n".join(lines) + "\n"


def speed(measured: dict) -> str:
    """Return the tables of what was measured side by side, and on what, as Markdown; nothing where nothing was."""
    if not measured:
        return ""
    on = sorted({(part["hardware"]["cpu"], part["hardware"]["cores"]) for part in measured.values()})
    machines = " and on ".join(f"{cores} cores of an {cpu}" for cpu, cores in on)
    intro = (
        f"Measured in turns, on {machines}; ratios are taken turn by turn, and above 1 means better than the row with 1.00 in "
        "each table."
    )
    parts = [
        f"<details>\n<summary>{name.replace('_', ' ').capitalize()}</summary>\n\n{markdown(rows_of(measured, name))}\n</details>"
        for name in PARTS
        if name in measured
    ]
    return "\n\n".join([intro, *parts]) + "\n"


def filled(text: str) -> str:
    """Return the README's text with every marked part made anew."""
    parts = {"results": results(json.loads(METRICS.read_text())), "speed": speed(read_results())}
    for name, part in parts.items():
        pattern = re.compile(MARKED.format(name=name), re.S)
        text = pattern.sub(lambda found, part=part: found[1] + part + found[2], text)
    return text


def main() -> int:
    """Write or check the README."""
    parser = argparse.ArgumentParser(prog="python -m runs.readme", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when the README disagrees"
    )
    text = README.read_text()
    made = filled(text)
    if parser.parse_args().check:
        if made != text:
            print(
                "error: README.md disagrees with the files that hold its figures; run python -m runs.readme",
                file=sys.stderr,
            )
        return int(made != text)
    README.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
