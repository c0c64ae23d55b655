"""The import rules of the design, checked in the source: which folder may import which, and no cycles between files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("bench", "dataset_script", "hub_model", "local_hub", "runs", "space", "training")
INFERENCE = "hub_model.inference"
PUBLISH = "hub_model.publish"  # pushes model, dataset and Space repos
ONNX = "hub_model.onnx"  # for the model repo's graph, the trainer's teacher and the static Space
ALLOWED = {
    "local_hub": set(),
    INFERENCE: set(),
    PUBLISH: {INFERENCE},
    ONNX: {INFERENCE},
    "dataset_script": {INFERENCE, PUBLISH},
    "training": {INFERENCE, PUBLISH, ONNX, "dataset_script"},
    "train_accelerate": {INFERENCE, "training", "hub_model"},
    "hub_model": {INFERENCE, PUBLISH, ONNX, "dataset_script"},
    "space": {INFERENCE, PUBLISH, ONNX},
}  # bench and runs may import everything
HEAVY = (
    "torch", "torchvision", "timm", "transformers", "accelerate", "onnx", "onnxruntime", "huggingface_hub", "httpx", "httpx2",
    "yaml", "tqdm", "asyncio", "datasets", "evaluate", "pyarrow", "pandas", "scipy", "sklearn", "skimage", "matplotlib", "gradio",
)  # fmt: skip


def modules() -> dict[str, Path]:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    paths.append(ROOT / "train_accelerate.py")
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """The modules of the project that a file imports, at any level; for `from package import module`, the module."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from submodules or {node.module} & MODULES.keys()


GRAPH = {name: set(imports(path)) for name, path in MODULES.items()}


def part_of(module: str) -> str:
    if module == "hub_model":  # the package itself only re-exports from inference
        return INFERENCE
    for subpackage in (INFERENCE, PUBLISH, ONNX):
        if module == subpackage or module.startswith(f"{subpackage}."):
            return subpackage
    return module.partition(".")[0]


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_go_one_way(part: str) -> None:
    imported = {(name, other) for name in GRAPH if part_of(name) == part for other in GRAPH[name]}
    assert not {pair for pair in imported if part_of(pair[1]) not in ALLOWED[part] | {part}}


def test_no_two_files_import_each_other() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_a_prediction_from_a_folder_imports_no_library_that_it_does_not_need() -> None:
    code = """
import io, sys
from hub_model import Classifier
from PIL import Image
Image.new("RGB", (64, 64), "white").save(cell := io.BytesIO(), "JPEG")
Classifier.from_pretrained(f"local-dir:{sys.argv[1]}", backend="onnx").predict(cell.getvalue())
print(*sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[2:])))
"""
    command = [sys.executable, "-c", code, str(ROOT / "hub_model" / "release"), *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["onnxruntime"]
