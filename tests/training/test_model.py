"""Creating, loading and saving models, optimizers, and batch norm statistics."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch import nn
from transformers import pipeline

from tests.training.small import NAMES, SOURCE, model_options
from training import TrainingError
from training.batch_norm import reestimate_batch_norm
from training.data import decode, evaluation_transform, normalise
from training.model import (
    build_model,
    build_optimizer,
    keep_slow_convolutions_in_float32,
    reload_weights,
    resolve_start,
    save_model,
    training_mode,
)
from training.source import Row

VIT = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model folder as a run leaves it."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model, data_config = build_model(model_options(), NAMES)
    save_model(model, data_config, SOURCE, folder)
    return folder, model, data_config


def test_the_initial_loss_is_the_logarithm_of_the_number_of_classes():
    torch.manual_seed(0)
    model, _ = build_model(model_options(model="rexnet_150"), NAMES)
    logits = model.eval()(torch.randn(16, 3, 64, 64))
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(16) % 7)
    assert abs(loss - math.log(7)) < 0.1


@pytest.mark.parametrize(("dtype", "bytes_a_weight"), [("float32", 4), ("float16", 2)])
def test_training_timm_and_transformers_compute_the_same_logits_for_a_jpeg(
    dtype, bytes_a_weight, saved, drawn_folder, tmp_path
):
    _, model, data_config = saved
    folder, model = tmp_path, copy.deepcopy(model)
    save_model(model, data_config, SOURCE, folder, dtype)
    reload_weights(model, folder, Accelerator(cpu=True))
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert (folder / "model.safetensors").stat().st_size / weights == pytest.approx(bytes_a_weight, rel=0.1)
    file = next(drawn_folder.rglob("*.jpg"))
    image = decode(Row(file.name, file.read_bytes(), 0), evaluation_transform(data_config, 64))
    with torch.inference_mode():
        ours = model.eval().to(memory_format=torch.channels_last)(normalise(image[None], data_config))

    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=theirs), is_training=False)
    with torch.inference_mode():
        timms = theirs.to(memory_format=torch.channels_last)(transform(Image.open(file).convert("RGB"))[None])
    assert torch.equal(ours, timms)

    classifier = pipeline("image-classification", model=str(folder), device="cpu")
    assert sorted(classifier.model.config.id2label.values()) == NAMES
    hugging = {answer["label"]: answer["score"] for answer in classifier(str(file), top_k=7)}
    expected = dict(zip(NAMES, ours.softmax(1)[0].tolist(), strict=True))
    assert hugging == pytest.approx(expected, abs=1e-5)


def test_a_saved_model_does_not_inherit_tag_and_licence_of_timms_weights(saved):
    assert not {"tag", "license", "origin_url"} & set(
        json.loads((saved[0] / "config.json").read_text())["pretrained_cfg"]
    )


def test_the_head_is_kept_for_the_same_classes_and_replaced_for_others(saved):
    folder, model, _ = saved
    kept, _ = build_model(model_options(model=None, init_from=str(folder)), NAMES)
    assert torch.equal(kept.head.fc.weight, model.head.fc.weight.cpu())
    replaced, _ = build_model(
        model_options(model=None, init_from=str(folder / "model.safetensors")), ["x", "y", "z"]
    )
    assert replaced.head.fc.weight.shape[0] == 3
    assert torch.equal(replaced.stem.conv.weight, model.stem.conv.weight.contiguous())
    reordered, _ = build_model(model_options(model=None, init_from=str(folder)), NAMES[::-1])
    assert not torch.equal(reordered.head.fc.weight, model.head.fc.weight)


def test_size_and_normalisation_come_from_the_start_model(saved):
    folder, _, data_config = saved
    _, inherited = build_model(model_options(init_from=str(folder), image_size=None), NAMES)
    assert inherited == data_config


def refusal(function, *arguments) -> str:
    with pytest.raises(TrainingError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rates(**given) -> SimpleNamespace:
    usual = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "layer_decay": None}
    return SimpleNamespace(**usual | given)


SMALL_FIRST = [(0.0, 32), (0.5, 299)]
CANNOT_BE_BUILT = [
    ({"model": "rexnet150"}, "did you mean rexnet_150"),
    ({"model": "rexnet_100.nonsense"}, "rexnet_100.nonsense"),
    (
        {"model": "inception_v3", "size_schedule": SMALL_FIRST},
        "inception_v3 does not accept 32-pixel images",
    ),
    (
        {"model": VIT, "image_size": 224, "size_schedule": [(0.0, 96), (0.5, 224)]},
        "does not accept 96-pixel images",
    ),
    ({"pretrained": True}, "pass --no-pretrained to train from scratch, or --init_from"),
]


@pytest.mark.parametrize(("given", "expected"), CANNOT_BE_BUILT)
def test_a_model_that_cannot_be_built_is_one_error_message(given, expected):
    assert expected in refusal(build_model, model_options(**given), NAMES)


def test_an_optimizer_that_does_not_work_is_one_error_message(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("it needs a GPU")

    model, _ = build_model(model_options(), NAMES)
    assert "did you mean adam" in refusal(build_optimizer, model, None, rates(optimizer="adamv"))
    monkeypatch.setattr("training.model.create_optimizer_v2", fails)
    assert "fusedadam does not work here" in refusal(
        build_optimizer, model, None, rates(optimizer="fusedadam")
    )


def test_layer_decay_lowers_the_rates_of_lower_layers_and_not_that_of_the_projector():
    model, _ = build_model(model_options(), NAMES)
    projector = torch.nn.Linear(4, 3)
    groups = build_optimizer(model, projector, rates(layer_decay=0.5)).param_groups
    scale = {id(p): group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
    assert len(scale) == len([*model.parameters(), *projector.parameters()])
    assert scale[id(model.stem.conv.weight)] < 0.01 < scale[id(model.head.fc.weight)] == 1.0
    assert scale[id(projector.weight)] == 1.0
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(projector.weight)] == decay[id(model.head.fc.weight)] == 0.05
    assert decay[id(projector.bias)] == decay[id(model.head.fc.bias)] == 0


def test_a_vit_starts_from_weights_for_another_input_size(tmp_path):
    """Its position embedding is resampled; the saved model is timm's again, at that size."""
    vit = model_options(model=VIT, image_size=64)
    start, data_config = build_model(vit, NAMES)
    (tmp_path / "start").mkdir()
    save_model(start, data_config, SOURCE, tmp_path / "start")
    larger, data_config = build_model(
        model_options(model=None, init_from=str(tmp_path / "start"), image_size=96), NAMES
    )
    assert start.pos_embed.shape[1] == 1 + 4**2 and larger.pos_embed.shape[1] == 1 + 6**2
    assert torch.equal(start.blocks[0].mlp.fc1.weight, larger.blocks[0].mlp.fc1.weight)
    (tmp_path / "larger").mkdir()
    save_model(larger, data_config, SOURCE, tmp_path / "larger")
    timms = timm.create_model(f"local-dir:{tmp_path / 'larger'}", pretrained=True).eval()
    images = torch.randn(2, 3, 96, 96)
    assert torch.equal(timms(images), larger.eval()(images))


