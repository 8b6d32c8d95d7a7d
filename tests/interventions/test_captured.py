"""Methods on a loop that replays what it captured: answers of the same method run as Python, arms beside the baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from tests.engines.replaying import Replaying
from tests.engines.test_cudagraph import loop_of, narrow_molmo, small
from tests.interventions.tiny import redraw
from tests.models.shipped import loaded as loaded_spec
from tests.models.shipped import request, shrunken
from vlmbench.engines.capture import Recorder, Uncaptured
from vlmbench.engines.cudagraph import GraphLoop
from vlmbench.interventions.keep_after_projector import KeepAfterProjector
from vlmbench.interventions.none import NoIntervention
from vlmbench.interventions.proof import Answer, answer, answer_of_loop
from vlmbench.models.protocol import Prepared
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.runner.arms import METHOD, ArmOf, attached

RECORDERS = {"uncaptured": Uncaptured, "replayed": Replaying}
recorders = pytest.mark.parametrize("recorder", RECORDERS.values(), ids=RECORDERS)
NORM = KeepAfterProjector(keep=0.5, selector="norm")
RANDOM = KeepAfterProjector(keep=0.5, selector="random")
ENCODER = KeepAfterProjector(keep=0.25, selector="encoder_attention")
ALL = KeepAfterProjector(keep=1.0, selector="norm")
NONE = NoIntervention()


@cache
def model_of(name: str) -> TransformersModel:
    """A narrow model of a shipped configuration whose answers hang on its image."""
    made = narrow_molmo(name) if name.startswith("molmo") else shrunken(name)
    model = loaded_spec(made, device="cpu", dtype="float32")
    redraw(model.module)
    return model


class Asked:
    """One request of a model, asked under methods by the loop and by ``generate()``."""

    def __init__(self, name: str, recorder: Callable[[], Recorder], *, tokens: int = 8, **knobs: Any) -> None:
        settings = {key: knobs.pop(key) for key in ("cache_step", "capture") if key in knobs}
        self.model: TransformersModel = model_of(name)
        self.loop: GraphLoop = loop_of(self.model, recorder, **settings)
        self.tokens = tokens
        self.request = request(size=small(name), new_tokens=tokens, **knobs)
        self.prepared: Prepared = self.model.transfer(self.model.prepare(self.request))

    def ask(self, method: Any, *, captured: bool) -> tuple[Answer, dict[str, Any]]:
        self.model.loop = self.loop if captured else None
        ask = answer_of_loop if captured else answer
        try:
            with attached(self.model, replace(self.request, intervention=ArmOf(method=method, role=METHOD)), self.prepared) as at_work:
                given = ask(self.model, self.prepared, self.tokens)
                return given, {} if at_work is None else at_work.values(self.tokens)
        finally:
            self.model.loop = None


@recorders
@pytest.mark.parametrize("name", ["llava_1_5_7b", "qwen2_5_vl_7b", "molmo_7b_d"])
def test_interleaved_arms_give_the_answers_of_the_same_arms_run_as_python(
    name: str, recorder: Callable[[], Recorder]
) -> None:
    asked = Asked(name, recorder, tokens=12)
    methods = [NONE, NORM, RANDOM, ALL] + ([ENCODER] if name != "molmo_7b_d" else [])
    want = [asked.ask(method, captured=False) for method in methods]
    first = [given.logits[0] for given, _ in want]
    scale = float(first[0].abs().max())
    assert torch.allclose(first[3], first[0])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((first[one] - first[other]).abs().max()) > 1e-2 * scale, "arms that answer alike prove nothing"
    for _ in range(2):  # captured, then replayed
        for at in (1, 0, 2, 3, *range(4, len(methods)), 0, 1):
            given, values = asked.ask(methods[at], captured=True)
            assert given.same(want[at][0], within=1e-4 * scale), methods[at]
            assert values == want[at][1]
    assert asked.loop.missed == 0
