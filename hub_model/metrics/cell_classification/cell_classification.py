"""The metrics of this project as an `evaluate` module: all reported metrics from scores and true labels.

`evaluate.load("hub_model/metrics/cell_classification")` loads it from this folder, offline;
`evaluate.load("OWNER/cell_classification")` from the Space that the folder is published as. It needs only numpy, scipy
and scikit-learn. (`evaluate` reads this file's imports with a regular expression: one import per line.) Sums over
images are exact (`math.fsum`), so results do not depend on the order of the images.
"""

import math

import datasets
import evaluate
import numpy as np
from scipy.special import logsumexp
from scipy.stats import rankdata
from sklearn.metrics import confusion_matrix

_DESCRIPTION = """\
Metrics for single-cell classifiers, computed from the scores on a full split: accuracy, balanced accuracy,
macro-F1, one-vs-rest AUC, log loss, expected calibration error, precision, recall, F1, AUC and support of each
class, and the confusion matrix. Micro-F1 equals accuracy and is not listed separately.
"""

_KWARGS_DESCRIPTION = """
Args:
    prediction_scores (`list` of `list` of `float`, images x classes): logits, or probabilities of each class.
    references (`list` of `int`): true class of each image, an index into the columns of the scores.
    label_names (`list` of `str`, optional): names of the classes, keys of `per_class`; default "0", "1", ...
    kind (`str`, optional): "logits", "probabilities" or "auto" (default), which treats scores as probabilities
        if all rows are non-negative and sum to 1, else as logits.

Returns (a dict of plain Python numbers, JSON-serializable; an undefined metric is `None`):
    images (`int`): number of images scored.
    accuracy (`float`): fraction of images whose largest score (the first of ties) is that of the true class.
    balanced_accuracy (`float`): mean recall over the classes that occur in `references`.
    macro_f1 (`float`): mean F1 over the classes that occur in `references` or are predicted.
    auc (`float`): mean one-vs-rest area under the ROC curve over the classes where it is defined (macro).
    log_loss (`float`): mean negative natural logarithm of the true class's probability (clipped at 2.2e-16, as in
        scikit-learn).
    ece (`float`): expected calibration error of the top class, 15 equal-width bins of confidence, (low, high].
    per_class (`dict`): for each class `precision`, `recall`, `f1` (0 where the denominator is 0), `auc` (`None`
        without images in or outside the class) and `support` (number of images of that class).
    confusion_matrix (`list` of `list` of `int`): rows are true classes, columns predicted ones.

Examples:

    >>> metric = evaluate.load("hub_model/metrics/cell_classification")
    >>> scores = [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8]]
    >>> names = ["BLA", "EOS", "LYT"]
    >>> result = metric.compute(prediction_scores=scores, references=[0, 1, 1, 2], label_names=names)
    >>> result["accuracy"], round(result["macro_f1"], 4), result["auc"]
    (0.75, 0.7778, 1.0)
    >>> result["per_class"]["EOS"]
    {'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666, 'auc': 1.0, 'support': 2}
    >>> result["confusion_matrix"]
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
"""

_CITATION = """\
@article{scikit-learn,
  title = {Scikit-learn: Machine Learning in Python},
  author = {Pedregosa, F. and Varoquaux, G. and Gramfort, A. and Michel, V. and Thirion, B. and others},
  journal = {Journal of Machine Learning Research}, volume = {12}, pages = {2825--2830}, year = {2011}
}
@inproceedings{guo2017calibration,
  title = {On Calibration of Modern Neural Networks},
  author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle = {International Conference on Machine Learning}, year = {2017}
}
"""

ECE_BINS = 15


