"""The figures of the dataset card: bar chart by class and split, pie chart of the classes, contact sheet, example images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from matplotlib import font_manager, ft2font
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from dataset_script.records import Row, Summary
from dataset_script.splits import SPLITS
from hub_model.inference.images import read_image

COLOURS = {"train": "#3b6fb6", "validation": "#e3a23c", "test": "#b5485d"}
FONT = font_manager.findfont("DejaVu Sans")  # matplotlib's own
GLYPHS = frozenset(ft2font.FT2Font(FONT).get_charmap())
TILE, COLUMNS, MAX_CLASSES = 120, 7, 40  # of the contact sheet: pixels per image, images per class, classes


def drawable(name: str, length: int = 24) -> str:
    """Return the first `length` characters of a name, with a box for those that the font lacks (emoji)."""
    return "".join(char if ord(char) in GLYPHS else "□" for char in name[:length])


def draw_figures(folder: Path, summary: Summary, read: Callable[[Row], bytes]) -> None:
    """Write classes_bar.png, classes_pie.png, classes.jpg and examples/ to figures/; `read` returns the bytes of an image."""
    (folder / "figures").mkdir()
    names = [drawable(name).replace("$", r"\$") for name in summary.classes]
    totals = [summary.count(label=label) for label in range(len(names))]

    bar = Figure(figsize=(max(6, 0.7 * len(names) + 2), 4), layout="constrained")
    axes = bar.subplots()
    bottom = [0] * len(names)
    for split in SPLITS:
        heights = [summary.count(split, label) for label in range(len(names))]
        axes.bar(range(len(names)), heights, bottom=bottom, label=split, color=COLOURS[split])
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    for x, total in enumerate(totals):
        axes.annotate(f"{total:,}", (x, total), ha="center", va="bottom", fontsize=9)
    axes.set(ylabel="images", title="Images of each class, by split", ylim=(0, 1.15 * max(totals)))
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis="x", rotation=45 if len(names) > 10 else 0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="upper right", fontsize=8)
    bar.savefig(folder / "figures" / "classes_bar.png", dpi=120, metadata={"Software": None})

    pie = Figure(figsize=(5.5, 5), layout="constrained")
    axes = pie.subplots()
    axes.pie(
        totals, labels=names, autopct="%.1f%%", startangle=90, counterclock=False, textprops={"fontsize": 9}
    )
    axes.set_title("Share of each class")
    pie.savefig(folder / "figures" / "classes_pie.png", dpi=120, metadata={"Software": None})
    contact_sheet(summary, read).save(folder / "figures" / "classes.jpg", quality=85)
    write_examples(folder / "figures" / "examples", summary, read)


def write_examples(folder: Path, summary: Summary, read: Callable[[Row], bytes]) -> None:
    """Write the first test image of each class as LABEL.jpg, for model cards and widgets to link to."""
    first = {row.label: row for row in reversed(summary.rows) if row.split == "test"}
    folder.mkdir()
    for label in sorted(first)[:MAX_CLASSES]:
        picture = read_image(read(first[label]))
        picture.thumbnail((512, 512))
        picture.save(folder / f"{label}.jpg", quality=90)


def contact_sheet(summary: Summary, read: Callable[[Row], bytes]) -> Image.Image:
    """Return an image with one row of training images per class, taken from its sources in turn."""
    by_class: dict[int, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in summary.rows:
        if row.split == "train":
            by_class[row.label][row.source].append(row)
    classes = summary.classes[:MAX_CLASSES]
    font = ImageFont.truetype(FONT, 14)
    left = 16 + int(max(font.getlength(drawable(name)) for name in classes))
    sheet = Image.new("RGB", (left + COLUMNS * TILE, len(classes) * TILE), "white")
    draw = ImageDraw.Draw(sheet)
    for label, name in enumerate(classes):
        draw.text((8, label * TILE + TILE // 2), drawable(name), fill="black", font=font, anchor="lm")
        by_source = [rows for _, rows in sorted(by_class[label].items())]
        mixed = [rows[i] for i in range(COLUMNS) for rows in by_source if i < len(rows)]
        for column, row in enumerate(mixed[:COLUMNS]):
            picture = read_image(read(row))
            picture.thumbnail((TILE - 4, TILE - 4))
            sheet.paste(picture, (left + column * TILE + 2, label * TILE + 2))
    return sheet
