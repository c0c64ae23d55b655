"""Knowledge distillation with a consistent teacher (Beyer et al. 2022, arXiv:2106.05237), and the training loss.

Student and teachers see the same augmented views.
"""

from __future__ import annotations

import contextlib
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import onnxruntime
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.data import resolve_data_config
from torch import nn
from torch.onnx import OnnxExporterError

from hub_model.inference.errors import RepoError, first_line
from hub_model.onnx.export import LogitsAndFeatures, export_onnx
from training import TrainingError
from training.data import normalise
from training.model import load_weights, resolve_start


class TeacherOutput(NamedTuple):
    """probabilities [N, C] at the teacher's temperature; features [N, D], the concatenated pooled features of the teachers."""

    probabilities: torch.Tensor
    features: torch.Tensor


class Teacher(nn.Module):
    """One or several trained models, averaged; each sees the views at its own size and normalisation.

    Attributes:
        size: the largest input size of the models in pixels, and the minimum size of the views.
        num_features: the number of pooled features of all models.
        origins: source and architecture of each model.
    """

    def __init__(
        self, sources: list[str], label_names: list[str], temperature: float, size: int | None = None
    ):
        super().__init__()
        self.temperature = temperature
        self.models, self.sizes, self.configs, self.origins = nn.ModuleList(), [], [], []
        for source in sources:
            start = resolve_start(source)
            architecture, classes = start.config.architecture, list(start.config.label_names)
            if not timm.is_model(architecture) or not start.data_config:
                raise TrainingError(
                    f"teacher {source} has no config.json with a timm architecture and its pretrained_cfg"
                )
            if classes != label_names:
                raise TrainingError(
                    f"teacher {source} has the classes {classes}, the dataset has {label_names}"
                )
            self.sizes.append(size or start.data_config["input_size"][-1])
            overlay = {"input_size": (3, self.sizes[-1], self.sizes[-1])}  # a ViT is built for one size
            model = timm.create_model(architecture, num_classes=len(classes), pretrained_cfg_overlay=overlay)
            load_weights(model, start, keep_head=True)
            self.models.append(model)
            self.configs.append(resolve_data_config(start.data_config, model=model))
            self.origins.append({"source": source, "architecture": architecture})
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.networks = [LogitsAndFeatures(model) for model in self.models]
        self.size, self.num_features = max(self.sizes), sum(model.head_hidden_size for model in self.models)

    def select_backend(self, device: torch.device, bf16: bool) -> str | None:
        """Use bfloat16 (on a CPU for ViTs only) or, for the other networks on a CPU, ONNX Runtime.

        Returns:
            Why a network on a CPU has to stay in PyTorch, which is slower; None if all use a fast backend.
        """
        self.networks, reason = [], None
        for model, size in zip(self.models, self.sizes, strict=True):
            network = LogitsAndFeatures(model)
            if bf16 and (device.type != "cpu" or hasattr(model, "pos_embed")):
                network = partial(run_in_bfloat16, network, device.type)
            elif device.type == "cpu":
                try:
                    network = partial(run_onnx, create_onnx_session(model, size))
                except (RepoError, OnnxExporterError) as error:
                    reason = first_line(error)
            self.networks.append(network)
        return reason

    @torch.no_grad()
    def forward(self, views: torch.Tensor) -> TeacherOutput:
        """Return the averaged predictions of the teachers for views [N, 3, S, S] in 0..1."""
        probabilities, features = [], []
        for network, config, size in zip(self.networks, self.configs, self.sizes, strict=True):
            logits, pooled = network(normalise(resize(views, size), config))
            probabilities.append((logits / self.temperature).softmax(dim=1))
            features.append(pooled)
        return TeacherOutput(torch.stack(probabilities).mean(dim=0), torch.cat(features, dim=1))


