"""The dataset card, its front matter and its figures, with any class names."""

from __future__ import annotations

import html
import shutil
from pathlib import Path

import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard, constants
from matplotlib.figure import Figure
from PIL import Image

from dataset_script.__main__ import main
from dataset_script.card import card_text, plain, rendered_for
from dataset_script.figures import draw_figures
from dataset_script.records import Row, Summary
from hub_model.card import snippets
from tests.dataset_script.raw_folders import build, noise_folder, rows_of
from tests.pictures import encoded

PICTURE = encoded(Image.new("RGB", (64, 64)), "PNG")


def summary(classes: list[str], rows: list[Row], kinds: dict[str, str], *notes: str) -> Summary:
    return Summary(Path(), classes, len(rows), rows, [], 0, 0, len(rows), 0, 0, 0, kinds, list(notes))


def test_every_class_has_a_bar_and_a_slice(tmp_path: Path, monkeypatch) -> None:
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    classes = [f"plasma cells of the patient {number}" for number in range(3)]
    rows = [Row("", b"", 1, label=label, split="train") for label in (0, 1, 1, 2)]
    draw_figures(tmp_path, summary(classes, rows, {"": "own"}), lambda row: PICTURE)
    bar, pie = (figure.axes[0] for figure in figures)
    assert [patch.get_height() for patch in bar.containers[0]] == [1, 2, 1]
    assert len({patch.get_x() for patch in bar.containers[0]}) == 3
    assert [text.get_text() for text in bar.get_xticklabels()] == [classes[0][:24]] * 3
    assert len(pie.patches) == 3


@pytest.mark.parametrize("name", ["it's", "no. #1 & <b>", 'a "b" `c` | $d$'])
def test_markup_in_a_name_is_escaped_in_the_card(name: str) -> None:
    assert html.unescape(plain(name)) == name
    assert not set(plain(name)) & set("<>|`$") and "&&" not in plain(name)


def test_control_characters_in_class_names_are_escaped(tmp_path: Path, capsys) -> None:
    raw = noise_folder(tmp_path / "raw", ["a\x1b[31m", "b\nc", "d\x9b2J"], 6)
    assert build(raw, tmp_path / "out") == 0
    written = capsys.readouterr().out + (tmp_path / "out" / "README.md").read_text()
    assert not {char for char in written if not char.isprintable()} - {"\n"}
    labels = {row["label"] for row in rows_of(tmp_path / "out" / "splits.csv")}
    assert labels == {r"a\x1b[31m", r"b\x0ac", r"d\x9b2J"}


ODD_NAMES = [
    "1e3", "no", "0777", "2024-01-01", "~", "null", "+5", "0x1F", "blast, large", "🧬 cell", "e\u0301", "a: b", "'q'", "y",
    "=cmd()", "<img src=x onerror=alert(1)>", "a|b",
]  # fmt: skip


