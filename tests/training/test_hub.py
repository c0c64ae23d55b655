"""Runs that are published on the Hub and resumed from a branch, and the errors if that fails."""

import pytest
import timm
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from tests.stress.broken_proxy import FOREVER, broken_proxy
from tests.training.small import refusal, results, train
from training.hub import BRANCH, CHECKPOINT

LARGE_BATCHES = "--batch_size 32"  # fewer updates


def test_a_run_publishes_its_model_and_does_not_push_it_again_unchanged(drawn_repo, owner, tmp_path, capsys):
    repo = f"{owner}/published-run"
    push = f"{LARGE_BATCHES} --push_to_hub --hub_model_id {repo} --hub_private_repo"
    assert train(drawn_repo, tmp_path / "run", push) == 0
    assert f"model repo: {HfApi().endpoint}/{repo}" in capsys.readouterr().out
    assert HfApi().model_info(repo).private
    model = timm.create_model(f"hf-hub:{repo}", pretrained=True)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    commits = HfApi().list_repo_commits(repo)
    assert train(drawn_repo, tmp_path / "run", push, "--resume") == 0
    assert len(HfApi().list_repo_commits(repo)) == len(commits)


def test_a_run_is_resumed_from_its_branch_on_another_machine(drawn_dataset, owner, tmp_path, capsys):
    """A machine with an empty folder resumes from the middle of the second epoch and produces the same bytes."""
    repo = f"{owner}/resumed-run"
    push = f"{LARGE_BATCHES} --push_to_hub --hub_model_id {repo} --hub_strategy checkpoint --resume"
    assert train(drawn_dataset, tmp_path / "uninterrupted", LARGE_BATCHES) == 0
    assert train(drawn_dataset, tmp_path / "first", push, "--checkpoint_minutes 1e-6") == 0
    commits = HfApi().list_repo_commits(repo, revision=BRANCH)
    pushed = [commit for commit in commits if "step-" in commit.title]
    assert pushed[0].title == "Checkpoint step-00002-00000000" and len(pushed) > 5
    assert not any(name.endswith((".pkl", ".bin")) for name in HfApi().list_repo_files(repo, revision=BRANCH))
    middle = next(commit for commit in pushed if "step-00001-00000002" in commit.title)
    HfApi().delete_branch(repo, branch=BRANCH)
    HfApi().create_branch(repo, branch=BRANCH, revision=middle.commit_id)
    capsys.readouterr()
    assert train(drawn_dataset, tmp_path / "second", push) == 0
    assert "resuming from step-00001-00000002" in capsys.readouterr().out
    assert results(tmp_path / "second") == results(tmp_path / "uninterrupted")


def test_a_damaged_or_malicious_branch_is_refused(drawn_dataset, owner, tmp_path, capsys):
    repo = f"{owner}/damaged-run"
    push = f"--push_to_hub --hub_model_id {repo} --hub_strategy checkpoint --resume"
    HfApi().create_repo(repo)
    HfApi().create_branch(repo, branch=BRANCH)
    step, data = "step-00000-00000001", torch.zeros(2, dtype=torch.uint8)
    outside = [("../../outside", step), ("manifest.json", "../step"), ("..", step), ("manifest.json", "..")]
    for case, (file, name) in enumerate([*outside, ("model.bin", step)]):
        save_file({file: data}, packed := tmp_path / CHECKPOINT, metadata={"name": name})
        HfApi().upload_file(path_or_fileobj=packed, path_in_repo=CHECKPOINT, repo_id=repo, revision=BRANCH)
        text = refusal(capsys, drawn_dataset, tmp_path / f"run-{case}", push)
        assert ("names files outside" if ".." in file + name else "is damaged") in text
        assert not (tmp_path / f"run-{case}").exists(), "nothing is left behind"
    assert not (tmp_path / "outside").exists()


def test_a_repo_that_cannot_be_pushed_to_is_refused_before_the_first_epoch(
    drawn_dataset, tmp_path, capsys, monkeypatch
):
    push = "--push_to_hub --hub_model_id"
    for wrong in ("no-owner", "'a b/c'", "owner/name/more"):
        with pytest.raises(SystemExit):
            train(drawn_dataset, tmp_path / "run", push, wrong)
        assert "--hub_model_id must be OWNER/NAME" in capsys.readouterr().err
    assert "belongs to somebody" in refusal(capsys, drawn_dataset, tmp_path / "run", push, "somebody/model")
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refusal(capsys, drawn_dataset, tmp_path / "run", push, "somebody/model")
    assert not (tmp_path / "run").exists()


def test_after_an_outage_at_the_end_a_rerun_pushes_the_model(
    drawn_dataset, owner, tmp_path, capsys, monkeypatch
):
    repo = f"{owner}/after-an-outage"
    push = f"--push_to_hub --hub_model_id {repo} --resume"
    assert train(drawn_dataset, tmp_path / "run", "--resume") == 0
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with broken_proxy(HfApi().endpoint) as proxy:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", proxy.endpoint)
        proxy.break_at(2, "before", outage=FOREVER)  # the first request asks who the token's owner is
        assert "cannot be reached" in refusal(capsys, drawn_dataset, tmp_path / "run", push)
    monkeypatch.undo()
    assert not HfApi().repo_exists(repo)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert train(drawn_dataset, tmp_path / "run", push) == 0
    assert HfApi().file_exists(repo, "model.safetensors")
