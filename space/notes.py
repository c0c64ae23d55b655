"""Teaching texts: the name of each class and two lines on what to look for under the microscope.

Keyed by language and class code. A model of other classes works without them: its own descriptions are shown.
Wording after the usual haematology atlases (Bain, *Blood Cells*; Löffler & Rastetter, *Atlas of
Haematology*).
"""

from __future__ import annotations

from typing import NamedTuple


class Note(NamedTuple):
    """Full name and morphology note of one class."""

    name: str
    text: str


NOTES: dict[str, dict[str, Note]] = {
    "en": {
        "BLA": Note(
            "blast",
            "Large cell with little, deep blue cytoplasm around a big round nucleus. "
            "The chromatin is fine and open, with one or more pale nucleoli.",
        ),
        "EOS": Note(
            "eosinophil",
            "Cytoplasm packed with coarse, round, orange-red granules of even size. "
            "The nucleus mostly has two lobes, like spectacles.",
        ),
        "LYT": Note(
            "lymphocyte",
            "Small cell, hardly larger than a red cell, with a narrow rim of clear blue cytoplasm. "
            "The nucleus is round, dark and clumped, without nucleoli.",
        ),
        "MON": Note(
            "monocyte",
            "Large cell with plenty of grey-blue cytoplasm, often with vacuoles and fine dust-like "
            "granules. "
            "The nucleus is folded or kidney-shaped, its chromatin loose.",
        ),
        "NGS": Note(
            "segmented neutrophil",
            "Nucleus of two to five dark lobes joined by thin threads. "
            "The cytoplasm is pale pink, with fine lilac granules.",
        ),
        "NIF": Note(
            "not identifiable",
            "Smudged, crushed or half-seen cells, and debris, that an expert would not name. "
            "It is a label for doubt, not a kind of cell.",
        ),
        "PMO": Note(
            "promyelocyte",
            "Larger than a blast, with coarse red-purple granules that may lie over the nucleus. "
            "The nucleus sits off centre, often beside a pale area, and may still show nucleoli.",
        ),
    },
    "id": {
        "BLA": Note(
            "blas",
            "Sel besar dengan sedikit sitoplasma biru tua di sekeliling inti yang besar dan bulat. "
            "Kromatinnya halus dan longgar, dengan satu atau lebih nukleolus pucat.",
        ),
        "EOS": Note(
            "eosinofil",
            "Sitoplasma penuh granula kasar, bulat, jingga kemerahan, dan seragam ukurannya. "
            "Intinya umumnya terdiri atas dua lobus, seperti kacamata.",
        ),
        "LYT": Note(
            "limfosit",
            "Sel kecil, nyaris seukuran eritrosit, dengan tepi sitoplasma biru jernih yang sempit. "
            "Intinya bulat, gelap, dan menggumpal, tanpa nukleolus.",
        ),
        "MON": Note(
            "monosit",
            "Sel besar dengan banyak sitoplasma biru keabuan, sering bervakuola dan bergranula halus "
            "seperti debu. "
            "Intinya terlipat atau berbentuk ginjal dengan kromatin longgar.",
        ),
        "NGS": Note(
            "neutrofil segmen",
            "Inti dengan dua sampai lima lobus gelap yang dihubungkan benang tipis. "
            "Sitoplasmanya merah muda pucat dengan granula ungu muda yang halus.",
        ),
        "NIF": Note(
            "tidak teridentifikasi",
            "Sel yang tercoreng, rusak, atau terlihat sebagian, dan debris, yang tidak dapat dinamai "
            "oleh ahli. "
            "Ini label untuk keraguan, bukan jenis sel.",
        ),
        "PMO": Note(
            "promielosit",
            "Lebih besar daripada blas, dengan granula kasar merah keunguan yang dapat menutupi inti. "
            "Intinya agak ke tepi, sering di samping daerah pucat, dan nukleolusnya mungkin masih tampak.",
        ),
    },
}