def test_odd_class_names_are_the_same_in_yaml_parquet_and_figures(tmp_path: Path, recwarn) -> None:
    raw, out = noise_folder(tmp_path / "raw", ODD_NAMES, 4), tmp_path / "out"
    (raw / "=cmd()" / "=HYPERLINK(1).png").write_bytes(b"")
    assert build(raw, out, "--workers", "1") == 0
    expected = sorted("\u00e9" if name == "e\u0301" else name for name in ODD_NAMES)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    front, body = (out / "README.md").read_text().split("---\n", 2)[1:]
    names = yaml.safe_load(front)["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]
    assert list(names.values()) == expected
    values = [line.split(": ", 1)[1] for line in front.splitlines() if line.strip().startswith("'")]
    # YAML 1.2, which the Hub reads, parses these as numbers unless they are quoted
    assert [value for value in values if value[0] in "0123456789.+-~"] == []
    assert load_dataset(str(out), split="train").features["label"].names == expected
    assert "<img" not in body and "a|b" not in body
    rows = rows_of(out / "splits.csv") + rows_of(out / "rejected.csv")
    cells = [cell for row in rows for cell in row.values()]
    assert "'=cmd()" in cells and not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert "Matek" not in body and "license:" not in front, "nothing is claimed about a user's own images"


def test_synthetic_images_say_so(drawn_dataset: Path) -> None:
    card = (drawn_dataset / "README.md").read_text()
    assert "images are synthetic" in card and "license: apache-2.0" in card and "Matek" not in card


@pytest.mark.parametrize(
    "front_matter",
    ["license: [a", "- license", "dataset_info: [1]", "dataset_info: {splits: [1]}", "dataset_info: {splits: [{}]}"],
)  # fmt: skip
def test_broken_front_matter_is_one_line(front_matter, drawn_dataset: Path, tmp_path: Path, capsys) -> None:
    folder = shutil.copytree(drawn_dataset, tmp_path / "dataset")
    (folder / "README.md").write_text(f"---\n{front_matter}\n---\n\n# Cells\n")
    assert main(["push", str(folder), "owner/name"]) == 1
    error = capsys.readouterr().err
    assert "README.md has front matter" in error and error.count("\n") == 1


@pytest.fixture
def two_laboratories(tmp_path: Path) -> str:
    """The card of a dataset of both published sources."""
    kinds = {"marrow": "matek", "blood": "acevedo"}
    splits = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
    rows = [
        Row("", b"", 1, label=i % 2, split=split, source=source)
        for source in kinds
        for i, split in enumerate(splits)
    ]
    return card_text(tmp_path, summary(["EOS", "NIF"], rows, kinds, "a note"))


def test_the_card_has_metadata_tables_licence_and_citations(two_laboratories: str) -> None:
    card = DatasetCard(two_laboratories)
    data = card.data.to_dict()
    assert (data["license"], data["annotations_creators"], data["size_categories"]) == (
        "cc-by-4.0", ["expert-generated"], ["n<1K"],
    )  # fmt: skip
    assert [files["split"] for files in data["configs"][0]["data_files"]] == ["train", "validation", "test"]
    assert [split["num_examples"] for split in data["dataset_info"]["splits"]] == [8, 4, 4]
    assert data["label_descriptions"] == {"EOS": "eosinophil", "NIF": "not identifiable"}
    for words in (
        "16 images in 2 classes: 8 `train`, 4 `validation`, 4 `test`.",
        "- **`marrow`**: Crops of single bone-marrow cells",
        "- **`blood`**: Images of single peripheral-blood cells",
        "| 0 | EOS (eosinophil) | 4 | 2 | 2 | 8 | 4 | 4 |",
        "CC BY 4.0, the licence of both sources",
        "10.7937/TCIA.AXH3-T579", "10.1182/blood.2020010568", "10.17632/snkd93bnjr.1",
        "`label_issues.csv`, where the repo has one, lists likely label errors",
        "NIF means *not identifiable*",
        "(figures/classes.jpg)", "(figures/classes_bar.png)", "(figures/classes_pie.png)",
        "a note.",
    ):  # fmt: skip
        assert words in card.text, words
    full, streamed, one_source = snippets(card.text)
    assert "streaming=True" in streamed and 'source == "marrow"' in one_source and "streaming" not in full


def test_a_pushed_card_names_its_repo_and_links_others(two_laboratories: str, drawn_repo: str) -> None:
    card = rendered_for(two_laboratories, "anna/cells", "anna/model", "anna/space")
    assert "OWNER/NAME" not in card and card.count('load_dataset("anna/cells"') == 3
    model, space = f"{constants.ENDPOINT}/anna/model", f"{constants.ENDPOINT}/spaces/anna/space"
    assert f"\n[Model: anna/model]({model}) · [Space: anna/space]({space})\n" in card
    assert "<!-- links" in rendered_for(two_laboratories, "anna/cells"), "a later push can still add links"
    pushed = DatasetCard.load(drawn_repo).text
    assert f'load_dataset("{drawn_repo}", split="train", streaming=True)' in pushed
    assert "OWNER/NAME" not in pushed
