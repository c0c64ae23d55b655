"""A published model repo, loaded as anyone else would: in a fresh process with an empty cache, its card's snippets included."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from huggingface_hub import get_token

from hub_model.inference.errors import RepoError

CACHES = "HF_[A-Z]+_CACHE|HUGGINGFACE_HUB_CACHE|HF_TOKEN_PATH"


def run_fresh(*arguments: str) -> str:
    """Run Python as on another machine: a new process, an empty Hub cache, an empty folder with cell.jpg; return its output.

    Raises:
        RepoError: it fails; the last line of what it says.
    """
    from PIL import Image

    with tempfile.TemporaryDirectory() as home:
        environment = {name: value for name, value in os.environ.items() if not re.fullmatch(CACHES, name)}
        environment |= {
            "HF_HOME": home,
            "HF_TOKEN": get_token() or "",
        }  # the token may be a file in the old HF_HOME
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        Image.new("RGB", (250, 250), "white").save(Path(home) / "cell.jpg")
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
    if done.returncode:
        raise RepoError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    return done.stdout


def verify(repo: str, against: Path | None = None) -> dict:
    """Load a repo as on another machine, compare it with a folder, run its card's snippets; return what was found.

    Raises:
        RepoError: it cannot be loaded, a snippet fails, or it is not the same.
    """
    found = run_fresh("-m", "hub_model.verify", repo, str(against.absolute()) if against else "")
    return json.loads(found.splitlines()[-1])


def verify_here(repo: str, against: Path | None) -> dict:
    """What `verify` does, in this process and its cache."""
    import timm
    import torch
    from transformers import AutoModelForImageClassification

    from hub_model.card import card_text, snippets
    from hub_model.inference.hub import is_repo_id
    from hub_model.inference.model_repo import open_model_repo

    opened = open_model_repo(repo)  # refuses pickles and foreign code
    metrics = opened.read_json("metrics.json") or {}
    published = metrics.get("published") or {}
    ids = [published[kind] for kind in ("model", "dataset", "space") if kind in published]
    card = (opened.folder / "README.md").read_text("utf-8")
    rendered = published.get("model") == repo and all(map(is_repo_id, ids)) and card_text(metrics)
    if not rendered or card.strip() != rendered.strip():
        raise RepoError(f"the card of {repo} was not rendered for it: push it again")
    hub = timm.create_model(f"hf-hub:{repo}", pretrained=True).eval()
    here = timm.create_model(f"local-dir:{against or opened.folder}", pretrained=True).eval()
    other = AutoModelForImageClassification.from_pretrained(repo).eval()
    images = torch.randn(4, *hub.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, local, theirs = hub(images), here(images), other(pixel_values=images).logits
    names = [other.config.id2label[i] for i in range(len(other.config.id2label))]
    if not torch.equal(ours, local):
        raise RepoError(f"{repo} gives other logits than {against}")
    if (ours - theirs).abs().max() > 1e-4 or list(hub.pretrained_cfg["label_names"]) != names:
        raise RepoError(f"timm and transformers read {repo} differently")
    for text in snippets(card):  # the card's, which holds nothing but what this code rendered
        try:
            exec(compile(text, "<card>", "exec"), {})
        except Exception as error:
            raise RepoError(f"a snippet of the card of {repo} fails: {error!r}") from error
    return {"label_names": names, "snippets": len(snippets(card))}


if __name__ == "__main__":
    try:
        print(json.dumps(verify_here(sys.argv[1], Path(sys.argv[2]) if sys.argv[2] else None)))
    except RepoError as failure:
        sys.exit(" ".join(str(failure).split()))
