"""`train_accelerate.py`, which also notes the images it trains on: a line a batch in $SEEN/RANK.jsonl, of their SHA-256 sums."""

import hashlib
import json
import os
import sys
from pathlib import Path

import train_accelerate
from training.data import StreamSplit

training = StreamSplit.training


def counted(split, epoch, start=0):
    for batch in training(split, epoch, start):
        images = [hashlib.sha256(image.cpu().numpy().tobytes()).hexdigest() for image in batch.images]
        with (Path(os.environ["SEEN"]) / f"{split.process}.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": epoch, "images": images}) + "\n")
        yield batch


if __name__ == "__main__":
    StreamSplit.training = counted
    sys.exit(train_accelerate.main())
