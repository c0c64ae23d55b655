"""The card of the dataset repo and its figures: a build's summary in, `README.md` and `figures/*.png` out.

What the card says about origin, licence and citation depends on what the images are: the published crops (`matek`),
synthetic ones (`synthetic`), or someone's own (`own`), about which nothing is claimed.
"""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
from datasets import DatasetInfo, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from dataset_script.labels import CITATION, CLASSES
from dataset_script.parquet import features
from dataset_script.records import NEAR_TEST, Summary
from dataset_script.splits import SPLITS

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
COLOURS = {"train": "#3b6fb6", "validation": "#e3a23c", "test": "#b5485d"}


def plain(text: str) -> str:
    """Return a name as it can stand in a Markdown table: no markup of it takes effect."""
    return re.sub(
        r"[&<>\\`*_\[\]{}()#+!|~$-]", lambda match: f"&#{ord(match[0])};", re.sub(r"\s+", " ", text)
    )


def draw_figures(folder: Path, summary: Summary) -> None:
    """Write figures/classes_bar.png (images of each class, by split) and figures/classes_pie.png."""
    from matplotlib.figure import Figure

    (folder / "figures").mkdir()
    names = [name[:24].replace("$", r"\$") for name in summary.classes]
    totals = [sum(summary.counts[split, label] for split in SPLITS) for label in range(len(names))]

    bar = Figure(figsize=(max(6, 0.7 * len(names) + 2), 4), layout="constrained")
    axes = bar.subplots()
    base = [0] * len(names)
    for split in SPLITS:
        heights = [summary.counts[split, label] for label in range(len(names))]
        axes.bar(range(len(names)), heights, bottom=base, label=split, color=COLOURS[split])
        base = [a + b for a, b in zip(base, heights, strict=True)]
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


