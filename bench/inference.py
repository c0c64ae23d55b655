"""Inference on the CPU, from JPEG bytes to probabilities: ours against timm, transformers, ONNX Runtime and OpenVINO.

Measures end-to-end latency, decoding with resizing, and the network alone, compared with its roofline, the time of its
multiply-adds at the rate of the fastest matrix product of this machine; the overhead of an answer over decoding and network; and
the first answer of a new process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from bench.baselines import EAGER, OURS, Predictor, TimmModel, all_predictors, rgb
from bench.compare import RELEASE, Row, evenly, interleave, rows, run, seconds
from hub_model.contract import multiply_adds
from hub_model.inference.classifier import Classifier

BATCHES = (1, 32)
SIDE = 1024  # of the square matrices whose product gives the peak rate
ROOFLINE, TIMMS = "roofline", "timm's transform"
PARTS = ("the answer", "decode and resize", "network")
FIRST_ANSWERS = {
    EAGER: """
import sys, timm, torch
from PIL import Image
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
with torch.inference_mode():
    model(transform(Image.open(sys.argv[2]).convert("RGB"))[None]).softmax(dim=1)
""",
    OURS: """
import sys
from hub_model import Classifier
Classifier.from_pretrained(sys.argv[1]).predict(sys.argv[2])
""",
}


def peaks(repeats: int) -> dict[str, list[float]]:
    """GFLOP/s of float32 matrix products in torch and NumPy, interleaved."""
    matrices = torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def rate(left: torch.Tensor | np.ndarray, right: torch.Tensor | np.ndarray) -> float:
        return 2 * SIDE**3 / seconds(lambda: left @ right, at_least=0.1) / 1e9

    return interleave({"torch": partial(rate, *matrices), "NumPy": partial(rate, *matrices.numpy())}, repeats)


def roofline_ms(multiply_adds: int, gflops: float) -> float:
    """Milliseconds for a number of multiply-adds, two operations each, at a rate of `gflops`."""
    return 2 * multiply_adds / (gflops * 1e9) * 1e3


def multiple(values: list[float], rooflines: list[float]) -> str:
    """Ratio to the roofline within rounds: `1.36 × roofline (1.30–1.41)`."""
    factors = [value / roofline for value, roofline in zip(values, rooflines, strict=True)]
    return f"{median(factors):.2f} × {ROOFLINE} ({min(factors):.2f}–{max(factors):.2f})"


def agreement(probabilities: np.ndarray, expected: np.ndarray) -> str:
    """How many decisions from probabilities [N, C] are the expected ones."""
    same = int((probabilities.argmax(axis=1) == expected.argmax(axis=1)).sum())
    return f"{same} of {len(expected)} decisions as timm's"


def milliseconds(function: Callable[[], object], images: int) -> Callable[[], float]:
    """A measure: milliseconds per image of a call that handles `images`."""
    return lambda: seconds(function) / images * 1e3


def end_to_end(
    title: str, predictors: Mapping[str, Predictor], images: list[bytes], repeats: int
) -> list[Row]:
    """Milliseconds per image from bytes to probabilities; the notes count the decisions that agree with timm's."""
    measures, notes = {}, {}
    expected = predictors[EAGER].predict(images)
    for name, predictor in predictors.items():
        measures[name] = milliseconds(partial(predictor.predict, images), len(images))
        notes[name] = "" if name == EAGER else agreement(predictor.predict(images), expected)
    return rows(title, interleave(measures, repeats), "ms/image", EAGER, notes)


def network_alone(
    title: str, predictors: Mapping[str, Predictor], pixels: np.ndarray, multiply_adds: int, repeats: int
) -> list[Row]:
    """Milliseconds per image of the network, and its ratio to the roofline of the same round."""
    measures = {ROOFLINE: lambda: roofline_ms(multiply_adds, max(value[0] for value in peaks(1).values()))}
    for name, predictor in predictors.items():
        if predictor.network:
            measures[name] = milliseconds(partial(predictor.network, pixels), len(pixels))
    values = interleave(measures, repeats)
    notes = {name: multiple(entry, values[ROOFLINE]) for name, entry in values.items()}
    notes[ROOFLINE] = f"{multiply_adds / 1e6:,.0f} million multiply-adds at the peak rate of that turn"
    return rows(title, values, "ms/image", EAGER, notes)


