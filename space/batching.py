"""Dynamic batching: requests that arrive while a batch is computed form the next one.

In: preprocessed pixels from any number of threads. Out: each caller's own logits and features. A single thread computes, so
memory and CPU use do not grow with the number of visitors. (Gradio's `batch=True` fails every visitor of a batch when one
upload is bad; here each upload is checked before it joins a batch.)
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
    """Runs one classifier for all callers, on at most `max_batch` images at a time."""

    def __init__(self, classifier: Classifier, max_batch: int = MAX_BATCH) -> None:
        self.classifier, self.max_batch = classifier, max_batch
        self._requests: queue.SimpleQueue[tuple[np.ndarray, Future]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="batches", daemon=True).start()

    def predict(self, images: list[ImageLike]) -> Predictions:
        """Preprocess in the caller's thread, compute in a batch shared with other callers."""
        futures = []
        for start in range(0, len(images), self.max_batch):
            pixels = self.classifier.preprocess(images[start : start + self.max_batch])
            futures.append(Future())
            self._requests.put((pixels, futures[-1]))
        outputs = zip(*(future.result() for future in futures), strict=True)
        return self.classifier.interpret(*map(np.concatenate, outputs))

    def _work(self) -> None:
        pending = None  # a request that did not fit into the previous batch: requests are never split
        while True:
            batch = [pending or self._requests.get()]
            pending, size = None, len(batch[0][0])
            while size < self.max_batch:
                try:
                    request = self._requests.get_nowait()
                except queue.Empty:
                    break
                if size + len(request[0]) > self.max_batch:
                    pending = request
                    break
                batch.append(request)
                size += len(request[0])
            self._compute(batch)

    def _compute(self, batch: list[tuple[np.ndarray, Future]]) -> None:
        try:
            outputs = self.classifier.forward(np.concatenate([pixels for pixels, _ in batch]))
        except Exception as error:  # raised in the callers' threads; this one goes on
            for _, future in batch:
                future.set_exception(error)
            return
        start = 0
        for pixels, future in batch:
            rows = slice(start, start + len(pixels))
            future.set_result(tuple(output[rows] for output in outputs))
            start = rows.stop
