"""A model repo that costs nothing to make: timm's miniature network with random weights, and a calibration to go with it."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf

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
    levels = {"0.90": 0.6, "0.95": 0.7}
    calibration = {
        "temperature": {"value": 0.8},
        "conformal": {level: {"thresholds": dict.fromkeys(LABELS, limit)} for level, limit in levels.items()},
        "out_of_distribution": {"score": "energy", "threshold": 0.0},
    }
    (folder / "calibration.json").write_text(json.dumps(calibration))
    return folder
