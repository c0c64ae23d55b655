"""Train an image classifier on a dataset of cell crops.

    accelerate launch train_accelerate.py --dataset OWNER/NAME --model rexnet_150 --output_dir RUN

In: a `datasets` repo or folder with the columns image and label. Out: the run folder, which `python -m hub_model build` turns
into a model repo: model.safetensors and config.json (the weight average of the best epoch), history.jsonl, timing.jsonl,
logits_validation.parquet, logits_test.parquet, args.json, environment.json, curves.png, checkpoints/.

Every batch draws its random numbers from a seed of its own, so a resumed run repeats, bit for bit, what the uninterrupted one
would have done, and four processes do what one does in four accumulation steps. With --max_minutes the clock drives the schedule,
and neither holds.
"""

from __future__ import annotations

import contextlib
import errno
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast, set_seed
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from tqdm.auto import tqdm

from training import TrainingError
from training.augment import CellAugmentation, mixing
from training.batch_norm import reestimate_batch_norm
from training.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.data import Batch, Split, normalise
from training.distill import Student, Teacher, feature_loss, label_loss, resize, teacher_loss
from training.evaluation import Totals, predict, score
from training.loader import Loader
from training.memory import keep_freed_memory
from training.model import (
    build_model,
    build_optimizer,
    freeze_backbone,
    save_model,
    spare_slow_convolutions,
    training_mode,
)
from training.options import parse_options
from training.output import (
    check_output,
    note_signal,
    start_output,
    write_history,
    write_logits,
    write_report,
)
from training.peers import check_launch, process_group_timeout, tell_of_lost_peer
from training.schedule import Schedule, seed_of
from training.source import open_source

UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


