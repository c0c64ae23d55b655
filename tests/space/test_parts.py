"""Texts, report, batches, neighbours, heat map, dataset repo: one rule a test."""

import json
import re
import shutil
import socket
import string
import threading
from collections.abc import Callable
from pathlib import Path

import datasets
import gradio as gr
import numpy as np
import pytest
from huggingface_hub import HfApi

import space
from dataset_script.synthetic_cells import draw_cell
from hub_model.inference.appearance import CLASS_FREE, STATISTICS, Shift
from hub_model.inference.classifier import Classifier
from hub_model.inference.errors import RepoError
from space import charts, tab_model
from space.app import main, start
from space.batching import Batcher
from space.cards import answer_card, footer, percent
from space.dataset_repo import Sample, open_dataset_repo
from space.page import SESSIONS
from space.resources import Resources, load_resources
from space.similar import SimilarCells
from space.texts import EN, ID, NOTES, Words, language_of, note_on, number, say_shift
from space.visits import Visits
from tests.small_model_repo import LABELS

FOLDER = Path(space.__file__).parent


@pytest.fixture(scope="module")
def classifier(small_model: Path) -> Classifier:
    return Classifier.from_pretrained(small_model)


def test_both_languages_have_every_text_with_the_same_placeholders() -> None:
    def fields(text: str) -> set:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    assert EN.keys() == ID.keys()
    for key, text in EN.items():
        assert fields(text) == fields(ID[key]), key
    assert NOTES["en"].keys() == NOTES["id"].keys() == set(LABELS)


def test_the_address_beats_the_browsers_language() -> None:
    class Request:
        def __init__(self, query: dict, accepted: str) -> None:
            self.query_params, self.headers = query, {"accept-language": accepted}

    assert language_of(Request({}, "id-ID,id;q=0.9,en;q=0.8")) == "id"
    assert language_of(Request({}, "de-DE,de;q=0.9")) == "en"
    assert language_of(Request({"lang": "en"}, "id-ID")) == "en"
    assert language_of(None) == "en"


def test_a_class_without_a_note_shows_the_repos_own_words() -> None:
    assert note_on("id", "XYZ", "odd cell") == ("odd cell", "")
    assert note_on("id", "BLA", "bladder cell") == ("bladder cell", ""), "another class by the same code"
    assert note_on("id", "BLA", "blast").name == "blas"


def test_numbers_are_written_as_the_language_does() -> None:
    assert number("en", 1234.5, 1) == "1,234.5" and number("id", 1234.5, 1) == "1.234,5"


def test_markup_from_names_and_repos_is_escaped(classifier: Classifier) -> None:
    odd = Classifier.__new__(Classifier)
    odd.__dict__.update(classifier.__dict__, label_descriptions={label: "<b>x</b>" for label in LABELS})
    answer = classifier.predict(draw_cell("BLA", 1))
    relabelled = answer.__class__(
        **{**answer.__dict__, "label_names": tuple(f"<i>{label}" for label in LABELS)}
    )
    odd.label_descriptions = {f"<i>{label}": "<b>x</b>" for label in LABELS}
    relabelled.verdicts[0] = relabelled.verdicts[0].__class__("sure", ("<i>BLA",))
    card = answer_card(Resources(odd, None, None, []), relabelled, "en", "<i>BLA")
    assert "<i>BLA" not in card and "<b>x</b>" not in card


def test_a_percentage_never_claims_certainty() -> None:
    assert [percent(p) for p in (1.0, 0.997, 0.5, 0.001)] == ["&gt;99%", "&gt;99%", "50%", "&lt;1%"]


def test_a_shift_is_told_without_a_word_of_english() -> None:
    english = {"background", "mean", "spread", "sharpness", "grain", "red", "green", "blue"}
    for statistic in STATISTICS[:CLASS_FREE]:
        for off in (2.5, -2.5):
            assert not english & set(re.findall(r"\w+", say_shift("id", Shift(statistic, off))))