def test_the_default_input_size_of_a_vit_is_its_own():
    _, data_config = build_model(model_options(model=VIT, image_size=None), NAMES)
    assert data_config["input_size"] == (3, 224, 224)


@pytest.mark.parametrize("name", ["weights.pth", "pytorch_model.bin", "model.pkl"])
def test_a_pickle_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04")
    assert name in refusal(resolve_start, str(tmp_path / name))
    assert name in refusal(resolve_start, str(tmp_path))


def test_a_start_model_that_is_damaged_mismatched_or_missing_is_one_error_message(saved, tmp_path):
    def refused(start, **given) -> str:
        return refusal(build_model, model_options(init_from=str(start), **given), NAMES)

    assert "nobody/nothing" in refused("hf-hub:nobody/nothing")
    assert "--init_from is a rexnet_100" in refused(saved[0], model="rexnet_150")
    assert "has no model.safetensors" in refused(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    assert "not a readable safetensors file" in refused(tmp_path)
    save_file({"other": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert "does not match" in refused(tmp_path)


def test_a_frozen_backbone_keeps_its_weights_and_batch_statistics():
    model, _ = build_model(model_options(freeze_backbone=True), NAMES)
    training_mode(model, frozen_backbone=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {"head.fc.weight", "head.fc.bias"}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_strided_depthwise_convolutions_stay_in_float32_under_autocast() -> None:
    model = timm.create_model("rexnet_100", num_classes=3)
    names = list(model.state_dict())
    keep_slow_convolutions_in_float32(model)
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, _, out, name=name: seen.update({name: (m, out.dtype)}))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.rand(2, 3, 64, 64))
    spared = {name for name, (m, _) in seen.items() if m.groups > 1 and m.stride[0] > 1}
    assert spared and spared == {name for name, (_, dtype) in seen.items() if dtype == torch.float32}
    assert list(model.state_dict()) == names


@pytest.fixture
def batches():
    torch.manual_seed(0)
    return [3 + 2 * torch.randn(8, 3, 16, 16) for _ in range(4)]


def test_batch_statistics_are_the_mean_over_the_batches(batches):
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].running_mean += 100
    assert reestimate_batch_norm(model, batches, Accelerator(cpu=True)) == 2
    expected = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    assert torch.allclose(model[0].running_mean, expected, atol=1e-5)
    assert torch.allclose(model[0].running_var, torch.full((3,), 4.0), atol=0.3)
    assert model[0].momentum == 0.3 and not any(module.training for module in model.modules())


def test_statistics_of_the_second_layer_are_those_of_the_first_layers_output(batches):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    reestimate_batch_norm(model, batches, Accelerator(cpu=True))
    assert torch.allclose(model[1].running_mean, torch.zeros(3), atol=1e-5)
    assert torch.allclose(model[1].running_var, torch.ones(3), atol=1e-2)


def test_reestimation_is_idempotent_and_does_not_change_weights(batches):
    torch.manual_seed(1)
    model = timm.create_model("rexnet_100", num_classes=3, drop_rate=0.5, drop_path_rate=0.2)
    weights = {name: value.clone() for name, value in model.named_parameters()}
    reestimate_batch_norm(model, batches, Accelerator(cpu=True))
    once = {name: value.clone() for name, value in model.state_dict().items()}
    reestimate_batch_norm(model, batches, Accelerator(cpu=True))
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())


def test_a_model_without_batch_norm_does_not_change(batches):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert reestimate_batch_norm(model, batches, Accelerator(cpu=True)) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
