"""From logits to how far they can be trusted: what `calibration.json` of the model repo says, applied.

In: logits and features of a batch. Out: calibrated probabilities, conformal sets, a ood_score score, a
verdict. A repo without `calibration.json` gets temperature 1, no sets, no score and the verdict
"uncalibrated": nothing is claimed that was not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import ModelRepo
from hub_model.inference.ood import SCORES

# Released model, validation: where one class is left at this level, it is right 97 times in 100; at 0.90, 92 times, at times with
# a probability of 0.3.
VERDICT_LEVEL = "0.95"


@dataclass(frozen=True)
class Verdict:
    """`kind` is the plain answer; `labels` the classes that it leaves open, likeliest first."""

    kind: Literal["sure", "between", "unknown", "uncalibrated"]
    labels: tuple[str, ...]

    def __str__(self) -> str:
        if self.kind == "sure":
            return "sure"
        if self.kind == "between":
            return f"between {', '.join(self.labels[:-1])} and {self.labels[-1]}"
        return "not a cell I know" if self.kind == "unknown" else "uncalibrated"


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities [N, C] in float64 of logits [N, C] divided by the temperature (Guo et al. 2017)."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class Calibration:
    """Temperature, conformal thresholds [C] by level, and the out-of-distribution rule of one model repo."""

    label_names: tuple[str, ...]
    temperature: float = 1.0
    thresholds: dict[str, np.ndarray] = field(default_factory=dict)
    stranger: dict[str, Any] | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def from_repo(cls, repo: ModelRepo) -> Calibration:
        """Read `calibration.json` (and its arrays); a file that breaks the contract raises RepoError."""
        found = repo.read_json("calibration.json")
        if found is None:
            return cls(repo.label_names)
        try:
            temperature = float(found.get("temperature", {}).get("value", 1.0))
            thresholds = {
                level: np.array([float(entry["thresholds"][label]) for label in repo.label_names])
                for level, entry in found.get("conformal", {}).items()
            }
            stranger = found.get("out_of_distribution")
            if not temperature > 0:
                raise ValueError(f"temperature {temperature} is not positive")
            if stranger is not None:
                float(stranger["threshold"])
                str(stranger["score"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RepoError(f"{repo.name} breaks the contract: calibration.json ({error!r})") from None
        path, arrays = repo.folder / "out_of_distribution.safetensors", {}
        if path.is_file():
            from safetensors import SafetensorError
            from safetensors.numpy import load_file

            try:
                stored = load_file(path)
            except (SafetensorError, OSError) as error:
                raise RepoError(
                    f"{repo.name} breaks the contract: {path.name} cannot be read ({error})"
                ) from None
            arrays = {  # converted once, not for every answer; training features are large and compared in float32
                name: array if name == "training_features" else array.astype(np.float64)
                for name, array in stored.items()
            }
        trust = cls(repo.label_names, temperature, thresholds, stranger, arrays)
        trust._check_score(repo.name)
        return trust

    def _check_score(self, name: str) -> None:
        if self.stranger and self.stranger["score"] not in SCORES:
            known = ", ".join(SCORES)
            raise RepoError(
                f"{name}: unknown out-of-distribution score {self.stranger['score']!r} (known: {known})"
            )

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return softmax(logits, self.temperature)

    def sets(self, probabilities: np.ndarray) -> dict[str, np.ndarray]:
        """Boolean membership [N, C] by level: class c is in the set iff 1 - p_c <= its threshold."""
        return {level: 1 - probabilities <= limit for level, limit in self.thresholds.items()}

    def ood_score(self, logits: np.ndarray, features: np.ndarray) -> np.ndarray | None:
        """Score [N], higher = stranger; None when the repo has no rule."""
        if not self.stranger:
            return None
        return SCORES[self.stranger["score"]](
            np.asarray(logits, np.float64), features, self.stranger, self.arrays
        )

    def verdicts(self, probabilities: np.ndarray, ood_score: np.ndarray | None) -> list[Verdict]:
        """One plain verdict an image. An empty set is doubt too: the two likeliest are named; so is one without the likeliest."""
        members = self.sets(probabilities).get(VERDICT_LEVEL)
        verdicts = []
        for row, p in enumerate(probabilities):
            order = np.argsort(-p, kind="stable")
            names = [self.label_names[i] for i in order]
            if ood_score is not None and ood_score[row] > float(self.stranger["threshold"]):
                verdicts.append(Verdict("unknown", (names[0],)))
            elif members is None:
                verdicts.append(Verdict("uncalibrated", (names[0],)))
            else:
                left = [self.label_names[i] for i in order if members[row, i]]
                left = list(dict.fromkeys([names[0], *left])) if left else names[:2]
                verdicts.append(Verdict("sure" if len(left) == 1 else "between", tuple(left)))
        return verdicts


def names_in(sets: np.ndarray, label_names: Sequence[str]) -> list[list[str]]:
    """Membership [N, C] as lists of names."""
    return [[name for name, inside in zip(label_names, row, strict=True) if inside] for row in sets]