def run_in_bfloat16(
    network: nn.Module, device_type: str, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 logits [N, C] and pooled features [N, D] of normalised images [N, 3, S, S], computed under autocast."""
    with torch.autocast(device_type, torch.bfloat16):
        logits, features = network(images)
    return logits.float(), features.float()


def create_onnx_session(model: nn.Module, size: int) -> onnxruntime.InferenceSession:
    """Return a session for a timm model with that input size in pixels, on a CPU about three times as fast as PyTorch.

    Raises:
        RepoError, OnnxExporterError: the model cannot be exported, or the exported outputs differ.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # leave the cores to the student between batches
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, (3, size, size), path)
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def run_onnx(
    session: onnxruntime.InferenceSession, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [N, C] and pooled features [N, D] of normalised images [N, 3, S, S]."""
    logits, features = session.run(["logits", "features"], {"pixel_values": images.numpy()})
    return torch.from_numpy(logits), torch.from_numpy(features)


class TeacherCache:
    """Teacher outputs for the views of K epochs, computed once, stored as float16 and reused cyclically.

    Views are seeded by epoch and batch, so those of epoch e are repeated in epoch e + K. Each process caches the outputs for its
    own batches; the main process also writes them to the run folder, one file per epoch, for a resumed run. Missing outputs are
    recomputed bit-identically: they are rounded to float16 on their first use as well.
    """

    def __init__(self, teacher: Teacher, epochs: int, folder: Path | None):
        self.teacher, self.epochs, self.folder = teacher, epochs, folder
        self.cached: dict[str, dict[str, torch.Tensor]] = {}  # by epoch, then by batch

    def view_epoch(self, epoch: int) -> int:
        """Return the epoch whose images and views are used in that epoch."""
        return epoch % self.epochs if self.epochs else epoch

    def __call__(self, views: torch.Tensor, epoch: str, batch: str) -> TeacherOutput:
        """Return the teacher's output for views [N, 3, S, S] in 0..1, cached under the names of their epoch and batch."""
        if not self.epochs:
            return self.teacher(views)
        cached = self.of_epoch(epoch)
        keys = [f"{batch}.{name}" for name in TeacherOutput._fields]
        if keys[0] not in cached:
            cached |= {
                key: tensor.half().cpu() for key, tensor in zip(keys, self.teacher(views), strict=True)
            }
        return TeacherOutput(*(cached[key].to(views.device).float() for key in keys))

    def of_epoch(self, epoch: str) -> dict[str, torch.Tensor]:
        """Return the cached outputs of an epoch, loaded from the run folder if they are there."""
        if epoch not in self.cached:
            self.cached[epoch] = {}
            file = self.folder and self.folder / f"{epoch}.safetensors"
            if file and file.is_file():
                with contextlib.suppress(SafetensorError):  # damaged: recompute
                    self.cached[epoch] = load_file(file)
        return self.cached[epoch]

    def save(self, epoch: str) -> None:
        """Write the cached outputs of an epoch to the run folder, unless the file exists."""
        file = self.folder and self.folder / f"{epoch}.safetensors"
        if not (self.epochs and file) or file.is_file():
            return
        self.folder.mkdir(exist_ok=True)
        unfinished = file.with_name(f".{file.name}.unfinished")
        try:
            save_file(self.of_epoch(epoch), unfinished)
        except SafetensorError as error:  # also raised for a full disk
            raise TrainingError(f"{file} cannot be written: {first_line(error)}") from error
        unfinished.replace(file)


def build_teacher(options: Namespace, label_names: list[str], accelerator: Accelerator) -> Teacher | None:
    """Return the teacher of `--teacher` with the fastest backend for the device; None without one."""
    if not options.teacher:
        return None
    teacher = Teacher(options.teacher, label_names, options.teacher_temperature, options.teacher_size)
    device = accelerator.device
    if device.type == "cpu":
        bf16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    else:
        bf16 = accelerator.mixed_precision == "bf16"
    if reason := teacher.to(device).select_backend(device, bf16):
        accelerator.print(f"a teacher runs in PyTorch, which is slower than ONNX Runtime: {reason}")
    return teacher


class Student(nn.Module):
    """The network to train, with a linear projection of its pooled features to the teacher's if `teacher_features` is given."""

    def __init__(self, model: nn.Module, teacher_features: int = 0):
        super().__init__()
        self.model = model
        self.projector = nn.Linear(model.head_hidden_size, teacher_features) if teacher_features else None

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return logits [N, C] and projected features [N, D] or None."""
        if self.projector is None:
            return self.model(images), None
        pooled = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        dropped = F.dropout(pooled, self.model.drop_rate, self.training)
        return self.model.get_classifier()(dropped), self.projector(pooled)


def training_loss(
    options: Namespace,
    class_weights: torch.Tensor,
    logits: torch.Tensor,
    targets: torch.Tensor,
    projected: torch.Tensor | None,
    teacher: TeacherOutput | None,
) -> torch.Tensor:
    """Return the cross-entropy of logits [N, C] with targets [N, C] and, with a teacher, the distillation losses.

    Args:
        class_weights: [C].
        targets: soft if images were mixed.
        projected: features [N, D] of the student for the feature loss.
    """
    logits = logits.float()
    smooth = targets * (1 - options.label_smoothing) + options.label_smoothing / targets.shape[1]
    loss = label_loss(logits, smooth, class_weights)
    if teacher is None:
        return loss
    weight, temperature = options.teacher_weight, options.teacher_temperature
    loss = (1 - weight) * loss + weight * teacher_loss(logits, teacher, temperature)
    if projected is not None:
        loss = loss + options.feature_weight * feature_loss(projected.float(), teacher)
    return loss


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return images [N, C, S, S] resized to [N, C, size, size]."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def label_loss(logits: torch.Tensor, targets: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of logits [N, C] with soft targets [N, C] and class weights [C]."""
    return -(targets * class_weights * logits.log_softmax(dim=1)).sum(dim=1).mean()


def teacher_loss(logits: torch.Tensor, teacher: TeacherOutput, temperature: float) -> torch.Tensor:
    """Return the KL divergence from the teacher at that temperature, times its square (Hinton et al. 2015)."""
    student = (logits / temperature).log_softmax(dim=1)
    return F.kl_div(student, teacher.probabilities, reduction="batchmean") * temperature**2


def feature_loss(projected: torch.Tensor, teacher: TeacherOutput) -> torch.Tensor:
    """Return one minus the mean cosine similarity of projected and the teacher's features, both [N, D]."""
    return (1 - F.cosine_similarity(projected, teacher.features, dim=1)).mean()
