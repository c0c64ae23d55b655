"""Resources: broken model repos, missing figures, dataset repos, and the credits of their images."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import gradio as gr
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi

from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from space import tab_model
from space.batching import Batcher
from space.cards import footer
from space.dataset_repo import open_dataset_repo
from space.resources import Resources, load_resources
from space.texts import Words
from space.visits import Visits
from tests.small_model_repo import LABELS


def arrays_missing(repo: Path) -> None:
    rule = {"score": "mahalanobis", "threshold": 1.0, "residual_variance": 1.0}
    (repo / "calibration.json").write_text(json.dumps({"out_of_distribution": rule}))
    (repo / "out_of_distribution.safetensors").unlink()


def arrays_garbled(repo: Path) -> None:
    arrays_missing(repo)
    (repo / "out_of_distribution.safetensors").write_bytes(b"garbage")


def weights_cut_off(repo: Path) -> None:
    shutil.rmtree(repo / "onnx")  # with it, the weights are not needed
    (repo / "model.safetensors").write_bytes((repo / "model.safetensors").read_bytes()[:1000])


def architecture_unknown(repo: Path) -> None:
    shutil.rmtree(repo / "onnx")
    config_with(architecture="nonsense")(repo)


def config_with(**changes: object) -> Callable[[Path], None]:
    """Change values of config.json or of its pretrained_cfg."""

    def change(repo: Path) -> None:
        config = json.loads((repo / "config.json").read_text())
        cfg = config["pretrained_cfg"]
        for key, value in changes.items():
            (cfg if key in cfg and key not in config else config)[key] = value
        (repo / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        arrays_missing,
        arrays_garbled,
        weights_cut_off,
        architecture_unknown,
        config_with(input_size=[3, 0, 0]),
        config_with(input_size="144"),
        config_with(interpolation="nonsense"),
        config_with(label_names=list(LABELS[:6]), num_classes=6),
        config_with(label_names=[*LABELS, "XYZ"], num_classes=8),
    ],
)
def test_a_model_repo_that_cannot_answer_is_refused_in_one_sentence(
    damage: Callable[[Path], None], small_model: Path, tmp_path: Path
) -> None:
    repo = shutil.copytree(small_model, tmp_path / "repo")
    (repo / "calibration.json").unlink()
    damage(repo)
    with pytest.raises(RepoError, match=r"breaks the contract|config\.json") as refusal:
        load_resources(str(repo), "")
    assert "\n" not in str(refusal.value)


def test_figures_that_are_missing_or_garbled_are_left_out(small_model: Path, tmp_path: Path) -> None:
    repo = shutil.copytree(small_model, tmp_path / "repo")
    metrics = json.loads((repo / "metrics.json").read_text())
    (repo / "history.jsonl").write_text('[1]\n2\n{"train_loss": 1}\n')
    for split, drawn in ((None, 0), ({}, 0), ({"per_class": 3}, 0), (metrics["splits"]["test"], 4)):
        splits = {"test": dict(split, confusion_matrix=None)} if split is not None else {"test": None}
        (repo / "metrics.json").write_text(json.dumps({"splits": splits}))
        resources = load_resources(str(repo), "")
        with gr.Blocks() as page:
            tab_model.build(resources, Words(), Visits(tmp_path), gr.Tab())
        (draw,) = page.fns.values()
        head, *parts = draw.fn(None)
        assert resources.history == [] and head and sum(bool(part) for part in parts) == drawn


def test_a_dataset_repo_reads_the_same_from_a_folder_and_the_hub(small_dataset: Path, owner: str) -> None:
    repo = f"{owner}/small-cells"
    HfApi().create_repo(repo, repo_type="dataset", exist_ok=True)
    HfApi().upload_folder(repo_id=repo, repo_type="dataset", folder_path=small_dataset)
    folder, hub = open_dataset_repo(small_dataset), open_dataset_repo(repo)
    assert folder.label_names == hub.label_names == LABELS
    assert folder.counts == hub.counts == {"train": [6] * 7, "validation": [2] * 7, "test": [4] * 7}
    assert list(folder.samples("train", 4)) == list(hub.samples("train", 4))


def test_samples_are_balanced_and_seeded(small_dataset: Path) -> None:
    dataset = open_dataset_repo(small_dataset)
    samples = list(dataset.samples("train", 4, seed=1))
    assert sorted(s.label for s in samples) == sorted(LABELS * 4)
    assert all(s.file_name.startswith(s.label) and s.image[:2] == b"\xff\xd8" for s in samples)
    assert samples == list(dataset.samples("train", 4, seed=1)) != list(dataset.samples("train", 4, seed=2))


@pytest.mark.parametrize("name", ["", "nobody/no-data", "not an id"])
def test_a_missing_dataset_is_one_sentence(name: str) -> None:
    with pytest.raises(RepoError) as refusal:
        open_dataset_repo(name)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_class_names_is_one_sentence(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [1], "target": [2]}), tmp_path / "train.parquet")
    with pytest.raises(RepoError, match=r"class names|label"):
        open_dataset_repo(tmp_path)


def test_the_footer_credits_the_images_of_the_dataset(small_model: Path, tmp_path: Path) -> None:
    kinds = {"label": datasets.ClassLabel(names=list(LABELS)), "source": datasets.Value("string")}
    rows = {"label": [0, 1, 2], "source": ["bone_marrow", "blood", "blood"]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "README.md").write_text(
        "---\nlicense: cc-by-4.0\n---\ndoi:10.7937/TCIA.AXH3-T579, doi:10.17632/snkd93bnjr.1"
    )
    dataset = open_dataset_repo(tmp_path)
    assert dataset.sources == {"bone_marrow": 1, "blood": 2}
    classifier = Classifier.from_pretrained(small_model)
    page = footer(Resources(classifier, Batcher(classifier), None, [], dataset), "en")
    assert "Matek" in page and "Acevedo" in page and "cc-by-4.0" in page
