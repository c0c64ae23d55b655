"""The card of the dataset repo: a build's summary in, `README.md` out; and the same, for the repo that it is pushed to.

What the card says about origin, licence and citation depends on what the images of each source are: a published dataset of
`labels.py`, synthetic ones (`synthetic`), or someone's own (`own`), about which nothing is claimed.
"""

from __future__ import annotations

import re
from pathlib import Path

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
    (10**6, "100K<n<1M"),
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


def metadata(folder: Path, summary: Summary, title: str, sources: list[str]) -> str:
    """Return the card's YAML: features, splits with their bytes, files of each split, licence, tags."""
    splits, files, size = SplitDict(), [], 0
    for split in filter(summary.count, SPLITS):
        lengths = [row.length for row in summary.rows if row.split == split]
        splits.add(SplitInfo(split, num_bytes=sum(lengths), num_examples=len(lengths)))
        files.append({"split": split, "path": f"data/{split}-*"})
        size += sum(path.stat().st_size for path in (folder / "data").glob(f"{split}-*.parquet"))
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
        pretty_name=title,
        annotations_creators=["expert-generated"] if published else ["machine-generated"] if synthetic else None,
        source_datasets=["extended"] if published else ["original"] if synthetic else None,
    )  # fmt: skip
    info = DatasetInfo(
        features=features(summary.classes, bool(sources)),
        splits=splits,
        download_size=size,
        dataset_size=sum(row.length for row in summary.rows),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    if "own" not in kinds:  # the trainer takes the classes' full names from here into the model repo
        data.label_descriptions = {name: CLASSES[name] for name in summary.classes if name in CLASSES}
    return yaml.dump(data.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _title(kinds: set[str]) -> str:
    if len(kinds) > 1:
        return "Blood and bone-marrow cell images" if kinds & set(SHEETS) else "Cell images"
    titles = {"synthetic": "Synthetic bone-marrow cells", "own": "Cell images"}
    return next(SHEETS[kind].title if kind in SHEETS else titles[kind] for kind in kinds)


def card_text(folder: Path, summary: Summary) -> str:
    """Return the card of a dataset folder, whose Parquet files are there already."""
    kinds, sources = set(summary.kinds.values()), [source for source in summary.kinds if source]
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined)
    environment.filters |= {"plain": plain, "n": "{:,}".format}
    listed = {row.source for row in summary.rows if row.listed}
    return environment.get_template(TEMPLATE.name).render(
        REPO=REPO,
        LINKS=LINKS,
        CLASSES=CLASSES,
        SPLITS=SPLITS,
        metadata=metadata(folder, summary, _title(kinds), sources),
        title=_title(kinds),
        summary=summary,
        kinds=kinds,
        sheets=[kind for kind in SHEETS if kind in kinds],
        sources=sources,
        given=[split for split in SPLITS if any(row.given_split == split for row in summary.rows)],
        unlisted=sorted(set(summary.kinds) - listed),
        share=f"{FRACTION:.0%}",
        beside=f"{FRACTION_BESIDE_LIST:.0%}",
    )


def write_card(folder: Path, summary: Summary) -> None:
    """Write README.md into the dataset folder."""
    (folder / "README.md").write_text(card_text(folder, summary), encoding="utf-8")


def rendered_for(card: str, repo_id: str, model: str | None = None, space: str | None = None) -> str:
    """Return a card for the repo that it is pushed to: its snippets name that repo, and it links a model and a Space."""
    return card.replace(f'"{REPO}"', f'"{repo_id}"').replace(LINKS, links(model=model, space=space) or LINKS)
