"""What `train_accelerate.py` is made of: options, data, augmentation, model, teacher, checkpoints, report."""


class TrainingError(Exception):
    """Something the person at the keyboard can put right; its text is one sentence that says how."""
