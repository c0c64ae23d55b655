"""Calibration of a classifier's outputs by the `calibration.json` of its model repo.

In: logits and features of a batch. Out: calibrated probabilities, conformal sets, OOD scores, verdicts, a
differential count. A repo without `calibration.json` gets temperature 1, no sets, no score and the verdict
"uncalibrated": nothing is claimed that was not measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from hub_model.inference.appearance import AppearanceReference
from hub_model.inference.counts import Count, differential_count
from hub_model.inference.errors import RepoError
from hub_model.inference.model_repo import ModelRepo
from hub_model.inference.ood import OodRule

CALIBRATION = "calibration.json"
VERDICT_LEVEL = "0.95"  # of the conformal sets that verdicts are based on
UNIDENTIFIABLE = "not identifiable"  # in the description of a class: experts could not name these cells


@dataclass(frozen=True)
class Verdict:
    """`kind` is the verdict, `labels` the classes that remain possible, most probable first."""

    kind: Literal["sure", "unidentifiable", "between", "unknown", "uncalibrated"]
    labels: tuple[str, ...]

    def __str__(self) -> str:
        if self.kind == "between":
            return f"between {', '.join(self.labels[:-1])} and {self.labels[-1]}"
        words = {"unidentifiable": "a cell that cannot be identified", "unknown": "not a cell I know"}
        return words.get(self.kind, self.kind)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities [N, C] in float64 of logits [N, C] divided by the temperature (Guo et al. 2017)."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def conformal_threshold(scores: np.ndarray, level: float) -> float:
    """The threshold that a new exchangeable score does not exceed with probability of at least `level`; inf if there is none.

    The ceil((n + 1) · level)-th smallest of the n calibration scores (Vovk 2012; Angelopoulos & Bates 2023,
    section 1). With fewer than level / (1 - level) scores no such threshold exists.
    """
    n = len(scores)
    rank = math.ceil((n + 1) * level - 1e-9)  # 1e-9: (n + 1) · level may be an integer that floats overshoot
    return math.inf if rank > n else float(np.sort(scores)[rank - 1])


@dataclass(frozen=True)
class Calibration:
    """The contents of `calibration.json`.

    `thresholds`: those of the conformal sets [C] by level. `sure` [C]: the lowest probability at which a prediction of each class
    is sure, inf for never; `sure_error`: the error rate allowed among sure predictions. `prior` [C] and `confusion` [C, 2C] are
    for differential counts. `unidentifiable`: the classes described as "not identifiable".
    """

    label_names: tuple[str, ...]
    temperature: float = 1.0
    thresholds: dict[str, np.ndarray] = field(default_factory=dict)
    sure: np.ndarray | None = None
    sure_error: float | None = None
    ood: OodRule | None = None
    appearance: AppearanceReference | None = None
    prior: np.ndarray | None = None
    confusion: np.ndarray | None = None
    unidentifiable: frozenset[str] = frozenset()

    @classmethod
    def from_repo(cls, repo: ModelRepo) -> Calibration:
        """Read `calibration.json` and its arrays from a model repo; RepoError where it is malformed."""
        return cls.from_folder(repo.folder, repo.label_names, repo.config.label_descriptions, repo.name)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        label_names: Sequence[str],
        descriptions: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> Calibration:
        """Read them from a run folder or a model repo folder; `name` is its name in error messages."""
        path, name = folder / CALIBRATION, name or str(folder)
        if not path.is_file():
            return cls(tuple(label_names))
        try:
            found = json.loads(path.read_text("utf-8"))
            temperature = float(found.get("temperature", {}).get("value", 1.0))
            if not 0 < temperature < math.inf:
                raise ValueError(f"temperature {temperature} is not a finite number above 0")
            thresholds = {
                level: np.array([float(entry["thresholds"][label]) for label in label_names])
                for level, entry in found.get("conformal", {}).items()
            }
            by_class = {
                key: np.array([found[key][values][label] for label in label_names], float)
                for key, values in (("prior", "shares"), ("confusion", "answers"), ("sure", "thresholds"))
                if key in found
            }
            if "sure" in by_class:  # null, which is NaN here: no prediction of this class is sure
                by_class["sure"] = np.nan_to_num(by_class["sure"], nan=math.inf)
            n = len(label_names)
            if "confusion" in by_class and by_class["confusion"].shape != (n, 2 * n):
                raise ValueError(f"confusion must have {2 * n} answers for each of the {n} classes")
            sure_error = found.get("sure", {}).get("error")
            sure_error = None if sure_error is None else float(sure_error)
            ood, reference = found.get("out_of_distribution"), found.get("appearance")
            ood = OodRule.read(folder, ood) if ood else None
            reference = AppearanceReference.read(reference) if reference else None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise RepoError(f"{name} breaks the contract: {CALIBRATION} ({error!r})") from None
        described = (descriptions or {}).items()
        return cls(
            tuple(label_names),
            temperature,
            thresholds,
            sure_error=sure_error,
            ood=ood,
            appearance=reference,
            unidentifiable=frozenset(label for label, text in described if UNIDENTIFIABLE in text.lower()),
            **by_class,
        )

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return softmax(logits, self.temperature)

    def sets(self, probabilities: np.ndarray) -> dict[str, np.ndarray]:
        """Boolean membership [N, C] by level: class c is in the set iff 1 - p_c <= its threshold."""
        return {level: 1 - probabilities <= limit for level, limit in self.thresholds.items()}

    def ood_score(self, features: np.ndarray, statistics: np.ndarray | None = None) -> np.ndarray | None:
        """Distance [N] from the training images, divided by its threshold: above 1 is OOD; None without an OOD rule.

        It is that of the pooled features [N, D]; with an appearance reference, the weighted geometric mean of that and of the
        distance of the appearance statistics [N, K].
        """
        if self.ood is None:
            return None
        score = self.ood.score(features) / self.ood.threshold
        if self.appearance is None or statistics is None:
            return score
        weight = self.appearance.weight
        distance = self.appearance.score(statistics) / self.appearance.threshold
        return score ** (1 - weight) * distance**weight

    def verdicts(self, probabilities: np.ndarray, ood_score: np.ndarray | None) -> list[Verdict]:
        """One verdict per image; "between" names the classes of the conformal set, and at least the two most probable ones."""
        members = self.sets(probabilities).get(VERDICT_LEVEL)
        rejected = self.rejected(ood_score, len(probabilities))
        verdicts = []
        for row, p in enumerate(probabilities):
            order = np.argsort(-p, kind="stable")
            names = [self.label_names[i] for i in order]
            if rejected[row]:
                verdicts.append(Verdict("unknown", (names[0],)))
            elif members is None or self.sure is None:
                verdicts.append(Verdict("uncalibrated", (names[0],)))
            elif p[order[0]] >= self.sure[order[0]]:
                kind = "unidentifiable" if names[0] in self.unidentifiable else "sure"
                verdicts.append(Verdict(kind, (names[0],)))
            else:
                possible = [names[0], *(self.label_names[i] for i in order[1:] if members[row, i])]
                verdicts.append(Verdict("between", tuple(possible if len(possible) > 1 else names[:2])))
        return verdicts

    def rejected(self, ood_score: np.ndarray | None, n: int) -> np.ndarray:
        """Boolean [N]: which of the n images are OOD."""
        return np.zeros(n, dtype=bool) if ood_score is None else np.asarray(ood_score) > 1

    def count(
        self, probabilities: np.ndarray, ood_score: np.ndarray | None = None, known: np.ndarray | None = None
    ) -> list[Count]:
        """The differential count of the cells that are not OOD (see `differential_count`)."""
        cells = probabilities[~self.rejected(ood_score, len(probabilities))]
        return differential_count(self.label_names, cells, self.prior, self.confusion, known)


def names_in(sets: np.ndarray, label_names: Sequence[str]) -> list[list[str]]:
    """The names of the classes in each set, from boolean membership [N, C]."""
    return [[name for name, inside in zip(label_names, row, strict=True) if inside] for row in sets]
