"""From JPEG bytes to probabilities on the CPU: ours against timm, transformers, ONNX Runtime and OpenVINO.

Three kinds of comparison: the whole way, decoding with resizing, and the network alone beside its roofline, the time that its
multiply-adds take at the rate of the fastest matrix product of this machine.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench.contestants import EAGER, OURS, Contestant, Subject, contestants, untrained
from bench.side_by_side import Row, in_turns, rows, seconds
from hub_model.inference.classifier import Classifier

RELEASE = Path(__file__).parent.parent / "hub_model" / "release"
BATCHES = (1, 32)
SIDE = 1024  # of the square matrices whose product gives the peak rate
ROOFLINE = "roofline"


def product_rate(multiply, left, right) -> float:
    """Floating point operations a second of a matrix product."""
    return 2 * SIDE**3 / seconds(lambda: multiply(left, right), at_least=0.1)


def peaks(repeats: int) -> dict[str, list[float]]:
    """GFLOP/s of float32 matrix products, in turns."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIDE, SIDE, generator=generator) for _ in range(2))
    return in_turns(
        {
            "torch": lambda: product_rate(torch.matmul, left, right) / 1e9,
            "NumPy": lambda: product_rate(np.matmul, left.numpy(), right.numpy()) / 1e9,
        },
        repeats,
    )


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


def whole_way(
    title: str, ways: Mapping[str, Contestant], images: list[bytes], batch: int, repeats: int
) -> list[Row]:
    """Milliseconds an image from bytes to probabilities; the note counts equal decisions over all images."""
    expected = ways[EAGER].answer(images[:batch])
    notes = {
        name: agreement(way.answer(images[:batch]), expected) for name, way in ways.items() if name != EAGER
    }
    values = in_turns(
        {
            name: lambda way=way: seconds(lambda: way.answer(images[:batch])) / batch * 1e3
            for name, way in ways.items()
        },
        repeats,
    )
    return rows(title, values, "ms/image", EAGER, more_is_better=False, notes=notes)


def network_alone(
    title: str, ways: Mapping[str, Contestant], pixels: np.ndarray, multiply_adds: int, repeats: int
) -> list[Row]:
    """Milliseconds an image of the network, and how many times the roofline of the same turn that is."""
    batch = len(pixels)
    measures = {ROOFLINE: lambda: roofline_ms(multiply_adds, max(v[0] for v in peaks(1).values()))}
    measures |= {
        name: lambda way=way: seconds(lambda: way.network(pixels)) / batch * 1e3
        for name, way in ways.items()
        if way.network
    }
    values = in_turns(measures, repeats)
    notes = {name: multiple(own, values[ROOFLINE]) for name, own in values.items() if name != ROOFLINE}
    notes[ROOFLINE] = f"{multiply_adds / 1e6:,.0f} million multiply-adds at the peak rate of that turn"
    return rows(title, values, "ms/image", EAGER, more_is_better=False, notes=notes)


def decode_and_resize(subject: Subject, images: list[bytes], repeats: int) -> list[Row]:
    """timm's transform against ours, for one image and for a batch; the tensors are bit-identical, or this fails."""
    preprocess = Classifier.from_pretrained(subject.folder).preprocess
    if not np.array_equal(preprocess(images), subject.pixels(images)):
        raise SystemExit("error: preprocessing differs from timm's transform")
    made = []
    for batch in BATCHES:
        some = images[:batch]
        values = in_turns(
            {
                "timm's transform": lambda some=some: seconds(lambda: subject.pixels(some)) / len(some) * 1e3,
                OURS: lambda some=some: seconds(lambda: preprocess(some)) / len(some) * 1e3,
            },
            repeats,
        )
        title = f"Decode and resize, {subject.size} px, batch {batch}"
        notes = {OURS: "bit-identical tensors"}
        made += rows(title, values, "ms/image", "timm's transform", more_is_better=False, notes=notes)
    return made


def measure(data: Path, repeats: int) -> list[Row]:
    """All comparisons, for the released model at its own size and for an untrained ReXNet-150 at 224 px.

    So that it ends within minutes, torch.compile is there for one image only, and so is the network alone at 224 px.
    """
    if not find_spec("openvino"):
        print("OpenVINO is not measured: install it with pip install -e '.[bench]'", file=sys.stderr)
    files = sorted(data.glob("*/*.jpg"))
    images = [files[i].read_bytes() for i in np.linspace(0, len(files) - 1, max(BATCHES)).astype(int)]
    values = peaks(repeats)
    made = rows("Float32 matrix product, 1024 × 1024", values, "GFLOP/s", "torch", more_is_better=True)
    with tempfile.TemporaryDirectory() as place:
        subjects = [
            Subject.of("released model", RELEASE),
            Subject.of("ReXNet-150, random weights", untrained(Path(place) / "repo")),
        ]
        for subject in subjects:
            multiply_adds = subject.multiply_adds()
            if subject is subjects[0]:
                made += decode_and_resize(subject, images, repeats)
            for batch in BATCHES:
                ways = contestants(subject, batch, Path(place), compile_too=batch == 1)
                name = f"{subject.name}, {subject.size} px, batch {batch}"
                made += whole_way(f"JPEG to probabilities: {name}", ways, images, batch, repeats)
                if batch == 1 or subject is subjects[0]:
                    pixels = subject.pixels(images[:batch])
                    made += network_alone(f"Network alone: {name}", ways, pixels, multiply_adds, repeats)
                torch._dynamo.reset()
    return made
