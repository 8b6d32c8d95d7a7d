"""A model that vLLM runs in this process, behind the protocol that the loop and the probes use."""

from __future__ import annotations

import atexit
import copy
import importlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmbench.engines.vllm.marks import Boundaries, Steps
from vlmbench.engines.vllm.start import (
    VllmSettings,
    check_installed,
    engine_facts,
    prepare_environment,
    runner_of,
    start_engine,
)
from vlmbench.errors import MeasurementError, SampleError, UnreachablePointError, first_line
from vlmbench.models.inputs import decode_all
from vlmbench.models.protocol import Anatomy, Prepared, Told
from vlmbench.models.token_counts import observe
from vlmbench.models.transformers_model import TransformersModel, module_facts, read_images
from vlmbench.request import Request, TokenCounts

if TYPE_CHECKING:
    import torch

    from vlmbench.machine.clock import Clock
    from vlmbench.models.runtime import Runtime
    from vlmbench.models.spec import ModelSpec

_HOST = {"T_schedule": ("schedule", "update"), "T_sampling": ("sampling",), "T_engine_output": ("output",)}


@dataclass(kw_only=True)
class VllmPrepared(Prepared):
    """A request as the engine takes it, beside the tensors that it holds.

    Args:
        requests: vLLM's ``EngineCoreRequest`` of each row.
    """

    requests: Sequence[Any]


