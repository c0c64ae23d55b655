"""Texts, colours, batches, similar cells, the address, and memory."""

import json
import re
import shutil
import socket
import string
import threading
from copy import copy
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
from gradio_client import Client

import space
from dataset_script.synthetic_cells import draw_cell
from hub_model.inference.appearance import CLASS_FREE, STATISTICS, Shift
from hub_model.inference.calibration import Verdict
from hub_model.inference.classifier import Classifier
from space import charts
from space.app import forget_finished, main, start
from space.batching import Batcher
from space.cards import answer_card, explanation, percent
from space.dataset_repo import Sample, open_dataset_repo
from space.page import SESSIONS
from space.resources import Resources
from space.similar import SimilarCells
from space.texts import EN, ID, NOTES, language_of, note_on, number, say_shift
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
    odd, labels = copy(classifier), tuple(f"<i>{label}" for label in LABELS)
    odd.label_descriptions = dict.fromkeys(labels, "<b>x</b>")
    predictions = replace(classifier.predict(draw_cell("BLA", 1)), label_names=labels)
    predictions.verdicts[0] = Verdict("sure", ("<i>BLA",))
    card = answer_card(Resources(odd, None, None, []), predictions, "en", "<i>BLA")
    assert "<i>BLA" not in card and "<b>x</b>" not in card


def test_how_often_a_sure_answer_may_be_wrong_is_the_model_repos_rule(
    small_model: Path, classifier: Classifier, tmp_path: Path
) -> None:
    repo = shutil.copytree(small_model, tmp_path / "model")
    path = repo / "calibration.json"
    for error, text in ((0.03, "at most 3%"), (0.055, "at most 6%"), (None, "One class fits")):
        calibration = json.loads(path.read_text())
        calibration["sure"]["error"] = error
        path.write_text(json.dumps(calibration))
        resources = Resources(Classifier.from_pretrained(repo), Batcher(classifier), None, [])
        assert explanation(resources, "en", "sure").count(text) == 1


def test_a_percentage_never_claims_certainty() -> None:
    assert [percent(p) for p in (1.0, 0.997, 0.5, 0.001)] == ["&gt;99%", "&gt;99%", "50%", "&lt;1%"]


def test_a_shift_is_described_without_english_words() -> None:
    english = {"background", "mean", "spread", "sharpness", "grain", "red", "green", "blue"}
    for statistic in STATISTICS[:CLASS_FREE]:
        for off in (2.5, -2.5):
            assert not english & set(re.findall(r"\w+", say_shift("id", Shift(statistic, off))))


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours (WCAG)."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_colours_that_axe_does_not_check_have_contrast() -> None:
    dark = (FOLDER / "style.css").read_text().partition(".dark {")[2]
    muted, panel = (re.search(rf"--{name}: (#\w+)", dark)[1] for name in ("muted", "panel"))
    pairs = [(colour, "#ffffff") for colour in (charts.TEXT, charts.NUMBER, *charts.BOXES)]
    assert min(contrast(*pair) for pair in [*pairs, (muted, panel)]) >= 4.5


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


@pytest.mark.parametrize(
    ("name", "port", "reason"),
    [
        ("127.0.0.1", "abc", "GRADIO_SERVER_PORT must be"),
        ("127.0.0.1", "99999", "GRADIO_SERVER_PORT must be"),
        ("999.1.1.1", "7860", "cannot listen at 999.1.1.1:7860"),
        ("127.0.0.1", "taken", "in use"),
    ],
)
def test_an_unusable_address_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, port: str, reason: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("GRADIO_SERVER_NAME", name)
        monkeypatch.setenv("GRADIO_SERVER_PORT", port.replace("taken", str(taken.getsockname()[1])))
        with pytest.raises(SystemExit, match=f"^error: .*{reason}"):
            main()


def test_what_gradio_remembers_of_calls_stays_small(
    small_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The latest sessions, without copies of the page; no events and no names of deleted files."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = start(str(small_model), "", server_name="127.0.0.1")
    try:
        sessions = page.app.state_holder
        for number in range(SESSIONS + 10):
            assert sessions[f"visit {number}"].config_values == {}
        assert len(sessions.session_data) == len(sessions.time_last_used) == SESSIONS
        assert "visit 9" not in sessions and f"visit {SESSIONS + 9}" in sessions
        client = Client(page.local_url, verbose=False)
        for _ in range(3):
            client.predict(api_name="/model")
        sent = httpx2.post(f"{page.local_api_url}upload", files={"files": ("cell.jpg", b"x")})
        assert len(page._queue.event_analytics) == 1 and page.upload_file_set == set(sent.json())
        page._queue.pending_messages_per_session.clear()
        forget_finished(page)
        assert not page._queue.pending_event_ids_session and not any(page.temp_file_sets)
    finally:
        page.close()
