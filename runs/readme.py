"""The README's results, from the files that hold them: hub_model/release/metrics.json in, the marked part of README.md out.

python -m runs.readme            # writes it
python -m runs.readme --check    # exits 1 when the README says something else
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
METRICS = ROOT / "hub_model" / "release" / "metrics.json"
MARKED = re.compile(r"(<!-- results: .*? -->\n).*?(<!-- /results -->)", re.S)


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


def main() -> int:
    """Write or check the README."""
    parser = argparse.ArgumentParser(prog="python -m runs.readme", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when the README disagrees"
    )
    text = README.read_text()
    made = MARKED.sub(lambda m: m[1] + results(json.loads(METRICS.read_text())) + m[2], text)
    if parser.parse_args().check:
        if made != text:
            print(
                "error: README.md disagrees with hub_model/release/metrics.json; run python -m runs.readme",
                file=sys.stderr,
            )
        return int(made != text)
    README.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
