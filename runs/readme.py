"""The generated figures of README.md and bench/README.md, from the release's metrics.json, baselines.json and bench/results.json.

python -m runs.readme            # writes the marked parts
python -m runs.readme --check    # exits 1 where one disagrees
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from itertools import groupby
from pathlib import Path

from bench.__main__ import PARTS, read_results, rows_of
from bench.compare import Row, number
from hub_model.evaluation import markdown_table

ROOT = Path(__file__).parent.parent
README, BENCH = ROOT / "README.md", ROOT / "bench" / "README.md"
METRICS = ROOT / "hub_model" / "release" / "metrics.json"
MARKED = re.compile(r"(<!-- (\w+): .*? -->\n).*?(<!-- /\2 -->)", re.DOTALL)
BASELINES = ROOT / "hub_model" / "baselines.json"


def results(metrics: dict, baselines: list[dict]) -> str:
    """The released model beside what others report, and its classes."""
    test, model, data = metrics["splits"]["test"], metrics["model"], metrics["dataset"]["splits"]
    name = {"rexnet_150": "ReXNet-150"}.get(model["architecture"], model["architecture"])
    name = f"**{name}, {model['input_size'][-1]} px, {model['parameters'] / 1e6:.1f} M parameters (ours)**"
    rows, chosen = [], f"; trained on {data['train']:,}, chosen on {data['validation']:,}"
    for source, part in test.get("by_source", {"": test}).items():
        figures = (
            "{:.3f} [{:.3f}, {:.3f}]".format(part[key], *part["intervals"][key])
            for key in ("accuracy", "macro_f1")
        )
        of = f" of {source.replace('_', ' ')}" if source else ""
        rows.append((name, *figures, f"{part['images']:,} test images{of}{chosen}"))
        name, chosen = "the same", ""
    for of in baselines:
        figures = (f"{of[key]:.3f}".rstrip("0") for key in ("accuracy", "macro_f1"))
        rows.append((f"[{of['name']}]({of['source']})", *figures, of["protocol"]))
    classes = ", ".join(f"{label} {of['f1']:.2f}" for label, of in test["per_class"].items())
    return (
        f"{markdown_table(['model', 'accuracy', 'macro-F1', 'protocol'], rows)}\n\n"
        f"95% bootstrap intervals in brackets. F1 by class: {classes}.\n"
    )


def speed(measured: dict) -> str:
    """One line for each of inference, training and bulk scoring: the ratio to what one would use otherwise."""
    rows = {(row.comparison, row.name): row for part in PARTS for row in rows_of(measured, part)}

    def find(comparison: str, name: str) -> Row:
        return next(
            row for (title, entry), row in rows.items() if title.startswith(comparison) and name in entry
        )

    title = "JPEG to probabilities: released model"
    one, many = (f"{title}, {rows_size(rows, title)} px, batch {batch}" for batch in (1, 32))
    batch, single = find(many, "ours"), find(one, "ours")
    training, scoring = find("Training step", "train_accelerate"), find("Bulk scoring", "1 process")
    cores = measured["inference"]["hardware"]["cores"]
    return (
        f"- **Inference**: {number(batch.median)} ms an image in batches of 32, {number(single.median)} ms for one image; "
        f"{batch.ratio[0]:.1f}× and {single.ratio[0]:.1f}× timm in eager mode\n"
        f"- **Training step**: {100 * training.ratio[0]:.0f}% of the speed on one constant batch; timm's `train.py` "
        f"{100 * find('Training step', 'timm').ratio[0]:.0f}%\n"
        f"- **Bulk scoring**: {number(scoring.median)} images/s, {scoring.ratio[0]:.1f}× a loop over files with timm\n\n"
        f"On {cores} CPU cores; tables and methods: [bench/README.md](bench/README.md).\n"
    )


def rows_size(rows: dict, title: str) -> str:
    """The input size, in pixels, of a comparison whose title begins like that."""
    return next(re.search(r"(\d+) px", found)[1] for found, _ in rows if found.startswith(title))


def tables(measured: dict, part: str) -> str:
    """A table for each kind of comparison: a row a comparison, a column an entry; the median and its ratio to the reference."""
    kinds: dict[str, list[Row]] = {}
    for row in rows_of(measured, part):
        kinds.setdefault(re.split(r"[:,]", row.comparison)[0], []).append(row)
    lines = []
    for rows in kinds.values():
        names = list(dict.fromkeys(row.name for row in rows))
        lines += [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for comparison, entries in groupby(rows, lambda row: row.comparison):
            cells = {row.name: f"{number(row.median)} {row.unit} ({row.ratio[0]:.2f}×)" for row in entries}
            lines.append(f"| {comparison} | {' | '.join(cells.get(name, '–') for name in names)} |")
        lines.append("")
    return "\n".join(lines)


def filled(text: str) -> str:
    """A text with every marked part regenerated."""
    measured = read_results()
    reported = (json.loads(path.read_text("utf-8")) for path in (METRICS, BASELINES))
    parts = {"results": lambda: results(*reported), "speed": lambda: speed(measured)}
    parts |= {part: lambda part=part: tables(measured, part) for part in PARTS}
    return MARKED.sub(lambda found: found[1] + parts[found[2]]() + found[3], text)


def main(argv: list[str] | None = None) -> int:
    """Write or check both files."""
    parser = argparse.ArgumentParser(prog="python -m runs.readme", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file disagrees")
    check = parser.parse_args(argv).check
    stale = [path for path in (README, BENCH) if filled(path.read_text()) != path.read_text()]
    for path in stale:
        if check:
            name = path.relative_to(ROOT)
            print(f"error: {name} disagrees with its figures; run python -m runs.readme", file=sys.stderr)
        else:
            path.write_text(filled(path.read_text()))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