def probabilities_of(scores: np.ndarray, kind: str = "auto") -> np.ndarray:
    """Probabilities, float64 [N, C], with rows that sum to 1, from logits or probabilities [N, C].

    Raises `ValueError` if the scores are not 2-D, not finite, or not of the given `kind`.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] == 0 or scores.shape[1] < 2:
        raise ValueError(
            f"prediction_scores must be images x classes (2 classes or more), not of shape {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("prediction_scores holds a value that is not finite (NaN or infinity)")
    sums = scores.sum(axis=1, keepdims=True)
    are_probabilities = bool((scores >= 0).all() and np.allclose(sums, 1, atol=1e-3))
    if kind == "logits" or (kind == "auto" and not are_probabilities):
        return np.exp(scores - logsumexp(scores, axis=1, keepdims=True))
    if kind not in ("auto", "probabilities"):
        raise ValueError(f"kind must be 'auto', 'logits' or 'probabilities', not {kind!r}")
    if not are_probabilities:
        raise ValueError(
            "kind is 'probabilities', but a row of prediction_scores is negative or does not sum to 1"
        )
    return scores / sums


def confidence_bins(confidence: np.ndarray) -> np.ndarray:
    """Index, int [N] in 0...14, of the equal-width bin (low, high] of each confidence [N] in 0...1."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over bins, weighted by images (Guo et al. 2017, eq. 3).

    `confidence` [N] in 0...1 and `correct` [N] are those of the top class.
    """
    bins, gap = confidence_bins(confidence), correct.astype(np.float64) - confidence
    return math.fsum(abs(math.fsum(gap[bins == index])) for index in range(ECE_BINS)) / len(bins)


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -ln p of the true class, p clipped to float64's epsilon as scikit-learn's `log_loss` does."""
    true = np.take_along_axis(probabilities, labels[:, None], axis=1)
    return math.fsum(-np.log(np.clip(true, np.finfo(np.float64).eps, 1))[:, 0]) / len(labels)


def one_vs_rest_auc(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class against the rest, [C] (Mann-Whitney U); NaN if either is empty."""
    member = labels[:, None] == np.arange(probabilities.shape[1])
    inside = member.sum(axis=0)
    pairs = inside * (len(labels) - inside)
    above = (rankdata(probabilities, axis=0) * member).sum(axis=0) - inside * (inside + 1) / 2
    return np.divide(above, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def measure(
    scores: np.ndarray, labels: np.ndarray, label_names: list[str] | None = None, kind: str = "auto"
) -> dict:
    """All metrics from scores [N, C] and labels int [N], as the dict that `compute` returns.

    Raises `ValueError` if the shapes do not match or a label has no column.
    """
    probabilities, labels = probabilities_of(scores, kind), np.asarray(labels)
    images, classes = probabilities.shape
    names = list(label_names) if label_names is not None else [str(index) for index in range(classes)]
    if len(names) != classes or len(set(names)) != classes:
        raise ValueError(
            f"label_names must be {classes} different names, one for each column of the scores, not {names}"
        )
    if labels.shape != (images,):
        raise ValueError(f"{images} images are scored, but references have shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"references must be labels from 0 to {classes - 1}, but go from {labels.min()} to {labels.max()}"
        )

    predicted = probabilities.argmax(axis=1)
    matrix = confusion_matrix(labels, predicted, labels=range(classes))
    hits, support, answers = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    precision, recall, f1 = (
        np.divide(top, bottom, out=np.zeros(classes), where=bottom > 0)
        for top, bottom in ((hits, answers), (hits, support), (2 * hits, support + answers))
    )
    auc = one_vs_rest_auc(probabilities, labels)
    defined = auc[~np.isnan(auc)]
    per_class = {
        name: {
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "auc": None if np.isnan(auc[index]) else float(auc[index]),
            "support": int(support[index]),
        }
        for index, name in enumerate(names)
    }
    return {
        "images": images,
        "accuracy": float(hits.sum() / images),
        "balanced_accuracy": float(recall[support > 0].mean()),
        "macro_f1": float(f1[support + answers > 0].mean()),
        "auc": float(defined.mean()) if len(defined) else None,
        "log_loss": negative_log_likelihood(probabilities, labels),
        "ece": expected_calibration_error(probabilities.max(axis=1), predicted == labels),
        "per_class": per_class,
        "confusion_matrix": matrix.tolist(),
    }


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class CellClassification(evaluate.Metric):
    """`measure` as a metric, over all batches added with `add_batch` or passed to `compute`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "prediction_scores": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://scikit-learn.org/stable/modules/model_evaluation.html"],
        )

    def _compute(self, prediction_scores, references, label_names=None, kind="auto") -> dict:
        return measure(np.asarray(prediction_scores), np.asarray(references), label_names, kind)
