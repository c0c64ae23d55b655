"""What a seed fixes: the same one gives the same bytes again, another one gives others."""

from pathlib import Path

from train_accelerate import main

FILES = ("history.jsonl", "model.safetensors", "logits_validation.parquet", "logits_test.parquet")


def train(dataset: Path, output: Path, seed: int) -> list[bytes]:
    """Train a miniature for an epoch; return what the run leaves."""
    tiny = ["--no-pretrained", "--model", "test_efficientnet", "--image_size", "32", "--batch_size", "16"]
    arguments = ["--dataset", str(dataset), "--output_dir", str(output), *tiny, "--epochs", "1"]
    assert main([*arguments, "--seed", str(seed)]) == 0
    return [(output / name).read_bytes() for name in FILES]


def test_the_same_seed_gives_the_same_history_weights_and_logits(drawn_dataset, tmp_path):
    once, again = (train(drawn_dataset, tmp_path / name, seed=7) for name in ("once", "again"))
    assert once == again
    other = train(drawn_dataset, tmp_path / "other", seed=8)
    assert not any(mine == its for mine, its in zip(once, other, strict=True))
