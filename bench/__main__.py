"""`python -m bench [PART …]`: measure against baselines, print the tables and save them with the hardware in bench/results.json.

Parts that are not named keep their results in bench/results.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path

from bench.compare import Row, markdown
from dataset_script.arguments import whole_number

RESULTS = Path(__file__).with_name("results.json")
PARTS = ("inference", "training", "dataset_build", "scoring", "browser")
PACKAGES = ("torch", "torchvision", "timm", "transformers", "datasets", "onnxruntime")


def hardware() -> dict:
    """The machine and package versions that the results were measured with."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {
        "cpu": cpu.partition(":")[2].strip() or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "date": date.today().isoformat(),
    }


def read_results() -> dict:
    """The saved results: {part: {"hardware": …, "command": …, "rows": […]}}."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def rows_of(results: dict, part: str) -> list[Row]:
    """The rows of one part of the saved results."""
    return [Row(**row) for row in results[part]["rows"]] if part in results else []


def main(argv: list[str] | None = None) -> int:
    """Measure the parts named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__.partition(": ")[2].splitlines()[0]
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)} (default: all)")
    data = Path("../shared/data/bone_marrow")
    parser.add_argument(
        "--data", type=Path, default=data, help="folder of real images (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=whole_number(1), default=5, help="rounds of measurement (default: %(default)s)"
    )
    images = "number of random images for dataset_build (default: %(default)s)"
    parser.add_argument("--images", type=whole_number(1000), default=35_000, help=images)
    parser.add_argument("--print", action="store_true", help="print the saved results and measure nothing")
    options = parser.parse_args(argv)
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"unknown part {unknown[0]!r} (choose from: {', '.join(PARTS)})")
    results, parts = read_results(), options.parts or PARTS
    if options.print:
        print("\n".join(markdown(rows_of(results, part)) for part in parts))
        return 0
    if not options.data.is_dir():
        parser.error(f"--data {options.data} is not a directory")
    options.data = options.data.resolve()
    for part in parts:
        measured = importlib.import_module(f"bench.{part}").measure(options)
        results[part] = {
            "hardware": hardware(),
            "command": f"python -m bench {part} --repeats {options.repeats}",
            "rows": [asdict(row) for row in measured],
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(markdown(measured), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
