"""Security: no code of a repo is run, no token is printed, no file outside a dataset is read. For the Space, see tests/space."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import save_file

from dataset_script.source import FolderSource
from dataset_script.tables import write_csv
from hub_model.__main__ import main as hub_model
from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import open_model_repo
from hub_model.push import push
from hub_model.verify import verify
from local_hub import LocalHub
from local_hub.cards import read_metadata
from tests.training.small import data_options as options
from training import TrainingError
from training.data import decode
from training.distill import Teacher
from training.model import resolve_start
from training.source import Row, card_metadata, open_source

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "hf_MARKEDxTOKENx0123456789"


# ---- weights: safetensors only, and no custom code
class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


def write_model(folder: Path, **config: object) -> Path:
    """A valid model folder, but for the fields in `config`."""
    folder.mkdir(parents=True)
    save_file({"weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    valid = {"architecture": "resnet10t", "num_classes": 2, "label_names": ["a", "b"]}
    valid |= {"pretrained_cfg": {"input_size": [3, 32, 32]}}
    (folder / "config.json").write_text(json.dumps(valid | config))
    return folder


@pytest.fixture(params=["pytorch_model.bin", "auto_map"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path, marker: Path) -> tuple[Path, str]:
    """A valid model folder but for a pickle beside its safetensors, or custom code; and what the error must name."""
    if request.param == "pytorch_model.bin":
        folder = write_model(tmp_path / "hostile")
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(marker)))
        return folder, request.param
    code = {"AutoModelForImageClassification": "modeling.Model"}
    folder = write_model(tmp_path / "hostile", auto_map=code)
    program = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass Model: pass\n"
    (folder / "modeling.py").write_text(program)
    return folder, request.param


@pytest.fixture
def hostile_repo(hostile: tuple[Path, str], owner: str) -> str:
    repo = f"{owner}/hostile-{uuid.uuid4().hex[:8]}"
    HfApi().create_repo(repo)
    HfApi().upload_folder(repo_id=repo, folder_path=hostile[0])
    return repo


def test_the_trainer_refuses_it_as_initial_weights_and_as_teacher(hostile, hostile_repo, marker) -> None:
    folder, reason = hostile
    for model_id in (str(folder), f"hf-hub:{hostile_repo}"):
        for load in (resolve_start, lambda name: Teacher([name], ["a", "b"], 1.0)):
            with pytest.raises(TrainingError, match="is refused") as caught:
                load(model_id)
            assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert not marker.exists()


def test_it_is_neither_built_nor_pushed_nor_verified(
    hostile, hostile_repo, marker, owner: str, tmp_path: Path, capsys
) -> None:
    folder, reason = hostile
    assert hub_model(["build", str(folder), str(tmp_path / "out")]) == 1
    assert reason in capsys.readouterr().err
    with pytest.raises(RepoError, match=f"{folder} is not published"):
        push(folder, f"{owner}/{uuid.uuid4().hex}")
    with pytest.raises(RepoError, match="is refused") as caught:
        verify(hostile_repo)
    assert reason in str(caught.value) and hostile_repo in str(caught.value)
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_the_space_refuses_it(hostile, hostile_repo, marker) -> None:
    for model_id in (hostile[0], hostile_repo):
        with pytest.raises(RepoError, match="is refused") as caught:
            open_model_repo(model_id)
        assert hostile[1] in str(caught.value)
    assert not marker.exists()


ARCHITECTURES = ["hf-hub:evil/model", "local-dir:/tmp", "../../x", "", 7, None]
MODEL_ARGS = ["checkpoint_path", "pretrained", "pretrained_cfg_overlay"]
HOSTILE_CONFIGS = [({"architecture": architecture}, "architecture") for architecture in ARCHITECTURES]
HOSTILE_CONFIGS += [({"model_args": {name: "/tmp/evil.pth"}}, name) for name in MODEL_ARGS]


@pytest.mark.parametrize(("config", "field"), HOSTILE_CONFIGS)
def test_a_config_cannot_make_timm_load_something_else(tmp_path: Path, config: dict, field: str) -> None:
    folder = write_model(tmp_path / "model", **config)
    with pytest.raises(RepoError, match=field):
        open_model_repo(folder)
    with pytest.raises(TrainingError):
        Teacher([str(folder)], ["a", "b"], 1.0)


def test_the_loading_script_of_a_dataset_is_not_run(tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "cells"
    folder.mkdir()
    (folder / "cells.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    with pytest.raises(TrainingError):
        open_source(options(folder), streaming=False)
    assert not marker.exists()


def test_yaml_tags_in_a_card_are_not_executed(tmp_path: Path, marker: Path) -> None:
    text = f"---\nlicense: !!python/object/apply:pathlib.Path.touch [{marker}]\n---\n"
    (tmp_path / "README.md").write_text(text)
    assert card_metadata(options(tmp_path)) == {}
    assert read_metadata(text) == {}
    assert not marker.exists()


# ---- images and paths of untrusted datasets
def test_an_image_path_in_a_dataset_reads_no_other_file_of_this_machine(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40)).save(secret)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.png").symlink_to(secret)
    Image.new("RGB", (40, 40)).save(folder / "own.png")
    labels = datasets.ClassLabel(names=["a", "b"])
    schema = datasets.Features({"image": datasets.Image(), "label": labels}).arrow_schema
    paths = [secret, "/dev/zero", folder / "link.png", folder / ".." / "secret.png", "https://127.0.0.1/x"]
    for path in [folder / "own.png", *paths]:
        images = pa.array([{"bytes": None, "path": str(path)}] * 2, schema.field("image").type)
        for split in ("train", "validation"):
            table = pa.table({"image": images, "label": pa.array([0, 1], pa.int64())}, schema=schema)
            pq.write_table(table, folder / f"{split}.parquet")
        source = open_source(options(folder), streaming=True)
        if path == folder / "own.png":
            assert len(list(source.rows("train"))) == 2
            continue
        with pytest.raises(TrainingError, match=r"not a file of the dataset|cannot be read|failed"):
            list(source.rows("train"))


def test_no_image_is_passed_to_another_program(tmp_path: Path) -> None:
    """Pillow passes PostScript to Ghostscript, which has had code execution vulnerabilities."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n"
    with pytest.raises(TrainingError, match="cannot be read"):
        decode(Row("x.eps", postscript, 0), lambda image: image)


