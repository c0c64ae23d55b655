"""The published datasets that the project recognizes: their classes, and what their files look like.

The classes are the 21 of Matek et al. 2021, "An Expert-Annotated Dataset of Bone Marrow Cytology in Hematologic Malignancies",
The Cancer Imaging Archive, doi:10.7937/TCIA.AXH3-T579 (171,373 crops, 945 patients).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dataset_script.records import Row
from dataset_script.source import base_name

CLASSES = {
    "ABE": "abnormal eosinophil",
    "ART": "artefact",
    "BAS": "basophil",
    "BLA": "blast",
    "EBO": "erythroblast",
    "EOS": "eosinophil",
    "FGC": "faggot cell",
    "HAC": "hairy cell",
    "KSC": "smudge cell",
    "LYI": "immature lymphocyte",
    "LYT": "lymphocyte",
    "MMZ": "metamyelocyte",
    "MON": "monocyte",
    "MYB": "myelocyte",
    "NGB": "band neutrophil",
    "NGS": "segmented neutrophil",
    "NIF": "not identifiable",
    "OTH": "other cell",
    "PEB": "proerythroblast",
    "PLM": "plasma cell",
    "PMO": "promyelocyte",
}


@dataclass(frozen=True)
class Sheet:
    """How to recognize the files of a published dataset; the card's text about it is in `card.md.jinja`."""

    title: str
    tags: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]  # width, height of its images in pixels
    file_name: str  # regular expression with the placeholder {code}
    codes: dict[str, str]  # class -> {code}


SHEETS = {
    "matek": Sheet(
        "Bone-marrow cell crops", ("bone-marrow", "cytology"), ((250, 250),), r"{code}_\d{{5}}\.jpg",
        {name: name for name in CLASSES},
    ),
    "acevedo": Sheet(
        "Peripheral-blood cell images", ("peripheral-blood",),
        ((360, 363), (360, 360), (366, 369), (369, 366), (362, 360)),
        r"{code}_\d+\.jpg", {"EOS": "EO", "LYT": "LY", "MON": "MO", "NGS": "SNE", "PMO": "PMY"},
    ),
}  # fmt: skip


def published_as(row: Row, label: str) -> str:
    """Return the key in SHEETS of the dataset that an image's class, name, format and size match, "" if none."""
    for key, sheet in SHEETS.items():
        pattern = sheet.file_name.format(code=sheet.codes.get(label, "-"))
        if row.format == "JPEG" and row.size in sheet.sizes and re.fullmatch(pattern, base_name(row.path)):
            return key
    return ""
