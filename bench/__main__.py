"""`python -m bench [PART …]`: measure side by side, print the tables, keep them in bench/results.json with the hardware.

Parts that are not named keep what bench/results.json already says of them. `--print` measures nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from bench.side_by_side import Row, markdown
from dataset_script.arguments import whole_number

RESULTS = Path(__file__).with_name("results.json")
PARTS = ("inference", "training", "teacher", "augmentation", "dataset_build", "loading", "scoring", "browser")
PACKAGES = ("torch", "torchvision", "timm", "transformers", "datasets", "onnxruntime")


def hardware() -> dict:
    """What the figures were measured on."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {
        "cpu": cpu.partition(":")[2].strip() or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "date": date.today().isoformat(),
    }


def read() -> dict:
    """The kept results: {part: {"hardware": …, "command": …, "rows": […]}}."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def table(results: dict) -> str:
    """All kept results as Markdown, part by part."""
    rows = [Row(**row) for part in PARTS if part in results for row in results[part]["rows"]]
    return markdown(rows)


def main() -> int:
    """Measure the parts that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__.partition(": ")[2].splitlines()[0]
    )
    parser.add_argument("parts", nargs="*", default=[], metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data/bone_marrow"), help="folder of real images"
    )
    parser.add_argument("--repeats", type=whole_number(1), default=5, help="turns of every comparison")
    parser.add_argument("--print", action="store_true", help="print what was measured last")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.parts) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {unknown[0]!r} (there are: {', '.join(PARTS)})")
    results = read()
    if not arguments.print:
        if not arguments.data.is_dir():
            parser.error(f"--data {arguments.data} is not a directory")
        for part in arguments.parts or PARTS:
            measured = importlib.import_module(f"bench.{part}").measure(arguments.data, arguments.repeats)
            command = f"python -m bench {part} --repeats {arguments.repeats}"
            results[part] = {
                "hardware": hardware(),
                "command": command,
                "rows": [row.to_dict() for row in measured],
            }
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(markdown(measured), flush=True)
    else:
        print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
