"""Data sheet of the bone-marrow cytology set of Matek et al. 2021: classes, citation, licence, how its files look.

C. Matek, S. Krappe, C. Münzenmayer, T. Haferlach, C. Marr, "An Expert-Annotated Dataset of Bone Marrow Cytology in
Hematologic Malignancies", The Cancer Imaging Archive, 2021, doi:10.7937/TCIA.AXH3-T579 (171,373 crops, 945 patients).
"""

from __future__ import annotations

import re

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
FRAME = (250, 250)  # pixels, every crop of the set

CITATION = """\
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


def looks_published(label: str, file_name: str, size: tuple[int, int], image_format: str) -> bool:
    """Return whether a file has the name and form of the published set: CODE_NNNNN.jpg, 250×250, JPEG."""
    named = label in CLASSES and re.fullmatch(rf"{label}_\d{{5}}\.jpg", file_name)
    return bool(named) and size == FRAME and image_format == "JPEG"
