"""The one public way from images to answers: `Classifier.from_pretrained(model_id).predict(images)`.

In: a model repo of the Hub (or its folder) and images in any form. Out: `Predictions`. ONNX Runtime computes
when it is installed and the repo has `onnx/model.onnx`, else timm; preprocessing is timm's own evaluation
transform of the repo's `config.json` in both, so the answers are the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from hub_model.inference.appearance import Shift, appearance
from hub_model.inference.calibration import Calibration, Verdict
from hub_model.inference.errors import RepoError
from hub_model.inference.images import ImageLike
from hub_model.inference.model_repo import ModelRepo, open_model_repo
from hub_model.inference.preprocessing import Preprocessing, cores

BATCH_SIZE = 32
PART = 4  # images that ONNX Runtime gets at once: their activations stay in the processor's cache
Backend = Literal["auto", "onnx", "timm"]
T = TypeVar("T")


@dataclass(frozen=True)
class Predictions:
    """Answers for N images over C classes; row i belongs to image i.

    `logits` and `features` are float32 [N, C] and [N, D]; `probabilities` float64 [N, C], temperature-scaled;
    `sets` boolean [N, C] by conformal level ("0.90", …), empty without calibration; `ood_score` float64
    [N] or None, above 1 for what is not a cell it knows; `appearance` float64 [N, K] (see `hub_model.inference.appearance`),
    [N, 0] where the repo has no reference for it; `str(shift)` is one sentence where 20 or more images look unlike those of
    every training laboratory.
    """

    label_names: tuple[str, ...]
    logits: np.ndarray
    features: np.ndarray
    probabilities: np.ndarray
    sets: dict[str, np.ndarray]
    ood_score: np.ndarray | None
    verdicts: list[Verdict]
    appearance: np.ndarray
    shift: Shift | None

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def labels(self) -> list[str]:
        """The likeliest class of every image."""
        return [self.label_names[i] for i in self.logits.argmax(axis=1)]

    @property
    def confidences(self) -> np.ndarray:
        """The calibrated probability of that class, [N]."""
        return self.probabilities.max(axis=1)

    def top(self, row: int, k: int = 3) -> list[tuple[str, float]]:
        """The k likeliest classes of one image with their probabilities, likeliest first."""
        order = np.argsort(-self.probabilities[row], kind="stable")[:k]
        return [(self.label_names[i], float(self.probabilities[row, i])) for i in order]


class Classifier:
    """A model repo, ready to answer. Safe to share between threads.

    `measures_appearance`: whether `forward` adds how the images look; True where `calibration.json` has a reference, and set by
    who fits one.
    """

    def __init__(self, repo: ModelRepo, backend: Backend = "auto", threads: int | None = None) -> None:
        self.repo = repo
        self.label_names = repo.label_names
        described = repo.config.label_descriptions
        self.label_descriptions = {label: described.get(label, label) for label in repo.label_names}
        self.calibration = Calibration.from_repo(repo)
        self.measures_appearance = self.calibration.appearance is not None
        self.threads = threads or cores()
        self.preprocess = Preprocessing(repo.config.pretrained_cfg, self.threads)
        self.backend = _choose_backend(repo, backend)
        if self.backend == "onnx":
            self._session = self._onnx_session(self.threads)
        self._network = self._onnx_network if self.backend == "onnx" else self._timm_network

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | os.PathLike[str],
        revision: str | None = None,
        backend: Backend = "auto",
        threads: int | None = None,
    ) -> Classifier:
        """Load a model repo by Hub id (`owner/name`) or folder, with or without timm's prefix `hf-hub:` or `local-dir:`.

        `backend`: "onnx", "timm", or "auto" for the first that is there. `threads`: CPU threads of one
        batch, all by default. Raises RepoError with one sentence when the repo is missing, unsafe or
        breaks the contract.
        """
        return cls(open_model_repo(model_id, revision), backend, threads)

    def warmup(self) -> np.ndarray:
        """Answer for a white picture as for any other, and return its pixels [1, 3, H, W].

        Raises RepoError where files of the repo do not work or do not fit together, or the answer is not finite.
        """
        try:
            height, width = self.preprocess.config["input_size"][1:]
            pixels = self.preprocess([np.full((height, width, 3), 255, np.uint8)])
            logits, features, statistics = self.forward(pixels)
            if logits.shape[1] != len(self.label_names):
                raise ValueError(f"{logits.shape[1]} outputs for {len(self.label_names)} label_names")
            answer = self.interpret(logits, features, statistics)
            if not (
                np.isfinite(logits).all()
                and (answer.ood_score is None or np.isfinite(answer.ood_score).all())
            ):
                raise ValueError("an answer that is not finite")
        except Exception as error:  # whatever the libraries raise for files that they cannot use
            raise RepoError(f"{self.repo.name} breaks the contract ({error!r})") from error
        return pixels

    def predict(self, images: ImageLike | Iterable[ImageLike], batch_size: int = BATCH_SIZE) -> Predictions:
        """Answer for one image or many: PIL images, paths, encoded bytes, or uint8 arrays [H, W(, 3)].

        Memory holds one batch of pixels at a time, so an iterator over any number of files is fine. Raises
        OSError for a file that is not an image (check uploads with `hub_model.inference.images` first).
        """
        if isinstance(images, ImageLike):
            images = [images]
        images, answers = iter(images), []
        while batch := list(islice(images, batch_size)):
            answers += self._in_parts(self._answer, batch)
        if not answers:
            answers = [
                (
                    np.zeros((0, len(self.label_names)), np.float32),
                    np.zeros((0, 0), np.float32),
                    np.zeros((0, 0)),
                )
            ]
        return self.interpret(*_joined(answers))

    def network(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits [N, C] and pooled features [N, D], float32, of normalised pixels [N, 3, H, W]."""
        return _joined(self._in_parts(self._network, pixels))

    def forward(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits [N, C], pooled features [N, D] and appearance ([N, 0] where not measured) of normalised pixels [N, 3, H, W]."""
        return _joined(self._in_parts(self._forward, pixels))

    def _forward(self, pixels: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        statistics = np.empty((len(pixels), 0))
        if self.measures_appearance:  # first, while the pixels are in the processor's cache
            statistics = appearance(self.preprocess.unnormalised(pixels))
        return *self._network(pixels, threads), statistics

    def _answer(self, images: Sequence[ImageLike], threads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._forward(self.preprocess(images, threads), threads)

    def _in_parts(self, work: Callable[[Any, int], T], images: Sequence[Any] | np.ndarray) -> list[T]:
        """`work(images, threads)`: of all at once with timm; with ONNX Runtime of a few at a time, by one thread each.

        Threads that share out images wait for each other less often than threads that share out every layer.
        """
        if self.backend == "timm" or len(images) < 2:
            return [work(images, self.threads)]
        few = min(PART, -(-len(images) // self.threads))
        parts = (images[start : start + few] for start in range(0, len(images), few))
        return list((self._pool.map if self.threads > 1 else map)(partial(work, threads=1), parts))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        self._single_threaded = self._onnx_session(1)
        return ThreadPoolExecutor(self.threads, "inference")

    def interpret(self, logits: np.ndarray, features: np.ndarray, statistics: np.ndarray) -> Predictions:
        """Predictions from what `forward` computed before: logits [N, C], features [N, D], appearance [N, K]."""
        probabilities = self.calibration.probabilities(logits)
        ood_score = self.calibration.ood_score(features, statistics) if len(logits) else None
        reference = self.calibration.appearance
        return Predictions(
            label_names=self.label_names,
            logits=logits,
            features=features,
            probabilities=probabilities,
            sets=self.calibration.sets(probabilities),
            ood_score=ood_score,
            verdicts=self.calibration.verdicts(probabilities, ood_score),
            appearance=statistics,
            shift=reference.shift(statistics, probabilities) if reference else None,
        )

    @cached_property
    def model(self) -> Any:
        """The timm model in evaluation mode: what `timm.create_model("hf-hub:…", pretrained=True)` gives."""
        return load_timm_model(self.repo)

    def _timm_network(self, pixels: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        import torch  # its number of threads is the process's

        with torch.inference_mode():
            device = next(self.model.parameters()).device  # who moves the model to a GPU computes there
            spatial = self.model.forward_features(torch.from_numpy(pixels).to(device))
            features = self.model.forward_head(spatial, pre_logits=True)
            return self.model.forward_head(spatial).cpu().numpy(), features.cpu().numpy()

    def _onnx_network(self, pixels: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        session = self._session if threads == self.threads else self._single_threaded
        logits, features = session.run(["logits", "features"], {"pixel_values": pixels})
        return logits, features

    def _onnx_session(self, threads: int) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # threads that wait for the next batch leave the cores to its decoding
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        try:
            session = ort.InferenceSession(self.repo.onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise RepoError(f"{self.repo.name}: onnx/model.onnx cannot be loaded ({error})") from None
        outputs = {output.name for output in session.get_outputs()}
        if not {"logits", "features"} <= outputs:
            raise RepoError(f"{self.repo.name}: onnx/model.onnx has no outputs 'logits' and 'features'")
        return session


def _joined(parts: Iterable[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """One array of every output of the parts."""
    return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))


def _choose_backend(repo: ModelRepo, backend: Backend) -> Literal["onnx", "timm"]:
    if backend == "onnx" and not repo.onnx:
        raise RepoError(f"{repo.name} has no onnx/model.onnx")
    if backend == "auto":
        return "onnx" if repo.onnx and find_spec("onnxruntime") else "timm"
    return backend


def load_timm_model(repo: ModelRepo) -> Any:
    """Build the architecture that `config.json` names and fill it from `model.safetensors`, strictly."""
    import timm
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not timm.is_model(repo.config.architecture):
        raise RepoError(
            f"{repo.name} breaks the contract: timm has no architecture {repo.config.architecture!r}"
        )
    try:
        model = timm.create_model(
            repo.config.architecture, num_classes=len(repo.label_names), **repo.config.model_args
        )
        weights = load_file(Path(repo.weights))
        model.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
    except (SafetensorError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RepoError(
            f"{repo.name} breaks the contract: model.safetensors does not fit ({reason})"
        ) from None
    return model.eval()
