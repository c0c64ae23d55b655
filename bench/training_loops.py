"""Baselines of `bench.training`: `python -m bench.training_loops LOOP IMAGES` trains and prints images/s.

The scripts of timm and Transformers are not part of their packages: their loops are reimplemented here from their documentation
and published source, with the same operations per step and their own data pipelines. `ceiling` is our step on one constant batch.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.compare import RELEASE
from training.process import keep_freed_memory

WARMUP, STEPS, BATCH, SIZE, CLASSES = 2, 6, 32, 128, 7


def ceiling(images: Path) -> Iterator[None]:
    """Forward, backward, gradient clipping, AdamW and EMA on one constant batch."""
    from timm.loss import SoftTargetCrossEntropy
    from timm.models import create_model
    from timm.utils import ModelEmaV3

    keep_freed_memory()  # as our step does
    model = create_model("rexnet_150", num_classes=CLASSES, drop_rate=0.2, drop_path_rate=0.1)
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    ema, loss_function = ModelEmaV3(model, decay=0.998), SoftTargetCrossEntropy()
    views = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    targets = torch.rand(BATCH, CLASSES).softmax(dim=1)
    for step in itertools.count():
        loss_function(model(views), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step=step)
        yield


def timm(images: Path) -> Iterator[None]:
    """timm's `train.py --opt adamw --clip-grad 2 --model-ema --mixup 0.2 --drop 0.2 --drop-path 0.1 --channels-last -j 2`."""
    from timm.data import FastCollateMixup, create_dataset, create_loader
    from timm.loss import SoftTargetCrossEntropy
    from timm.models import create_model
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import AverageMeter, ModelEmaV3, dispatch_clip_grad

    device = torch.device("cpu")
    model = create_model("rexnet_150", num_classes=CLASSES, drop_rate=0.2, drop_path_rate=0.1)
    model.train().to(device, memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, "adamw", lr=2e-3, weight_decay=0.05)
    scheduler = CosineLRScheduler(optimizer, 1_000_000, t_in_epochs=False)
    ema = ModelEmaV3(model, decay=0.998)
    loader = create_loader(
        create_dataset("", root=str(images), split="train", is_training=True, search_split=False),
        input_size=(3, SIZE, SIZE), batch_size=BATCH, is_training=True, interpolation="random", num_workers=2,
        collate_fn=FastCollateMixup(mixup_alpha=0.2, label_smoothing=0.1, num_classes=CLASSES), device=device,
    )  # fmt: skip
    loss_function, losses = SoftTargetCrossEntropy(), AverageMeter()
    for step, (views, targets) in enumerate(itertools.chain.from_iterable(itertools.repeat(loader))):
        views = views.contiguous(memory_format=torch.channels_last)
        loss = loss_function(model(views), targets)
        loss.backward()
        dispatch_clip_grad(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step=step)
        losses.update(loss.item(), len(views))
        scheduler.step_update(step)
        yield


def transformers(images: Path) -> Iterator[None]:
    """Transformers' `run_image_classification_no_trainer.py --train_dir IMAGES --model_name_or_path REXNET_150`."""
    import datasets
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor
    from transformers import AutoModelForImageClassification, get_scheduler

    accelerator = Accelerator(cpu=True)
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

    table = table.with_transform(prepare)
    loader = DataLoader(table, shuffle=True, collate_fn=collate, batch_size=BATCH, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=1_000_000)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    model.train()
    for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        yield


LOOPS = {"ceiling": ceiling, "timm": timm, "transformers": transformers}


def main() -> None:
    """Train for `WARMUP` steps, then time `STEPS`."""
    loop, images = sys.argv[1:]
    torch.manual_seed(0)
    steps = LOOPS[loop](Path(images))
    for _ in range(WARMUP):
        next(steps)
    started = time.perf_counter()
    for _ in range(STEPS):
        next(steps)
    print(BATCH * STEPS / (time.perf_counter() - started))


if __name__ == "__main__":
    main()
