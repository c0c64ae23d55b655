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
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dataset_script.labels import CLASSES, SHEETS
from dataset_script.parquet import features
from dataset_script.records import Summary
from dataset_script.splits import FRACTION, FRACTION_BESIDE_LIST, SPLITS
from hub_model.publish import links

TEMPLATE = Path(__file__).with_name("card.md.jinja")
REPO = "OWNER/NAME"  # in the card of a folder that was not pushed yet
LINKS = "<!-- links: model and Space -->"  # a comment in that card
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
        features=features(summary.classes, bool(_sources(summary))),
        splits=splits,
        download_size=size,
        dataset_size=sum(row.length for row in summary.rows),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    if "own" not in kinds:  # the trainer takes the classes' full names from here into the model repo
        data.label_descriptions = {name: CLASSES[name] for name in summary.classes if name in CLASSES}
    return yaml.dump(data.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _sources(summary: Summary) -> list[str]:
    """The names of the sources; none where a lone one has no name."""
    return [source for source in summary.kinds if source]


def _title(summary: Summary) -> str:
    kinds = set(summary.kinds.values())
    if len(kinds) > 1:
        return "Blood and bone-marrow cell images" if kinds & set(SHEETS) else "Cell images"
    kind = kinds.pop()
    if kind in SHEETS:
        return SHEETS[kind].title
    return "Synthetic bone-marrow cells" if kind == "synthetic" else "Cell images"


SYNTHETIC = """\
**These images are synthetic: drawings, not photographs.** `dataset_script.synthetic_cells` made them, to try out and test
software without any real data. A model trained on them knows nothing about real cells."""
OWN = """\
Images from a folder of the person who built this dataset. Origin, consent, licence and citation are theirs to state here:
nothing was assumed."""


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


def _tables(summary: Summary) -> str:
    """The classes by split, and by source where there are several."""
    head = ["label", "class", *SPLITS, "all"]
    sources = _sources(summary)
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
    head += [f"`{source}`" for source in sources]
    marks = ["---", "---", *["---:"] * (len(head) - 2)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, marks, *lines])


def _split_text(summary: Summary) -> str:
    """How the splits were made."""
    given = {row.given_split for row in summary.rows} - {""}
    where = " of a source" if _sources(summary) else ""
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


def card_text(folder: Path, summary: Summary) -> str:
    """Return the card of a dataset folder, whose Parquet files are there already."""
    kinds = set(summary.kinds.values())
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined)
    environment.filters["plain"] = plain
    return environment.get_template(TEMPLATE.name).render(
        REPO=REPO,
        LINKS=LINKS,
        metadata=metadata(folder, summary),
        title=_title(summary),
        summary=summary,
        kinds=kinds,
        sheets=[SHEETS[kind] for kind in SHEETS if kind in kinds],
        sizes={split: sum(row.split == split for row in summary.rows) for split in SPLITS},
        sources=_sources(summary),
        origin=_origin(summary),
        classes=_tables(summary),
        splits=_split_text(summary),
    )


def write_card(folder: Path, summary: Summary) -> None:
    """Write README.md into the dataset folder."""
    (folder / "README.md").write_text(card_text(folder, summary), encoding="utf-8")


def rendered_for(card: str, repo_id: str, model: str | None = None, space: str | None = None) -> str:
    """Return a card for the repo that it is pushed to: its snippets name that repo, and it links a model and a Space."""
    return card.replace(f'"{REPO}"', f'"{repo_id}"').replace(LINKS, links(model=model, space=space) or LINKS)
