"""Model repo folder in, repo on a Hub out; and back, to see that it is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hub_model.check import check
from hub_model.inference.errors import RepoError
from hub_model.publish import Published, push_folder

# Runs in a process of its own with an empty cache: the same images through the Hub and from the folder.
COMPARE = """
import json, sys, timm, torch
from transformers import AutoModelForImageClassification
from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import open_model_repo
repo, against = sys.argv[1:]
try:
    opened = open_model_repo(repo)  # refuses pickles and foreign code
except RepoError as error:
    sys.exit(str(error))
hub = timm.create_model(f"hf-hub:{repo}", pretrained=True).eval()
here = timm.create_model(f"local-dir:{against or opened.folder}", pretrained=True).eval()
images = torch.randn(4, *hub.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
other = AutoModelForImageClassification.from_pretrained(repo).eval()
with torch.inference_mode():
    ours, local, theirs = hub(images), here(images), other(pixel_values=images).logits
names = [other.config.id2label[i] for i in range(len(other.config.id2label))]
print(json.dumps({
    "identical": torch.equal(ours, local),
    "difference": (ours - theirs).abs().max().item(),
    "timm_names": list(hub.pretrained_cfg["label_names"]),
    "transformers_names": names,
}))
"""


def push(folder: Path, repo: str, private: bool = False) -> Published:
    """Check a model repo folder and publish it in one commit; the same content makes no commit.

    Raises:
        RepoError: the folder breaks the contract, or the Hub does not take it.
    """
    if problems := check(folder):
        raise RepoError(f"{folder} is not published: {problems[0]}")
    return push_folder(folder, repo, "model", private, "Publish the model")


def verify(repo: str, against: Path | None = None) -> dict:
    """Load a repo in a fresh process with an empty cache, compare it with a folder, and return what was found.

    Raises:
        RepoError: it cannot be loaded, or is not the same.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"HF_HOME": cache}
        environment.pop("HF_HUB_CACHE", None)
        command = [sys.executable, "-c", COMPARE, repo, str(against or "")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RepoError((done.stderr.strip().splitlines() or [f"{repo} does not load"])[-1])
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["identical"]:
        raise RepoError(f"{repo} gives other logits than {against}")
    if found["difference"] > 1e-4 or found["timm_names"] != found["transformers_names"]:
        raise RepoError(f"timm and transformers read {repo} differently")
    return found