@dataclass(kw_only=True)
class VllmModel:
    """A loaded engine.

    Args:
        engine: vLLM's ``LLMEngine``, in this process.
        like: the same model as transformers builds it, without weights: processor, prompt format, targets, costs.
        device: where the engine runs.
        provenance: facts known at loading.
    """

    engine: Any
    like: TransformersModel
    device: torch.device
    provenance: Mapping[str, Any]
    boundaries: Boundaries = field(init=False)
    compile: bool = field(init=False, default=False)  # at the start, if at all: no request pays it
    _numbers: Iterator[int] = field(init=False, default_factory=itertools.count)
    _steps: Steps = field(init=False, default_factory=Steps)
    _listening: bool = field(init=False, default=False)
    _encoder_runs: int = field(init=False, default=0)
    _last: dict[str, Any] = field(init=False, default_factory=dict)
    _text: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.boundaries = Boundaries.of(self.engine)
        self.boundaries.count_encoder(self._encoded)

    def _encoded(self) -> None:
        self._encoder_runs += 1

    @property
    def module(self) -> Any:
        """The model as transformers builds it, without weights: what costs are counted on."""
        return self.like.module

    @property
    def anatomy(self) -> Anatomy:
        """Of :attr:`module`; vLLM's own modules are named in :attr:`facts`."""
        return self.like.anatomy

    @property
    def devices(self) -> list[torch.device]:
        """The one device."""
        return [self.device]

    @cached_property
    def clock(self) -> Clock:
        """The clock of the device; one for the life of the model."""
        from vlmbench.machine.clock import clock_for

        return clock_for(self.devices)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Weights, dtype, parameters by stage; what the engine chose stands under ``engine``."""
        return {**self.like.facts, **self.provenance}

    @property
    def closing_facts(self) -> Mapping[str, Any]:
        """What the engine chose, and where it is marked."""
        marked = {"vision_encoder": "embed_multimodal", "projector": list(self.boundaries.projectors)}
        return {"engine": {**engine_facts(self.engine), "marked": marked, "notes": list(self.boundaries.notes)}}

    def resolve(self, request: Request) -> Request:
        """The request with its targets turned into settings; see :meth:`TransformersModel.resolve`."""
        return self.like.resolve(request)

    def vision_counts(self, request: Request, most: int) -> list[int]:
        """Counts of vision tokens that can be reached; see :meth:`TransformersModel.vision_counts`."""
        return self.like.vision_counts(request, most)

    def prepare(self, request: Request) -> Prepared:
        """Decode the images and let vLLM's own processor make the engine's input: T_preprocess.

        Raises:
            SampleError: an image that cannot be decoded, or that the processor refuses.
            UnreachablePointError: a request longer than ``runtime.max_model_len``, or an argument that the processor
                does not have.
        """
        request = self.resolve(request)
        made = [self._input(row, request) for row in request.rows]
        images = [len(row.images) for row in request.rows]
        copies = made * request.batch_size if not request.companions else made

        def count(row: int) -> TokenCounts:
            asked = request.rows[row]
            words = asked.turns * self.like.prompter.text_tokens(asked.sample.question, num_images=images[row])
            own = _tensors([made[row]])
            return observe(own, self.like.marks, batch_size=1, num_images=images[row], num_prompt_tokens=words)

        def each() -> tuple[TokenCounts, ...]:
            return tuple(count(row) for row in range(len(made)))

        return VllmPrepared(
            inputs=_tensors(copies),
            requests=copies,
            count=lambda: TokenCounts.mean(each()),
            output=request.output,
            count_each=each if request.companions else None,
        )

    def _input(self, row: Request, request: Request) -> Any:
        """vLLM's ``EngineCoreRequest`` of one row."""
        self.like.check_processor_kwargs(request.processor_kwargs)
        names = [image.name for image in row.images]
        images = decode_all(read_images(row), names=names, size=row.image_size)
        answers = row.earlier_answers
        text = self.like.prompter.render(row.sample.question, num_images=len(images), earlier_answers=answers)
        prompt: dict[str, Any] = {"prompt": text}
        if images:
            prompt["multi_modal_data"] = {"image": images}
        if request.processor_kwargs:
            prompt["mm_processor_kwargs"] = dict(request.processor_kwargs)
        special = self.like.prompter.adds_special_tokens(text)
        try:
            made = self.engine.input_processor.process_inputs(
                f"prepared-{next(self._numbers)}",
                prompt,
                self._sampling(request),
                supported_tasks=self.engine.get_supported_tasks(),
                tokenization_kwargs={"add_special_tokens": special},
            )
        except Exception as error:
            own = type(error).__module__.startswith("vllm")
            if "maximum model length" in str(error) or (own and "maximum" in str(error) and "length" in str(error)):
                raise UnreachablePointError(f"longer than runtime.max_model_len: {first_line(error)}") from error
            if own or isinstance(error, ValueError | TypeError | IndexError | KeyError):
                raise SampleError(f"vLLM's processor refuses the request: {first_line(error)}") from error
            raise
        most = self.engine.vllm_config.model_config.max_model_len
        if (asked := len(made.prompt_token_ids) + request.output.max_new_tokens) > most:  # vLLM would cut the answer
            raise UnreachablePointError(f"longer than runtime.max_model_len: {asked:,} tokens of {most:,} at most")
        return made

    def _sampling(self, request: Request) -> Any:
        """Greedy; each token handed out as it comes, as to a client that streams."""
        sampling: Any = importlib.import_module("vllm.sampling_params")
        return sampling.SamplingParams(
            temperature=0.0,
            max_tokens=request.output.max_new_tokens,
            ignore_eos=request.output.forced,
            output_kind=sampling.RequestOutputKind.DELTA,
        )

    def ready(self, prepared: Prepared) -> Mapping[str, Any]:  # noqa: ARG002 – the protocol's
        """Nothing: the engine captured what it captures when it was started."""
        return {}

    def transfer(self, prepared: Prepared) -> Prepared:
        """Nothing: the engine moves inputs to the device itself, within ``generate``."""
        return prepared

    def announce(self, prepared: Prepared) -> None:
        """Nothing: nobody shares the model."""

    def listen(self, told: Told) -> Callable[[], None]:
        """Tell where stages begin and end, until the function that is returned is called."""
        stack = ExitStack()
        self._steps = Steps()
        stack.enter_context(self.boundaries.marked(told, self._steps))
        self._listening = True

        def stop() -> None:
            self._listening = False
            stack.close()

        return stop

    def generate(self, prepared: Prepared, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
        """Add the requests to the engine and step it until all are done; the new token ids, (batch, tokens).

        A row that ended earlier than the longest one is filled with the id of its last token.

        Raises:
            MeasurementError: the engine gave no answer.
        """
        import torch

        steps = self._steps if self._listening else Steps()
        steps.criteria = stopping_criteria or ()
        self._encoder_runs = 0
        answers: dict[str, list[int]] = {}
        texts: dict[str, str] = {}
        final: dict[str, Any] = {}
        alone = bool(steps.criteria) and not self._listening  # else they are in place, or not needed
        with self.boundaries.stepped(steps) if alone else nullcontext():
            assert isinstance(prepared, VllmPrepared)
            for request in prepared.requests:
                name, internal = self.add(request)
                steps.tokens[internal] = 0
                answers[name], texts[name] = [], ""
                final[name] = internal
            while self.engine.has_unfinished_requests():
                for output in self.engine.step():
                    answers[output.request_id] += output.outputs[0].token_ids
                    texts[output.request_id] += output.outputs[0].text
                    if output.finished:
                        steps.tokens.pop(final[output.request_id], None)
                        self._last = {"metrics": output.metrics}
        self._text = list(texts.values())
        self._last |= {"steps": steps, "encoder": self._encoder_stats()}
        longest = max((len(tokens) for tokens in answers.values()), default=0)
        if not all(answers.values()):
            raise MeasurementError("vLLM ended a request without a token")
        return torch.tensor([tokens + tokens[-1:] * (longest - len(tokens)) for tokens in answers.values()])

    def add(self, request: Any) -> tuple[str, str]:
        """Add a copy of a request, whose images vLLM takes for new ones; its name outside and inside the engine.

        Equal images would be encoded once and shared, within a batch and across requests.
        """
        own, name = copy.copy(request), f"run-{next(self._numbers)}"
        own.request_id, own.sampling_params = name, request.sampling_params.clone()
        own.mm_features = [replace(one, identifier=f"{one.identifier}-{name}") for one in request.mm_features or ()]
        own.arrival_time = time.time()
        return name, self.engine.add_request(name, own, own.sampling_params)

    def _encoder_stats(self) -> Mapping[str, Any]:
        """vLLM's own account of the encoder, summed over requests; empty where it keeps none."""
        kept = getattr(runner_of(self.engine), "get_encoder_timing_stats", None)
        found = [] if kept is None else list(kept().values())
        return {} if not found else {name: sum(one[name] for one in found) for name in found[0]}

    def detokenize(self, tokens: torch.Tensor) -> list[str]:  # noqa: ARG002 – the protocol's
        """The texts that came with the tokens: vLLM makes them step by step, within ``generate``."""
        return self._text

    def own_columns(self) -> Mapping[str, Any]:
        """The engine's own statistics of the last run beside the host's times of its parts, all in ms.

        Of a batch the statistics are those of the request that ended last.
        """
        spent = self._last["steps"].host_ns
        columns: dict[str, Any] = {"T_transfer": None, "T_detokenize": None, "engine_encoder_runs": self._encoder_runs}
        if spent.keys() >= {part for parts in _HOST.values() for part in parts}:
            columns |= {name: sum(sum(spent[part]) for part in parts) / 1e6 for name, parts in _HOST.items()}
        if (stats := self._last.get("metrics")) is not None:
            columns |= statistics(stats)
        if seconds := self._last["encoder"].get("encoder_forward_secs"):
            columns["engine_encoder_forward"] = seconds * 1e3
        return columns

    def release(self) -> str:
        """Nothing to give back: the engine holds its cache for good."""
        return "the engine's own memory"


def statistics(stats: Any) -> dict[str, float]:
    """vLLM's own statistics of a request that ended (``RequestStateStats``), ms."""
    return {
        "engine_queued_time": (stats.scheduled_ts - stats.queued_ts) * 1e3,
        "engine_prefill_time": (stats.first_token_ts - stats.scheduled_ts) * 1e3,
        "engine_decode_time": (stats.last_token_ts - stats.first_token_ts) * 1e3,
        "engine_inference_time": (stats.last_token_ts - stats.scheduled_ts) * 1e3,
        "engine_first_token_latency": stats.first_token_latency * 1e3,
    }


def _tensors(requests: Sequence[Any]) -> dict[str, Any]:
    """What the model will get, with a leading batch axis: ids (padded on the left by zeros) and image tensors."""
    import torch

    grouping: Any = importlib.import_module("vllm.multimodal.utils").group_and_batch_mm_kwargs
    longest = max(len(one.prompt_token_ids) for one in requests)
    ids = torch.zeros(len(requests), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(requests):
        ids[row, longest - len(one.prompt_token_ids) :] = torch.tensor(one.prompt_token_ids)
        mask[row, longest - len(one.prompt_token_ids) :] = 1
    items = [(feature.modality, feature.data) for one in requests for feature in one.mm_features or ()]
    images: dict[str, Any] = {}
    for _, _, kwargs in grouping(items) if items else ():
        for name, value in kwargs.items():
            images[name] = value if name not in images else torch.cat([images[name], value])
    return {"input_ids": ids, "attention_mask": mask, **images}


def load_model(spec: ModelSpec, runtime: Runtime, settings: Mapping[str, Any], seed: int) -> VllmModel:
    """Load a model into vLLM in this process; see :data:`vlmbench.engines.choice.Engine`.

    Raises:
        ConfigError: vLLM is not installed, or of a version that was not tried, or refuses an argument.
        ModelError: the model cannot be written for it, or it has no class for it.
        DeviceError: it is built for another device.
    """
    import torch

    check_installed()
    prepare_environment(offline=spec.path is not None or spec.weights == "random")
    from vlmbench.models.export import export
    from vlmbench.models.loading import weightless
    from vlmbench.models.placement import resolve_device, resolve_dtype

    own = {name: settings[name] for name in VllmSettings.__dataclass_fields__ if name in settings}
    chosen = VllmSettings(**own)
    device = resolve_device(runtime.device)
    dtype = str(resolve_dtype(runtime.dtype, device)).removeprefix("torch.")
    folder = None
    if spec.weights == "random":
        folder = tempfile.TemporaryDirectory(prefix="vlmbench-vllm-")
        atexit.register(folder.cleanup)  # the engine may read it as long as it lives
        wanted = replace(runtime, device=str(device), dtype=dtype)
        export(spec, Path(folder.name), runtime=wanted, weights=chosen.same_weights, seed=seed)
    source = folder.name if folder is not None else str(spec.source)
    like = weightless(spec, dtype=dtype)
    began = time.monotonic()
    engine = start_engine(
        source,
        architecture=type(like.module).__name__,
        device=device.type,
        dtype=dtype,
        load_format="dummy" if folder is not None and not chosen.same_weights else "auto",
        seed=seed,
        settings=chosen,
    )
    facts = {
        "weights": spec.weights,
        **module_facts(like.module, like.processor, getattr(torch, dtype)),
        "attention": "vLLM's own",
        "attention_by_tower": {"language_model": ", ".join(engine_facts(engine)["attention_backends"])},
        "sdpa_backends": None,
        "quantization": spec.quantization,
        "devices": 1,
        "build_s": round(time.monotonic() - began, 3),
        **(
            {"seed": seed, "same_weights": chosen.same_weights} if spec.weights == "random" else {"source": spec.source}
        ),
    }
    return VllmModel(engine=engine, like=like, device=runner_of(engine).device, provenance=facts)