def test_whose_pictures_they_are_follows_the_dataset(classifier: Classifier, tmp_path: Path) -> None:
    kinds = {"label": datasets.ClassLabel(names=list(LABELS)), "source": datasets.Value("string")}
    rows = {"label": [0, 1, 2], "source": ["bone_marrow", "blood", "blood"]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "README.md").write_text(
        "---\nlicense: cc-by-4.0\n---\ndoi:10.7937/TCIA.AXH3-T579, doi:10.17632/snkd93bnjr.1"
    )
    dataset = open_dataset_repo(tmp_path)
    assert dataset.sources == {"bone_marrow": 1, "blood": 2}
    page = footer(Resources(classifier, Batcher(classifier), None, [], dataset), "en")
    assert "Matek" in page and "Acevedo" in page and "cc-by-4.0" in page


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours."""

    def luminance(colour: str) -> float:
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_what_axe_does_not_see_has_contrast_too() -> None:
    dark = (FOLDER / "style.css").read_text().partition(".dark {")[2]
    muted, panel = (re.search(rf"--{name}: (#\w+)", dark)[1] for name in ("muted", "panel"))
    chosen = [
        *((colour, "#ffffff") for colour in (charts.TEXT, charts.NUMBER, *charts.BOXES)),
        (muted, panel),
    ]
    assert min(contrast(*pair) for pair in chosen) >= 4.5


def test_visitors_share_batches_and_get_their_own_answers(classifier: Classifier) -> None:
    cells = [draw_cell(label, 40 + i) for i, label in enumerate(LABELS * 3)]
    expected = classifier.predict(cells).logits
    sizes: list[int] = []

    class Counting:
        preprocess, interpret = classifier.preprocess, staticmethod(classifier.interpret)

        def forward(self, pixels: np.ndarray) -> tuple:
            sizes.append(len(pixels))
            return classifier.forward(pixels)

    batcher, answers = Batcher(Counting(), max_batch=8), {}
    visitors = [
        threading.Thread(target=lambda i=i: answers.update({i: batcher.predict([cells[i]]).logits[0]}))
        for i in range(len(cells))
    ]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(30)
    np.testing.assert_allclose([answers[i] for i in range(len(cells))], expected, atol=1e-4)
    assert sum(sizes) == len(cells) and max(sizes) <= 8
    np.testing.assert_allclose(batcher.predict(cells).logits, expected, atol=1e-4)


def test_a_failing_batch_fails_its_visitors_and_not_the_next(classifier: Classifier) -> None:
    class Failing:
        preprocess, interpret, broken = classifier.preprocess, staticmethod(classifier.interpret), True

        def forward(self, pixels: np.ndarray) -> tuple:
            if self.broken:
                raise RuntimeError("no memory")
            return classifier.forward(pixels)

    failing = Failing()
    batcher = Batcher(failing)
    with pytest.raises(RuntimeError, match="no memory"):
        batcher.predict([draw_cell("BLA", 0)])
    failing.broken = False
    assert len(batcher.predict([draw_cell("BLA", 0)])) == 1


def test_the_most_similar_cell_to_a_known_cell_is_itself(classifier: Classifier, small_dataset: Path) -> None:
    similar = SimilarCells(Batcher(classifier))
    assert similar.nearest(np.ones(3)) == []
    samples = list(open_dataset_repo(small_dataset).samples("train", 4))
    similar.fill([*samples, Sample(b"damaged", "BLA", "x.jpg")])
    assert len(similar) == len(samples)
    features = classifier.predict(samples[5].image).features[0]
    (first, similarity), *rest = similar.nearest(features, k=3)
    assert first == samples[5] and similarity == pytest.approx(1, abs=1e-4) and len(rest) == 2


def without_arrays(repo: Path) -> None:
    rule = {"score": "mahalanobis", "threshold": 1.0, "residual_variance": 1.0}
    (repo / "calibration.json").write_text(json.dumps({"out_of_distribution": rule}))
    (repo / "out_of_distribution.safetensors").unlink()


def of_garbage(repo: Path) -> None:
    without_arrays(repo)
    (repo / "out_of_distribution.safetensors").write_bytes(b"garbage")


def cut_off(repo: Path) -> None:
    shutil.rmtree(repo / "onnx")  # with it, the weights are not needed
    (repo / "model.safetensors").write_bytes((repo / "model.safetensors").read_bytes()[:1000])


def of_no_architecture(repo: Path) -> None:
    shutil.rmtree(repo / "onnx")
    says(architecture="nonsense")(repo)


def says(**changes: object) -> Callable[[Path], None]:
    """The change to config.json, those to its pretrained_cfg among them."""

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
        without_arrays,
        of_garbage,
        cut_off,
        of_no_architecture,
        says(input_size=[3, 0, 0]),
        says(input_size="144"),
        says(interpolation="nonsense"),
        says(label_names=list(LABELS[:6]), num_classes=6),
        says(label_names=[*LABELS, "XYZ"], num_classes=8),
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


def test_the_data_set_repo_reads_alike_from_folder_and_hub(small_dataset: Path, owner: str) -> None:
    repo = f"{owner}/small-cells"
    HfApi().create_repo(repo, repo_type="dataset", exist_ok=True)
    HfApi().upload_folder(repo_id=repo, repo_type="dataset", folder_path=small_dataset)
    folder, hub = open_dataset_repo(small_dataset), open_dataset_repo(repo)
    assert folder.label_names == hub.label_names == LABELS
    assert folder.counts == hub.counts == {"train": [6] * 7, "validation": [2] * 7, "test": [4] * 7}
    assert list(folder.samples("train", 4)) == list(hub.samples("train", 4))


def test_samples_are_balanced_seeded_and_read_where_they_are(small_dataset: Path) -> None:
    dataset = open_dataset_repo(small_dataset)
    samples = list(dataset.samples("train", 4, seed=1))
    assert sorted(s.label for s in samples) == sorted(LABELS * 4)
    assert all(s.file_name.startswith(s.label) and s.image[:2] == b"\xff\xd8" for s in samples)
    assert samples == list(dataset.samples("train", 4, seed=1)) != list(dataset.samples("train", 4, seed=2))


@pytest.mark.parametrize("name", ["", "nobody/no-data", "not an id"])
def test_a_missing_data_set_is_one_sentence(name: str) -> None:
    with pytest.raises(RepoError) as refusal:
        open_dataset_repo(name)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_class_names_is_one_sentence(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [1], "target": [2]}), tmp_path / "train.parquet")
    with pytest.raises(RepoError, match=r"class names|label"):
        open_dataset_repo(tmp_path)


@pytest.mark.parametrize(
    ("name", "port", "reason"),
    [
        ("127.0.0.1", "abc", "GRADIO_SERVER_PORT must be"),
        ("127.0.0.1", "99999", "GRADIO_SERVER_PORT must be"),
        ("999.1.1.1", "7860", "cannot listen at 999.1.1.1:7860"),
        ("127.0.0.1", "taken", "in use"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, port: str, reason: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("GRADIO_SERVER_NAME", name)
        monkeypatch.setenv("GRADIO_SERVER_PORT", port.replace("taken", str(taken.getsockname()[1])))
        with pytest.raises(SystemExit, match=f"^error: .*{reason}"):
            main()


def test_of_ever_more_visits_only_the_latest_are_remembered(
    small_model: Path, small_dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = start(str(small_model), str(small_dataset), server_name="127.0.0.1")
    try:
        visits = page.app.state_holder
        for number in range(SESSIONS + 10):
            visits[f"visit {number}"]
        assert len(visits.session_data) == len(visits.time_last_used) == SESSIONS
        assert "visit 9" not in visits and f"visit {SESSIONS + 9}" in visits
    finally:
        page.close()