class Run:
    """A training run: its parts, and the loop over them."""

    def __init__(self, options):
        self.options = options
        self.accelerator = accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # without it, processes on a CPU would each train alone
            mixed_precision=options.mixed_precision,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            log_with=options.log_with,
            project_config=ProjectConfiguration(project_dir=str(options.output_dir)),
            kwargs_handlers=[process_group_timeout(options)],
        )
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        check_launch(accelerator)
        set_seed(options.seed)
        self.told_to_stop = []
        note_signal(signal.SIGTERM, self.told_to_stop)
        check_output(options, accelerator)
        accelerator.wait_for_everyone()

        with accelerator.local_main_process_first():
            source = open_source(options, streaming=options.data == "stream")
        names = source.label_names
        model, self.data_config = build_model(options, names)
        if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
            spare_slow_convolutions(model)
        self.size = self.data_config["input_size"][-1]
        self.loader = Loader(options, accelerator, source, self.data_config)
        self.class_weights = self.loader.class_weights().to(accelerator.device)
        self.teacher = None
        if options.teacher:
            temperature, size = options.teacher_temperature, options.teacher_size
            self.teacher = Teacher(options.teacher, names, temperature, size).to(accelerator.device)
            if accelerator.device.type == "cpu" and (reason := self.teacher.through_onnx()):
                self.say(f"the teachers answer through PyTorch, which takes longer: {reason}")
        if options.freeze_backbone:
            freeze_backbone(model)

        student = Student(model, self.teacher.num_features if options.feature_weight else 0)
        student.to(accelerator.device, memory_format=torch.channels_last)
        optimizer = build_optimizer(student.model, student.projector, options)
        self.schedule = Schedule(options, accelerator, optimizer, self.loader.updates)
        self.student, self.optimizer = accelerator.prepare(student, optimizer)
        self.network = accelerator.unwrap_model(self.student).model
        self.ema = ModelEmaV3(self.network, options.ema_decay, use_warmup=True) if options.ema_decay else None
        views = {name: getattr(options, name) for name in ("stain", "light", "isolate", "blur")}
        self.augment = CellAugmentation(tuple(options.scale), **views)
        self.mix = mixing(options.mixup, options.cutmix, len(names))
        self.progress = Progress()
        accelerator.register_for_checkpointing(self.progress, *([self.ema] if self.ema else []))
        start_output(options, accelerator, source.revision)

    def train(self) -> None:
        """Go through the epochs, from the last checkpoint on when resuming, then score the best weights."""
        options, progress = self.options, self.progress
        checkpoint = load_checkpoint(self.accelerator, self.checkpoints) if options.resume else None
        dealt, updates = self.loader.dealt is not None, self.loader.updates
        progress.divide_among(self.accelerator.num_processes, dealt, updates)
        if checkpoint:
            self.say(f"resuming from {checkpoint}: epoch {progress.epoch}, step {progress.step}")
        note_signal(signal.SIGINT, self.told_to_stop)
        self.schedule.start(progress)
        self.saved = time.monotonic()
        if options.epochs == 0:
            self.keep()
        # an epoch that was broken off, even after its last update, is still to be scored and recorded
        while progress.epoch < options.epochs and (self.schedule.share < 1 or progress.step > 0):
            self.training_size = self.schedule.image_size or self.size
            train, validation = self.loader.splits(self.training_size)
            self.train_epoch(train)
            self.end_epoch(validation)
        self.finish()

    def train_epoch(self, split: Split) -> None:
        """Train on one epoch's batches, from `progress.step` on."""
        progress, accelerator = self.progress, self.accelerator
        accumulate = accelerator.gradient_accumulation_steps
        self.totals = Totals(accelerator, split.steps, len(self.class_weights), progress)
        training_mode(self.network, self.options.freeze_backbone)
        batches = split.training(progress.epoch, start=progress.step)
        title, hidden = f"epoch {progress.epoch}", not self.loader.visible
        for batch in tqdm(batches, title, split.steps, leave=False, initial=progress.step, disable=hidden):
            updating = (progress.step + 1) % accumulate == 0
            torch.manual_seed(seed_of(self.options.seed, progress.epoch, *split.place(progress.step)))
            with contextlib.nullcontext() if updating else accelerator.no_sync(self.student):
                loss = self.loss(batch)
                accelerator.backward(loss)
            self.totals.add(progress.step, loss, len(batch.labels))
            progress.step += 1
            if updating:
                self.update()
                self.check(split)
            if self.schedule.share >= 1:
                break

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the loss of a random view of each image of the batch, mixed where asked for."""
        options, device = self.options, self.accelerator.device
        images, labels = batch.images.to(device).float().div_(255), batch.labels.to(device)
        views = self.augment(images, max(self.training_size, self.teacher.size if self.teacher else 0))
        views, targets = self.mix(views, labels)
        logits, projected = self.student(normalise(resize(views, self.training_size), self.data_config))
        logits = logits.float()
        self.totals.count(targets.argmax(dim=1), logits.argmax(dim=1))
        smooth = targets * (1 - options.label_smoothing) + options.label_smoothing / targets.shape[1]
        loss = label_loss(logits, smooth, self.class_weights)
        if self.teacher:
            lesson = self.teacher(views)
            weight, temperature = options.teacher_weight, options.teacher_temperature
            loss = (1 - weight) * loss + weight * teacher_loss(logits, lesson, temperature)
            if projected is not None:
                loss = loss + options.feature_weight * feature_loss(projected.float(), lesson)
        return loss

    def update(self) -> None:
        """Let the optimizer, the learning rate and the weight average take a step."""
        self.accelerator.clip_grad_norm_(self.student.parameters(), self.options.clip_grad)
        self.progress.update += 1
        self.schedule.set_learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.network, step=self.progress.update)

    def check(self, split: Split) -> None:
        """After an update: stop for a loss that is no number or when told to; write a checkpoint when it is time."""
        progress, accelerator = self.progress, self.accelerator
        if accelerator.device.type == "cuda" and progress.step % 20 and progress.step < split.steps:
            return  # looking at the loss would make the GPU wait
        self.schedule.tell_time()
        loss = self.totals.losses[progress.step - 1].item()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in epoch {progress.epoch}, step {progress.step} (learning rate "
                f"{self.schedule.learning_rate:.2g}): lower --learning_rate, and start again with --overwrite"
            )
        if self.told_to_stop:
            accelerator.set_trigger()
        stopping = accelerator.check_trigger()
        if (
            accelerator.is_main_process
            and time.monotonic() - self.saved > 60 * self.options.checkpoint_minutes
        ):
            accelerator.set_trigger()
        if accelerator.check_trigger() or stopping:
            self.totals.store(progress)
            self.checkpoint()
        if stopping:
            self.say(
                f"stopped as told in epoch {progress.epoch}, step {progress.step}; the same with --resume goes on"
            )
            accelerator.end_training()
            raise SystemExit(0)

    def end_epoch(self, validation: Split) -> None:
        """Record the epoch, keep its weights if they are the best so far, and write a checkpoint."""
        progress, main = self.progress, self.accelerator.is_main_process
        speed = self.totals.speed()
        entry = {"epoch": progress.epoch, **self.totals.figures(progress)}
        _, labels, logits = predict(self.accelerator, self.weights, validation, self.data_config)
        found = score(logits, labels) if main else {}
        for name, key in (("loss", "log_loss"), ("accuracy", "accuracy"), ("macro_f1", "macro_f1")):
            entry[f"validation_{name}"] = found.get(key)
        entry |= {"learning_rate": self.schedule.learning_rate, "image_size": self.training_size}
        progress.history.append(entry)
        self.schedule.tell_time()
        progress.timing.append(
            {"epoch": progress.epoch, "seconds": progress.seconds, "images_per_second": speed}
        )
        standing = [self.training_size == self.size, found.get("macro_f1", 0.0)]
        if main and standing > progress.best:
            progress.best, progress.best_epoch = standing, progress.epoch
            self.keep()
        progress.epoch, progress.step, progress.losses, progress.confusion = progress.epoch + 1, 0, None, None
        self.checkpoint()
        if main:
            write_history(progress, self.options.output_dir)
            self.accelerator.log({k: v for k, v in entry.items() if k != "epoch"}, step=entry["epoch"])
            self.say(summary(entry, speed, progress.best_epoch))

    def finish(self) -> None:
        """Score the best weights on validation and, this once, on test; write what the model repo is made of."""
        options, folder = self.options, self.options.output_dir
        if self.accelerator.is_main_process:
            if self.progress.history:  # a kill may have come between the last checkpoint and the history
                write_history(self.progress, folder)
            self.weights.load_state_dict(load_file(folder / "model.safetensors"))
        broadcast(list(self.weights.state_dict().values()))
        if options.reestimate_batch_norm:
            layers = reestimate_batch_norm(self.weights, self.plain_views(), self.accelerator)
            self.say(f"statistics taken anew in {layers} layers of batch norm")
            self.keep()
        for name, file in ((options.validation_split, "validation"), (options.test_split, "test")):
            if name not in self.loader.source.sizes:
                continue
            scored = predict(
                self.accelerator, self.weights, self.loader.split(name, self.size), self.data_config
            )
            if self.accelerator.is_main_process:
                write_logits(folder / f"logits_{file}.parquet", *scored)
                found = score(scored[2], scored[1])
                self.say(
                    f"{file}: accuracy {found['accuracy']:.4f}, macro-F1 {found['macro_f1']:.4f}, images {len(scored[0])}"
                )
        if self.accelerator.is_main_process:
            teachers = self.teacher.origins if self.teacher else []
            write_report(options, self.loader.source, self.accelerator, self.network, self.progress, teachers)
        self.accelerator.end_training()
        hint = f" (make a model repo of it: python -m hub_model build {folder} OUT)"
        self.say(f"run folder: {folder}{hint if self.progress.history else ''}")

    def plain_views(self) -> Iterator[torch.Tensor]:
        """Yield normalised random views [N, 3, S, S] of this process's training images, each once, without mixup."""
        split, epoch = self.loader.splits(self.size)[0], self.progress.epoch
        for step, batch in enumerate(split.training(epoch)):
            torch.manual_seed(seed_of(self.options.seed, epoch, *split.place(step)))
            images = batch.images.to(self.accelerator.device).float().div_(255)
            yield normalise(self.augment(images, self.size), self.data_config)

    @property
    def weights(self) -> torch.nn.Module:
        """The network that is scored and kept: the weight average, where there is one."""
        return self.ema.module if self.ema else self.network

    def keep(self) -> None:
        """Write the present weights as the run's model."""
        if self.accelerator.is_main_process:
            save_model(self.weights, self.data_config, self.loader.source, self.options.output_dir)

    def checkpoint(self) -> None:
        save_checkpoint(self.accelerator, self.checkpoints, self.progress, self.options.keep_checkpoints)
        self.saved = time.monotonic()

    @property
    def checkpoints(self) -> Path:
        return self.options.output_dir / "checkpoints"

    def say(self, text: str) -> None:
        if self.accelerator.is_main_process:  # the first machine's: it has the run folder
            print(text, flush=True)


def summary(entry: dict, speed: float, best_epoch: int) -> str:
    """Return the line that is printed after an epoch."""
    return (
        f"epoch {entry['epoch']:3d}  {entry['image_size']} px  train loss {entry['train_loss']:.4f}  "
        f"validation loss {entry['validation_loss']:.4f}  accuracy {entry['validation_accuracy']:.4f}  "
        f"macro-F1 {entry['validation_macro_f1']:.4f}  {speed:.0f} images/s  best: epoch {best_epoch}"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the trainer; expected failures end with one sentence and exit code 1."""
    options = parse_options(argv)
    try:
        Run(options).train()
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; the same with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        print(f"error: {options.output_dir} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not (sentence := tell_of_lost_peer(error, options)):
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
