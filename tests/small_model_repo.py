"""A model repo small enough for tests and still right most of the time: a tiny network, trained in seconds.

Out: a folder by the contract of DESIGN.md (`config.json`, `model.safetensors`, `calibration.json`,
`metrics.json`, `history.jsonl`, `onnx/model.onnx`, `README.md`). Its figures are those of drawn cells.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)
from timm.data import create_transform
from timm.models import save_for_hf

from dataset_script.synthetic_cells import LOOKS, draw_cell
from hub_model.studies.ood import fit_rule, write_rule

ARCHITECTURE = "test_efficientnet"  # timm's own miniature: 100,000 parameters
LABELS = tuple(LOOKS)
DESCRIPTIONS = {
    "BLA": "blast",
    "EOS": "eosinophil",
    "LYT": "lymphocyte",
    "MON": "monocyte",
    "NGS": "segmented neutrophil",
    "NIF": "not identifiable",
    "PMO": "promyelocyte",
}
DATA = {
    "input_size": (3, 96, 96),
    "interpolation": "bicubic",
    "crop_pct": 0.95,
    "crop_mode": "center",
    "mean": (0.5, 0.45, 0.6),
    "std": (0.2, 0.25, 0.2),
}


def drawn(per_class: int, first_seed: int) -> tuple[list, np.ndarray]:
    """Drawn cells of every class and their labels."""
    images = [draw_cell(label, first_seed + i) for label in LABELS for i in range(per_class)]
    return images, np.repeat(np.arange(len(LABELS)), per_class)


def build(folder: Path, per_class: int = 12, steps: int = 48, onnx: bool = True) -> Path:
    """Train for `steps` steps on drawn cells, write the model repo into `folder`, and return it."""
    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=len(LABELS))
    transform = create_transform(**DATA, is_training=False)
    images, labels = drawn(per_class, 0)
    _train(model, torch.stack([transform(image) for image in images]), torch.from_numpy(labels), steps)
    save_for_hf(
        model,
        folder,
        model_config={
            "label_names": list(LABELS),
            "label_descriptions": DESCRIPTIONS,
            "pretrained_cfg": {**DATA, "num_classes": len(LABELS), "license": "apache-2.0"},
        },
        safe_serialization=True,
    )
    held_out, truth = drawn(max(4, per_class // 2), 10_000)
    with torch.inference_mode():
        logits = model(torch.stack([transform(image) for image in held_out])).double().numpy()
    _write_reports(folder, logits, truth)
    _write_ood_rule(folder, model, torch.stack([transform(image) for image in [*images, *held_out]]))
    if onnx:
        export_onnx(model, folder)
    return folder


def _train(model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """A minute course: AdamW, one cycle, flips."""
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps)
    model.train()
    for step in range(steps):
        chosen = torch.randperm(len(labels))[:42]
        batch = pixels[chosen].flip([dimension for dimension in (2, 3) if step % dimension])
        loss = torch.nn.functional.cross_entropy(model(batch), labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


class _Outputs(torch.nn.Module):
    """Logits and features from one pass: the graph that the contract describes."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        spatial = self.model.forward_features(pixel_values)
        return self.model.forward_head(spatial), self.model.forward_head(spatial, pre_logits=True)


