"""From JPEG bytes to probabilities on the CPU: ours against timm, transformers, ONNX Runtime and OpenVINO.

End to end, decoding with resizing, and the network alone beside its roofline, the time that its multiply-adds take at the rate of
the fastest matrix product of this machine; what an answer costs over its network and decoding; and a new process's first answer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from bench.baselines import EAGER, OURS, Predictor, Subject, predictors_of, rgb
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
    """GFLOP/s of float32 matrix products, interleaved."""
    left, right = torch.randn(2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def rate(product: Callable[[], object]) -> float:
        return 2 * SIDE**3 / seconds(product, at_least=0.1) / 1e9

    torchs, numpys = lambda: left @ right, lambda: left.numpy() @ right.numpy()
    return interleave({"torch": lambda: rate(torchs), "NumPy": lambda: rate(numpys)}, repeats)


def roofline_ms(multiply_adds: int, gflops: float) -> float:
    """Milliseconds that so many multiply-adds take at a rate of so many GFLOP/s."""
    return 2 * multiply_adds / (gflops * 1e9) * 1e3


def multiple(own: list[float], floor: list[float]) -> str:
    """How many times the floor, turn by turn: `1.36 × roofline (1.30–1.41)`."""
    factors = [mine / its for mine, its in zip(own, floor, strict=True)]
    return f"{median(factors):.2f} × {ROOFLINE} ({min(factors):.2f}–{max(factors):.2f})"


def agreement(found: np.ndarray, expected: np.ndarray) -> str:
    """How many decisions of probabilities [N, C] are those expected."""
    same = int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
    return f"{same} of {len(expected)} decisions as timm's"


def milliseconds(act: Callable[[], object], images: int) -> Callable[[], float]:
    """A measure: milliseconds an image of a call that handles `images`."""
    return lambda: seconds(act) / images * 1e3


def end_to_end(
    title: str, predictors: Mapping[str, Predictor], images: list[bytes], repeats: int
) -> list[Row]:
    """Milliseconds an image from bytes to probabilities; the notes count the decisions that are timm's."""
    measures, notes = {}, {}
    expected = predictors[EAGER].answer(images)
    for name, predictor in predictors.items():
        measures[name] = milliseconds(lambda answer=predictor.answer: answer(images), len(images))
        notes[name] = "" if name == EAGER else agreement(predictor.answer(images), expected)
    return rows(title, interleave(measures, repeats), "ms/image", EAGER, notes)


def network_alone(
    title: str, predictors: Mapping[str, Predictor], pixels: np.ndarray, multiply_adds: int, repeats: int
) -> list[Row]:
    """Milliseconds an image of the network, and how many times the roofline of the same turn that is."""
    measures = {ROOFLINE: lambda: roofline_ms(multiply_adds, max(value[0] for value in peaks(1).values()))}
    for name, predictor in predictors.items():
        if predictor.network:
            measures[name] = milliseconds(lambda network=predictor.network: network(pixels), len(pixels))
    values = interleave(measures, repeats)
    notes = {name: multiple(own, values[ROOFLINE]) for name, own in values.items()}
    notes[ROOFLINE] = f"{multiply_adds / 1e6:,.0f} million multiply-adds at the peak rate of that turn"
    return rows(title, values, "ms/image", EAGER, notes)


def decode_and_resize(subject: Subject, images: list[bytes], repeats: int) -> list[Row]:
    """timm's transform against ours, for one image and for a batch; the tensors are bit-identical, or this fails."""
    preprocess, table = Classifier.from_pretrained(subject.folder).preprocess, []
    if not np.array_equal(preprocess(images), subject.pixels(images)):
        raise SystemExit("error: preprocessing differs from timm's transform")
    for batch in (images[:size] for size in BATCHES):
        transforms = {TIMMS: subject.pixels, OURS: preprocess}
        measures = {
            name: milliseconds(lambda transform=transform, batch=batch: transform(batch), len(batch))
            for name, transform in transforms.items()
        }
        title, notes = (
            f"Decode and resize, {subject.size} px, batch {len(batch)}",
            {OURS: "bit-identical tensors"},
        )
        table += rows(title, interleave(measures, repeats), "ms/image", TIMMS, notes)
    return table


def overhead(subject: Subject, images: list[bytes], repeats: int) -> list[Row]:
    """Milliseconds from a JPEG to its calibrated answer, one image at a time, and of its two unavoidable parts alone."""
    classifier = Classifier.from_pretrained(subject.folder)
    pixels = [classifier.preprocess([image]) for image in images]

    def each(act: Callable[[int], object]) -> Callable[[], float]:
        return milliseconds(lambda: [act(i) for i in range(len(images))], len(images))

    size = (subject.size, subject.size)
    acts = (
        lambda i: classifier.predict(images[i]),
        lambda i: rgb(images[i]).resize(size, Image.Resampling.BICUBIC),
        lambda i: classifier.network(pixels[i]),
    )
    values = interleave(dict(zip(PARTS, map(each, acts), strict=True)), repeats)
    shares = [whole / (decode + network) - 1 for whole, decode, network in zip(*values.values(), strict=True)]
    notes = {PARTS[0]: f"{median(shares):.0%} over its parts ({min(shares):.0%}–{max(shares):.0%})"}
    title = f"From a JPEG to a calibrated answer, released model, {subject.size} px, one image at a time"
    return rows(title, values, "ms", PARTS[0], notes)


def first_answer(subject: Subject, image: Path, repeats: int) -> list[Row]:
    """Seconds from the start of Python to the first answer."""
    measures = {
        name: lambda code=code: seconds(lambda: run([sys.executable, "-c", code, subject.folder, image]))
        for name, code in FIRST_ANSWERS.items()
    }
    title = f"JPEG to probabilities: released model, {subject.size} px, in a new process"
    return rows(title, interleave(measures, repeats), "s", EAGER)


def measure(options: argparse.Namespace) -> list[Row]:
    """All comparisons, for the released model at its own size; torch.compile takes half a minute a batch size, so it gets one."""
    if not find_spec("openvino"):
        print("OpenVINO is not measured: install it with pip install -e '.[bench]'", file=sys.stderr)
    repeats, paths, subject = options.repeats, evenly(options.data, max(BATCHES)), Subject.of(RELEASE)
    images = [path.read_bytes() for path in paths]
    table = rows("Float32 matrix product, 1024 × 1024", peaks(repeats), "GFLOP/s", "torch")
    table += decode_and_resize(subject, images, repeats) + overhead(subject, images, repeats)
    for size in BATCHES:
        with tempfile.TemporaryDirectory() as folder:
            predictors = predictors_of(subject, size, Path(folder), with_compile=size == 1)
        name, pixels = f"released model, {subject.size} px, batch {size}", subject.pixels(images[:size])
        table += end_to_end(f"JPEG to probabilities: {name}", predictors, images[:size], repeats)
        operations = multiply_adds(subject.model, pixels.shape[1:])
        table += network_alone(f"Network alone: {name}", predictors, pixels, operations, repeats)
        torch.compiler.reset()
    return table + first_answer(subject, paths[0], repeats)
