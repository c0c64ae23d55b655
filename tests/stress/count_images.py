"""`train_accelerate.py` with a log of the images it trains on: their SHA-256 in $SEEN/RANK.jsonl, one line per batch."""

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
