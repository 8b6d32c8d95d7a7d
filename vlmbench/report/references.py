"""The papers of the models and data sets that a run used, as BibTeX; only papers that are surely the right ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from vlmbench.figures.theme import dataset_name

OF_MODELS: Mapping[str, str] = {
    "llava_1_5": "liu2023llava15",
    "llava_onevision": "li2024llavaonevision",
    "qwen2_vl": "wang2024qwen2vl",
    "qwen2_5_vl": "bai2025qwen25vl",
    "internvl3": "zhu2025internvl3",
    "gemma3": "gemma2025gemma3",
    "molmo_": "deitke2024molmo",
    "molmoe_": "deitke2024molmo",
    "paligemma2": "steiner2024paligemma2",
    "idefics3": "laurencon2024idefics3",
    "smolvlm_": "marafioti2025smolvlm",
    "smolvlm2_": "marafioti2025smolvlm",
    "llama_3_2": "grattafiori2024llama3",
}
"""How the name of a shipped model begins, to its entry."""

OF_DATASETS: Mapping[str, str] = {"vqa_v2": "goyal2017vqav2"}


def entries() -> dict[str, str]:
    """Key to entry, of all that are known."""
    text = resources.files("vlmbench.report").joinpath("references.bib").read_text(encoding="utf-8")
    found = [entry.strip() for entry in re.split(r"\n(?=@)", text) if entry.strip()]
    return {re.match(r"@\w+\{([^,]+),", entry)[1]: entry for entry in found}  # type: ignore[index]


def references(provenances: Sequence[Mapping[str, Any]]) -> str:
    """``references.bib`` of the models and data sets of some runs; what has no known paper is named in a comment."""
    wanted: dict[str, None] = {}
    unknown: dict[str, None] = {}
    for provenance in provenances:
        model = str((provenance.get("model") or {}).get("name") or "")
        for name, known in ((model, OF_MODELS), (dataset_name(provenance), OF_DATASETS)):
            key = next((key for begin, key in known.items() if name.startswith(begin)), None)
            if key is not None:
                wanted[key] = None
            elif name:
                unknown[name] = None
    known_entries = entries()
    comments = [f"% no paper is known here for {name}: cite what its authors ask for" for name in unknown]
    return "\n\n".join([*comments, *(known_entries[key] for key in wanted)]) + "\n"
