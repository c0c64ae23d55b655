"""The dataset card: renders `README.md` from the summary of a build, and adapts it to the repo that it is pushed to.

What the card says about origin, licence and citation depends on the images of each source: a published dataset of
`labels.py`, synthetic images (`synthetic`), or the user's own (`own`), about which nothing is claimed.
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
REPO = "OWNER/NAME"  # placeholder of a card that was not pushed yet
LINKS = "<!-- links: model and Space -->"  # placeholder of the links in that card
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
# strings that YAML 1.1 or 1.2 may read as a number, date, boolean or null
AMBIGUOUS = re.compile(r"[-+.~\d].*|y|n|yes|no|on|off|true|false|null|nan|inf|", re.IGNORECASE | re.DOTALL)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that YAML 1.1 or 1.2 would read as another type."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, text: str) -> yaml.ScalarNode:
        style = "'" if AMBIGUOUS.fullmatch(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_str)


def plain(text: str) -> str:
    """Return a name for use in a Markdown table: its markup characters are escaped."""
    return re.sub(r"[&<>\\`*_\[\]{}()#+!|~$]", lambda match: f"&#{ord(match[0])};", re.sub(r"\s+", " ", text))


def metadata(folder: Path, summary: Summary, title: str, sources: list[str]) -> str:
    """Return the YAML front matter of the card: features, splits with their sizes, data files, licence, tags."""
    splits, files, download_size = SplitDict(), [], 0
    for split in filter(summary.count, SPLITS):
        lengths = [row.length for row in summary.rows if row.split == split]
        splits.add(SplitInfo(split, num_bytes=sum(lengths), num_examples=len(lengths)))
        files.append({"split": split, "path": f"data/{split}-*"})
        download_size += sum(path.stat().st_size for path in (folder / "data").glob(f"{split}-*.parquet"))
    kinds = set(summary.kinds.values())
    sheets = [SHEETS[kind] for kind in SHEETS if kind in kinds]
    published, synthetic = kinds <= set(SHEETS), kinds == {"synthetic"}
    own_tags = [tag for sheet in sheets for tag in sheet.tags]
    data = DatasetCardData(
        license="cc-by-4.0" if published else "apache-2.0" if synthetic else None,
        task_categories=["image-classification"],
        size_categories=[next((name for below, name in SIZES.items() if len(summary.rows) < below), "n>10M")],
        tags=["biology", "medical", "hematology", "microscopy", *own_tags] if sheets else
             ["synthetic"] if synthetic else ["microscopy"],
        pretty_name=title,
        annotations_creators=["expert-generated"] if published else ["machine-generated"] if synthetic else None,
        source_datasets=["extended"] if published else ["original"] if synthetic else None,
    )  # fmt: skip
    info = DatasetInfo(
        features=features(summary.classes, bool(sources)),
        splits=splits,
        download_size=download_size,
        dataset_size=sum(row.length for row in summary.rows),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    if "own" not in kinds:  # the trainer copies these full names into the model repo
        data.label_descriptions = {name: CLASSES[name] for name in summary.classes if name in CLASSES}
    return yaml.dump(data.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def card_text(folder: Path, summary: Summary) -> str:
    """Return the card of a dataset folder, whose Parquet files are already written."""
    kinds, sources = set(summary.kinds.values()), [source for source in summary.kinds if source]
    titles = {"synthetic": "Synthetic bone-marrow cells", "own": "Cell images"}
    titles |= {kind: sheet.title for kind, sheet in SHEETS.items()}
    mixed = "Blood and bone-marrow cell images" if kinds & set(SHEETS) else "Cell images"
    title = mixed if len(kinds) > 1 else titles[min(kinds)]
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined)
    environment.filters |= {"plain": plain, "n": "{:,}".format}
    listed = {row.source for row in summary.rows if row.listed}
    return environment.get_template(TEMPLATE.name).render(
        REPO=REPO,
        LINKS=LINKS,
        CLASSES=CLASSES,
        SPLITS=SPLITS,
        metadata=metadata(folder, summary, title, sources),
        title=title,
        summary=summary,
        kinds=kinds,
        sheets=[kind for kind in SHEETS if kind in kinds],
        sources=sources,
        given=[split for split in SPLITS if any(row.given_split == split for row in summary.rows)],
        unlisted=sorted(set(summary.kinds) - listed),
        share=f"{FRACTION:.0%}",
        beside=f"{FRACTION_BESIDE_LIST:.0%}",
    )


def rendered_for(card: str, repo_id: str, model: str | None = None, space: str | None = None) -> str:
    """Return a card adapted to a repo: its snippets load that repo, and it links to a model and a Space."""
    return card.replace(f'"{REPO}"', f'"{repo_id}"').replace(LINKS, links(model=model, space=space) or LINKS)
