"""Data sheets of the published datasets that the project knows: classes, origin, citation, licence, how their files look.

The classes are the 21 of Matek et al. 2021, "An Expert-Annotated Dataset of Bone Marrow Cytology in Hematologic Malignancies",
The Cancer Imaging Archive, doi:10.7937/TCIA.AXH3-T579 (171,373 crops, 945 patients).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

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

MATEK_CITATION = """\
@misc{matek2021bonemarrow,
  author    = {Matek, Christian and Krappe, Sebastian and M{\\"u}nzenmayer, Christian and Haferlach, Torsten
               and Marr, Carsten},
  title     = {An Expert-Annotated Dataset of Bone Marrow Cytology in Hematologic Malignancies},
  publisher = {The Cancer Imaging Archive},
  year      = {2021},
  doi       = {10.7937/TCIA.AXH3-T579}
}
@article{matek2021highly,
  author  = {Matek, Christian and Krappe, Sebastian and M{\\"u}nzenmayer, Christian and Haferlach, Torsten
             and Marr, Carsten},
  title   = {Highly accurate differentiation of bone marrow cell morphologies using deep neural networks on a
             large image dataset},
  journal = {Blood},
  volume  = {138},
  number  = {20},
  pages   = {1917--1927},
  year    = {2021},
  doi     = {10.1182/blood.2020010568}
}
"""
ACEVEDO_CITATION = """\
@misc{acevedo2020peripheral,
  author    = {Acevedo, Andrea and Merino, Anna and Alf{\\'e}rez, Santiago and Molina, {\\'A}ngel and Bold{\\'u}, Laura
               and Rodellar, Jos{\\'e}},
  title     = {A dataset for microscopic peripheral blood cell images for development of automatic recognition systems},
  publisher = {Mendeley Data},
  year      = {2020},
  doi       = {10.17632/snkd93bnjr.1}
}
"""


@dataclass(frozen=True)
class Sheet:
    """Data sheet of a published dataset."""

    title: str
    origin: str  # Markdown: what it is and where it comes from
    licence: str
    citation: str
    tags: tuple[str, ...]
    frames: tuple[tuple[int, int], ...]  # width, height of its files
    file_name: str  # a pattern with {label}
    codes: dict[str, str]  # class -> what its file names begin with


SHEETS = {
    "matek": Sheet(
        "Bone-marrow cell crops",
        """\
Crops of single bone-marrow cells, 250×250 pixels, one cell at the centre of each, from the set that Matek et al. published
in 2021: May-Grünwald-Giemsa/Pappenheim stain, 40× oil immersion, 945 patients, 171,373 crops in 21 classes, annotated by
experts (Munich Leukemia Laboratory, Fraunhofer IIS, Helmholtz Munich; The Cancer Imaging Archive,
[doi:10.7937/TCIA.AXH3-T579](https://doi.org/10.7937/TCIA.AXH3-T579)). The files here are unchanged copies.""",
        "cc-by-4.0", MATEK_CITATION, ("bone-marrow", "cytology"), ((250, 250),), r"{code}_\d{{5}}\.jpg",
        {name: name for name in CLASSES},
    ),
    "acevedo": Sheet(
        "Peripheral-blood cell images",
        """\
Images of single peripheral-blood cells of individuals without disease, 360×363 pixels, from the set that Acevedo et al.
published in 2020: CellaVision DM96, May-Grünwald-Giemsa stain, 17,092 images, annotated by clinical pathologists (Hospital
Clinic of Barcelona; Mendeley Data, [doi:10.17632/snkd93bnjr.1](https://doi.org/10.17632/snkd93bnjr.1)). The files here are
unchanged copies.""",
        "cc-by-4.0", ACEVEDO_CITATION, ("peripheral-blood",), ((360, 363), (360, 360), (366, 369), (369, 366), (362, 360)),
        r"{code}_\d+\.jpg", {"EOS": "EO", "LYT": "LY", "MON": "MO", "NGS": "SNE", "PMO": "PMY"},
    ),
}  # fmt: skip


def published_as(label: str, file_name: str, size: tuple[int, int], image_format: str) -> str:
    """Return the key in SHEETS of the dataset whose files have this class, name and form; "" for none."""
    for key, sheet in SHEETS.items():
        pattern = sheet.file_name.format(code=sheet.codes.get(label, "-"))
        if image_format == "JPEG" and size in sheet.frames and re.fullmatch(pattern, file_name):
            return key
    return ""
