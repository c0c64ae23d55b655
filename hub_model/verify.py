"""Verify a published model repo in a fresh process with an empty cache: load it, compare logits, run its card's snippets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from huggingface_hub import get_token
from PIL import Image

from hub_model.card import card_text, snippets
from hub_model.inference.errors import RepoError
from hub_model.inference.hub import is_repo_id
from hub_model.inference.model_repo import open_model_repo

CACHES = "HF_[A-Z]+_CACHE|HUGGINGFACE_HUB_CACHE|HF_TOKEN_PATH"


def run_isolated(*arguments: str) -> str:
    """Run Python as on another machine and return its output: a new process, an empty Hub cache, a folder with only cell.jpg.

    Raises:
        RepoError: it fails; the message is the last line of its stderr.
    """
    with tempfile.TemporaryDirectory() as home:
        environment = {name: value for name, value in os.environ.items() if not re.fullmatch(CACHES, name)}
        # passed on because the token may be a file in the old HF_HOME
        environment |= {"HF_HOME": home, "HF_TOKEN": get_token() or ""}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        Image.new("RGB", (250, 250), "white").save(Path(home) / "cell.jpg")
        command = [sys.executable, *arguments]
        process = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
    if process.returncode:
        raise RepoError((process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1])
    return process.stdout


def verify(repo: str, against: Path | None = None) -> dict:
    """Load a repo as on another machine, compare its logits with a folder's and run its card's snippets.

    Returns:
        `label_names`, and the number of `snippets`.

    Raises:
        RepoError: the repo cannot be loaded, its logits differ, or a snippet fails.
    """
    output = run_isolated("-m", "hub_model.verify", repo, str(against.absolute()) if against else "")
    return json.loads(output.splitlines()[-1])


def verify_here(repo: str, against: Path | None) -> dict:
    """Verify a repo in this process and its cache; see `verify`."""
    import timm
    import torch
    from transformers import AutoModelForImageClassification

    downloaded = open_model_repo(repo)  # refuses pickles and custom code
    metrics = downloaded.read_json("metrics.json") or {}
    published = metrics.get("published") or {}
    ids = [published[kind] for kind in ("model", "dataset", "space") if kind in published]
    card = (downloaded.folder / "README.md").read_text("utf-8")
    rendered = published.get("model") == repo and all(map(is_repo_id, ids)) and card_text(metrics)
    if not rendered or card.strip() != rendered.strip():
        raise RepoError(f"the card of {repo} was not rendered for it: push it again")
    folder = against or downloaded.folder
    timm_hub = timm.create_model(f"hf-hub:{repo}", pretrained=True).eval()
    timm_local = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transformers_model = AutoModelForImageClassification.from_pretrained(repo).eval()
    config, id2label = timm_hub.pretrained_cfg, transformers_model.config.id2label
    images = torch.randn(4, *config["input_size"], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = timm_hub(images)
        if not torch.equal(logits, timm_local(images)):
            raise RepoError(f"{repo} gives other logits than {folder}")
        difference = (logits - transformers_model(pixel_values=images).logits).abs().max()
    names = [id2label[i] for i in range(len(id2label))]
    if difference > 1e-4 or list(config["label_names"]) != names:
        raise RepoError(f"timm and transformers load {repo} differently")
    for snippet in snippets(card):  # safe to run: the card is exactly what this code renders
        try:
            exec(compile(snippet, "<card>", "exec"), {})
        except Exception as error:
            raise RepoError(f"a snippet of the card of {repo} fails: {error!r}") from error
    return {"label_names": names, "snippets": len(snippets(card))}


if __name__ == "__main__":
    try:
        print(json.dumps(verify_here(sys.argv[1], Path(sys.argv[2]) if sys.argv[2] else None)))
    except RepoError as failure:
        sys.exit(" ".join(str(failure).split()))
