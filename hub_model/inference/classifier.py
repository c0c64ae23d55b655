"""The public API for inference: `Classifier.from_pretrained(model_id).predict(images)`.

In: a model repo on the Hub (or its folder) and images in any form. Out: `Predictions`. The backend is ONNX Runtime
where it is installed and the repo has `onnx/model.onnx`, else timm. Both use the evaluation transform that timm makes
from the repo's `config.json`, so their predictions agree.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np

from hub_model.inference.appearance import Shift, appearance
from hub_model.inference.calibration import Calibration, Verdict
from hub_model.inference.errors import RepoError, first_line
from hub_model.inference.images import ImageLike
from hub_model.inference.model_repo import ModelRepo, open_model_repo
from hub_model.inference.preprocessing import Preprocessing, cores

BATCH_SIZE = 32
CHUNK = 4  # most images per call of ONNX Runtime: their activations stay in the CPU's cache
Backend = Literal["auto", "onnx", "timm"]
Outputs = tuple[np.ndarray, np.ndarray, np.ndarray]  # logits, features, appearance
T = TypeVar("T")


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images over C classes; row i belongs to image i.

    `logits` and `features` are float32 [N, C] and [N, D]; `probabilities` float64 [N, C], temperature-scaled;
    `sets` boolean [N, C] by conformal level ("0.90", …), empty without calibration; `ood_score` float64
    [N] or None, above 1 for out-of-distribution inputs; `appearance` float64 [N, K] (see `hub_model.inference.appearance`),
    [N, 0] where the repo has no reference for it; `shift` is not None where 20 or more images look unlike those of every
    training laboratory, and `str(shift)` says how.
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
        """The most probable class of each image."""
        return [self.label_names[i] for i in self.logits.argmax(axis=1)]

    @property
    def confidences(self) -> np.ndarray:
        """The calibrated probability of that class, float64 [N]."""
        return self.probabilities.max(axis=1)

    def top(self, row: int, k: int = 3) -> list[tuple[str, float]]:
        """The k most probable classes of one image with their probabilities, in descending order."""
        order = np.argsort(-self.probabilities[row], kind="stable")[:k]
        return [(self.label_names[i], float(self.probabilities[row, i])) for i in order]


class Classifier:
    """A model loaded from a model repo. Safe to share between threads.

    `measures_appearance`: whether `forward` also computes the appearance statistics. True where `calibration.json` has a
    reference for them; set it to fit one.
    """

    def __init__(self, repo: ModelRepo, backend: Backend = "auto", threads: int | None = None) -> None:
        self.repo = repo
        self.label_names = repo.label_names
        descriptions = repo.config.label_descriptions
        self.label_descriptions = {label: descriptions.get(label, label) for label in repo.label_names}
        self.calibration = Calibration.from_repo(repo)
        self.measures_appearance = self.calibration.appearance is not None
        self.threads = threads or cores()
        self.preprocess = Preprocessing(repo.config.pretrained_cfg, self.threads)
        if backend == "auto":
            backend = "onnx" if repo.onnx and find_spec("onnxruntime") else "timm"
        if backend == "onnx" and not repo.onnx:
            raise RepoError(f"{repo.name} has no onnx/model.onnx")
        self.backend, self._network = backend, self._timm_network
        if backend == "onnx":
            self._session, self._network = self._onnx_session(self.threads), self._onnx_network

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | os.PathLike[str],
        revision: str | None = None,
        backend: Backend = "auto",
        threads: int | None = None,
    ) -> Classifier:
        """Load a model repo by Hub id (`owner/name`) or folder, with or without timm's prefix `hf-hub:` or `local-dir:`.

        `backend`: "onnx", "timm", or "auto" for the first one available. `threads`: CPU threads per batch (default:
        all). Raises RepoError with one sentence when the repo is missing, unsafe or breaks the contract.
        """
        return cls(open_model_repo(model_id, revision), backend, threads)

    def warmup(self) -> np.ndarray:
        """Run the full pipeline on a white image and return its pixels [1, 3, H, W].

        Raises RepoError where a file of the repo is unusable, files do not fit together, or an output is not finite.
        """
        try:
            pixels = self.preprocess([np.full((*self.preprocess.size, 3), 255, np.uint8)])
            logits, features, statistics = self.forward(pixels)
            if logits.shape[1] != len(self.label_names):
                raise ValueError(f"{logits.shape[1]} outputs for {len(self.label_names)} label_names")
            ood_score = self.interpret(logits, features, statistics).ood_score
            if not all(np.isfinite(output).all() for output in (logits, ood_score) if output is not None):
                raise ValueError("an output is not finite")
        except Exception as error:  # libraries raise anything for files that they cannot use
            raise RepoError(f"{self.repo.name} breaks the contract ({error!r})") from error
        return pixels

    def predict(self, images: ImageLike | Iterable[ImageLike], batch_size: int = BATCH_SIZE) -> Predictions:
        """Classify one image or many: PIL images, paths, encoded bytes, or arrays [H, W(, C)] (uint8, or see `depth.py`).

        Memory holds the pixels of one batch at a time, so `images` may be an iterator over any number of files. Raises
        ImageError for a file that cannot be decoded.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if isinstance(images, ImageLike):
            images = [images]
        images, outputs = iter(images), []
        while batch := list(islice(images, batch_size)):
            outputs += self._map_chunks(self._decode_and_forward, batch)
        if not outputs:
            widths = (len(self.label_names), np.float32), (0, np.float32), (0, np.float64)
            outputs = [tuple(np.empty((0, width), dtype) for width, dtype in widths)]
        return self.interpret(*_concatenate(outputs))

    def network(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits [N, C] and pooled features [N, D], float32, of normalised pixels [N, 3, H, W]."""
        return _concatenate(self._map_chunks(self._network, pixels))

    def forward(self, pixels: np.ndarray) -> Outputs:
        """Logits [N, C], pooled features [N, D] and appearance ([N, 0] where not measured) of normalised pixels [N, 3, H, W]."""
        return _concatenate(self._map_chunks(self._forward, pixels))

    def _forward(self, pixels: np.ndarray, threads: int) -> Outputs:
        statistics = np.empty((len(pixels), 0))
        if self.measures_appearance:  # first, while the pixels are in the CPU's cache
            statistics = appearance(self.preprocess.unnormalised(pixels))
        return *self._network(pixels, threads), statistics

    def _decode_and_forward(self, images: Sequence[ImageLike], threads: int) -> Outputs:
        return self._forward(self.preprocess(images, threads), threads)

    def _map_chunks(self, function: Callable[[Any, int], T], images: Sequence[Any] | np.ndarray) -> list[T]:
        """`function(chunk, threads)` of chunks of the images: with timm all at once, with ONNX Runtime a few per thread.

        Parallelism over images needs less synchronisation than parallelism within every layer.
        """
        if self.backend == "timm" or len(images) < 2:
            return [function(images, self.threads)]
        size = min(CHUNK, -(-len(images) // self.threads))
        chunks = (images[start : start + size] for start in range(0, len(images), size))
        return list((self._pool.map if self.threads > 1 else map)(partial(function, threads=1), chunks))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        self._single_threaded_session = self._onnx_session(1)
        return ThreadPoolExecutor(self.threads, "inference")

    def interpret(self, logits: np.ndarray, features: np.ndarray, statistics: np.ndarray) -> Predictions:
        """Predictions from the outputs of `forward`: logits [N, C], features [N, D], appearance [N, K]."""
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
        """The timm model in evaluation mode, as `timm.create_model("hf-hub:…", pretrained=True)` returns it."""
        return load_timm_model(self.repo)

    def _timm_network(self, pixels: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        import torch  # which uses the threads that the process has set

        with torch.inference_mode():
            device = next(self.model.parameters()).device  # a GPU where `self.model` was moved to one
            maps = self.model.forward_features(torch.from_numpy(pixels).to(device))
            features = self.model.forward_head(maps, pre_logits=True)
            return self.model.forward_head(maps).cpu().numpy(), features.cpu().numpy()

    def _onnx_network(self, pixels: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
        session = self._session if threads == self.threads else self._single_threaded_session
        logits, features = session.run(["logits", "features"], {"pixel_values": pixels})
        return logits, features

    def _onnx_session(self, threads: int) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # idle threads do not spin: the cores are needed to decode the next batch
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


def _concatenate(chunks: Iterable[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Each output of all chunks as one array."""
    return tuple(np.concatenate(outputs) for outputs in zip(*chunks, strict=True))


def load_timm_model(repo: ModelRepo) -> Any:
    """Build the architecture of `config.json` and load `model.safetensors` into it, with `strict=True`."""
    import timm
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    architecture, problem = repo.config.architecture, f"{repo.name} breaks the contract"
    if not timm.is_model(architecture):
        raise RepoError(f"{problem}: timm has no architecture {architecture!r}")
    try:
        model = timm.create_model(architecture, num_classes=len(repo.label_names), **repo.config.model_args)
        weights = load_file(repo.weights)
        model.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True)
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise RepoError(f"{problem}: model.safetensors does not fit ({first_line(error)})") from None
    return model.eval()
