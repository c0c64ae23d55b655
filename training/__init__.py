"""Components of `train_accelerate.py`: options, data, augmentation, model, distillation, checkpoints, evaluation."""


class TrainingError(Exception):
    """An error that the user can fix; the message is one sentence that says how."""
