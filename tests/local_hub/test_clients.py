"""huggingface_hub, datasets and hf against the session's local Hub; tests/hub_model has timm and transformers."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

KINDS = ("model", "dataset", "space")
api = HfApi()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A card, an LFS file, a text file in a folder with a non-ASCII name, and an empty file."""
    folder = tmp_path / "folder"
    (folder / "zellen ü, 骨髄").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [cells]\n---\n# Card\n")
    (folder / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(300_000))
    (folder / "zellen ü, 骨髄" / "50% ? & #1.txt").write_text("Blasten und Lymphozyten: ü\n")
    (folder / "empty.bin").write_bytes(b"")
    return folder


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def new(owner: str) -> str:
    """The name of a repo that does not exist yet."""
    return f"{owner}/repo-{uuid.uuid4().hex[:8]}"


def create(name: str, kind: str, **options) -> str:
    sdk = "gradio" if kind == "space" else None
    return api.create_repo(name, repo_type=kind, space_sdk=sdk, **options).repo_id


def titles(name: str, kind: str = "model") -> list[str]:
    return [commit.title for commit in api.list_repo_commits(name, repo_type=kind)]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without the clients' own in `.cache`."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(".")}


def run(*command: str, home: Path) -> str:
    """The output of a fresh process with an empty cache."""
    environment = os.environ | {"HF_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- folders, one commit each
def test_a_folder_comes_back_byte_for_byte(folder, new, kind, tmp_path):
    create(new, kind)
    if kind == "space":
        (folder / "README.md").write_text("---\nsdk: gradio\n---\n")
    api.upload_folder(folder_path=folder, repo_id=new, repo_type=kind)
    back = snapshot_download(new, repo_type=kind, local_dir=tmp_path / "back")
    assert contents(Path(back)) == contents(folder)
    assert len(titles(new, kind)) == 2  # the initial commit and the push


def test_only_what_changed_is_uploaded_again(folder, name, hub):
    first = api.upload_folder(folder_path=folder, repo_id=name)
    assert api.upload_folder(folder_path=folder, repo_id=name).oid == first.oid
    assert len(titles(name)) == 2
    stored = sorted(path.name for path in (hub.root / "models" / name / "lfs").iterdir())
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# New\n")
    (folder / "empty.bin").unlink()
    api.upload_folder(folder_path=folder, repo_id=name, delete_patterns="*.bin")
    assert sorted(path.name for path in (hub.root / "models" / name / "lfs").iterdir()) == stored
    assert set(api.list_repo_files(name)) == {".gitattributes", *contents(folder)}


def test_one_commit_adds_copies_and_deletes(folder, name):
    api.upload_folder(folder_path=folder, repo_id=name)
    operations = [
        CommitOperationAdd("new/a.txt", b"a"),
        CommitOperationCopy("model.safetensors", "copy/model.safetensors"),
        CommitOperationDelete("zellen ü, 骨髄/"),
        CommitOperationDelete("empty.bin"),
    ]
    api.create_commit(name, operations, commit_message="all at once", commit_description="in one go")
    files = ["README.md", "copy/model.safetensors", "model.safetensors", "new/a.txt"]
    assert api.list_repo_files(name) == [".gitattributes", *files]
    copied = Path(hf_hub_download(name, "copy/model.safetensors")).read_bytes()
    assert copied == (folder / "model.safetensors").read_bytes()
    newest = api.list_repo_commits(name)[0]
    assert (newest.title, newest.message) == ("all at once", "in one go")


def test_an_inconsistent_commit_is_refused(name):
    api.upload_file(path_or_fileobj=b"a", path_in_repo="a", repo_id=name)
    with pytest.raises(BadRequestError, match="is a file"):
        api.upload_file(path_or_fileobj=b"b", path_in_repo="a/b", repo_id=name)
    # the client recognizes the Hub's message and adds its own advice
    with pytest.raises(RemoteEntryNotFoundError, match="is_folder"):
        api.delete_file("nothing.txt", name)
    assert len(titles(name)) == 2


# ---- repos
def test_create_delete_and_exist_ok(new, kind):
    assert not api.repo_exists(new, repo_type=kind)
    assert create(new, kind) == new
    with pytest.raises(HfHubHTTPError, match="409"):
        create(new, kind)
    assert create(new, kind, exist_ok=True) == new
    api.delete_repo(new, repo_type=kind)
    assert not api.repo_exists(new, repo_type=kind)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(new, repo_type=kind)
    api.delete_repo(new, repo_type=kind, missing_ok=True)


def test_lists_are_filtered_by_owner_name_and_tag(folder, owner, name):
    api.upload_folder(folder_path=folder, repo_id=name)
    suffix = name.split("/")[1][3:]
    assert [repo.id for repo in api.list_models(search=suffix)] == [name]
    assert name in [repo.id for repo in api.list_models(author=owner, filter="cells")]
    assert name not in [repo.id for repo in api.list_models(author=owner, filter="galaxies")]
    assert list(api.list_models(author="nobody")) == []
    assert list(api.list_datasets(search=suffix)) == []
    create(name, "space")
    assert [repo.id for repo in api.list_spaces(search=suffix)] == [name]


def test_repo_info_has_sizes_hashes_and_card(folder, name):
    api.upload_folder(folder_path=folder, repo_id=name)
    info = api.model_info(name, files_metadata=True)
    files = {file.rfilename: file for file in info.siblings}
    assert files["model.safetensors"].lfs.size == files["model.safetensors"].size == 300_000
    assert files["README.md"].lfs is None
    assert (info.card_data.license, info.tags) == ("apache-2.0", ["cells", "license:apache-2.0"])
    assert info.sha == api.list_repo_commits(name)[0].commit_id


def test_a_tree_lists_files_and_folders(name):
    many = [CommitOperationAdd(f"many/{number:04}.txt", b"x") for number in range(1100)]
    api.create_commit(name, many, commit_message="many")
    assert [entry.path for entry in api.list_repo_tree(name)] == [".gitattributes", "many"]
    assert len(list(api.list_repo_tree(name, "many"))) == 1100
    assert len(list(api.list_repo_tree(name, recursive=True))) == 1102
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(name, "nothing"))


