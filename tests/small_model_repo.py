"""A small model repo for tests: a tiny network, trained for seconds on synthetic cells and correct on most of them.

Out: a folder that follows the contract of `hub_model/contract.py` (`config.json`, `model.safetensors`, `calibration.json`,
`metrics.json`, `history.jsonl`, `onnx/model.onnx`, `README.md`). Its figures are measured on synthetic cells.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from timm.data import create_transform
from timm.models import save_for_hf

from dataset_script.labels import CLASSES
from dataset_script.synthetic_cells import LOOKS, draw_cell
from hub_model.evaluation import evaluate_split
from hub_model.inference.calibration import softmax
from hub_model.onnx.export import LogitsAndFeatures, export_onnx
from hub_model.studies.calibration_report import calibration_metrics
from hub_model.studies.ood import fit_rule, write_rule

ARCHITECTURE = "test_efficientnet"  # timm's test model: 100,000 parameters
LABELS = tuple(LOOKS)
DESCRIPTIONS = {label: CLASSES[label] for label in LABELS}
SIZE = (3, 96, 96)
DATA = {"input_size": SIZE, "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center"}
DATA |= {"mean": (0.5, 0.45, 0.6), "std": (0.2, 0.25, 0.2)}


def drawn(per_class: int, first_seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Preprocessed synthetic cells of every class, and their labels."""
    transform = create_transform(**DATA, is_training=False)
    images = [transform(draw_cell(label, first_seed + i)) for label in LABELS for i in range(per_class)]
    return torch.stack(images), np.repeat(np.arange(len(LABELS)), per_class)


def build(folder: Path) -> Path:
    """Train on synthetic cells, write the model repo into `folder`, and return it."""
    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=len(LABELS))
    pixels, labels = drawn(12, 0)
    _train(model, pixels, torch.from_numpy(labels))
    config = {"label_names": list(LABELS), "label_descriptions": DESCRIPTIONS}
    config["pretrained_cfg"] = {**DATA, "num_classes": len(LABELS), "license": "apache-2.0"}
    save_for_hf(model, folder, model_config=config, safe_serialization=True)
    held_out, truth = drawn(6, 10_000)
    with torch.inference_mode():
        logits, features = map(torch.Tensor.numpy, LogitsAndFeatures(model)(torch.cat([held_out, pixels])))
    _write_reports(folder, logits[: len(truth)], truth)
    # few directions, so as not to overfit these cells, and a threshold that accepts them and similar ones
    rule = fit_rule(features, logits.argmax(axis=1), directions=8)
    write_rule(folder, replace(rule, threshold=2 * float(rule.score(features).max())))
    export_onnx(model, SIZE, folder / "onnx" / "model.onnx")
    return folder


def _train(model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> None:
    """48 steps of AdamW with a one-cycle schedule and flips."""
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=48)
    model.train()
    for step in range(48):
        batch = torch.randperm(len(labels))[:42]
        images = pixels[batch].flip([dimension for dimension in (2, 3) if step % dimension])
        loss = torch.nn.functional.cross_entropy(model(images), labels[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def _write_reports(folder: Path, logits: np.ndarray, truth: np.ndarray) -> None:
    """Write `metrics.json`, `history.jsonl` and `calibration.json`, from logits of held-out cells."""
    score = 1 - softmax(logits, 1.0)[np.arange(len(truth)), truth]
    conformal = {
        level: {
            name: float(np.quantile(score[truth == i], float(level), method="higher"))
            for i, name in enumerate(LABELS)
        }
        for level in ("0.90", "0.95")
    }
    calibration = {
        "schema": 1,
        "temperature": {"value": 1.0, "fitted_on": "validation"},
        "sure": {"thresholds": dict.fromkeys(LABELS, 0.8)},
        "conformal": {
            level: {"thresholds": limits, "fitted_on": "validation"} for level, limits in conformal.items()
        },
    }
    split = evaluate_split(logits, truth, LABELS, resamples=20)
    split |= calibration_metrics(logits, truth, LABELS, calibration, resamples=20)
    metrics = {
        "schema": 1,
        "label_names": list(LABELS),
        "label_descriptions": DESCRIPTIONS,
        "model": {"architecture": ARCHITECTURE, "parameters": 3_500_000, "gmacs": 0.08, "input_size": SIZE},
        "dataset": {"id": "localdev/drawn", "revision": "0" * 40, "splits": {"train": 112}},
        "splits": {"validation": split, "test": split},
    }
    history = [
        {"epoch": epoch, "learning_rate": 1e-3 * (1 - epoch / 12), "image_size": 96}
        | {
            f"{split}_{name}": 1.9 * decay**epoch if name == "loss" else 1 - 0.8 * decay**epoch
            for split, decay in (("train", 0.8), ("validation", 0.84))
            for name in ("loss", "accuracy", "macro_f1")
        }
        for epoch in range(12)
    ]
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
    (folder / "calibration.json").write_text(json.dumps(calibration, indent=2))
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    (folder / "README.md").write_text("---\nlibrary_name: timm\n---\nDrawn cells, for tests.\n")
