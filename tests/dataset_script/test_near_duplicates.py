"""Overlapping crops are linked; different cells are not."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_script.near_duplicates import POINT, TURNS, Spool, agreement, fingerprint, link
from dataset_script.synthetic_cells import LOOKS, draw_cell, draw_field
from dataset_script.validate import luminance

SHIFTS = ((60, 60), (125, 0), (90, 90), (125, 125))  # rows, columns, of a frame of 250
DAMAGE = {"JPEG 90": (90, 1.0, 0), "JPEG 75": (75, 1.0, 0), "JPEG 75, darker": (75, 0.8, 10)}


def degraded(pixels: np.ndarray, quality: int, gain: float = 1.0, offset: float = 0) -> np.ndarray:
    """Return the luminance of RGB pixels [H, W, 3] after a change of brightness and JPEG compression."""
    buffer = io.BytesIO()
    changed = (pixels * gain + offset).clip(0, 255).astype(np.uint8)
    Image.fromarray(changed).save(buffer, "JPEG", quality=quality)
    return luminance(Image.open(buffer))


def grouped(images: list[np.ndarray]) -> list[int]:
    """Return the group of each luminance image."""
    with contextlib.closing(Spool(POINT, "bits")) as store:
        for node, image in enumerate(images):
            points = fingerprint(image)
            points["node"] = node
            store.add(points)
        sets, _, _ = link(store, images.__getitem__)
    return [min(sets.subset(node)) if node in sets else node for node in range(len(images))]


def recall(fields: list[np.ndarray], frame: int, damage: str, shifts=SHIFTS) -> dict[tuple[int, int], float]:
    """Return the fraction of linked pairs for each shift (of a frame of 250), and assert that no fields are linked."""
    rng = np.random.default_rng(1)
    recalls = {}
    for rows, columns in shifts:
        down, right = rows * frame // 250, columns * frame // 250
        images = []
        for field in fields:
            top = rng.integers(field.shape[0] - frame - down + 1)
            left = rng.integers(field.shape[1] - frame - right + 1)
            images.append(degraded(field[top : top + frame, left : left + frame], 95))
            second = field[top + down : top + down + frame, left + right : left + right + frame]
            images.append(degraded(second, *DAMAGE[damage]))
        groups = grouped(images)
        pairs = list(zip(groups[::2], groups[1::2], strict=True))
        assert all(a // 2 == i for i, pair in enumerate(pairs) for a in pair), "different fields were linked"
        recalls[rows, columns] = sum(a == b for a, b in pairs) / len(pairs)
    return recalls


def drawn_fields(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    names, fields = list(LOOKS), []
    for seed in range(count):
        cells = [(names[rng.integers(7)], *rng.integers(0, 400, 2)) for _ in range(9)]
        fields.append(np.asarray(draw_field(400, 400, cells, seed)))
    return fields


def real_crops(folder: Path, count: int) -> list[np.ndarray]:
    paths = sorted(folder.glob("*/*.jpg"))
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths[:: len(paths) // count][:count]]


@pytest.mark.parametrize("damage", DAMAGE)
def test_crops_of_one_field_are_linked_up_to_shifts_of_half_the_frame(damage: str) -> None:
    recalls = recall(drawn_fields(20), 250, damage)
    assert min(recalls[60, 60], recalls[125, 0], recalls[90, 90]) >= 0.95, recalls
    assert recalls[125, 125] >= 0.6, recalls


@pytest.mark.real_data
def test_overlapping_parts_of_real_crops_are_linked(real_images: Path) -> None:
    recalls = recall(real_crops(real_images, 60), 160, "JPEG 90")
    assert min(recalls[60, 60], recalls[125, 0], recalls[90, 90]) >= 0.95, recalls


def test_different_cells_are_not_linked() -> None:
    images = [luminance(draw_cell(label, seed)) for label in LOOKS for seed in range(12)]
    assert len(set(grouped(images))) == len(images)


@pytest.mark.parametrize("turn", range(8))
def test_a_rotated_or_mirrored_copy_is_linked(turn: int) -> None:
    pixels = np.asarray(draw_cell("PMO", 4))
    turned = np.rot90(pixels if turn < 4 else pixels[:, ::-1], -(turn % 4))
    other = luminance(draw_cell("PMO", 5))
    groups = grouped([luminance(Image.fromarray(pixels)), other, degraded(turned, 85)])
    assert groups == [0, 1, 0]


def test_agreement_follows_a_known_turn_and_shift() -> None:
    field = drawn_fields(1)[0].mean(axis=2, dtype=np.float32)
    a, b = field[:250, :250], field[40:290, 70:320]
    assert agreement(a, b, 0, (-40, -70)) > 0.9
    for turn, matrix in enumerate(TURNS):
        moved = np.einsum("ij,hwj->hwi", matrix, np.stack(np.indices(b.shape), axis=-1))
        moved -= moved.min(axis=(0, 1))
        target = np.zeros_like(b)
        target[moved[..., 0], moved[..., 1]] = b
        corner = -np.minimum(matrix @ [249, 249], 0)
        assert agreement(b, target, turn, tuple(corner)) > 0.9


def test_flat_and_tiny_images_have_no_keypoints() -> None:
    assert len(fingerprint(np.full((250, 250), 200, dtype=np.float32))) == 0
    assert len(fingerprint(np.zeros((8, 8), dtype=np.float32))) == 0
    assert len(fingerprint(np.zeros((8, 9000), dtype=np.float32))) == 0
