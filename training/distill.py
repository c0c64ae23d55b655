"""Distillation by a patient teacher (Beyer et al. 2022, arXiv:2106.05237), and the loss of a step with or without one.

Finished models in, soft targets for the very same views out.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

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
from training.model import find_start, load_weights


@dataclass(frozen=True)
class TeacherLogits:
    """probabilities [N, C] at the teacher's temperature; features [N, D], the teachers' pooled features side by side."""

    probabilities: torch.Tensor
    features: torch.Tensor


class Teacher(nn.Module):
    """One or several finished models, averaged; each sees the views at its own size and normalisation."""

    def __init__(
        self, sources: list[str], label_names: list[str], temperature: float, size: int | None = None
    ):
        super().__init__()
        self.temperature = temperature
        starts = [find_start(source) for source in sources]
        for source, start in zip(sources, starts, strict=True):
            if not timm.is_model(start.config.architecture) or not start.data_config:
                raise TrainingError(
                    f"teacher {source} has no config.json that names an architecture of timm and its pretrained_cfg"
                )
            if list(start.config.label_names) != label_names:
                raise TrainingError(
                    f"teacher {source} has the classes {list(start.config.label_names)}, the dataset has {label_names}"
                )
        self.sizes = [size or start.data_config["input_size"][-1] for start in starts]
        self.models = nn.ModuleList()
        for start, seen in zip(starts, self.sizes, strict=True):
            overlay = {"input_size": (3, seen, seen)}  # a ViT is built for one size
            model = timm.create_model(
                start.config.architecture, num_classes=len(label_names), pretrained_cfg_overlay=overlay
            )
            load_weights(model, start, keep_head=True)
            self.models.append(model)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.origins = [
            {"source": source, "architecture": start.config.architecture}
            for source, start in zip(sources, starts, strict=True)
        ]
        self.configs = [
            resolve_data_config(start.data_config, model=model)
            for model, start in zip(self.models, starts, strict=True)
        ]
        self.networks = [LogitsAndFeatures(model) for model in self.models]

    def speed_up(self, device: torch.device, bf16: bool) -> str | None:
        """Run in bfloat16 where asked for, for a CPU that computes in it ViTs only, its other networks through ONNX Runtime.

        Return why a network stays as it is in PyTorch, which takes longer; None where none does.
        """
        self.networks, reason = [], None
        for model, size in zip(self.models, self.sizes, strict=True):
            network = LogitsAndFeatures(model)
            if bf16 and (device.type != "cpu" or hasattr(model, "pos_embed")):
                network = Bfloat16Network(network, device.type)
            elif device.type == "cpu":
                try:
                    network = OnnxNetwork(model, size)
                except (RepoError, OnnxExporterError) as error:
                    reason = first_line(error)
            self.networks.append(network)
        return reason

    @property
    def size(self) -> int:
        """The largest input size of the teachers, in pixels: views are cut at no less."""
        return max(self.sizes)

    @property
    def num_features(self) -> int:
        return sum(model.head_hidden_size for model in self.models)

    @torch.no_grad()
    def forward(self, views: torch.Tensor) -> TeacherLogits:
        """Return what the teachers predict for views [N, 3, S, S] in 0..1."""
        probabilities, features = [], []
        for network, config, size in zip(self.networks, self.configs, self.sizes, strict=True):
            logits, pooled = network(normalise(resize(views, size), config))
            probabilities.append((logits / self.temperature).softmax(dim=1))
            features.append(pooled)
        return TeacherLogits(torch.stack(probabilities).mean(dim=0), torch.cat(features, dim=1))


@dataclass(frozen=True)
class Bfloat16Network:
    """A finished network under autocast; its answers are float32."""

    network: nn.Module
    device: str

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits [N, C] and pooled features [N, D] of normalised images [N, 3, size, size]."""
        with torch.autocast(self.device, torch.bfloat16):
            logits, features = self.network(images)
        return logits.float(), features.float()