def export_onnx(model: torch.nn.Module, folder: Path) -> None:
    """Write `onnx/model.onnx` with a free batch axis."""
    (folder / "onnx").mkdir(exist_ok=True)
    torch.onnx.export(
        _Outputs(model).eval(),
        (torch.zeros(2, *DATA["input_size"]),),
        folder / "onnx" / "model.onnx",
        input_names=["pixel_values"],
        output_names=["logits", "features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _write_ood_rule(folder: Path, model: torch.nn.Module, pixels: torch.Tensor) -> None:
    """An out-of-distribution rule that keeps these cells and others like them."""
    with torch.inference_mode():
        logits, features = (output.numpy() for output in _Outputs(model)(pixels))
    rule = fit_rule(features, logits.argmax(axis=1), directions=8)  # few enough not to fit these cells alone
    write_rule(folder, replace(rule, threshold=2 * float(rule.score(features).max())))


def _write_reports(folder: Path, logits: np.ndarray, truth: np.ndarray) -> None:
    """`metrics.json`, `history.jsonl` and `calibration.json` from logits on cells that were not fitted on."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = exponentials / exponentials.sum(axis=1, keepdims=True)
    guess = p.argmax(axis=1)
    precision, recall, f1, support = precision_recall_fscore_support(truth, guess, zero_division=0)
    confidence, right = p.max(axis=1), guess == truth
    order = np.argsort(-confidence)
    coverage = [
        {
            "coverage": float(part),
            "accuracy": float(right[order[: max(1, round(part * len(order)))]].mean()),
            "threshold": float(confidence[order[max(1, round(part * len(order))) - 1]]),
        }
        for part in np.linspace(0.1, 1, 10)
    ]
    bins = np.digitize(confidence, np.linspace(0, 1, 6)[1:-1])
    split = {
        "images": len(truth),
        "accuracy": float(accuracy_score(truth, guess)),
        "balanced_accuracy": float(recall.mean()),
        "macro_f1": float(f1_score(truth, guess, average="macro")),
        "auc": 0.99,
        "log_loss": float(log_loss(truth, p)),
        "ece": 0.05,
        "per_class": {
            label: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "auc": 0.99,
                "support": int(support[i]),
            }
            for i, label in enumerate(LABELS)
        },
        "confusion_matrix": confusion_matrix(truth, guess).tolist(),
        "intervals": {"accuracy": [float(right.mean() - 0.05), float(min(1, right.mean() + 0.05))]},
        "reliability": [
            {
                "confidence": float(confidence[bins == b].mean()),
                "accuracy": float(right[bins == b].mean()),
                "images": int((bins == b).sum()),
            }
            for b in range(5)
            if (bins == b).any()
        ],
        "accuracy_against_coverage": coverage,
    }
    metrics = {
        "schema": 1,
        "label_names": list(LABELS),
        "label_descriptions": DESCRIPTIONS,
        "model": {
            "architecture": ARCHITECTURE,
            "parameters": 3_500_000,
            "gmacs": 0.08,
            "input_size": [3, 96, 96],
        },
        "dataset": {"id": "localdev/drawn", "revision": "0" * 40, "splits": {"train": 112}},
        "splits": {"validation": split, "test": split},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
    history = [
        {
            "epoch": epoch,
            "train_loss": 1.9 * 0.8**epoch,
            "train_accuracy": 1 - 0.8 * 0.8**epoch,
            "train_macro_f1": 1 - 0.82 * 0.8**epoch,
            "validation_loss": 1.95 * 0.84**epoch,
            "validation_accuracy": 1 - 0.8 * 0.84**epoch,
            "validation_macro_f1": 1 - 0.83 * 0.84**epoch,
            "learning_rate": 1e-3 * (1 - epoch / 12),
            "image_size": 96,
        }
        for epoch in range(12)
    ]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    score = 1 - p[np.arange(len(truth)), truth]
    calibration = {
        "schema": 1,
        "temperature": {"value": 1.0, "fitted_on": "validation"},
        "sure": {"thresholds": dict.fromkeys(LABELS, 0.8)},
        "conformal": {
            level: {
                "thresholds": {
                    label: float(np.quantile(score[truth == i], float(level), method="higher"))
                    for i, label in enumerate(LABELS)
                },
                "fitted_on": "validation",
            }
            for level in ("0.90", "0.95")
        },
    }
    (folder / "calibration.json").write_text(json.dumps(calibration, indent=2))
    (folder / "README.md").write_text("---\nlibrary_name: timm\n---\nDrawn cells, for tests.\n")
