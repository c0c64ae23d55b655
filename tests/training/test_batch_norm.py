"""Batch norm's statistics, taken anew: the mean of what the layer sees, nothing else changed."""

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn

from training.batch_norm import reestimate_batch_norm


@pytest.fixture
def batches():
    torch.manual_seed(0)
    return [3 + 2 * torch.randn(8, 3, 16, 16) for _ in range(4)]


def test_statistics_are_the_mean_over_the_batches_whatever_they_were(batches):
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].running_mean += 100
    assert reestimate_batch_norm(model, batches, Accelerator(cpu=True)) == 2
    expected = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    assert torch.allclose(model[0].running_mean, expected, atol=1e-5)
    assert torch.allclose(model[0].running_var, torch.full((3,), 4.0), atol=0.3)
    assert model[0].momentum == 0.3 and not any(module.training for module in model.modules())


def test_the_second_layer_sees_what_the_first_makes_of_a_batch(batches):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    reestimate_batch_norm(model, batches, Accelerator(cpu=True))
    assert torch.allclose(model[1].running_mean, torch.zeros(3), atol=1e-5)
    assert torch.allclose(model[1].running_var, torch.ones(3), atol=1e-2)


def test_weights_stay_and_a_second_time_changes_nothing(batches):
    torch.manual_seed(1)
    model = timm.create_model("rexnet_100", num_classes=3, drop_rate=0.5, drop_path_rate=0.2)
    weights = {name: value.clone() for name, value in model.named_parameters()}
    reestimate_batch_norm(model, batches, Accelerator(cpu=True))
    once = {name: value.clone() for name, value in model.state_dict().items()}
    reestimate_batch_norm(model, batches, Accelerator(cpu=True))
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())


def test_a_model_without_batch_norm_stays_as_it_is(batches):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert reestimate_batch_norm(model, batches, Accelerator(cpu=True)) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
