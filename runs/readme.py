"""Generate the figures in README.md and bench/README.md from the release's metrics.json, baselines.json and bench/results.json.

python -m runs.readme            # write the generated sections
python -m runs.readme --check    # exit 1 if one is stale
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import partial
from itertools import groupby
from pathlib import Path

from bench.__main__ import PARTS, read_results, rows_of
from bench.compare import Row, number
from hub_model.evaluation import markdown_table

ROOT = Path(__file__).parent.parent
README, BENCH = ROOT / "README.md", ROOT / "bench" / "README.md"
METRICS = ROOT / "hub_model" / "release" / "metrics.json"
GENERATED = re.compile(r"(<!-- (\w+): .*? -->\n).*?(<!-- /\2 -->)", re.DOTALL)
BASELINES = ROOT / "hub_model" / "baselines.json"


def results(metrics: dict, baselines: list[dict]) -> str:
    """A table of the released model and the results that others report, and the released model's F1 by class."""
    test, model, data = metrics["splits"]["test"], metrics["model"], metrics["dataset"]["splits"]
    name = {"rexnet_150": "ReXNet-150"}.get(model["architecture"], model["architecture"])
    name = f"**{name}, {model['input_size'][-1]} px, {model['parameters'] / 1e6:.1f} M parameters (ours)**"
    rows, chosen = [], f"; trained on {data['train']:,}, chosen on {data['validation']:,}"
    keys = ("accuracy", "macro_f1")
    for source, scores in test.get("by_source", {"": test}).items():
        figures = ["{:.3f} [{:.3f}, {:.3f}]".format(scores[key], *scores["intervals"][key]) for key in keys]
        origin = f" of {source.replace('_', ' ')}" if source else ""
        rows.append((name, *figures, f"{scores['images']:,} test images{origin}{chosen}"))
        name, chosen = "the same", ""
    for baseline in baselines:
        figures = [f"{baseline[key]:.3f}".rstrip("0") for key in keys]
        rows.append((f"[{baseline['name']}]({baseline['source']})", *figures, baseline["protocol"]))
    classes = ", ".join(f"{label} {scores['f1']:.2f}" for label, scores in test["per_class"].items())
    return (
        f"{markdown_table(['model', 'accuracy', 'macro-F1', 'protocol'], rows)}\n\n"
        f"95% bootstrap intervals in brackets. F1 by class: {classes}.\n"
    )


def speed(measured: dict) -> str:
    """One line each for inference, training and bulk scoring, with the ratio to the usual alternative."""
    rows = [row for part in PARTS for row in rows_of(measured, part)]

    def find(comparison: str, name: str) -> Row:
        return next(row for row in rows if re.match(comparison, row.comparison) and name in row.name)

    title = r"JPEG to probabilities: released model, \d+ px, batch"
    batch, single = find(rf"{title} 32\b", "ours"), find(rf"{title} 1\b", "ours")
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


def tables(measured: dict, part: str) -> str:
    """A table per kind of comparison, with a row per comparison and a column per entry: median and ratio to the reference."""
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
    """Return the text with its generated sections filled in."""
    measured = read_results()
    metrics, baselines = (json.loads(path.read_text("utf-8")) for path in (METRICS, BASELINES))
    sections = {part: partial(tables, measured, part) for part in PARTS}
    sections |= {"results": partial(results, metrics, baselines), "speed": partial(speed, measured)}
    return GENERATED.sub(lambda match: match[1] + sections[match[2]]() + match[3], text)


def main(argv: list[str] | None = None) -> int:
    """Write or check both files."""
    parser = argparse.ArgumentParser(prog="python -m runs.readme", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is stale")
    check = parser.parse_args(argv).check
    stale = [path for path in (README, BENCH) if filled(path.read_text()) != path.read_text()]
    for path in stale:
        if check:
            name = path.relative_to(ROOT)
            print(f"error: the figures in {name} are stale; run python -m runs.readme", file=sys.stderr)
        else:
            path.write_text(filled(path.read_text()))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
