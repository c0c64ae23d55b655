"""A model repo on a Hub: its card is for that repo and runs as it stands, and both libraries give the logits of the run."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import httpx2
import numpy as np
import pytest
import timm
import torch
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hub_model.card import snippets
from hub_model.check import check
from hub_model.contract import read_logits
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from hub_model.push import TASKS, push
from hub_model.verify import verify


@pytest.fixture(scope="module")
def repo(model_folder: Path, drawn_repo: str, owner: str) -> str:
    """The model on the local Hub, linked to the dataset that it was trained on and to a Space."""
    name = f"{owner}/built-model"
    push(model_folder, name, dataset=drawn_repo, space=f"{owner}/cells")
    return name


def test_it_loads_in_one_line_and_gives_the_logits_of_the_run(repo, drawn_dataset, model_folder):
    model = timm.create_model(f"hf-hub:{repo}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    rows = load_dataset(str(drawn_dataset), split="test").select(range(8))
    stored = read_logits(model_folder / "logits_test.parquet", 7)
    expected = dict(zip(stored.file_names, stored.values, strict=True))
    with torch.inference_mode():
        logits = model(torch.stack([transform(row["image"].convert("RGB")) for row in rows])).numpy()
    np.testing.assert_allclose(logits, [expected[row["file_name"]] for row in rows], atol=2e-4)
    answers = pipeline("image-classification", model=repo)([row["image"] for row in rows])
    names = model.pretrained_cfg["label_names"]
    assert [a[0]["label"] for a in answers] == [names[i] for i in logits.argmax(axis=1)]


def test_the_card_is_that_of_its_repo_dataset_and_space(repo, model_folder, drawn_repo, owner):
    card = ModelCard.load(repo)
    assert "OWNER/NAME" not in card.content and "local-dir" not in card.content
    assert card.data.datasets == [drawn_repo] and card.data.model_name == "built-model"
    test = json.loads((model_folder / "metrics.json").read_text())["splits"]["test"]
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["f1"] == test["macro_f1"]
    shown = HfApi().model_info(repo, expand=["evalResults"]).eval_results  # the Hub's panel
    assert {entry.task_id: entry.value for entry in shown} == {task: test[task] for task in TASKS}
    revision = HfApi().dataset_info(drawn_repo).sha
    assert {(r.dataset_type, r.dataset_split, r.dataset_revision) for r in card.data.eval_results} == {
        (drawn_repo, "test", revision)
    }
    ids = {repo, drawn_repo, f"hf-hub:{repo}"}
    named = {name for text in snippets(card.content) for name in re.findall(r'"([\w:-]+/[\w-]+)"', text)}
    assert named == ids
    assert f"/datasets/{drawn_repo})" in card.content and f"/spaces/{owner}/cells)" in card.content
    assert "figures/examples.png" in card.content
    titles = [entry["example_title"] for entry in card.data["widget"]]
    assert titles == ["BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO"]
    for entry in card.data["widget"]:
        assert drawn_repo in entry["src"]
        Image.open(io.BytesIO(httpx2.get(entry["src"]).raise_for_status().content)).load()
    assert "figures/examples.png" in HfApi().list_repo_files(repo)


def test_another_owner_gets_a_card_of_its_own_that_passes_the_check(
    repo, model_folder, drawn_repo, hub, tmp_path, monkeypatch
):
    monkeypatch.setitem(hub.tokens, "hf_lab", "lab")
    monkeypatch.setenv("HF_TOKEN", "hf_lab")
    push(model_folder, "lab/other-model", dataset=drawn_repo)
    card = ModelCard.load("lab/other-model").content
    assert "lab/other-model" in card and repo not in card
    folder = HfApi().snapshot_download("lab/other-model", local_dir=tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / ".cache")
    assert check(Path(folder)) == []


def test_access_is_asked_for_before_the_folder_is_checked(model_folder, hub, monkeypatch):
    monkeypatch.setattr("hub_model.push.check", lambda _: pytest.fail("the folder was checked"))
    monkeypatch.setitem(hub.tokens, "hf_lab", "lab")
    for token, name, said in (
        ("", "lab/model", "run `hf auth login`"),
        ("hf_wrong", "lab/model", "rejects this token"),
        ("hf_lab", "anna/model", "anna/model belongs to anna, the token to lab"),
        ("hf_lab", "anna", "is not a repo id"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(RepoError, match=said):
            push(model_folder, name)


def test_a_token_that_only_reads_is_refused(model_folder, monkeypatch):
    answer = {"name": "anna", "orgs": [], "auth": {"accessToken": {"role": "read"}}}
    monkeypatch.setattr(HfApi, "whoami", lambda _: answer)
    with pytest.raises(RepoError, match="the token is read-only"):
        push(model_folder, "anna/model")


def test_figures_are_not_attributed_to_a_dataset_of_other_images(model_folder, drawn_repo, owner, tmp_path):
    api, name = HfApi(), f"{owner}/other-cells"
    copy = api.snapshot_download(drawn_repo, repo_type="dataset", local_dir=tmp_path / "data")
    rows = (Path(copy) / "splits.csv").read_text().replace("_drawn_", "_new_").replace("_synthetic_", "_new_")
    (Path(copy) / "splits.csv").write_text(rows)
    api.create_repo(name, repo_type="dataset")
    api.upload_folder(repo_id=name, repo_type="dataset", folder_path=copy, ignore_patterns=[".cache/*"])
    push(model_folder, f"{owner}/elsewhere", dataset=name)
    card = ModelCard.load(f"{owner}/elsewhere")
    assert card.data.eval_results is None and card.data.datasets is None
    assert name in card.content  # linked, and the source of the examples
    assert not api.file_exists(f"{owner}/elsewhere", ".eval_results/test.yaml")


def test_a_dataset_without_labeled_images_is_linked_without_examples(model_folder, drawn_dataset, owner):
    rows, name = load_dataset(str(drawn_dataset), split="test").select(range(2)), f"{owner}/unlabeled"
    table = {"image": [None, rows[1]["image"]], "label": [rows[0]["label"], None]}
    features = rows.select_columns(list(table)).features
    Dataset.from_dict(table, features=features).push_to_hub(name, split="test")
    push(model_folder, f"{owner}/no-examples", dataset=name)
    card = ModelCard.load(f"{owner}/no-examples").content
    assert f"/datasets/{name})" in card and "figures/examples.png" not in card


def test_a_dataset_that_is_not_there_is_one_sentence(model_folder, owner):
    with pytest.raises(RepoError, match=f"there is no dataset repo {owner}/none"):
        push(model_folder, f"{owner}/never", dataset=f"{owner}/none")
    assert not HfApi().repo_exists(f"{owner}/never")


def test_the_same_push_again_makes_no_commit(repo, model_folder, drawn_repo, owner):
    before = [commit.commit_id for commit in HfApi().list_repo_commits(repo)]
    assert not push(model_folder, repo, dataset=drawn_repo, space=f"{owner}/cells").changed
    assert [commit.commit_id for commit in HfApi().list_repo_commits(repo)] == before


def test_verify_runs_the_cards_snippets_in_a_fresh_process_and_compares_logits(repo, model_folder, tmp_path):
    assert verify(repo, model_folder) == {
        "label_names": list(Classifier.from_pretrained(repo).label_names),
        "snippets": 3,
    }
    other = shutil.copytree(model_folder, tmp_path / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-3] ^= 0x41
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(RepoError, match="other logits"):
        verify(repo, other)


def test_verify_runs_no_snippet_that_this_project_did_not_render(repo, owner, tmp_path):
    folder = Path(HfApi().snapshot_download(repo, local_dir=tmp_path / "copy"))
    marker, name = tmp_path / "somebody-ran-code", f"{owner}/changed-card"
    for file in ("README.md", "metrics.json"):
        text = (folder / file).read_text().replace(repo, name)
        (folder / file).write_text(text)
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("import timm", f"open({str(marker)!r}, 'w')\nimport timm"))
    HfApi().create_repo(name)
    HfApi().upload_folder(repo_id=name, folder_path=folder, ignore_patterns=[".cache/*"])
    with pytest.raises(RepoError, match="was not rendered for it"):
        verify(name)
    assert not marker.exists()


@pytest.mark.parametrize("names", [["alpha", "beta"], list("ABCDEFG")])
def test_a_fine_tuned_model_keeps_its_new_names_in_every_library(repo, drawn_dataset, names, tmp_path):
    """Fine-tuned with `Trainer` as the card says, saved, and read by transformers, timm and `Classifier`."""
    model = AutoModelForImageClassification.from_pretrained(
        repo,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    )
    processor = AutoImageProcessor.from_pretrained(repo)
    rows = load_dataset(str(drawn_dataset), split="test").filter(
        lambda label: label < len(names), input_columns="label"
    )

    def prepared(batch: dict) -> dict:
        return {"pixel_values": processor(batch["image"])["pixel_values"], "labels": batch["label"]}

    arguments = TrainingArguments(
        tmp_path / "run", max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True,
        remove_unused_columns=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows.with_transform(prepared))
    trainer.train()
    trainer.save_model(tmp_path / "tuned")
    tuned = AutoModelForImageClassification.from_pretrained(tmp_path / "tuned")
    assert list(tuned.config.id2label.values()) == names
    # without a number transformers gives five rows: it does not hand top_k=None on (5.23, `_sanitize_parameters`)
    found = pipeline("image-classification", model=str(tmp_path / "tuned"))(
        rows[0]["image"], top_k=len(names)
    )
    assert {row["label"] for row in found} == set(names)
    in_timm = timm.create_model(f"local-dir:{tmp_path / 'tuned'}", pretrained=True)
    assert list(in_timm.pretrained_cfg["label_names"]) == names
    ours = Classifier.from_pretrained(tmp_path / "tuned")
    assert list(ours.label_names) == names and len(ours.predict(rows[0]["image"]).labels) == 1


def test_the_card_of_a_folder_runs_in_that_folder(model_folder, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    Image.new("RGB", (99, 99)).save(folder / "cell.jpg")
    monkeypatch.chdir(folder)
    found = snippets((folder / "README.md").read_text())
    assert len(found) == 3
    for snippet in found:
        exec(compile(snippet, "<card>", "exec"), {})
    assert "'BLA'" in capsys.readouterr().out