def metadata(folder: Path, summary: Summary) -> DatasetCardData:
    """Return the card's YAML: features, splits with their bytes, files of each split, licence, tags."""
    splits, files = SplitDict(), []
    size = 0
    for split in SPLITS:
        shards = sorted((folder / "data").glob(f"{split}-*.parquet"))
        shards = [path for path in shards if pq.read_metadata(path).num_rows]
        rows = [row for row in summary.rows if row.split == split]
        if rows:
            splits.add(SplitInfo(split, num_bytes=sum(row.length for row in rows), num_examples=len(rows)))
            files.append({"split": split, "path": f"data/{split}-*"})
            size += sum(path.stat().st_size for path in shards)
    kind = summary.kind
    data = DatasetCardData(
        license={"matek": "cc-by-4.0", "synthetic": "apache-2.0"}.get(kind),
        task_categories=["image-classification"],
        size_categories=[next((name for limit, name in SIZES if len(summary.rows) < limit), "n>10M")],
        tags=["biology", "medical", "hematology", "bone-marrow", "cytology"] if kind == "matek" else
             ["synthetic"] if kind == "synthetic" else ["microscopy"],
        pretty_name={"matek": "Bone-marrow cell crops", "synthetic": "Synthetic bone-marrow cells"}.get(kind, "Cell images"),
        annotations_creators=["expert-generated"] if kind == "matek" else ["machine-generated"] if kind == "synthetic" else None,
        source_datasets=["extended"] if kind == "matek" else ["original"] if kind == "synthetic" else None,
    )  # fmt: skip
    info = DatasetInfo(
        features=features(summary.classes),
        splits=splits,
        download_size=size,
        dataset_size=sum(row.length for row in summary.rows),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    if kind != "own":  # the trainer takes the classes' full names from here into the model repo
        data.label_descriptions = {name: CLASSES[name] for name in summary.classes if name in CLASSES}
    return data


ORIGIN = {
    "matek": """\
Crops of single bone-marrow cells, 250×250 pixels, one cell at the centre of each, from the set that Matek et al. published
in 2021: May-Grünwald-Giemsa/Pappenheim stain, 40× oil immersion, 945 patients, 171,373 crops in 21 classes, annotated by
experts (Munich Leukemia Laboratory, Fraunhofer IIS, Helmholtz Munich; The Cancer Imaging Archive,
[doi:10.7937/TCIA.AXH3-T579](https://doi.org/10.7937/TCIA.AXH3-T579)). The files here are unchanged copies.""",
    "synthetic": """\
**These images are synthetic: drawings, not photographs.** `dataset_script.synthetic_cells` made them, to try out and test
software without any real data. A model trained on them knows nothing about real cells.""",
    "own": """\
Images from a folder of the person who built this dataset, one folder a class. Origin, consent, licence and citation are
theirs to state here: nothing was assumed.""",
}
LICENCE = {
    "matek": """\
CC BY 4.0, the licence of the published set: name the authors when you use or pass on the images.

```bibtex
{citation}```
""",
    "synthetic": "Apache-2.0, like the program that made them. There is no paper to cite.\n",
    "own": "Not stated. Add `license:` to the front matter before you publish, and a citation if there is one.\n",
}
NO_PATIENTS = """\
- **No patient or slide identifiers are public for these images.** Crops of one patient can be in several splits, so figures
  on `test` say how a model does on new cells of known slides, and are too good for a new patient's slide or another laboratory.
"""
LIMITS = {
    "matek": NO_PATIENTS + """\
- Where classes were limited to a number of images each, their shares are not those of a marrow: counts that a model makes
  need to be corrected for prevalence.
- NIF means *not identifiable*: a class of leftovers, not a cell type.
- One laboratory, one stain, one scanner. Research and teaching, not diagnosis.
""",
    "synthetic": "- Synthetic: accuracy on these images means that the software works, nothing else.\n",
    "own": """\
- Patients and slides are not known to the program that made the splits: only near-duplicates are kept together.
  If several images come from one patient, figures on `test` are too good for a new patient.
""",
}  # fmt: skip


def _tables(summary: Summary) -> tuple[str, str]:
    lines = [
        "| label | class | " + " | ".join(SPLITS) + " | all |",
        "|---|---|" + "---:|" * (len(SPLITS) + 1),
    ]
    for label, name in enumerate(summary.classes):
        cells = [summary.counts[split, label] for split in SPLITS]
        meaning = f" ({CLASSES[name]})" if name in CLASSES and summary.kind != "own" else ""
        lines.append(
            f"| {label} | {plain(name)}{meaning} | "
            + " | ".join(f"{n:,}" for n in [*cells, sum(cells)])
            + " |"
        )
    sums = [sum(row.split == split for row in summary.rows) for split in SPLITS]
    lines.append("| | all | " + " | ".join(f"{n:,}" for n in [*sums, sum(sums)]) + " |")
    reasons = ["| reason | files |", "|---|---:|"]
    reasons += [f"| {plain(reason)} | {n:,} |" for reason, n in sorted(summary.reasons.items())]
    return "\n".join(lines), "\n".join(reasons) if len(reasons) > 2 else "No file was rejected."


def _split_text(summary: Summary) -> str:
    rule = (
        "Inside each class, groups are ordered by the SHA-256 of `seed:group` "
        f"(seed {summary.seed}); the first 15% of images are "
    )
    if summary.listed is None:
        return rule + "`test`, the next 15% `validation`, the rest `train`."
    listed = sum(row.listed for row in summary.rows)
    text = f"`test` holds the {listed:,} images that a published list of {summary.listed:,} test file names names"
    if near := summary.reasons[NEAR_TEST]:
        text += f"; {near} near-duplicates of them are left out (see `rejected.csv`)"
    return f"{text}. {rule.replace('the first', 'of the others, the first')}`validation`, the rest `train`."


def text(summary: Summary) -> str:
    """Return the card's Markdown below the front matter."""
    table, reasons = _tables(summary)
    shared, synthetic = summary.shared_groups, sum(row.synthetic for row in summary.rows)
    title = {"matek": "Bone-marrow cell crops", "synthetic": "Synthetic bone-marrow cells"}.get(
        summary.kind, "Cell images"
    )
    mixed = (
        f"\n\n{synthetic:,} of the images are synthetic (`dataset_script.synthetic_cells`), not photographs."
        if synthetic and summary.kind != "synthetic"
        else ""
    )
    return f"""# {title}

{ORIGIN[summary.kind]}{mixed}

```python
from datasets import load_dataset

train = load_dataset("OWNER/NAME", split="train")  # the name may be the path of this folder
image, label = train[0]["image"], train.features["label"].int2str(train[0]["label"])
```

## Classes and splits

{table}

![Images of each class, by split](figures/classes_bar.png)
![Share of each class](figures/classes_pie.png)

{_split_text(summary)} A group never straddles two splits. `splits.csv` lists every image with its split.

Columns: `image` (the original file, byte for byte), `label`, `file_name`, `sha256` (of the file), `group`.

## Groups

Near-duplicates (copies, or overlapping crops of one place of a slide) share a `group`: the smallest SHA-256 among them.
Candidates have equal local patterns that agree on a shift, and are confirmed by the correlation of the band-passed pictures
over the overlap (0.8 or more). Of {summary.pictures:,} different pictures, {summary.compared:,} pairs were compared and
{summary.confirmed:,} confirmed; {len(shared):,} groups have more than one image ({sum(shared):,} images in all).

## Rejected files

Every file was decoded to its last pixel. {summary.seen:,} files seen, {len(summary.rows):,} kept,
{len(summary.rejected):,} rejected (each with its reason in `rejected.csv`), {summary.left_out:,} of other classes and
{summary.spare:,} beyond the number wanted of each class left out.

{reasons}

## Limits

{LIMITS[summary.kind]}
## Licence and citation

{LICENCE[summary.kind].format(citation=CITATION)}"""


def write_card(folder: Path, summary: Summary) -> None:
    """Write README.md and the figures into the dataset folder, whose Parquet files are there already."""
    draw_figures(folder, summary)
    card = DatasetCard(f"---\n{metadata(folder, summary).to_yaml()}\n---\n\n{text(summary)}")
    card.save(folder / "README.md")
