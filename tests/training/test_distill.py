"""Teachers, the cache of their outputs, and the distillation losses."""

import pytest
import torch

from hub_model.inference.errors import RepoError
from tests.training.small import NAMES, SOURCE, model_options
from training import TrainingError
from training.distill import (
    Student,
    Teacher,
    TeacherCache,
    TeacherOutput,
    feature_loss,
    label_loss,
    teacher_loss,
)
from training.model import build_model, save_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(1)
    model, data_config = build_model(model_options(image_size=48), NAMES)
    save_model(model, data_config, SOURCE, folder)
    return str(folder)


def test_two_equal_teachers_predict_the_same_as_one(run):
    views = torch.rand(3, 3, 48, 48)
    one, two = Teacher([run], NAMES, 2.0)(views), Teacher([run, run], NAMES, 2.0)(views)
    assert torch.allclose(one.probabilities, two.probabilities)
    assert two.features.shape[1] == 2 * one.features.shape[1]
    assert torch.allclose(one.probabilities.sum(1), torch.ones(3))


def test_onnx_runtime_gives_the_same_logits_for_a_batch_of_any_size(run):
    teacher = Teacher([run], NAMES, 2.0, size=64)
    batches = [torch.rand(images, 3, 48, 48) for images in (3, 5)]
    expected = [teacher(views) for views in batches]
    through_pytorch = teacher.networks
    assert teacher.select_backend(CPU, bf16=False) is None and teacher.networks is not through_pytorch
    for views, before in zip(batches, expected, strict=True):
        answer = teacher(views)
        assert torch.allclose(answer.probabilities, before.probabilities, atol=1e-5)
        assert torch.allclose(answer.features, before.features, atol=1e-4)


def test_a_teacher_that_cannot_be_exported_runs_in_pytorch(run, monkeypatch):
    def refuse(*_):
        raise RepoError("the ONNX graph differs")

    monkeypatch.setattr("training.distill.export_onnx", refuse)
    teacher, views = Teacher([run], NAMES, 2.0), torch.rand(3, 3, 48, 48)
    expected = teacher(views).probabilities
    assert teacher.select_backend(CPU, bf16=False) == "the ONNX graph differs"
    assert torch.equal(teacher(views).probabilities, expected)


def test_a_vit_teacher_keeps_its_size_and_can_run_in_bfloat16(tmp_path):
    torch.manual_seed(1)
    vit = model_options(model="vit_tiny_patch16_224", image_size=48)
    save_model(*build_model(vit, NAMES), SOURCE, tmp_path)
    teacher, views = Teacher([str(tmp_path)], NAMES, 2.0), torch.rand(3, 3, 64, 64)
    expected = teacher(views)
    assert teacher.size == 48 and expected.features.shape == (3, 192)
    assert teacher.select_backend(CPU, bf16=True) is None
    answer = teacher(views)
    assert answer.features.dtype == torch.float32 and not torch.equal(answer.features, expected.features)
    assert torch.allclose(answer.probabilities, expected.probabilities, atol=1e-2)


def test_cached_teacher_outputs_are_rounded_to_float16_and_survive_the_process(run, tmp_path):
    teacher, views = Teacher([run], NAMES, 2.0), torch.rand(3, 3, 48, 48)
    expected = teacher(views)
    cache = TeacherCache(teacher, epochs=2, folder=tmp_path / "cache")
    assert [cache.view_epoch(epoch) for epoch in range(5)] == [0, 1, 0, 1, 0]
    first = cache(views, "48-0", "batch")
    assert torch.allclose(first.probabilities, expected.probabilities, atol=1e-3)
    assert torch.allclose(first.features, expected.features, atol=1e-2, rtol=1e-3)
    cache.save("48-0")
    cache.teacher = None  # not used again, nor by the next process
    resumed = TeacherCache(None, epochs=2, folder=tmp_path / "cache")
    for later in (cache(views, "48-0", "batch"), resumed(views, "48-0", "batch")):
        assert torch.equal(later.probabilities, first.probabilities)
        assert torch.equal(later.features, first.features)


def test_damaged_cache_files_are_recomputed(run, tmp_path):
    teacher, views = Teacher([run], NAMES, 2.0), torch.rand(3, 3, 48, 48)
    cache = TeacherCache(teacher, 1, tmp_path)
    first = cache(views, "48-0", "batch")
    (tmp_path / "48-0.safetensors").write_bytes(b"cut")
    assert torch.equal(TeacherCache(teacher, 1, tmp_path)(views, "48-0", "batch").features, first.features)


def test_a_higher_temperature_softens_the_probabilities(run):
    views = torch.rand(3, 3, 48, 48)
    cold, hot = (Teacher([run], NAMES, t)(views).probabilities.max(1).values for t in (0.01, 5.0))
    assert (hot < cold).all()


def test_a_teacher_with_other_classes_is_refused(run):
    with pytest.raises(TrainingError, match="has the classes"):
        Teacher([run], ["x", "y"], 1.0)


def test_distillation_losses_vanish_for_the_teachers_own_output():
    logits = torch.randn(5, 7)
    answer = TeacherOutput((logits / 2.0).softmax(1), torch.randn(5, 4))
    assert teacher_loss(logits, answer, 2.0).abs() < 1e-6
    assert teacher_loss(-logits, answer, 2.0) > 0.01
    assert feature_loss(3 * answer.features, answer).abs() < 1e-6


def test_label_loss_is_class_weighted_cross_entropy():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    targets = torch.nn.functional.one_hot(labels, 3).float()
    assert torch.allclose(
        label_loss(logits, targets, torch.ones(3)), torch.nn.functional.cross_entropy(logits, labels)
    )
    only_first = label_loss(logits, targets, torch.tensor([1.0, 0.0, 0.0]))
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")[labels == 0].sum() / 6
    assert torch.allclose(only_first, expected)


def test_a_projector_does_not_change_the_logits_of_the_student():
    model, _ = build_model(model_options(), NAMES)
    student, images = Student(model, teacher_features=10).eval(), torch.randn(2, 3, 64, 64)
    logits, projected = student(images)
    assert torch.allclose(logits, model(images), atol=1e-5)
    assert projected.shape == (2, 10)
