"""`train_accelerate.py`, which also notes the images it trains on: a line a batch in $SEEN/RANK.jsonl, of their SHA-256 sums."""

import hashlib
import json
import os
import sys
from pathlib import Path

import train_accelerate


class CountingRun(train_accelerate.Run):
    def loss(self, batch):
        images = [hashlib.sha256(image.cpu().numpy().tobytes()).hexdigest() for image in batch.images]
        with (Path(os.environ["SEEN"]) / f"{self.accelerator.process_index}.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": self.progress.epoch, "images": images}) + "\n")
        return super().loss(batch)


if __name__ == "__main__":
    train_accelerate.Run = CountingRun
    sys.exit(train_accelerate.main())
