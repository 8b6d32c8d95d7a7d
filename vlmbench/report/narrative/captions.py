"""How to read each figure, in a sentence or two, and where its files lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlmbench.figures.theme import DPI

_SWEPT: Mapping[str, str] = {
    "vision_tokens": "vision tokens",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
    "batch_size": "batch size",
}

CAPTIONS: Mapping[str, str] = {
    "latency_distribution": "How long generate() takes: the workload beside one identical request repeated. Only what "
    "is wider than the repeated request belongs to the workload.",
    "request_distribution": "The same for the whole request, from image and text to text.",
    "ttft_itl": "When the first token is ready, and how long each later one takes.",
    "latency_vs_tokens": "Latency against what a request holds: vision, prompt and output tokens.",
    "variance_split": "How much of the spread of the latency token counts explain, and how much is left.",
    "pareto": "Tokens a second for each user against tokens a second of a device, one point a load.",
    "ttft_throughput": "How much later the first token comes as the server gives more answers a second.",
    "over_time": "Latency in the order measured. A slope or a step is drift of the machine, not of the model.",
    "components_pie": "Which part eats the time, and which part holds the parameters.",
    "components_bars": "The same as bars, and in milliseconds for usual, slow and repeated requests.",
    "launch_bound": "How much of each stage the device works. Grey is time in which it waits for the host.",
    "stage_distributions": "How each stage's time spreads over the requests.",
    **{f"{name}_latency": f"Latency against {words}, with the fitted line." for name, words in _SWEPT.items()},
    **{f"{name}_components": f"Each stage against {words}." for name, words in _SWEPT.items()},
    **{f"{name}_composition": f"What the total is made of at each count of {words}." for name, words in _SWEPT.items()},
    "flops_latency": "Latency against FLOPs: if FLOPs told the latency, all points would lie on one line.",
    "roofline": "FLOP/s that each stage achieves against its FLOPs a byte, below the roof of what the device can do "
    "at most where that is known.",
    "token_costs": "What one more token of each kind costs, and which stages it goes to.",
    "break_even": "How many tokens of one kind cost as much as one of another.",
    "interventions": "What generate() takes in every arm, and what each arm saves of it. Grey is the model as it is.",
    "break_even_models": "Costs of tokens against each other, model by model.",
}
"""Figure file to its words, in reading order."""


@dataclass(frozen=True, kw_only=True)
class FigureFile:
    """A figure as the page links it.

    Args:
        png, pdf: paths relative to the page; ``pdf`` empty if there is none.
        words: how to read it.
        inches: its width on paper, so that letters come out equal in all figures; 0 if not known.
    """

    png: str
    pdf: str
    words: str
    inches: float


def figure_files(directory: Path, folder: Path) -> list[FigureFile]:
    """The figures in a folder, in reading order; those of several models follow the one they belong to.

    Args:
        directory: where the page lies.
        folder: with the figures.
    """
    order = list(CAPTIONS)
    found = []
    for png in folder.glob("*.png"):
        known = max((name for name in order if png.stem.startswith(name)), key=len, default="")
        place = order.index(known) if known else len(order)
        suffix = png.stem.removeprefix(known).replace("_", " ").strip()
        words = CAPTIONS[known] if known else png.stem.replace("_", " ").capitalize()
        if known and suffix:
            words = f"{words.rstrip('.')} ({suffix})."
        pdf = png.with_suffix(".pdf")
        path = png.relative_to(directory).as_posix()
        file = FigureFile(
            png=path,
            pdf=pdf.relative_to(directory).as_posix() if pdf.is_file() else "",
            words=words,
            inches=_inches(png),
        )
        found.append(((place, png.stem), file))
    return [file for _, file in sorted(found, key=lambda entry: entry[0])]


def _inches(png: Path) -> float:
    """Width of a PNG as saved; bytes 16 to 19 of its header are the pixels."""
    with png.open("rb") as file:
        head = file.read(24)
    return int.from_bytes(head[16:20], "big") / DPI if head[:8] == b"\x89PNG\r\n\x1a\n" else 0.0