def test_a_symlink_created_after_listing_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "raw" / "x.jpg").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="link out of the folder"):
        FolderSource(tmp_path / "raw").read("x.jpg")


# ---- CSV injection
@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =1", "\r=1"])
def test_no_cell_of_a_datasets_tables_is_a_formula(tmp_path: Path, cell: str) -> None:
    write_csv(tmp_path / "x.csv", ("path", "reason"), [(cell, "damaged")])
    written = (tmp_path / "x.csv").read_bytes().split(b"\n", 1)[1].lstrip(b'"')
    assert written.startswith((b"'", b"\\x")), "neither quoted nor escaped"


# ---- tokens
COMMANDS = """
import sys
from dataset_script.__main__ import main as dataset_script
from hub_model.__main__ import main as hub_model
from space.__main__ import main as space
data, release, out, other = sys.argv[1:]
codes = [
    dataset_script(["push", data, "anna/cells"]),
    dataset_script(["push", data, other + "/cells"]),
    dataset_script(["build", data + "/nothing", out + "/built"]),
    hub_model(["build", data, out + "/model"]),
    hub_model(["push", release, other + "/model"]),
    hub_model(["verify", other + "/model"]),
    space(["push", "anna/space", "--model", "anna/model", "--dataset", "anna/cells"]),
    space(["push", other + "/space", "--model", "anna/model"]),
]
if codes[0] == 0:
    from train_accelerate import main as train
    tiny = ["--no-pretrained", "--model", "resnet10t", "--image_size", "32", "--epochs", "0"]
    codes.append(train(["--dataset", "anna/cells", "--output_dir", out + "/run", *tiny]))
    codes.append(train(["--dataset", other + "/none", "--output_dir", out + "/run2", *tiny]))
print("codes", codes)
"""


def files_with(token: str, folder: Path) -> list[str]:
    """Files below a folder that contain the token."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return [str(path) for path in paths if token.encode() in path.read_bytes()]


@pytest.mark.timeout(1200)
def test_the_token_is_in_no_output_and_in_no_file(drawn_dataset: Path, tmp_path: Path) -> None:
    """Eight commands and two training runs, half of them failing, and again without a Hub."""
    (tmp_path / "out").mkdir()
    release = ROOT / "hub_model" / "release"
    tokens = {TOKEN: "anna", "hf_other": "budi"}
    with LocalHub(tmp_path / "hub", tokens=tokens) as hub:
        environment = os.environ | hub.environment | {"HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
        arguments = [str(drawn_dataset), str(release), str(tmp_path / "out"), "budi"]
        command = [sys.executable, "-c", COMMANDS, *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "codes [0, 1, 1, 1, 1, 1, 1, 1, 0, 1]" in done.stdout, done.stderr[-3000:]
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    offline = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "codes [1, 1, 1, 1, 1, 1, 1, 1]" in offline.stdout, offline.stderr[-3000:]
    for text in (done.stdout, done.stderr, offline.stdout, offline.stderr):
        assert TOKEN not in text and "Traceback" not in text
    assert (tmp_path / "out" / "run" / "args.json").is_file()
    assert files_with(TOKEN, tmp_path) == []
