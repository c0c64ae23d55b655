"""Visitors share batches: requests that arrive while one batch is computed make up the next.

In: preprocessed pixels from any number of threads. Out: each caller's own logits and features. One thread
computes, so memory and CPU use do not grow with the number of visitors. (Gradio's own `batch=True` fails
every visitor of a batch when one upload is bad; here each is checked before it joins.)
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future

import numpy as np

from hub_model.inference.classifier import Classifier, Predictions
from hub_model.inference.images import ImageLike

MAX_BATCH = 32


class Batcher:
    """Answers through one classifier, at most `max_batch` images at a time (one request is never split)."""

    def __init__(self, classifier: Classifier, max_batch: int = MAX_BATCH) -> None:
        self.classifier, self.max_batch = classifier, max_batch
        self._waiting: queue.SimpleQueue[tuple[np.ndarray, Future]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="batches", daemon=True).start()

    def predict(self, images: list[ImageLike]) -> Predictions:
        """Preprocess in the caller's thread, compute with whoever else is waiting."""
        answers = [
            self._submit(self.classifier.preprocess(images[start : start + self.max_batch]))
            for start in range(0, len(images), self.max_batch)
        ]
        results = zip(*(answer.result() for answer in answers), strict=True)
        return self.classifier.interpret(*(np.concatenate(parts) for parts in results))

    def _submit(self, pixels: np.ndarray) -> Future:
        answer: Future = Future()
        self._waiting.put((pixels, answer))
        return answer

    def _work(self) -> None:
        left_over = None
        while True:
            requests = [left_over or self._waiting.get()]
            left_over, size = None, len(requests[0][0])
            while size < self.max_batch:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if size + len(following[0]) > self.max_batch:
                    left_over = following
                    break
                requests.append(following)
                size += len(following[0])
            self._compute(requests)

    def _compute(self, requests: list[tuple[np.ndarray, Future]]) -> None:
        try:
            outputs = self.classifier.forward(np.concatenate([pixels for pixels, _ in requests]))
        except Exception as error:  # the callers see it; the thread lives on
            for _, answer in requests:
                answer.set_exception(error)
            return
        start = 0
        for pixels, answer in requests:
            rows = slice(start, start + len(pixels))
            answer.set_result(tuple(output[rows] for output in outputs))
            start = rows.stop
