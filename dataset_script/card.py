"""The card of the dataset repo: a build's summary in, `README.md` out; and the same, for the repo that it is pushed to.

What the card says about origin, licence and citation depends on what the images of each source are: a published dataset with
a data sheet in `labels.py`, synthetic ones (`synthetic`), or someone's own (`own`), about which nothing is claimed.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from datasets import DatasetInfo, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from dataset_script.labels import CLASSES, SHEETS
from dataset_script.parquet import features
from dataset_script.records import Summary
from dataset_script.splits import FRACTION, FRACTION_BESIDE_LIST, SPLITS

REPO = "OWNER/NAME"  # in the card of a folder that was not pushed yet
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
# what a reader of YAML 1.1 or 1.2 may take for something else than text: numbers, dates, booleans, nothing
AMBIGUOUS = re.compile(r"[-+.~\d].*|y|n|yes|no|on|off|true|false|null|nan|inf|", re.IGNORECASE | re.DOTALL)


class _Dumper(yaml.SafeDumper):
    """YAML whose texts are texts to readers of YAML 1.1 and of 1.2."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="'" if AMBIGUOUS.fullmatch(text) else None
    ),
)


def plain(text: str) -> str:
    """Return a name as it can stand in a Markdown table: no markup of it takes effect."""
    return re.sub(r"[&<>\\`*_\[\]{}()#+!|~$]", lambda match: f"&#{ord(match[0])};", re.sub(r"\s+", " ", text))


