"""The import arrows of the design, read from the source: which folder may import which, and no two files each other."""

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
PUBLISH = "hub_model.publish"  # the one push, for all three kinds of repos
ONNX = "hub_model.onnx"  # for the card's graph, the trainer's teacher and the static Space
ARROWS = {
    "local_hub": set(),
    INFERENCE: set(),
    PUBLISH: {INFERENCE},
    ONNX: {INFERENCE},
    "dataset_script": {INFERENCE, PUBLISH},
    "training": {INFERENCE, PUBLISH, ONNX, "dataset_script"},
    "train_accelerate": {INFERENCE, "training", "hub_model"},
    "hub_model": {INFERENCE, PUBLISH, ONNX, "dataset_script"},
    "space": {INFERENCE, PUBLISH, ONNX},
}  # bench and runs measure and run everything
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
    """The modules of the project that a file imports, anywhere in it; `from package import module` names the module."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [name for name in inner if name in MODULES] or (
                [node.module] if node.module in MODULES else []
            )


GRAPH = {name: set(imports(path)) for name, path in MODULES.items()}


def part_of(module: str) -> str:
    if module == "hub_model":  # the package itself only names what inference has
        return INFERENCE
    for special in (INFERENCE, PUBLISH, ONNX):
        if module == special or module.startswith(f"{special}."):
            return special
    return module.partition(".")[0]


@pytest.mark.parametrize("part", sorted(ARROWS))
def test_imports_go_one_way(part: str) -> None:
    found = {
        (name, other)
        for name, others in GRAPH.items()
        for other in others
        if part_of(name) == part and part_of(other) not in ARROWS[part] | {part}
    }
    assert not found


def test_no_two_files_import_each_other() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_an_answer_from_a_folder_imports_no_library_that_it_does_not_need() -> None:
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
