"""A model repo that is created instantly: timm's smallest test model with random weights, and a calibration for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models import save_for_hf

from hub_model.studies.ood import fit_rule, write_rule

LABELS = ("alpha", "beta", "gamma")
SIDE = 32


def write_model(folder: Path, seed: int = 0) -> Path:
    """Write `config.json`, `model.safetensors` and `calibration.json` into the folder and return it."""
    torch.manual_seed(seed)
    model = timm.create_model("test_efficientnet", num_classes=len(LABELS))
    config = {"input_size": (3, SIDE, SIDE), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    save_for_hf(
        model,
        folder,
        model_config={"label_names": list(LABELS), "pretrained_cfg": config | {"num_classes": len(LABELS)}},
        safe_serialization=True,
    )
    by_level = {"0.90": dict.fromkeys(LABELS, 0.6), "0.95": dict.fromkeys(LABELS, 0.7)}
    calibration = {
        "temperature": {"value": 0.8},
        "conformal": {level: {"thresholds": thresholds} for level, thresholds in by_level.items()},
        "sure": {"thresholds": dict.fromkeys(LABELS, 0.35)},
    }
    (folder / "calibration.json").write_text(json.dumps(calibration))
    with torch.inference_mode():
        maps = model.eval().forward_features(torch.randn(30, 3, SIDE, SIDE))
        features = model.forward_head(maps, pre_logits=True).numpy()
    rule = fit_rule(features, np.arange(30) % len(LABELS))
    write_rule(folder, replace(rule, threshold=float(np.median(rule.score(features)))))
    return folder