def metadata(folder: Path, summary: Summary) -> str:
    """Return the card's YAML: features, splits with their bytes, files of each split, licence, tags."""
    splits, files, size = SplitDict(), [], 0
    for split in SPLITS:
        rows = [row for row in summary.rows if row.split == split]
        if rows:
            splits.add(SplitInfo(split, num_bytes=sum(row.length for row in rows), num_examples=len(rows)))
            files.append({"split": split, "path": f"data/{split}-*"})
            shards = (folder / "data").glob(f"{split}-*.parquet")
            size += sum(path.stat().st_size for path in shards if pq.read_metadata(path).num_rows)
    kinds = set(summary.kinds.values())
    sheets = [SHEETS[kind] for kind in SHEETS if kind in kinds]
    published, synthetic = kinds <= set(SHEETS), kinds == {"synthetic"}
    own_tags = [tag for sheet in sheets for tag in sheet.tags]
    data = DatasetCardData(
        license="cc-by-4.0" if published else "apache-2.0" if synthetic else None,
        task_categories=["image-classification"],
        size_categories=[next((name for limit, name in SIZES if len(summary.rows) < limit), "n>10M")],
        tags=["biology", "medical", "hematology", "microscopy", *own_tags] if sheets else
             ["synthetic"] if synthetic else ["microscopy"],
        pretty_name=_title(summary),
        annotations_creators=["expert-generated"] if published else ["machine-generated"] if synthetic else None,
        source_datasets=["extended"] if published else ["original"] if synthetic else None,
    )  # fmt: skip
    info = DatasetInfo(
        features=features(summary.classes, _has_sources(summary)),
        splits=splits,
        download_size=size,
        dataset_size=sum(row.length for row in summary.rows),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    if "own" not in kinds:  # the trainer takes the classes' full names from here into the model repo
        data.label_descriptions = {name: CLASSES[name] for name in summary.classes if name in CLASSES}
    return yaml.dump(data.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _has_sources(summary: Summary) -> bool:
    return list(summary.kinds) != [""]


def _title(summary: Summary) -> str:
    kinds = set(summary.kinds.values())
    if len(kinds) > 1:
        return "Blood and bone-marrow cell images" if kinds & set(SHEETS) else "Cell images"
    kind = kinds.pop()
    return (
        SHEETS[kind].title
        if kind in SHEETS
        else "Synthetic bone-marrow cells"
        if kind == "synthetic"
        else "Cell images"
    )


SYNTHETIC = """\
**These images are synthetic: drawings, not photographs.** `dataset_script.synthetic_cells` made them, to try out and test
software without any real data. A model trained on them knows nothing about real cells."""
OWN = """\
Images from a folder of the person who built this dataset. Origin, consent, licence and citation are theirs to state here:
nothing was assumed."""
LIMITS = {
    "published": """\
- **No patient or slide identifiers are public for these images.** Crops of one patient can be in several splits, so figures
  on `test` say how a model does on new cells of known slides, and are too good for a new patient's slide or another laboratory.
- Where classes were limited to a number of images each, their shares are not those of a marrow: counts that a model makes
  need to be corrected for prevalence.
- NIF means *not identifiable*: a class of leftovers, not a cell type.
- {laboratories}. Research and teaching, not diagnosis.
""",
    "synthetic": "- Synthetic: accuracy on these images means that the software works, nothing else.\n",
    "own": """\
- Patients and slides are not known to the program that made the splits, unless `--group_by` or a table named them: only
  near-duplicates are kept together. If several images come from one patient, figures on `test` are too good for a new patient.
""",
}  # fmt: skip


def _origin(summary: Summary) -> str:
    """Where the images come from: a section for each source where they have names."""
    synthetic = sum(row.synthetic for row in summary.rows)
    texts = []
    for source, kind in summary.kinds.items():
        text = SHEETS[kind].origin if kind in SHEETS else SYNTHETIC if kind == "synthetic" else OWN
        texts.append(f"- **`{source}`**: {text}" if source else text)
    if synthetic and "synthetic" not in summary.kinds.values():
        texts.append(
            f"\n{synthetic:,} of the images are synthetic (`dataset_script.synthetic_cells`), not photographs."
        )
    return "\n".join(texts)


def _snippets(summary: Summary) -> str:
    lines = [
        "from datasets import load_dataset",
        "",
        f'train = load_dataset("{REPO}", split="train")',
        'image, label = train[0]["image"], train.features["label"].int2str(train[0]["label"])',
        "",
        "# without downloading everything first",
        f'stream = load_dataset("{REPO}", split="train", streaming=True)',
    ]
    if _has_sources(summary):
        source = next(iter(summary.kinds))
        lines += ["", "# one source", f'one = load_dataset("{REPO}", split="test").filter(lambda source: source == "{source}",',
                  '                                                     input_columns="source")']  # fmt: skip
    return "\n".join(lines)


def _tables(summary: Summary) -> str:
    """The classes by split, and by source where there are several."""
    head = ["label", "class", *SPLITS, "all"]
    sources = list(summary.kinds) if _has_sources(summary) else []
    by_source = Counter((row.source, row.label) for row in summary.rows)
    known = "own" not in summary.kinds.values()
    lines = []
    for label, name in enumerate(summary.classes):
        cells = [summary.counts[split, label] for split in SPLITS]
        meaning = f" ({CLASSES[name]})" if name in CLASSES and known else ""
        numbers = [*cells, sum(cells), *(by_source[source, label] for source in sources)]
        lines.append([str(label), plain(name) + meaning, *(f"{n:,}" for n in numbers)])
    sums = [sum(row.split == split for row in summary.rows) for split in SPLITS]
    totals = [*sums, sum(sums), *(sum(row.source == source for row in summary.rows) for source in sources)]
    lines.append(["", "all", *(f"{n:,}" for n in totals)])
    head += [f"of it `{source}`" for source in sources]
    marks = ["---", "---", *["---:"] * (len(head) - 2)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, marks, *lines])


def _split_text(summary: Summary) -> str:
    """How the splits were made."""
    given = {row.given_split for row in summary.rows} - {""}
    where = " of a source" if _has_sources(summary) else ""
    rule = f"Inside each class{where}, groups are ordered by the SHA-256 of `seed:group` (seed {summary.seed}); the first "
    share, beside = f"{FRACTION:.0%}", f"{FRACTION_BESIDE_LIST:.0%}"
    parts = []
    if given:
        parts.append(
            f"The split{'s' * (len(given) > 1)} {', '.join(f'`{s}`' for s in SPLITS if s in given)} came with the images."
        )
    if summary.listed is not None:
        listed = sum(row.listed for row in summary.rows)
        parts.append(
            f"`test` holds the {listed:,} images that a published list of {summary.listed:,} test file names names."
        )
        unlisted = set(summary.kinds) - {row.source for row in summary.rows if row.listed}
        if unlisted:
            names = ", ".join(f"`{name}`" for name in sorted(unlisted))
            parts.append(f"Of {names}, which the list does not cover, {beside} of the images are `test`.")
        parts.append(rule + f"{share} of the others are `validation`, the rest `train`.")
    elif given != set(SPLITS):
        quotas = [f"{share} of images are `{s}`" for s in ("test", "validation") if s not in given]
        parts.append(rule + ", the next ".join(quotas) + ", the rest `train`.")
    if summary.near_held_out:
        parts.append(
            f"{summary.near_held_out:,} near-duplicates of held-out images are left out (see `rejected.csv`)."
        )
    return " ".join(parts)


def text(summary: Summary) -> str:
    """Return the card's Markdown below the front matter."""
    shared = summary.shared_groups
    reasons = "\n".join(f"| {plain(reason)} | {n:,} |" for reason, n in sorted(summary.reasons.items()))
    kinds = set(summary.kinds.values())
    laboratories = (
        "One laboratory, one stain, one scanner"
        if len(kinds) == 1
        else "Two laboratories, one stain, two scanners"
    )
    limits = [LIMITS["published"].format(laboratories=laboratories)] if kinds & set(SHEETS) else []
    limits += [LIMITS[kind] for kind in ("synthetic", "own") if kind in kinds]
    sources = ", `source`" if _has_sources(summary) else ""
    notes = "".join(f"\n{plain(note)}." for note in summary.notes)
    return f"""# {_title(summary)}

![Images of each class](figures/classes.jpg)

{_origin(summary)}

## Uses

```python
{_snippets(summary)}
```

## Classes and splits

{_tables(summary)}

![Images of each class, by split](figures/classes_bar.png)
![Share of each class](figures/classes_pie.png)

{_split_text(summary)} A group never straddles two splits. `splits.csv` lists every image with its split.{notes}

Columns: `image` (the original file, byte for byte), `label`, `file_name`, `sha256` (of the file), `group`{sources}.

## Groups

Near-duplicates (copies, or overlapping crops of one place of a slide) share a `group`: the smallest SHA-256 among them.
Candidates have equal local patterns that agree on a shift, and are confirmed by the correlation of the band-passed pictures
over the overlap (0.8 or more). Of {summary.pictures:,} different pictures, {summary.compared:,} pairs were compared and
{summary.confirmed:,} confirmed; {len(shared):,} groups have more than one image ({sum(shared):,} images in all).

## Rejected files

Every file was decoded to its last pixel. {summary.seen:,} files seen, {len(summary.rows):,} kept,
{len(summary.rejected):,} rejected (each with its reason in `rejected.csv`), {summary.left_out:,} of other classes and
{summary.spare:,} beyond the number wanted of each class left out.

{f"| reason | files |{chr(10)}|---|---:|{chr(10)}{reasons}" if reasons else "No file was rejected."}

## Label issues

Labels are those of the source. `label_issues.csv`, where the repo has one, lists likely label errors: images whose label is
less probable than another one by the out-of-fold predictions of a small model (confident learning), the most doubtful first.
A row is a question to an expert, not a correction; no image was moved or removed for it.

## Limitations

{"".join(limits)}
## Licence and citation

{_licence(summary)}"""


def _licence(summary: Summary) -> str:
    kinds = set(summary.kinds.values())
    sheets = [SHEETS[kind] for kind in SHEETS if kind in kinds]
    parts = []
    if sheets:
        whose = (
            "CC BY 4.0, the licence of the published images"
            if len(sheets) == 1
            else "CC BY 4.0, the licence of both sources"
        )
        citations = "\n".join(sheet.citation.rstrip() for sheet in sheets)
        parts.append(
            f"{whose}: name the authors when you use or pass on the images.\n\n```bibtex\n{citations}\n```\n"
        )
    if "synthetic" in kinds:
        parts.append(
            "Synthetic images: Apache-2.0, like the program that made them. There is no paper to cite.\n"
        )
    if "own" in kinds:
        which = "" if len(kinds) == 1 else "Of the other images: "
        parts.append(
            f"{which}Not stated. Add `license:` to the front matter before you publish, and a citation if there is one.\n"
        )
    return "\n".join(parts)


def write_card(folder: Path, summary: Summary) -> None:
    """Write README.md into the dataset folder, whose Parquet files are there already."""
    card = f"---\n{metadata(folder, summary)}---\n\n{text(summary)}"
    (folder / "README.md").write_text(card, encoding="utf-8")


def rendered_for(card: str, repo_id: str) -> str:
    """Return a card whose snippets name the repo that it is pushed to."""
    return card.replace(f'"{REPO}"', f'"{repo_id}"')
