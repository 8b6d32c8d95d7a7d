"""Methods on a loop that replays what it captured: answers of the same method run as Python, arms beside the baseline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.command_line import command_line
from tests.engines.replaying import Replaying
from tests.engines.test_cudagraph import loop_of, narrow_molmo, small
from tests.interventions.tiny import TinyVLM, redraw, tiny_vlm
from tests.models.shipped import loaded as loaded_spec
from tests.models.shipped import request, shrunken
from vlmbench.engines.capture import Recorder, Uncaptured
from vlmbench.engines.cudagraph import GraphLoop
from vlmbench.errors import MeasurementError, UnreachablePointError
from vlmbench.interventions.downsample import Downsample
from vlmbench.interventions.early_exit import EarlyExit
from vlmbench.interventions.keep_after_projector import KeepAfterProjector
from vlmbench.interventions.keep_in_layer import KeepInLayer
from vlmbench.interventions.none import NoIntervention
from vlmbench.interventions.proof import Answer, answer, answer_of_loop, compare_captured
from vlmbench.interventions.quantized import Quantized
from vlmbench.models.protocol import Prepared
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.runner.arms import METHOD, ArmOf, Arms, attached

RECORDERS = {"uncaptured": Uncaptured, "replayed": Replaying}
recorders = pytest.mark.parametrize("recorder", RECORDERS.values(), ids=RECORDERS)
NORM = KeepAfterProjector(keep=0.5, selector="norm")
RANDOM = KeepAfterProjector(keep=0.5, selector="random")
ENCODER = KeepAfterProjector(keep=0.25, selector="encoder_attention")
ALL = KeepAfterProjector(keep=1.0, selector="norm")
FASTV = KeepInLayer(keep=0.5, layer=1)
PYRAMID = KeepInLayer(keep=0.5, layer=[0, 1], selector="norm")
RANDOM_LAYER = KeepInLayer(keep=0.25, layer=1, selector="random")
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

    def __init__(
        self,
        name: str,
        recorder: Callable[[], Recorder],
        *,
        tokens: int = 8,
        cache_step: int = 8,
        model: TransformersModel | None = None,
        **knobs: Any,
    ) -> None:
        self.model: TransformersModel = model or model_of(name)
        self.loop: GraphLoop = loop_of(self.model, recorder, cache_step=cache_step)
        self.tokens = tokens
        self.request = request(size=small(name), new_tokens=tokens, **knobs)
        self.prepared: Prepared = self.model.transfer(self.model.prepare(self.request))

    def ask(self, method: Any, *, captured: bool) -> tuple[Answer, dict[str, Any]]:
        self.model.loop = self.loop if captured else None
        ask = answer_of_loop if captured else answer
        try:
            with attached(
                self.model, replace(self.request, intervention=ArmOf(method=method, role=METHOD)), self.prepared
            ) as at_work:
                given = ask(self.model, self.prepared, self.tokens)
                return given, {} if at_work is None else at_work.values(self.tokens)
        finally:
            self.model.loop = None


@recorders
@pytest.mark.parametrize("name", ["llava_1_5_7b", "qwen2_5_vl_7b", "molmo_7b_d"])
def test_interleaved_arms_give_the_answers_of_the_same_arms_run_as_python(
    name: str, recorder: Callable[[], Recorder]
) -> None:
    compare_arms(Asked(name, recorder, tokens=12), encoder=name != "molmo_7b_d")


def compare_arms(asked: Asked, *, encoder: bool) -> None:
    methods = [NONE, NORM, RANDOM, ALL, FASTV, PYRAMID, RANDOM_LAYER] + ([ENCODER] if encoder else [])
    want = [asked.ask(method, captured=False) for method in methods]
    first = [given.logits[0] for given, _ in want]
    scale = float(first[0].abs().max())
    assert want[3][0].same(want[0][0], within=1e-4 * scale)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((first[one] - first[other]).abs().max()) > 1e-2 * scale, "arms that answer alike prove nothing"
    for _ in range(2):  # captured, then replayed
        for at in (1, 0, 2, 3, *range(4, len(methods)), 0, 1):
            given, values = asked.ask(methods[at], captured=True)
            assert given.same(want[at][0], within=1e-4 * scale), methods[at]
            assert torch.equal(given.tokens, want[at][0].tokens)
            assert values == want[at][1]
    assert asked.loop.missed == 0


def test_a_batch_of_two_and_a_cache_that_grows() -> None:
    """Random tokens in both rows; the longer answer makes a larger cache, and everything is captured again."""
    short, long = (Asked("qwen2_5_vl_7b", Replaying, tokens=tokens, batch_size=2) for tokens in (4, 30))
    long.loop = short.loop
    for asked in (short, long, short):
        scale = 0.0
        for method in (RANDOM_LAYER, NONE, RANDOM):
            want, kept = asked.ask(method, captured=False)
            scale = max(scale, float(want.logits.abs().max()))
            given, values = asked.ask(method, captured=True)
            assert given.same(want, within=1e-4 * scale)
            assert values == kept
    assert short.loop.missed == 0


@pytest.mark.parametrize("family", ["gemma3", "paligemma", "qwen3_vl", "internvl", "smolvlm", "llava_next"])
def test_other_architectures(family: str) -> None:
    """Masks of kinds, prompts that see all of themselves, features added in several layers; six decoder layers."""
    model = tiny_vlm(family)
    loop = model.capturing(Replaying())
    methods = (
        KeepAfterProjector(keep=0.5, selector="uniform"),
        KeepInLayer(keep=0.5, layer=2),
        KeepInLayer(keep=0.5, layer=[1, 3]),  # looks at a layer that holds fewer tokens itself
        KeepInLayer(keep=0.5, layer=[1, 3], selector="norm"),
    )
    prepared = model.prepared(10)
    model.loop = None
    plain = answer(model, prepared, 10)
    for method in (*methods, *methods):
        model.loop = None
        want, kept = under(model, method, answer)
        model.loop = loop
        given, values = under(model, method, answer_of_loop)
        assert compare_captured(want, given, 1e-4 * float(want.logits.abs().max()), of=family)["tokens_equal"] == 10
        assert values == kept
        assert float((want.logits[0] - plain.logits[0]).abs().max()) > 1e-2 * float(plain.logits.abs().max())
    assert answer_of_loop(model, prepared, 10).same(plain, within=1e-4 * float(plain.logits.abs().max()))
    assert loop.missed == 0


def under(model: TinyVLM, method: Any, ask: Callable[..., Answer]) -> tuple[Answer, dict[str, Any]]:
    prepared = model.prepared(10)
    attachment = method.attach(model)
    try:
        attachment.begin(prepared)
        with nullcontext() if model.loop is None else model.loop.under(attachment):
            given = ask(model, prepared, 10)
            return given, attachment.values(10)
    finally:
        attachment.detach()


def test_what_an_arm_captures() -> None:
    """Arms share what they do not change: the encoder, a language model of as many tokens, steps over as many slots."""
    asked = Asked("llava_1_5_7b", Replaying, cache_step=256)

    def graphs() -> tuple[int, int, int]:
        facts = asked.loop.facts
        stages = facts["stages"]
        return (
            stages["vision_encoder"]["graphs"],
            stages["language_model"]["graphs"],
            len(facts["decode"]["windows"]),
        )

    seen = []
    for method in (NONE, NORM, RANDOM, ENCODER, replace(ENCODER, keep=0.5), FASTV, replace(FASTV, selector="norm")):
        asked.ask(method, captured=True)
        seen.append(graphs())
    assert seen == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 3, 3), (2, 3, 3), (2, 4, 4), (2, 5, 4)]


def test_the_baselines_graphs_stay() -> None:
    asked = Asked("llava_1_5_7b", Replaying)
    asked.ask(NONE, captured=True)
    before = {id(play) for _, play in asked.loop._steps.values()}
    asked.ask(FASTV, captured=True)
    assert before <= {id(play) for _, play in asked.loop._steps.values()}
    assert asked.loop.ready(asked.prepared, lambda: pytest.fail("nothing to capture")) == 0.0


def test_a_method_whose_hook_never_ran_is_an_error() -> None:
    """What a replay stored is told by the graph that ran, not by the method."""
    asked = Asked("llava_1_5_7b", Replaying)
    asked.ask(NONE, captured=True)
    asked.ask(NORM, captured=True)
    model, loop = asked.model, asked.loop
    for method in (NORM, FASTV):
        model.loop = loop
        attachment = method.attach(model)
        try:
            attachment.begin(asked.prepared)
            with loop.under(attachment):
                asked.loop.ready(asked.prepared, lambda: asked.prepared.inputs)
                attachment._unhook()
                for stage in loop._graphs.stages:
                    stage.variant = None
                with pytest.raises(MeasurementError, match="the layers stored"):
                    loop.generate(asked.prepared)
        finally:
            attachment.detach()
            model.loop = None


def test_a_replay_that_is_not_the_same_answer_is_refused() -> None:
    asked = Asked("llava_1_5_7b", Uncaptured)
    one, _ = asked.ask(NORM, captured=False)
    other, _ = asked.ask(RANDOM, captured=True)
    with pytest.raises(UnreachablePointError, match=r"arm of model is refused: replayed, its logits differ by"):
        compare_captured(one, other, 1e-4, of="arm of model")


@pytest.mark.parametrize("method", [EarlyExit(depth=0.5), Quantized()], ids=["early_exit", "quantized"])
def test_methods_that_a_loop_does_not_take_are_refused_by_name(method: Any) -> None:
    asked = Asked("llava_1_5_7b", Uncaptured)
    with pytest.raises(UnreachablePointError, match=f"{method.name}: this engine replays the model as it was captured"):
        asked.ask(method, captured=True)


def test_a_smaller_image_changes_no_model() -> None:
    asked = Asked("qwen2_5_vl_7b", Replaying)
    given, values = asked.ask(Downsample(keep=0.5), captured=True)
    assert values == {}
    assert asked.ask(NONE, captured=True)[0].same(given)


def test_kernels_are_seen_where_replays_run_no_python() -> None:
    asked = Asked("llava_1_5_7b", Replaying)
    arms = Arms(model=asked.model)
    asked.model.loop = asked.loop
    found = {}
    try:
        for method in (NONE, NORM, FASTV):
            arm = replace(asked.request, intervention=ArmOf(method=method, role=METHOD))
            columns = arms.ready(method.name, arm, asked.prepared)
            found[method.name] = {name: value for name, value in columns.items() if "kernel" in name}
    finally:
        asked.model.loop = None
    assert len(found["none"]) == 3
    assert all("sdpa/" in value for value in found["none"].values())
    assert found["keep_after_projector"] == found["keep_in_layer"] == found["none"]
    held = [proof for label, proof in arms.proofs.items() if label.endswith("as captured")]
    assert [proof["tokens_equal"] for proof in held] == [8, 8]


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_a_step_of_an_arm_holds_nothing_of_its_selector() -> None:
    """Whoever captures a step first, its operators are the same: a row of weights is of the prefill only."""
    ran = []
    for selector in ("last_token_attention", "random"):
        asked = Asked("llava_1_5_7b", Replaying, tokens=2)
        asked.ask(replace(FASTV, selector=selector), captured=True)
        _, play = next(iter(asked.loop._steps.values()))
        with torch.no_grad(), _Counting() as seen:
            play()
        ran.append(seen.names)
    assert ran[0] == ran[1]


def test_the_command_measures_captured_arms_and_goes_on(tmp_path: Path) -> None:
    words = (
        "experiment=interventions",
        "runtime=cudagraph",
        "intervention=fastv",
        "intervention.layer=1",
        "sweep.axes.intervention.keep=[1,0.5]",
        "measurement.stopping.min_samples=2",
        "measurement.stopping.max_samples=2",
        "measurement.image_size=[112,112]",
        "figures.formats=[png]",
        "output.tokens=3",
        "progress=false",
        f"output_dir={tmp_path}",
    )
    assert command_line(*words).status == 0
    rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    ok = {row["intervention_arguments"]: row for row in rows if row["status"] == "ok"}
    half = ok["keep=0.5,layer=1,selector=last_token_attention"]
    assert half["kept_by_layer"] == "16x1,8x1"
    assert half["attention_kernel_LLM_decode"] == ok[""]["attention_kernel_LLM_decode"]
    assert ok["keep=1,layer=1,selector=last_token_attention"]["output_ids"] == ok[""]["output_ids"]
    assert "T_capture" not in half
    proofs = json.loads((tmp_path / "proofs.json").read_text())
    assert sum(label.endswith(" as captured") and proof["holds"] for label, proof in proofs.items()) == 3
    assert "as captured proved itself" in (tmp_path / "report.html").read_text()
    assert command_line(*words).status == 0
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == len(rows)
