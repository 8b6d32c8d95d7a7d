"""What of ``runtime=vllm`` needs no vLLM: refusals, and marks at the calls of a planted engine of the same shape."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

from tests.engines.test_choice import EAGER
from vlmbench.engines.vllm.marks import Boundaries, Steps, wrapped
from vlmbench.engines.vllm.start import check_installed, check_version, prepare_environment
from vlmbench.errors import ConfigError
from vlmbench.session.settings import RuntimeConfig

VLLM = {**EAGER, "name": "vllm", "engine": "vllm", "attn_implementation": None}


class Planted:
    """The calls of an engine, in the order in which vLLM makes them: a prompt in two steps, then one token a step."""

    def __init__(self, prompt: int = 6, a_step: int = 4) -> None:
        self.request = SimpleNamespace(num_prompt_tokens=prompt, num_computed_tokens=0)
        self.a_step = a_step
        projector = SimpleNamespace(forward=lambda: "projected")

        def embed() -> str:
            projected: str = projector.forward()
            return projected

        self.model = SimpleNamespace(
            embed_multimodal=embed,
            get_mm_mapping=lambda: SimpleNamespace(connector=["visual.merger."]),
            named_modules=lambda: [("visual.merger", projector)],
            get_submodule=lambda _: projector,
        )
        runner = SimpleNamespace(get_model=lambda: self.model)
        self.model_executor = SimpleNamespace(
            driver_worker=SimpleNamespace(model_runner=runner),
            execute_model=self._execute,
            sample_tokens=lambda: "sampled",
        )
        scheduler = SimpleNamespace(
            schedule=self._schedule, update_from_output=lambda: None, requests={"one": self.request}
        )
        self.engine_core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler))
        self.output_processor = SimpleNamespace(process_outputs=lambda: None)
        self.vllm_config = SimpleNamespace(compilation_config=SimpleNamespace(cudagraph_mm_encoder=False))

    def _schedule(self) -> Any:
        left = self.request.num_prompt_tokens - self.request.num_computed_tokens
        now = min(self.a_step, left) if left > 0 else 1
        self.request.num_computed_tokens += now
        return SimpleNamespace(num_scheduled_tokens={"one": now}, total_num_scheduled_tokens=now)

    def _execute(self, scheduled: Any) -> None:
        if scheduled.total_num_scheduled_tokens and self.request.num_computed_tokens == self.a_step:
            self.model.embed_multimodal()

    def step(self) -> None:
        scheduler = self.engine_core.engine_core.scheduler
        self.model_executor.execute_model(scheduler.schedule())
        self.model_executor.sample_tokens()
        scheduler.update_from_output()
        self.output_processor.process_outputs()


def test_a_part_of_a_prompt_gives_no_token_and_marks_nest() -> None:
    engine, told = Planted(), []
    steps = Steps(tokens={"one": 0}, criteria=[lambda *_: told.append(("token", True))])
    boundaries = Boundaries.of(engine)
    assert boundaries.projectors == ("visual.merger",)
    with boundaries.marked(lambda stage, begins: lambda: told.append((stage, begins)), steps):
        for _ in range(4):
            engine.step()
        engine.model_executor.execute_model(
            SimpleNamespace(total_num_scheduled_tokens=0)
        )  # ends asynchronous scheduling
    forward = [("forward", True), ("forward", False)]
    assert told == [
        ("forward", True),
        ("vision_encoder", True),
        ("projector", True),
        ("projector", False),
        ("vision_encoder", False),
        ("forward", False),  # the prompt's first part: no token
        *[*forward, ("token", True)] * 3,
    ]
    assert set(steps.host_ns) == {"schedule", "update", "sampling", "output"}
    told.clear()
    engine.step()
    assert told == [], "all calls are put back"


def test_a_token_counts_once_every_request_of_the_batch_has_it() -> None:
    engine, tokens = Planted(prompt=1), []
    steps = Steps(tokens={"one": 0, "waiting": 0}, criteria=[lambda *_: tokens.append(len(tokens))])
    with Boundaries.of(engine).stepped(steps):
        engine.step()
        assert tokens == []
        del steps.tokens["waiting"]
        engine.step()
    assert tokens == [0, 1]


def test_runs_of_the_encoder_are_counted_also_where_nothing_is_watched() -> None:
    engine, ran = Planted(), []
    boundaries = Boundaries.of(engine)
    boundaries.count_encoder(lambda: ran.append("once"))
    for _ in range(2):
        engine.step()
    assert ran == ["once"]
    with boundaries.marked(lambda *_: lambda: None, Steps()):
        engine.model.embed_multimodal()
    assert len(ran) == 2


def test_what_was_wrapped_is_put_back_also_where_it_was_wrapped_before() -> None:
    class Owner:
        def call(self) -> int:
            return 1

    owner = Owner()
    with wrapped(owner, "call", lambda call: lambda: call() + 1):
        with wrapped(owner, "call", lambda call: lambda: call() * 10):
            assert owner.call() == 20
        assert owner.call() == 2
    assert owner.call() == 1
    assert vars(owner) == {}


def test_refusals_have_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"not installed here\npip install 'vllm>=0.26,<0.33'"):
        check_installed()
    for version in ("0.25.1", "0.33.0", "dev"):
        with pytest.raises(ConfigError, match=r"was tried with vLLM 0.26 to 0.32 .*\ninstall one of those"):
            check_version(version, allowed=False)
        check_version(version, allowed=True)
    check_version("0.32.0+cpu", allowed=False)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(ConfigError, match=r"needs the engine in this process .*\nunset"):
        prepare_environment(offline=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attn_implementation": "sdpa"}, "'runtime.attn_implementation' must be null with runtime=vllm"),
        ({"device_map": "auto"}, "'runtime.device_map' must be null"),
        ({"compile": True}, "'runtime.compile' must be false with runtime=vllm"),
        ({"max_model_len": 1}, "'runtime.max_model_len' must be 2 or more"),
    ],
)
def test_what_vllm_decides_itself_is_refused(settings: dict[str, Any], message: str) -> None:
    RuntimeConfig(**VLLM)
    with pytest.raises(ValueError, match=message):
        RuntimeConfig(**VLLM | settings)