def decode_and_resize(reference: TimmModel, images: list[bytes], repeats: int) -> list[Row]:
    """timm's transform against ours, for one image and for a batch; fails unless the tensors are bit-identical."""
    preprocess, table = Classifier.from_pretrained(reference.folder).preprocess, []
    if not np.array_equal(preprocess(images), reference.pixels(images)):
        raise SystemExit("error: preprocessing differs from timm's transform")
    for size in BATCHES:
        measures = {
            name: milliseconds(partial(transform, images[:size]), size)
            for name, transform in ((TIMMS, reference.pixels), (OURS, preprocess))
        }
        title = f"Decode and resize, {reference.size} px, batch {size}"
        values = interleave(measures, repeats)
        table += rows(title, values, "ms/image", TIMMS, {OURS: "bit-identical tensors"})
    return table


def overhead(reference: TimmModel, images: list[bytes], repeats: int) -> list[Row]:
    """Milliseconds from a JPEG to its calibrated answer, one image at a time, and of decoding and network alone."""
    classifier = Classifier.from_pretrained(reference.folder)
    pixels, size = [classifier.preprocess([image]) for image in images], (reference.size, reference.size)
    steps = (
        (classifier.predict, images),
        (lambda image: rgb(image).resize(size, Image.Resampling.BICUBIC), images),
        (classifier.network, pixels),
    )
    measures = {
        part: milliseconds(lambda step=step: list(map(*step)), len(images))
        for part, step in zip(PARTS, steps, strict=True)
    }
    values = interleave(measures, repeats)
    ratios = [total / (decode + network) - 1 for total, decode, network in zip(*values.values(), strict=True)]
    notes = {PARTS[0]: f"{median(ratios):.0%} over its parts ({min(ratios):.0%}–{max(ratios):.0%})"}
    title = f"From a JPEG to a calibrated answer, released model, {reference.size} px, one image at a time"
    return rows(title, values, "ms", PARTS[0], notes)


def first_answer(reference: TimmModel, image: Path, repeats: int) -> list[Row]:
    """Seconds from the start of Python to the first answer."""
    measures = {
        name: partial(seconds, partial(run, [sys.executable, "-c", code, reference.folder, image]))
        for name, code in FIRST_ANSWERS.items()
    }
    title = f"JPEG to probabilities: released model, {reference.size} px, in a new process"
    return rows(title, interleave(measures, repeats), "s", EAGER)


def measure(options: argparse.Namespace) -> list[Row]:
    """All comparisons for the released model at its own size; torch.compile, slow to compile, with batch size 1 only."""
    if not find_spec("openvino"):
        print("OpenVINO is not measured: install it with pip install -e '.[bench]'", file=sys.stderr)
    repeats, paths, reference = options.repeats, evenly(options.data, max(BATCHES)), TimmModel(RELEASE)
    images = [path.read_bytes() for path in paths]
    table = rows("Float32 matrix product, 1024 × 1024", peaks(repeats), "GFLOP/s", "torch")
    table += decode_and_resize(reference, images, repeats) + overhead(reference, images, repeats)
    for size in BATCHES:
        with tempfile.TemporaryDirectory() as folder:
            predictors = all_predictors(reference, size, Path(folder), compiled=size == 1)
        name, pixels = f"released model, {reference.size} px, batch {size}", reference.pixels(images[:size])
        table += end_to_end(f"JPEG to probabilities: {name}", predictors, images[:size], repeats)
        operations = multiply_adds(reference.model, pixels.shape[1:])
        table += network_alone(f"Network alone: {name}", predictors, pixels, operations, repeats)
        torch.compiler.reset()
    return table + first_answer(reference, paths[0], repeats)
