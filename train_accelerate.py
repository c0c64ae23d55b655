"""Train an image classifier on a dataset of cell crops.

    accelerate launch train_accelerate.py --dataset OWNER/NAME --model rexnet_150 --output_dir RUN

In: a `datasets` repo or folder with the columns image and label. Out: the run folder, which `python -m hub_model build` turns
into a model repo: model.safetensors and config.json (the weight average of the best epoch), history.jsonl, timing.jsonl,
logits_validation.parquet, logits_test.parquet, args.json, environment.json, checkpoints/.

Every batch draws its random numbers from a seed of its own, so a resumed run repeats, bit for bit, what the uninterrupted one
would have done, and four processes do what one does in four accumulation steps. With --max_minutes the clock drives the schedule,
and neither holds.
"""

from __future__ import annotations

import math
import signal
import sys
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.utils import ModelEmaV3
from tqdm.auto import tqdm

from training import TrainingError
from training.augment import CellAugmentation, mixing
from training.batch_norm import reestimate_batch_norm, views_without_mixup
from training.checkpoint import Checkpoints, Progress
from training.data import normalise
from training.distill import Objective, Student, TeacherCache, build_teacher, resize
from training.evaluation import Totals, evaluate_split
from training.hub import check_hub, fetch_checkpoint, push_checkpoint
from training.loader import Loader
from training.model import (
    build_model,
    build_optimizer,
    read_back,
    save_model,
    spare_slow_convolutions,
    training_mode,
)
from training.options import parse_options
from training.process import StopRequest, exit_code, start_accelerator
from training.run_folder import check_output, start_output, write_environment, write_history, write_logits
from training.schedule import Schedule, seed_of
from training.source import open_source

VIEWS = ("stain", "light", "isolate", "sharpness", "resample", "grain", "gamma")
EPOCH = (
    "epoch {epoch:3d}  {image_size} px  train loss {train_loss:.4f}  validation loss {validation_loss:.4f}  accuracy "
    "{validation_accuracy:.4f}  macro-F1 {validation_macro_f1:.4f}  {speed:.0f} images/s  best: epoch {best}"
)
RESULT = "{}: accuracy {accuracy:.4f}, macro-F1 {macro_f1:.4f}, images {images}"
NEXT = " (make a model repo of it: python -m hub_model build {} OUT)"


