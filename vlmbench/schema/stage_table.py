"""The stages of a request: one table with every name, label and colour that a stage has anywhere.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), told apart with any colour vision. All parts of
the language model are greens that differ in lightness; vermilion is kept for time that the loop around the model takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TOTAL, DECODE, REQUEST = "T_total", "T_LLM_decode", "T_request"
"""The times that stages are parts of: one ``generate()``, its decode, the whole request."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One contiguous part of a request's time.

    Args:
        name: in code and in the suffix of ``busy_*``, ``kernels_*``, ``peak_allocated_*_bytes``.
        label: in figures and tables.
        colour: in figures, one a stage, ``#RRGGBB``.
        parent: column of the time that it is a part of.
        meaning: from when to when.
        code: short name in the styles and the script of the page; empty for a part of a stage.
        page: colours on the page, light and dark, each told from its background and from its neighbours.
        costs: suffix of its ``flops_*``, ``bytes_*`` and ``floor_ms_*``; None where it has none.
    """

    name: str
    label: str
    colour: str
    parent: str
    meaning: str
    code: str = ""
    page: tuple[str, str] = ("", "")
    costs: str | None = None

    @property
    def column(self) -> str:
        """The column of its time."""
        return f"T_{self.name}"


STAGES: tuple[Stage, ...] = (
    Stage(
        name="video_decode",
        label="Video decoding (host)",
        colour="#A05A2C",
        code="vid",
        page=("#8a5a2b", "#d8a26b"),
        parent=REQUEST,
        meaning="a clip's file decoded to frames; absent where none is shown",
    ),
    Stage(
        name="preprocess",
        label="Preprocessing (host)",
        colour="#56B4E9",
        code="pre",
        page=("#b774b0", "#e2b9dd"),
        parent=REQUEST,
        meaning="image decode, resize, crop, normalise, prompt format, tokenise; encoded bytes are in memory before",
    ),
    Stage(
        name="transfer",
        label="Transfer to device",
        colour="#F0E442",
        code="tra",
        page=("#8a7726", "#cdbb57"),
        parent=REQUEST,
        meaning="inputs to the device",
    ),
    Stage(
        name="setup",
        label="Setup",
        colour="#CC79A7",
        code="set",
        page=("#5d6672", "#8590a0"),
        parent=TOTAL,
        meaning="generate() entered → vision encoder starts (without vision: → first forward starts; over a cache of "
        "random keys: → first token ready)",
    ),
    Stage(
        name="vision_encoder",
        label="Vision encoder",
        colour="#0072B2",
        code="vis",
        page=("#0b62a8", "#58a6e6"),
        parent=TOTAL,
        meaning="vision tower, without its projector or merger",
        costs="vision_encoder",
    ),
    Stage(
        name="projector",
        label="Projector",
        colour="#E69F00",
        code="pro",
        page=("#c06a00", "#f0a43a"),
        parent=TOTAL,
        meaning="connector: projector, merger, resampler, pooling",
        costs="projector",
    ),
    Stage(
        name="LLM_prefill",
        label="LLM prefill",
        colour="#7CCBA9",
        code="fil",
        page=("#2a9d7e", "#86e3c8"),
        parent=TOTAL,
        meaning="vision done → first token ready: embedding merge, first forward, head, first choice of a token",
        costs="llm_prefill",
    ),
    Stage(
        name="LLM_decode",
        label="LLM decode",
        colour="#00704F",
        code="dec",
        page=("#0b4a3c", "#1f9878"),
        parent=TOTAL,
        meaning="first token ready → last token ready",
        costs="llm_decode",
    ),
    Stage(
        name="decode_forward",
        label="Decode: forwards",
        colour="#00704F",
        parent=DECODE,
        meaning="model forwards within T_LLM_decode",
    ),
    Stage(
        name="decode_loop",
        label="Decode: loop",
        colour="#D55E00",
        parent=DECODE,
        meaning="sampling, stopping, cache and input upkeep within T_LLM_decode",
    ),
    Stage(
        name="answer_out",
        label="Last token out",
        colour="#999933",
        code="out",
        page=("#7a7a1f", "#c9c95f"),
        parent=TOTAL,
        meaning="last token ready → handed out: from the device, scheduler, text; of engines that hand tokens out, "
        "elsewhere it is part of the residual",
    ),
    Stage(
        name="residual",
        label="Residual",
        colour="#8C8C8C",
        code="res",
        page=("#8d8f94", "#9c9fa6"),
        parent=TOTAL,
        meaning="T_total minus the stages of generate(); signed",
    ),
    Stage(
        name="detokenize",
        label="Detokenise (host)",
        colour="#5D3A9B",
        code="det",
        page=("#6b4a8f", "#b79be0"),
        parent=REQUEST,
        meaning="token ids to text",
    ),
)
"""Every stage, in the order in which they run; ``residual`` stands after what it is the rest of."""


def _columns(parent: str) -> tuple[str, ...]:
    return tuple(stage.column for stage in STAGES if stage.parent == parent)


TOTAL_PARTS = _columns(TOTAL)
"""Columns that add up to ``T_total``, the residual last."""

DECODE_PARTS = _columns(DECODE)
"""Columns that add up to ``T_LLM_decode``."""

HOST_PARTS = _columns(REQUEST)
"""Columns that ``T_request`` has beside ``T_total``."""

COMPARED_TIMES: tuple[str, ...] = (
    "T_request", "T_total", "TTFT", "TTFT_model", *TOTAL_PARTS[:-1], *DECODE_PARTS, *HOST_PARTS,
)  # fmt: skip
"""Times that are compared where two runs have them, the whole first."""

DECIDING_TIMES: tuple[str, ...] = tuple(name for name in COMPARED_TIMES if name not in ("T_transfer", "T_detokenize"))
"""Those that decide whether there is a regression: all but those of some microseconds, which jump by tens of %."""

TOTAL_STAGES: tuple[str, ...] = tuple(
    name.removeprefix("T_") for name in TOTAL_PARTS if name not in ("T_answer_out", "T_residual")
)
"""Names of the stages of one ``generate()`` until its last token, in order."""

TIME_OF_COST: Mapping[str, str] = {stage.costs: stage.column for stage in STAGES if stage.costs}
"""Suffix of ``flops_*``, ``bytes_*`` and ``floor_ms_*`` to the column of the time that the work takes."""

COST_STAGES: tuple[str, ...] = tuple(TIME_OF_COST)
"""Suffixes of ``flops_*``, ``bytes_*`` and ``floor_ms_*``."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a model, for which parameters are counted and modules are named.

    Args:
        name: in provenance and in ``model.anatomy``.
        label: in figures and tables.
        colour: in figures, ``#RRGGBB``.
        times: columns of the stages in which it works.
    """

    name: str
    label: str
    colour: str
    times: tuple[str, ...] = ()


MODEL_PARTS: tuple[Part, ...] = (
    Part(name="vision_encoder", label="Vision encoder", colour="#0072B2", times=("T_vision_encoder",)),
    Part(name="projector", label="Projector", colour="#E69F00", times=("T_projector",)),
    Part(name="language_model", label="Language model", colour="#009E73", times=("T_LLM_prefill", "T_LLM_decode")),
    Part(name="head", label="Output head", colour="#B4D88B"),
)
"""Parts of a model that an anatomy names."""
