"""Train an image classifier on a dataset of cell images.

    accelerate launch train_accelerate.py --dataset OWNER/NAME --model rexnet_150 --output_dir RUN

Reads a `datasets` repo or folder with the columns image and label. Writes a run folder, which `python -m hub_model build` turns
into a model repo: model.safetensors and config.json (the averaged weights of the best epoch), history.jsonl, timing.jsonl,
logits_validation.parquet, logits_test.parquet, args.json, environment.json, checkpoints/.

Every batch has its own random seed, so a resumed run is bit-identical to an uninterrupted one, and four processes train on the
same batches as one process with four accumulation steps. Neither holds with --max_minutes, where the schedule follows the clock.
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
from accelerate.utils import gather_object
from timm.utils import ModelEmaV3
from tqdm.auto import tqdm

from training import TrainingError
from training.augment import CellAugmentation, build_mixup
from training.batch_norm import reestimate_batch_norm, views_without_mixup
from training.checkpoint import Checkpoints, Progress
from training.data import normalise
from training.distill import Student, TeacherCache, build_teacher, resize, training_loss
from training.evaluation import EpochMetrics, evaluate_split
from training.hub import check_hub, fetch_checkpoint, push_checkpoint
from training.loader import Loader
from training.model import (
    build_model,
    build_optimizer,
    keep_slow_convolutions_in_float32,
    reload_weights,
    save_model,
    training_mode,
)
from training.options import parse_options
from training.process import StopRequest, exit_code, start_accelerator
from training.run_folder import check_output_dir, start_run, write_environment, write_history, write_logits
from training.schedule import Schedule, derive_seed
from training.source import open_source

VIEWS = ("stain", "light", "isolate", "sharpness", "resample", "grain", "gamma")
EPOCH = (
    "epoch {epoch:3d}  {image_size} px  train loss {train_loss:.4f}  validation loss {validation_loss:.4f}  accuracy "
    "{validation_accuracy:.4f}  macro-F1 {validation_macro_f1:.4f}  {speed:.0f} images/s  best: epoch {best}"
)
RESULT = "{}: accuracy {accuracy:.4f}, macro-F1 {macro_f1:.4f}, images {images}"
NEXT_STEP = " (build a model repo from it: python -m hub_model build {} OUT)"


def train(options: Namespace) -> None:
    """Train, evaluate the best epoch, and write the run folder."""
    accelerator = start_accelerator(options)
    log = accelerator.on_main_process(partial(print, flush=True))
    stop = StopRequest()
    stop.watch(signal.SIGTERM)
    if accelerator.is_main_process:
        check_hub(options)
        fetch_checkpoint(options)
    check_output_dir(options, accelerator)

    # Data
    with accelerator.local_main_process_first():
        source = open_source(options, streaming=options.data == "stream")

    # Model, optimizer, and the teacher for distillation, if any
    model, data_config = build_model(options, source.label_names)
    input_size = data_config["input_size"][-1]
    loader = Loader(options, accelerator, source, data_config)
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        keep_slow_convolutions_in_float32(model)
    teacher = build_teacher(options, source.label_names, accelerator)
    cache_folder = options.output_dir / "teacher_cache" if accelerator.is_main_process else None
    teacher_cache = TeacherCache(teacher, options.teacher_cache, cache_folder)
    student = Student(model, teacher.num_features if options.feature_weight else 0)
    student.to(accelerator.device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, student.projector, options)
    student, optimizer = accelerator.prepare(student, optimizer)
    ema = ModelEmaV3(model, options.ema_decay, use_warmup=True) if options.ema_decay else None
    final_model = ema.module if ema else model  # evaluated and saved
    evaluate = partial(evaluate_split, accelerator, final_model, data_config)

    # Augmentation and loss
    augment = CellAugmentation(tuple(options.scale), **{name: getattr(options, name) for name in VIEWS})
    mixup = build_mixup(options.mixup, options.cutmix, len(source.label_names))
    criterion = partial(training_loss, options, loader.class_weights().to(accelerator.device))
    save = accelerator.on_main_process(
        partial(save_model, final_model, data_config, source, options.output_dir, options.save_dtype)
    )

    # Start a new run, or resume from the last checkpoint
    progress = Progress()
    schedule = Schedule(options, accelerator, optimizer, progress, loader.updates)
    push = partial(push_checkpoint, options) if options.hub_strategy == "checkpoint" else None
    checkpoints = Checkpoints(options, accelerator, progress, ema.module if ema else None, push)
    start_run(options, accelerator, source.revision)
    checkpoint = checkpoints.load() if options.resume else None
    progress.reshard(accelerator.num_processes, loader.shard_sizes is not None, loader.updates)
    accelerator.step = progress.step  # from which accelerate counts accumulation steps
    if checkpoint:
        log(f"resuming from {checkpoint}: epoch {progress.epoch}, step {progress.step}")
    if options.epochs == 0:
        save()
    stop.watch(signal.SIGINT)
    schedule.start_clock()

    while not schedule.finished:
        size = schedule.image_size or input_size
        view_size = max(size, teacher.size if teacher else 0)
        train_split, validation_split = loader.splits(size)
        epoch_metrics = EpochMetrics(accelerator, progress, train_split.steps, len(source.label_names))
        training_mode(model, options.freeze_backbone)
        view_epoch = teacher_cache.view_epoch(progress.epoch)
        cache_name = f"{size}-{view_epoch:05d}"
        batches = train_split.training(view_epoch, start=progress.step)
        bar = partial(tqdm, leave=False, initial=progress.step, disable=not loader.show_progress)
        for batch in bar(batches, f"epoch {progress.epoch}", train_split.steps):
            index = train_split.index(progress.step)
            torch.manual_seed(derive_seed(options.seed, view_epoch, *index))
            with accelerator.accumulate(student):
                images = batch.images.to(accelerator.device).float().div_(255)
                views, targets = mixup(augment(images, view_size), batch.labels.to(accelerator.device))
                teacher_output = teacher_cache(views, cache_name, str(index)) if teacher else None
                if view_epoch != progress.epoch:  # repeated views, but new dropout masks
                    torch.manual_seed(derive_seed(options.seed, progress.epoch, *index))
                logits, projected = student(normalise(resize(views, size), data_config))
                loss = criterion(logits, targets, projected, teacher_output)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(student.parameters(), options.clip_grad)
                    schedule.count_update()
                optimizer.step()
                optimizer.zero_grad()
            epoch_metrics.update(loss, targets, logits)
            progress.step += 1
            if accelerator.sync_gradients:
                if ema:
                    ema.update(model, step=progress.update)
                after_update(schedule, epoch_metrics, checkpoints, stop)
            if schedule.fraction >= 1:
                break

        # Evaluate the epoch, and save its weights if they are the best so far
        speed = epoch_metrics.images_per_second()
        entry = {"epoch": progress.epoch, **epoch_metrics.compute()}
        metrics, _ = evaluate(validation_split)
        entry |= {f"validation_{name}": metrics[name] for name in ("loss", "accuracy", "macro_f1")}
        entry |= {"learning_rate": schedule.learning_rate, "image_size": size}
        progress.history.append(entry)
        schedule.update_clock()
        timing = {"epoch": progress.epoch, "seconds": progress.seconds, "images_per_second": speed}
        progress.timing.append(timing)
        score = [size == input_size, metrics["macro_f1"]]
        if score > progress.best:
            progress.best, progress.best_epoch = score, progress.epoch
            save()
        progress.next_epoch()
        teacher_cache.save(cache_name)
        checkpoints.save()
        if accelerator.is_main_process:
            write_history(progress, options.output_dir)
            accelerator.log({k: v for k, v in entry.items() if k != "epoch"}, step=entry["epoch"])
        log(EPOCH.format(**entry, speed=speed, best=progress.best_epoch))

    # Evaluate the best weights on the validation and test splits
    if accelerator.is_main_process and progress.history:  # in case a kill prevented it after the last epoch
        write_history(progress, options.output_dir)
    reload_weights(final_model, options.output_dir, accelerator)
    if options.reestimate_batch_norm:
        train_split, _ = loader.splits(input_size)
        views = views_without_mixup(train_split, progress.epoch, augment, data_config, accelerator)
        layers = reestimate_batch_norm(final_model, views, accelerator)
        log(f"batch norm: statistics of {layers} layers recomputed")
        save()
        reload_weights(final_model, options.output_dir, accelerator)
    for split, name in ((options.validation_split, "validation"), (options.test_split, "test")):
        if split in source.sizes:
            metrics, predictions = evaluate(loader.split(split, input_size))
            if accelerator.is_main_process:
                write_logits(options.output_dir / f"logits_{name}.parquet", predictions)
                for subset, values in {name: metrics, **predictions.metrics_by_source()}.items():
                    log(RESULT.format(subset, **values))
    if accelerator.is_main_process:
        teachers = teacher.origins if teacher else []
        write_environment(options, source, accelerator, model, progress, teachers)
    accelerator.end_training()
    if options.push_to_hub and accelerator.is_main_process:
        log(f"model repo: {push_model(options)}")
    log(f"run folder: {options.output_dir}{NEXT_STEP.format(options.output_dir) if progress.history else ''}")


def push_model(options: Namespace) -> str:
    """Build the model repo of a finished run and push it; return its URL."""
    from hub_model.build import build  # has dependencies that training does not need
    from hub_model.push import push

    with tempfile.TemporaryDirectory() as folder:
        build(options.output_dir, Path(folder) / "model")
        return push(Path(folder) / "model", options.hub_model_id, options.hub_private_repo)


def after_update(
    schedule: Schedule, epoch_metrics: EpochMetrics, checkpoints: Checkpoints, stop: StopRequest
) -> None:
    """After an optimizer update, check the loss, write a checkpoint if it is time, and stop if requested.

    Raises:
        TrainingError: the loss is not finite.
        SystemExit: a signal was received, and a checkpoint has been written.
    """
    accelerator, progress = schedule.accelerator, schedule.progress
    if accelerator.device.type == "cuda" and progress.step % 20 and progress.step < len(epoch_metrics.losses):
        return  # reading the loss synchronizes with the GPU
    schedule.update_clock()
    loss = epoch_metrics.losses[progress.step - 1].item()
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} in epoch {progress.epoch}, step {progress.step} (learning rate "
            f"{schedule.learning_rate:.2g}): lower --learning_rate and start again with --overwrite"
        )
    stopping, due = map(any, zip(*gather_object([(bool(stop), checkpoints.due)]), strict=True))
    if stopping or due:
        epoch_metrics.gather()
        checkpoints.save(last=stopping)
    if stopping:
        accelerator.print(
            f"stopped in epoch {progress.epoch}, step {progress.step}; rerun with --resume to continue"
        )
        accelerator.end_training()
        raise SystemExit(0)


def main(argv: list[str] | None = None) -> int:
    """Run the training and return the exit code; expected failures are printed as one sentence."""
    return exit_code(train, parse_options(argv))


if __name__ == "__main__":
    sys.exit(main())
