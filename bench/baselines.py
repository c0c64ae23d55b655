"""Predictors of different libraries for one model repo folder, from JPEG bytes to probabilities."""

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
    """One library: `predict` maps JPEG files to probabilities [N, C], `network` pixels [N, 3, H, W] to logits [N, C].

    `network` is None if the library does not offer it separately.
    """

    predict: Callable[[list[bytes]], np.ndarray]
    network: Callable[[np.ndarray], np.ndarray] | None


class TimmModel:
    """The timm model of a model repo folder, with its evaluation transform."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        config = resolve_model_data_config(self.model)
        self.size = config["input_size"][-1]
        self.transform = create_transform(**config, is_training=False)

    def pixels(self, images: list[bytes]) -> np.ndarray:
        """float32 [N, 3, H, W] by timm's transform, one image at a time."""
        return torch.stack([self.transform(rgb(image)) for image in images]).numpy()

    def predictor(self, network: Callable[[np.ndarray], np.ndarray]) -> Predictor:
        """A network behind timm's transform."""
        return Predictor(lambda images: softmax(network(self.pixels(images))), network)


def rgb(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image)).convert("RGB")


def torch_predictor(reference: TimmModel, model: Callable) -> Predictor:
    def network(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(pixels)).numpy()

    return reference.predictor(network)


def pipeline_predictor(reference: TimmModel) -> Predictor:
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(reference.folder), device="cpu")
    names = list(classify.model.config.id2label.values())

    def predict(images: list[bytes]) -> np.ndarray:
        results = classify([rgb(image) for image in images], batch_size=len(images), top_k=len(names))
        scores = [{entry["label"]: entry["score"] for entry in result} for result in results]
        return np.array([[row[name] for name in names] for row in scores])

    return Predictor(predict, None)


def export_onnx(reference: TimmModel, folder: Path) -> Path:
    """Export with torch.onnx.export, without further optimization."""
    path, batch = folder / f"{reference.size}.onnx", {0: torch.export.Dim("batch", min=1)}
    pixels = torch.zeros(2, 3, reference.size, reference.size)
    names = {"input_names": ["pixels"], "dynamic_shapes": (batch,)}
    torch.onnx.export(
        reference.model, (pixels,), path, dynamo=True, verbose=False, external_data=False, **names
    )
    return path


def onnx_predictor(reference: TimmModel, path: Path) -> Predictor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return reference.predictor(lambda pixels: session.run(None, {"pixels": pixels})[0])


def openvino_predictor(reference: TimmModel, path: Path, batch: int) -> Predictor:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([batch, 3, reference.size, reference.size])
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    network = core.compile_model(model, "CPU", hints)
    return reference.predictor(lambda pixels: network(pixels)[0])


def our_predictor(folder: Path) -> Predictor:
    classifier = Classifier.from_pretrained(folder, threads=len(os.sched_getaffinity(0)))
    return Predictor(
        lambda images: classifier.predict(images, batch_size=len(images)).probabilities,
        lambda pixels: classifier.network(pixels)[0],
    )


def all_predictors(reference: TimmModel, batch: int, folder: Path, compiled: bool) -> dict[str, Predictor]:
    """All predictors by name, the reference first; torch.compile if `compiled`, OpenVINO if it is installed.

    `folder` is for the ONNX export.
    """
    path = export_onnx(reference, folder)
    predictors = {EAGER: torch_predictor(reference, reference.model)}
    if compiled:
        predictors[COMPILED] = torch_predictor(reference, torch.compile(reference.model, dynamic=False))
    predictors |= {PIPELINE: pipeline_predictor(reference), PLAIN: onnx_predictor(reference, path)}
    if find_spec("openvino"):
        predictors[OPENVINO] = openvino_predictor(reference, path, batch)
    return predictors | {OURS: our_predictor(reference.folder)}