def train(options: Namespace) -> None:
    """Train, evaluate the best epoch, and save: options in, a run folder out."""
    accelerator = start_accelerator(options)
    say = accelerator.on_main_process(partial(print, flush=True))
    stop = StopRequest()
    stop.watch(signal.SIGTERM)
    if accelerator.is_main_process:
        check_hub(options)
        fetch_checkpoint(options)
    check_output(options, accelerator)

    # Data
    with accelerator.local_main_process_first():
        source = open_source(options, streaming=options.data == "stream")

    # Model, and the teacher that it follows where one is named
    model, data_config = build_model(options, source.label_names)
    loader = Loader(options, accelerator, source, data_config)
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        spare_slow_convolutions(model)
    teacher = build_teacher(options, source.label_names, accelerator)
    cache_folder = options.output_dir / "teacher_cache" if accelerator.is_main_process else None
    teacher_logits = TeacherCache(teacher, options.teacher_cache, cache_folder)
    student = Student(model, teacher.num_features if options.feature_weight else 0)
    student.to(accelerator.device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, student.projector, options)
    student, optimizer = accelerator.prepare(student, optimizer)
    ema = ModelEmaV3(model, options.ema_decay, use_warmup=True) if options.ema_decay else None
    best_model = ema.module if ema else model  # what is evaluated and saved

    # What a step needs: views of the images, mixed labels, a loss
    augment = CellAugmentation(tuple(options.scale), **{name: getattr(options, name) for name in VIEWS})
    mix = mixing(options.mixup, options.cutmix, len(source.label_names))
    objective = Objective(options, loader.class_weights().to(accelerator.device))
    save = accelerator.on_main_process(
        partial(save_model, best_model, data_config, source, options.output_dir, options.save_dtype)
    )

    # Where the run stands: at its start, or where the last checkpoint left it
    progress = Progress()
    schedule = Schedule(options, accelerator, optimizer, progress, loader.updates)
    push = partial(push_checkpoint, options) if options.hub_strategy == "checkpoint" else None
    checkpoints = Checkpoints(options, accelerator, progress, ema.module if ema else None, push)
    start_output(options, accelerator, source.revision)
    checkpoint = checkpoints.load() if options.resume else None
    progress.divide_among(accelerator.num_processes, loader.shard_sizes is not None, loader.updates)
    accelerator.step = progress.step  # accelerate counts accumulation steps from here
    if checkpoint:
        say(f"resuming from {checkpoint}: epoch {progress.epoch}, step {progress.step}")
    if options.epochs == 0:
        save()
    stop.watch(signal.SIGINT)
    schedule.start()

    while not schedule.finished:
        size = schedule.image_size or data_config["input_size"][-1]
        view_size = max(size, teacher.size if teacher else 0)
        training, validation = loader.splits(size)
        totals = Totals(accelerator, progress, training.steps, len(source.label_names))
        training_mode(model, options.freeze_backbone)
        view_epoch = teacher_logits.view_epoch(progress.epoch)
        views_name = f"{size}-{view_epoch:05d}"
        batches = training.training(view_epoch, start=progress.step)
        title, hidden = f"epoch {progress.epoch}", not loader.visible
        for batch in tqdm(batches, title, training.steps, leave=False, initial=progress.step, disable=hidden):
            index = training.index(progress.step)
            torch.manual_seed(seed_of(options.seed, view_epoch, *index))
            with accelerator.accumulate(student):
                images = batch.images.to(accelerator.device).float().div_(255)
                views, targets = mix(augment(images, view_size), batch.labels.to(accelerator.device))
                answer = teacher_logits(views, views_name, str(index)) if teacher else None
                if view_epoch != progress.epoch:  # seen before: what the network drops out is drawn again
                    torch.manual_seed(seed_of(options.seed, progress.epoch, *index))
                logits, projected = student(normalise(resize(views, size), data_config))
                loss = objective(logits, targets, projected, answer)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(student.parameters(), options.clip_grad)
                    schedule.count_update()
                optimizer.step()
                optimizer.zero_grad()
            totals.add(loss, targets, logits)
            progress.step += 1
            if accelerator.sync_gradients:
                if ema:
                    ema.update(model, step=progress.update)
                look_after(accelerator, schedule, totals, checkpoints, stop)
            if schedule.fraction >= 1:
                break

        # Evaluate the epoch, and keep its weights where they are the best so far
        speed = totals.speed()
        figures = {"epoch": progress.epoch, **totals.figures()}
        found, _ = evaluate_split(accelerator, best_model, validation, data_config)
        figures |= {f"validation_{name}": found[name] for name in ("loss", "accuracy", "macro_f1")}
        figures |= {"learning_rate": schedule.learning_rate, "image_size": size}
        progress.history.append(figures)
        schedule.tell_time()
        timing = {"seconds": progress.seconds, "images_per_second": speed}
        progress.timing.append({"epoch": progress.epoch, **timing})
        standing = [size == data_config["input_size"][-1], found["macro_f1"]]
        if standing > progress.best:
            progress.best, progress.best_epoch = standing, progress.epoch
            save()
        progress.next_epoch()
        teacher_logits.save(views_name)
        checkpoints.save()
        if accelerator.is_main_process:
            write_history(progress, options.output_dir)
            accelerator.log({k: v for k, v in figures.items() if k != "epoch"}, step=figures["epoch"])
        say(EPOCH.format(**figures, speed=speed, best=progress.best_epoch))

    # Evaluate the best weights on validation and, this once, on test; save what the model repo is made of
    size = data_config["input_size"][-1]
    if accelerator.is_main_process and progress.history:  # a kill may have come before it was written
        write_history(progress, options.output_dir)
    read_back(best_model, options.output_dir, accelerator)
    if options.reestimate_batch_norm:
        views = views_without_mixup(loader.splits(size)[0], progress.epoch, augment, data_config, accelerator)
        layers = reestimate_batch_norm(best_model, views, accelerator)
        say(f"batch norm: statistics of {layers} layers recomputed")
        save()
        read_back(best_model, options.output_dir, accelerator)
    for name, file in ((options.validation_split, "validation"), (options.test_split, "test")):
        if name in source.sizes:
            split = loader.split(name, size)
            found, predictions = evaluate_split(accelerator, best_model, split, data_config)
            if accelerator.is_main_process:
                write_logits(options.output_dir / f"logits_{file}.parquet", predictions)
                for part, figures in {file: found, **predictions.by_source()}.items():
                    say(RESULT.format(part, **figures))
    if accelerator.is_main_process:
        teachers = teacher.origins if teacher else []
        write_environment(options, source, accelerator, model, progress, teachers)
    accelerator.end_training()
    if options.push_to_hub and accelerator.is_main_process:
        say(f"model repo: {push_model(options)}")
    say(f"run folder: {options.output_dir}{NEXT.format(options.output_dir) if progress.history else ''}")


def push_model(options: Namespace) -> str:
    """Make the model repo of a finished run and push it; return its address."""
    from hub_model.build import build  # needs what training does not
    from hub_model.push import push

    with tempfile.TemporaryDirectory() as place:
        build(options.output_dir, Path(place) / "model")
        return push(Path(place) / "model", options.hub_model_id, options.hub_private_repo)


def look_after(
    accelerator: Accelerator, schedule: Schedule, totals: Totals, checkpoints: Checkpoints, stop: StopRequest
) -> None:
    """After an update: stop for a loss that is no number or when told to; write a checkpoint when it is time.

    Raises:
        TrainingError: the loss is not finite.
        SystemExit: a signal has asked to stop, and the checkpoint is written.
    """
    progress = schedule.progress
    if accelerator.device.type == "cuda" and progress.step % 20 and progress.step < len(totals.losses):
        return  # looking at the loss would make the GPU wait
    schedule.tell_time()
    loss = totals.losses[progress.step - 1].item()
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} in epoch {progress.epoch}, step {progress.step} (learning rate "
            f"{schedule.learning_rate:.2g}): lower --learning_rate, and start again with --overwrite"
        )
    stopping, due = map(any, zip(*gather_object([(bool(stop), checkpoints.due)]), strict=True))
    if stopping or due:
        totals.store()
        checkpoints.save(last=stopping)
    if stopping:
        accelerator.print(
            f"stopped in epoch {progress.epoch}, step {progress.step}; rerun with --resume to continue"
        )
        accelerator.end_training()
        raise SystemExit(0)


def main(argv: list[str] | None = None) -> int:
    """Run the trainer; expected failures end with one sentence and exit code 1."""
    return exit_code(train, parse_options(argv))


if __name__ == "__main__":
    sys.exit(main())
