"""From JPEG bytes to probabilities by different libraries: each a `Predictor` made from one model repo folder.

`answer(list of JPEG bytes)` gives probabilities [N, C]; `network(pixels [N, 3, H, W])` gives logits [N, C].
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from hub_model.inference.calibration import softmax
from hub_model.inference.classifier import Classifier

EAGER, COMPILED, PIPELINE = "timm, eager", "timm, torch.compile", "transformers.pipeline"
PLAIN, OPENVINO, OURS = "ONNX Runtime, as exported", "OpenVINO", "Classifier (ours)"


@dataclass(frozen=True)
class Predictor:
    """One library; `network` is None where it is not available without the rest."""

    answer: Callable[[list[bytes]], np.ndarray]
    network: Callable[[np.ndarray], np.ndarray] | None


@dataclass(frozen=True)
class Subject:
    """A model repo folder, its timm model and evaluation transform."""

    folder: Path
    model: torch.nn.Module
    size: int
    transform: Callable[[Image.Image], torch.Tensor]

    @classmethod
    def of(cls, folder: Path) -> Subject:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        config = resolve_model_data_config(model)
        transform = create_transform(**config, is_training=False)
        return cls(folder, model, config["input_size"][-1], transform)

    def pixels(self, images: list[bytes]) -> np.ndarray:
        """float32 [N, 3, H, W], by timm's transform, one image at a time."""
        return torch.stack([self.transform(rgb(image)) for image in images]).numpy()


def rgb(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image)).convert("RGB")


def with_timms_transform(subject: Subject, network: Callable[[np.ndarray], np.ndarray]) -> Predictor:
    """A network behind timm's transform."""
    return Predictor(lambda images: softmax(network(subject.pixels(images))), network)


def torch_model(subject: Subject, model: Callable) -> Predictor:
    def network(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels)).numpy()

    return with_timms_transform(subject, network)


def pipeline(subject: Subject) -> Predictor:
    from transformers import pipeline as make

    classify = make("image-classification", model=str(subject.folder), device="cpu")
    names = list(classify.model.config.id2label.values())

    def answer(images: list[bytes]) -> np.ndarray:
        found = classify([rgb(image) for image in images], batch_size=len(images), top_k=len(names))
        scores = [{entry["label"]: entry["score"] for entry in row} for row in found]
        return np.array([[row[name] for name in names] for row in scores])

    return Predictor(answer, None)


def plain_export(subject: Subject, folder: Path) -> Path:
    """The graph of torch.onnx.export, as it is."""
    path, batch = folder / f"{subject.size}.onnx", {0: torch.export.Dim("batch", min=1)}
    pixels = torch.zeros(2, 3, subject.size, subject.size)
    names = {"input_names": ["pixels"], "dynamic_shapes": (batch,)}
    torch.onnx.export(
        subject.model, (pixels,), path, dynamo=True, verbose=False, external_data=False, **names
    )
    return path


def onnx_runtime(subject: Subject, path: Path) -> Predictor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return with_timms_transform(subject, lambda pixels: session.run(None, {"pixels": pixels})[0])


def openvino(subject: Subject, path: Path, batch: int) -> Predictor:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    model.reshape([batch, 3, subject.size, subject.size])
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    network = core.compile_model(model, "CPU", hints)
    return with_timms_transform(subject, lambda pixels: network(pixels)[0])


def ours(subject: Subject) -> Predictor:
    classifier = Classifier.from_pretrained(subject.folder, threads=len(os.sched_getaffinity(0)))
    return Predictor(
        lambda images: classifier.predict(images, batch_size=len(images)).probabilities,
        lambda pixels: classifier.network(pixels)[0],
    )


def predictors_of(subject: Subject, batch: int, folder: Path, with_compile: bool) -> dict[str, Predictor]:
    """All of them, the reference first; OpenVINO if it is installed."""
    path = plain_export(subject, folder)
    found = {EAGER: torch_model(subject, subject.model)}
    if with_compile:
        found[COMPILED] = torch_model(subject, torch.compile(subject.model, dynamic=False))
    found |= {PIPELINE: pipeline(subject), PLAIN: onnx_runtime(subject, path)}
    if find_spec("openvino"):
        found[OPENVINO] = openvino(subject, path, batch)
    return found | {OURS: ours(subject)}
