"""Assisted decoding with drafts whose acceptance is known: the model's own weights, and others."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from tests.models.shipped import loaded, request, shrunken, spec
from vlmbench.errors import MeasurementError, UnreachablePointError
from vlmbench.interventions.assisted import Assisted
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.records.reading import parse_row
from vlmbench.runner.arms import METHOD, Arm, ArmOf, Arms
from vlmbench.runner.execution import collector_at_rest, complete, prepare
from vlmbench.schema import Mode, Record, Status
from vlmbench.sweep import Sweep

TOKENS, DRAFTED = 12, 3


@cache
def tiny() -> TransformersModel:
    return loaded(spec("tiny"), device="cpu", seed=0)


def run(method: Assisted, *, images: int = 1) -> dict[str, Any]:
    """The row of one run under the method, proven first."""
    point = next(iter(Sweep(name="s").points()))
    model, arm = tiny(), Arm(point=point, intervention=method, role=METHOD)
    asked = model.resolve(arm.apply(request(size=(112, 84), new_tokens=TOKENS, images=images)))
    prepared = prepare(model, asked)
    Arms(model=model).ready(arm.id, asked, prepared.prepared)
    with collector_at_rest() as collected:
        values = complete(model, prepared, [TimelineProbe()], collected).values
    assert "generate" not in vars(model.module), "left as it was"
    plain = model.generate(model.transfer(prepared.prepared))
    assert values["output_ids"] == " ".join(map(str, plain[0].tolist()))
    return values


def test_the_models_own_weights_are_accepted_whole() -> None:
    row = run(Assisted(draft=spec("tiny"), tokens=DRAFTED, seed=0), images=0)
    assert row["tokens_each_forward"] == [1 + DRAFTED] * 3
    assert (row["num_forwards"], row["tokens_per_forward"], row["num_drafted_tokens"]) == (3, 4.0, 9)
    assert len(row["between_forwards_ms"]) == 2
    assert sum(row["between_forwards_ms"]) == pytest.approx(row["T_LLM_decode"], abs=1e-3)
    assert "ITL" not in row
    record = Record(
        point_id="p", sample_id="s", repeat=0, mode=Mode.INSTRUMENTED, status=Status.OK, values=row, flags=()
    )
    assert parse_row(json.dumps(record.to_row()).encode()) is not None, "a row that readers take"
    assert 0 < row["T_method_LLM_decode"] < row["T_LLM_decode"], "the draft's time is inside the stage"


def test_other_weights_are_refused_and_every_forward_yields_one_token() -> None:
    row = run(Assisted(draft=spec("tiny"), tokens=DRAFTED, seed=5))
    assert row["tokens_each_forward"] == [1] * TOKENS
    assert row["num_drafted_tokens"] > TOKENS
    assert row["draft_sees_image"] is False, (
        "transformers gives the draft the image now: say so in docs/interventions.md"
    )


def test_prompt_lookup_needs_no_draft() -> None:
    row = run(Assisted(tokens=DRAFTED))
    assert sum(row["tokens_each_forward"]) == row["num_output_tokens"] == TOKENS


def test_what_cannot_be_done_is_a_reason() -> None:
    method = Assisted(draft=shrunken("llava_1_5_7b"))
    with pytest.raises(UnreachablePointError, match="has a vocabulary of 32,064, the model 8,192"):
        method.attach(tiny())
    with pytest.raises(UnreachablePointError, match="one request at a time"):
        method.request(request(batch_size=2), tiny())
    with pytest.raises(ValueError, match="'tokens' must be"):
        Assisted(tokens=0)
    attachment = Assisted().attach(tiny())
    try:
        attachment.begin(tiny().prepare(request(size=(112, 84))))
        with pytest.raises(MeasurementError, match="decoded without the method"):
            attachment.values(4)
    finally:
        attachment.detach()
    assert ArmOf(method=Assisted(), role=METHOD).label == "assisted(draft=prompt_lookup,tokens=5,ngram=2)"
