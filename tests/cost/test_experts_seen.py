"""Bytes of a mixture from the experts that its tokens really visit; the router is planted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.models.shipped import loaded, request, shrunken
from vlmbench.cost.run_costs import Costs
from vlmbench.machine.peaks import resolve_peaks
from vlmbench.models.building import expert_layers
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.request import Request
from vlmbench.runner.costs import annotator
from vlmbench.runner.execution import complete, prepare

EXPERTS, TOP = 8, 2
ROWS = [[0, 1], [2, 3], [4, 5], [0, 1]]
"""What each row of a batch chooses in every decode step; tokens of a prefill choose the first or the last pair."""


ONE = request(new_tokens=3, size=(64, 64))


@pytest.fixture(scope="module")
def mixture() -> TransformersModel:
    spec = shrunken("molmoe_1b")
    spec.config["text_config"].update(num_experts=EXPERTS, num_experts_per_tok=TOP)
    spec.config["vision_config"]["num_hidden_layers"] = 9  # it reads a layer so far down
    return loaded(spec, device="cpu")


@pytest.fixture
def planted(mixture: TransformersModel, monkeypatch: pytest.MonkeyPatch) -> TransformersModel:
    def choose(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = hidden.reshape(-1, hidden.shape[-1]).shape[0]
        rows = ROWS if tokens <= len(ROWS) else [[0, 1], *([[6, 7]] * (tokens - 1))]
        chosen = torch.tensor(rows[:tokens])
        return torch.zeros(tokens, EXPERTS), torch.full(chosen.shape, 1 / TOP), chosen

    routers = [part for part in mixture.module.modules() if type(part).__name__.endswith("TopKRouter")]
    assert len(routers) == len(expert_layers(mixture.module)) == 2
    for router in routers:
        monkeypatch.setattr(router, "forward", choose)
    return mixture


def costs(model: TransformersModel) -> Costs:
    return Costs(
        model.module.config,
        dtype="float32",
        peaks=resolve_peaks("none", model.device, "float32"),
        anatomy=model.anatomy,
        counted=False,
    )


def batch(size: int) -> Request:
    others = [replace(ONE.sample, sample_id=f"other{i}") for i in range(size - 1)]
    return replace(ONE, batch_size=size, companions=tuple(others))


def annotated(model: TransformersModel, one: Request) -> dict[str, Any]:
    run = prepare(model, one)
    return dict(annotator(costs(model), model)(run, complete(model, run, [], []).values))


def test_bytes_are_of_the_experts_that_were_visited(planted: TransformersModel) -> None:
    row = annotated(planted, batch(4))
    assert (row["experts_llm_prefill"], row["experts_llm_decode"]) == (4, 6)
    assert "of those that tokens visited" in row["flops_note"]
    one_expert = weights_of_one(planted)
    run = prepare(planted, batch(4))
    expected = costs(planted).columns(
        run.prepared.inputs, run.prepared.counts, output_tokens=3, batch_size=4, each=run.prepared.each
    )
    assert "as many as are expected" in expected["flops_note"]
    every = EXPERTS * (1 - (1 - TOP / EXPERTS) ** 4)  # of four tokens that choose evenly
    assert row["bytes_llm_decode"] - expected["bytes_llm_decode"] == pytest.approx(2 * (6 - every) * one_expert, abs=4)
    assert row["bytes_llm_prefill"] - expected["bytes_llm_prefill"] == pytest.approx(-4 * one_expert, rel=1e-6)


def weights_of_one(model: TransformersModel) -> int:
    """Bytes of one expert in both layers."""
    return sum(
        parameter[0].numel() * parameter.element_size()
        for layer in expert_layers(model.module)
        for parameter in layer.parameters()
    )


def test_a_single_request_visits_its_own(planted: TransformersModel) -> None:
    row = annotated(planted, ONE)
    assert (row["experts_llm_prefill"], row["experts_llm_decode"]) == (4, TOP)


def test_padding_visits_nobody(planted: TransformersModel) -> None:
    first = batch(2)
    short = replace(first.companions[0], question="Why?")
    row = annotated(planted, replace(first, sample=short, companions=(first.sample,)))
    assert row["experts_llm_prefill"] == 2  # the first position, which alone chose another pair, is padding


def test_what_was_not_seen_is_said_to_be_expected(planted: TransformersModel) -> None:
    run = prepare(planted, ONE)
    row = costs(planted).columns(run.prepared.inputs, run.prepared.counts, output_tokens=3)
    assert "prefill's experts: as many as are expected" in row["flops_note"]
    assert "experts_llm_prefill" not in row


def test_the_extra_run_is_made_once_for_a_request(planted: TransformersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    annotate, run = annotator(costs(planted), planted), prepare(planted, ONE)
    values = complete(planted, run, [], []).values
    calls: list[int] = []
    original = TransformersModel.generate
    monkeypatch.setattr(TransformersModel, "generate", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    assert annotate(run, values) == annotate(run, values)
    assert len(calls) == 1
