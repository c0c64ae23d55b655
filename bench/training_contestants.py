"""One contestant of `bench.training`: `python -m bench.training_contestants SCRIPT PRECISION IMAGES`; turns in, images/s out.

It gets ready, trains a first turn, says so, and trains `STEPS` steps for each line on stdin (peers fewer, once they have taken
`ENOUGH` seconds). The scripts of timm and Transformers are not in their packages: their loops are rebuilt here from their
documentation and published source, with what they do at each step and their own data pipeline; every batch is a full one. Ours
runs as it is.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

STEPS, BATCH, SIZE, CLASSES = 3, 32, 128, 7
ENOUGH = 4.0  # seconds of a turn, after which no further step is begun
RELEASE = Path(__file__).resolve().parents[1] / "hub_model" / "release"
Turns = dict[str, Callable[[], int]]  # each returns how many steps it trained


def ours(precision: str, images: Path, keep_memory: bool = True) -> Turns:
    """`train_accelerate.py`: epochs of `STEPS` batches through its own loop; and its step on one batch that is ready."""
    import datasets

    import train_accelerate
    from training.data import normalise
    from training.distill import label_loss

    if not keep_memory:
        train_accelerate.keep_freed_memory = lambda: False
    place = Path(tempfile.mkdtemp(dir=images.parent))
    names = sorted(folder.name for folder in images.iterdir())
    files = random.Random(0).sample(sorted(images.glob("*/*.jpg")), STEPS * BATCH)
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "label": [names.index(file.parent.name) for file in files],
    }
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    table = datasets.Dataset.from_dict(columns, features=kinds)
    for split in ("train", "validation"):
        table.to_parquet(place / "dataset" / f"{split}.parquet")
    arguments = ["--dataset", str(place / "dataset"), "--output_dir", str(place / "run"), "--no-pretrained"]
    arguments += ["--model", "rexnet_150", "--image_size", str(SIZE), "--batch_size", str(BATCH)]
    arguments += ["--mixed_precision", precision, "--data", "memory", "--epochs", "1000000"]
    run = train_accelerate.Run(
        train_accelerate.parse_options([*arguments, "--checkpoint_minutes", "1000000"])
    )
    run.schedule.start(run.progress)
    run.saved, run.training_size = time.monotonic(), run.size
    split, _ = run.loader.splits(run.size)

    def loop() -> int:
        run.train_epoch(split)
        progress = run.progress
        progress.epoch, progress.step, progress.losses, progress.confusion = progress.epoch + 1, 0, None, None
        return STEPS

    batch = next(iter(split.training(0)))
    views, targets = run.mix(run.augment(batch.images.float() / 255, SIZE), batch.labels)
    views = normalise(views, run.data_config)

    def ceiling() -> int:
        for _ in range(STEPS):
            logits, _ = run.student(views)
            run.accelerator.backward(label_loss(logits.float(), targets, run.class_weights))
            run.progress.update += 1
            run.accelerator.clip_grad_norm_(run.student.parameters(), run.options.clip_grad)
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.ema.update(run.network, step=run.progress.update)
        return STEPS

    return {"loop": loop, "ceiling": ceiling}


def timm(precision: str, images: Path) -> Turns:
    """timm's `train.py --opt adamw --clip-grad 2 --model-ema --mixup 0.2 --drop 0.2 --drop-path 0.1 --channels-last -j 2`."""
    from timm.data import FastCollateMixup, create_dataset, create_loader
    from timm.loss import SoftTargetCrossEntropy
    from timm.models import create_model
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import AverageMeter, ModelEmaV3, dispatch_clip_grad

    device = torch.device("cpu")
    model = create_model("rexnet_150", num_classes=CLASSES, drop_rate=0.2, drop_path_rate=0.1)
    model.to(device, memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, "adamw", lr=2e-3, weight_decay=0.05)
    scheduler = CosineLRScheduler(optimizer, 1_000_000, t_in_epochs=False)
    average = ModelEmaV3(model, decay=0.998)
    loader = create_loader(
        create_dataset("", root=str(images), split="train", is_training=True, search_split=False),
        input_size=(3, SIZE, SIZE), batch_size=BATCH, is_training=True, interpolation="random", num_workers=2,
        collate_fn=FastCollateMixup(mixup_alpha=0.2, label_smoothing=0.1, num_classes=CLASSES), device=device,
    )  # fmt: skip
    loss_function, losses = SoftTargetCrossEntropy(), AverageMeter()
    model.train()

    def steps() -> Iterator[None]:
        for number, (views, targets) in enumerate(itertools.chain.from_iterable(itertools.repeat(loader))):
            views = views.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = loss_function(model(views), targets)
            loss.backward()
            dispatch_clip_grad(model.parameters(), 2.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update(model, step=number)
            losses.update(loss.item(), len(views))
            scheduler.step_update(number)
            yield

    return {"loop": taken_from(steps())}


def hf(precision: str, images: Path) -> Turns:
    """Transformers' `run_image_classification_no_trainer.py --train_dir IMAGES --model_name_or_path REXNET_150`."""
    import datasets
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor
    from transformers import AutoModelForImageClassification, get_scheduler

    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    model = AutoModelForImageClassification.from_pretrained(RELEASE)
    table = datasets.load_dataset("imagefolder", data_dir=str(images), split="train")
    normalise = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    transform = Compose([RandomResizedCrop(SIZE), RandomHorizontalFlip(), ToTensor(), normalise])

    def prepare(examples: dict) -> dict:
        examples["pixel_values"] = [transform(image.convert("RGB")) for image in examples["image"]]
        return examples

    def collate(examples: list[dict]) -> dict:
        pixels = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixels, "labels": torch.tensor([example["label"] for example in examples])}

    loader = DataLoader(
        table.with_transform(prepare), shuffle=True, collate_fn=collate, batch_size=BATCH, drop_last=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=1_000_000)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    model.train()

    def steps() -> Iterator[None]:
        for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            yield

    return {"loop": taken_from(steps())}


def taken_from(steps: Iterator[None]) -> Callable[[], int]:
    """A turn: the next `STEPS` steps, or as many as begin in `ENOUGH` seconds."""

    def turn() -> int:
        started = time.perf_counter()
        done = 0
        while done < STEPS and time.perf_counter() - started < ENOUGH:
            next(steps)
            done += 1
        return done

    return turn


SCRIPTS = {
    "ours": ours,
    "ours_usual_malloc": lambda *arguments: ours(*arguments, keep_memory=False),
    "timm": timm,
    "hf": hf,
}


def main() -> None:
    """Get ready, then train a turn for each line on stdin; what is said to the bench begins with `bench: `."""
    script, precision, images = sys.argv[1:]
    torch.manual_seed(0)
    turns = SCRIPTS[script](precision, Path(images))
    for turn in turns.values():
        turn()
    print("bench: ready", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        for line in sys.stdin:
            started = time.perf_counter()
            images_seen = BATCH * turns[line.strip()]()
            print(f"bench: {images_seen / (time.perf_counter() - started)}", flush=True)


if __name__ == "__main__":
    main()
