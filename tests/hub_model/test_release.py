"""The released model repo: whole, its figures those of its logits, and its answers on real crops those that were measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import pipeline

from hub_model.check import check
from hub_model.contract import read_logits
from hub_model.inference.classifier import Classifier
from hub_model.push import push

REPOSITORY = Path(__file__).resolve().parents[2]
RELEASE = REPOSITORY / "hub_model" / "release"


def test_every_figure_of_card_and_readme_follows_from_the_logits():
    assert check(RELEASE) == []
    command = [sys.executable, "-m", "runs.readme", "--check"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.real_data
def test_from_the_hub_it_says_of_real_crops_what_was_measured(real_images, owner):
    repo = f"{owner}/released"
    push(RELEASE, repo)
    model = timm.create_model(f"hf-hub:{repo}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    names = model.pretrained_cfg["label_names"]
    measured = read_logits(RELEASE / "logits_test.parquet", len(names))
    chosen = range(0, len(measured.labels), len(measured.labels) // 20)
    # the crops may be in any of several folders
    paths = [f"*/{names[measured.labels[i]]}/{measured.file_names[i]}" for i in chosen]
    images = [Image.open(next(real_images.parent.glob(path))).convert("RGB") for path in paths]
    with torch.inference_mode():
        logits = model(torch.stack([transform(image) for image in images])).numpy()
    np.testing.assert_allclose(logits, measured.values[list(chosen)], atol=5e-3)
    answers = [names[i] for i in logits.argmax(axis=1)]
    assert [found[0]["label"] for found in pipeline("image-classification", model=repo)(images)] == answers
    ours = Classifier.from_pretrained(repo).predict(images).logits.argmax(axis=1)
    assert [names[i] for i in ours] == answers