@pytest.mark.parametrize(
    ("kind", "metadata", "reason"),
    [
        ("model", "tags: [a", "not YAML"),
        ("model", "- a", "mapping"),
        ("model", "datasets: [{a: b}]", "datasets"),
        ("model", "model-index: [{name: m, results: [{task: {type: t}, metrics: []}]}]", "dataset"),
        ("space", "sdk: abacus", "sdk"),
        ("space", "sdk: gradio\ncolorTo: teal", "colorTo"),
    ],
)
def test_a_card_that_the_hub_would_refuse_is_refused_before_the_push(new, kind, metadata, reason):
    create(new, kind)
    card = f"---\n{metadata}\n---\n".encode()
    with pytest.raises(ValueError, match=reason):
        api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=new, repo_type=kind)
    assert titles(new, kind) == ["initial commit"]


# ---- revisions
def test_branches_and_tags(name):
    first = api.list_repo_commits(name)[0].commit_id
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=name)
    api.create_branch(name, branch="try/this")
    api.create_branch(name, branch="early", revision=first)
    api.create_tag(name, tag="v1.0", revision="main")
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id=name, revision="try/this")

    def read(revision: str) -> str:
        return Path(hf_hub_download(name, "a.txt", revision=revision)).read_text()

    assert (read("main"), read("try/this"), read("v1.0")) == ("1", "2", "1")
    assert read(api.list_repo_commits(name)[0].commit_id[:10]) == "1"
    with pytest.raises(RemoteEntryNotFoundError):
        read("early")
    with pytest.raises(RevisionNotFoundError):
        read("v2.0")
    references = api.list_repo_refs(name)
    assert [branch.name for branch in references.branches] == ["early", "main", "try/this"]
    assert [tag.ref for tag in references.tags] == ["refs/tags/v1.0"]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(name, tag="v1.0")
    with pytest.raises(BadRequestError, match="invalid name"):
        api.create_branch(name, branch="not allowed")
    api.delete_tag(name, tag="v1.0")
    api.delete_branch(name, branch="try/this")
    with pytest.raises(RevisionNotFoundError):
        api.delete_branch(name, branch="try/this")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.delete_branch(name, branch="main")
    assert [branch.name for branch in api.list_repo_refs(name).branches] == ["early", "main"]


# ---- ranges and the cache
def test_a_cached_file_is_not_downloaded_again(folder, new, tmp_path):
    create(new, "model")
    api.upload_folder(folder_path=folder, repo_id=new)
    path = Path(hf_hub_download(new, "model.safetensors", cache_dir=tmp_path))
    before = path.resolve().stat().st_mtime_ns
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=new)
    again = Path(hf_hub_download(new, "model.safetensors", cache_dir=tmp_path))
    assert again != path  # a folder for each commit …
    assert again.resolve() == path.resolve()  # … over one file
    assert again.resolve().stat().st_mtime_ns == before


def test_hf_file_system_reads_ranges_and_writes(folder, new):
    create(new, "dataset")
    api.upload_folder(folder_path=folder, repo_id=new, repo_type="dataset")
    files, data = HfFileSystem(), (folder / "model.safetensors").read_bytes()
    with files.open(f"datasets/{new}/model.safetensors", "rb", block_size=1000) as file:
        file.seek(123_456)
        assert file.read(77) == data[123_456:123_533]
        file.seek(-10, 2)
        assert file.read() == data[-10:]
    assert files.glob(f"datasets/{new}/**/*.txt") == [f"datasets/{new}/zellen ü, 骨髄/50% ? & #1.txt"]
    with files.open(f"datasets/{new}/written.txt", "w") as file:
        file.write("written")
    assert files.read_text(f"datasets/{new}/written.txt") == "written"
    assert files.info(f"datasets/{new}/model.safetensors")["size"] == 300_000


# ---- the libraries on top
def test_datasets_push_load_and_stream(new, tmp_path):
    import datasets
    from PIL import Image

    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["BLA", "EOS"])}
    images = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(20)]
    rows = {"image": images, "label": [number % 2 for number in range(20)]}
    pushed = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    datasets.DatasetDict(train=pushed).push_to_hub(new, num_shards={"train": 2})
    code = """
import sys, datasets
for streaming in (False, True):
    rows = datasets.load_dataset(sys.argv[1], split="train", streaming=streaming)
    print([row["image"].getpixel((0, 0))[0] for row in rows], rows.features["label"].names)
"""
    expected = f"{list(range(20))} ['BLA', 'EOS']\n"
    assert run(sys.executable, "-c", code, new, home=tmp_path / "home") == expected * 2


def test_the_hf_command_uploads_and_downloads(folder, new, owner, tmp_path):
    def hf(*words: str) -> str:
        return run(str(Path(sys.executable).parent / "hf"), *words, home=tmp_path / "home")

    assert owner in hf("auth", "whoami")
    hf("repos", "create", new, "--repo-type", "dataset")
    hf("upload", new, str(folder), ".", "--repo-type", "dataset")
    hf("download", new, "--repo-type", "dataset", "--local-dir", str(tmp_path / "back"))
    assert contents(tmp_path / "back") == contents(folder)