class OnnxNetwork:
    """A finished network through ONNX Runtime, which answers a batch on a CPU about three times as fast as PyTorch."""

    def __init__(self, model: nn.Module, size: int):
        """Export a timm model for that input size in pixels; RepoError if its answers change."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # between its batches the cores are the student's
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export_onnx(model, (3, size, size), path)
            providers = ["CPUExecutionProvider"]
            self.session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=providers)

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits [N, C] and pooled features [N, D] of normalised images [N, 3, size, size]."""
        logits, features = self.session.run(["logits", "features"], {"pixel_values": images.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(features)


class TeacherCache:
    """Teacher logits of the views of K epochs, computed once, kept as float16, and reused cyclically.

    Views are seeded by epoch and batch, so those of epoch e are shown again in epoch e + K. Each rank keeps those of its own
    batches; the main process's are also in the run folder, a file an epoch, for a resumed run. What is missing is recomputed,
    to the same bits: the first use of teacher logits is rounded, too.
    """

    def __init__(self, teacher: Teacher, epochs: int, folder: Path | None):
        self.teacher, self.epochs, self.folder = teacher, epochs, folder
        self.known: dict[str, dict[str, torch.Tensor]] = {}

    def view_epoch(self, epoch: int) -> int:
        """Return the epoch whose images and views are shown in that epoch."""
        return epoch % self.epochs if self.epochs else epoch

    def __call__(self, views: torch.Tensor, epoch: str, batch: str) -> TeacherLogits:
        """Return the teacher's answer to views [N, 3, S, S] in 0..1, known by the names of their epoch and batch."""
        if not self.epochs:
            return self.teacher(views)
        known = self.of_epoch(epoch)
        if f"{batch}.probabilities" not in known:
            answer = self.teacher(views)
            known[f"{batch}.probabilities"] = answer.probabilities.half().cpu()
            known[f"{batch}.features"] = answer.features.half().cpu()
        found = (known[f"{batch}.{kind}"] for kind in ("probabilities", "features"))
        return TeacherLogits(*(tensor.to(views.device).float() for tensor in found))

    def of_epoch(self, epoch: str) -> dict[str, torch.Tensor]:
        """Return what is known of an epoch, from the run folder where it was written there."""
        if epoch not in self.known:
            file = self.folder and self.folder / f"{epoch}.safetensors"
            try:
                self.known[epoch] = load_file(file) if file and file.is_file() else {}
            except SafetensorError:  # damaged: recomputed
                self.known[epoch] = {}
        return self.known[epoch]

    def save(self, epoch: str) -> None:
        """Write what is known of an epoch into the run folder, unless it is there."""
        file = self.folder and self.folder / f"{epoch}.safetensors"
        if not (self.epochs and file) or file.is_file():
            return
        self.folder.mkdir(exist_ok=True)
        unfinished = file.with_name(f".{file.name}.unfinished")
        try:
            save_file(self.of_epoch(epoch), unfinished)
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise TrainingError(f"{file} cannot be written: {first_line(error)}") from error
        unfinished.replace(file)


def build_teacher(options: Namespace, label_names: list[str], accelerator: Accelerator) -> Teacher | None:
    """Return the teacher that the options name, in the form that is fastest here; None where they name none."""
    if not options.teacher:
        return None
    teacher = Teacher(options.teacher, label_names, options.teacher_temperature, options.teacher_size)
    device = accelerator.device
    if device.type == "cpu":
        bf16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    else:
        bf16 = accelerator.mixed_precision == "bf16"
    if reason := teacher.to(device).speed_up(device, bf16):
        accelerator.print(f"a teacher runs in PyTorch, which takes longer: {reason}")
    return teacher


class Student(nn.Module):
    """The network that is trained, with a linear view of its pooled features for the teacher's, where asked for."""

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


@dataclass(frozen=True)
class Objective:
    """What a step minimises: the loss of the labels, and of following the teacher where there is one."""

    options: Namespace
    class_weights: torch.Tensor  # [C]

    def __call__(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        projected: torch.Tensor | None = None,
        teacher: TeacherLogits | None = None,
    ) -> torch.Tensor:
        """Return the loss of logits [N, C] with targets [N, C], soft where images were mixed."""
        options, logits = self.options, logits.float()
        smooth = targets * (1 - options.label_smoothing) + options.label_smoothing / targets.shape[1]
        loss = label_loss(logits, smooth, self.class_weights)
        if teacher is None:
            return loss
        weight, temperature = options.teacher_weight, options.teacher_temperature
        loss = (1 - weight) * loss + weight * teacher_loss(logits, teacher, temperature)
        if projected is not None:
            loss = loss + options.feature_weight * feature_loss(projected.float(), teacher)
        return loss


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return images [N, C, size, size]."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def label_loss(logits: torch.Tensor, targets: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of logits [N, C] with soft targets [N, C], each class weighted by its weight [C]."""
    return -(targets * class_weights * logits.log_softmax(dim=1)).sum(dim=1).mean()


def teacher_loss(logits: torch.Tensor, teacher: TeacherLogits, temperature: float) -> torch.Tensor:
    """Return the Kullback-Leibler divergence from the teacher at that temperature, times its square (Hinton et al. 2015)."""
    student = (logits / temperature).log_softmax(dim=1)
    return F.kl_div(student, teacher.probabilities, reduction="batchmean") * temperature**2


def feature_loss(projected: torch.Tensor, teacher: TeacherLogits) -> torch.Tensor:
    """Return one minus the mean cosine between projected and the teacher's features, both [N, D]."""
    return (1 - F.cosine_similarity(projected, teacher.features, dim=1)).mean()
