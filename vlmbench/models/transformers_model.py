"""Any transformers image-text-to-text model behind the protocol that the runner and the probes use."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vlmbench.errors import AnatomyError, DeviceError, ModelError, SampleError, UnreachablePointError, VlmbenchError
from vlmbench.models.attention import allowed_backends, attention_by_tower
from vlmbench.models.building import experts_facts, input_device
from vlmbench.models.inputs import Prompter, decode_all
from vlmbench.models.parallel.tensor_parallel import split_share
from vlmbench.models.processors import allowed_image_arguments, backend_of, call_arguments, give_video_processor
from vlmbench.models.protocol import Anatomy, Cached, Loop, Prepared
from vlmbench.models.token_counts import ImageMarks, clip_as_images, observe
from vlmbench.models.transformers_library import transformers_library
from vlmbench.request import Request, TokenCounts

if TYPE_CHECKING:
    import torch

    from vlmbench.machine.clock import Clock
    from vlmbench.models.conversation import Conversation
    from vlmbench.models.parallel.team import Team

# What a processor may put beside the inputs of generate, for training or for its own use.
_NOT_FOR_GENERATE = frozenset({"labels", "text_replacement_offsets", "offset_mapping"})


_NOT_FOR_CLIP = _NOT_FOR_GENERATE | {"video_metadata"}


def read_images(request: Request) -> list[bytes]:
    """The encoded images of a request, read from wherever they lie: the part that is not T_preprocess.

    Raises:
        SampleError: an image cannot be read.
    """
    return [image.encoded() for image in request.images]


@dataclass(kw_only=True)
class TransformersModel:
    """A loaded model; built by :func:`vlmbench.models.loading.load`.

    Args:
        module: the top-level model, on its device, in eval mode.
        device: where inputs go.
        dtype: of floating inputs.
        processor: a transformers processor.
        prompter: the prompt format.
        marks: what counting tokens needs of the configuration.
        override: stage to module paths, where the rules need help.
        provenance: facts known at loading.
        cache_implementation: of the key-value cache; None for transformers' dynamic cache.
        compile: whether ``generate`` may compile the decode step.
        team: the processes that share the model; None where this one has it alone.
        loop: runs requests in place of the module's ``generate()``; None for ``generate()``.
    """

    module: Any
    device: torch.device
    dtype: torch.dtype
    processor: Any
    prompter: Prompter
    marks: ImageMarks
    override: Mapping[str, Sequence[str]] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    cache_implementation: str | None = None
    compile: bool = False
    team: Team | None = None
    loop: Loop | None = None
    _resolved: dict[Any, Any] = field(default_factory=dict)
    _echoes_prompt: bool | None = None
    _cache: Any = None  # filled for the next run
    _conversation: tuple[Any, Conversation] | None = None

    @classmethod
    def of(
        cls,
        module: Any,
        processor: Any,
        *,
        name: str | None = None,
        anatomy: Mapping[str, Sequence[str]] | None = None,
        prompt: Mapping[str, Any] | None = None,
        device: torch.device | None = None,
    ) -> TransformersModel:
        """Take a model that was loaded elsewhere, with its processor.

        Args:
            module: any image-text-to-text model of transformers, on its device.
            name: what records call it; the name of its checkpoint, or of its class, if None.
            anatomy: stage to module paths, where the rules that find the stages need help.
            prompt: ``prompt_format``, ``image_placeholder`` and ``vision_token`` where the processor does not say them
                itself; see :data:`vlmbench.models.processors.PROCESSOR_KEYS`.
            device: where inputs go, unless the token embedding says otherwise; the parameters' device if None.
        """
        parameter = next(module.parameters())
        settings = prompt or {}
        token = settings.get("vision_token")
        index = None if token is None else processor.tokenizer.convert_tokens_to_ids(token)
        called = name or getattr(module.config, "name_or_path", None) or type(module).__name__
        return cls(
            module=module,
            device=input_device(module, device or parameter.device),
            dtype=parameter.dtype,
            processor=processor,
            prompter=Prompter.of(
                processor,
                prompt_format=settings.get("prompt_format"),
                image_placeholder=settings.get("image_placeholder"),
            ),
            marks=ImageMarks.from_config(module.config, image_token_id=index),
            override=anatomy,
            provenance={"name": called, "weights": "given", **module_facts(module, processor, parameter.dtype)},
        )

    @cached_property
    def devices(self) -> list[torch.device]:
        """Every device that holds parameters, the one that takes the inputs first."""
        held = {parameter.device for parameter in self.module.parameters()}
        return [self.device, *sorted(held - {self.device}, key=str)]

    @cached_property
    def clock(self) -> Clock:
        """The clock whose marks these devices understand."""
        from vlmbench.machine.clock import clock_for

        return clock_for(self.devices)

    @cached_property
    def anatomy(self) -> Anatomy:
        """Which module is which stage: by rule, and by watching one run where the rules find no stages.

        Raises:
            AnatomyError: neither tells the stages apart, or the override does not fit the model.
        """
        from vlmbench.models.anatomy.find import find_anatomy

        try:
            return find_anatomy(self.module, self.override)
        except AnatomyError as error:
            if self.override or self.team is not None:  # a run of one process of several would wait for the others
                raise
            from vlmbench.models.anatomy.verify import find_by_running

            return find_by_running(self, error)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """Weights with revision or seed, dtype, attention kernel, parameters by stage, processor, number of devices."""
        from vlmbench.models.anatomy.find import stage_parameters

        facts = {
            **self.provenance,
            "attention_by_tower": attention_by_tower(self.module, self.anatomy),
            "sdpa_backends": allowed_backends(),
            "parameters": stage_parameters(self.module, self.anatomy),
        }
        if self.team is None:
            return {**facts, "devices": len(self.devices)}
        share = round(split_share(self.module), 4)
        return {**facts, **self.team.facts, "split_share": share, "devices": self.team.size}

    def resolve(self, request: Request) -> Request:
        """The request with its targets turned into settings; searches are remembered, so call it before timing.

        ``vision_tokens`` becomes image size, number of images and processor settings; ``prompt_tokens`` becomes a text.

        Raises:
            UnreachablePointError: no setting gives that many vision tokens.
            SampleError: no text of exactly that many tokens, or a question that no tokenizer takes.
        """
        for row in request.rows:
            self.prompter.check(row.sample.question)
        if request.vision_tokens is not None:
            from vlmbench.models.vision.target_settings import reach_vision_tokens

            target, wanted = request.vision_tokens, request
            sizes = tuple(image.size for image in request.sample.images)
            key = ("vision", target, request.num_images, sizes, repr(request.processor_kwargs))
            changes = self.remember(key, lambda: reach_vision_tokens(self, target, wanted))
            request = replace(request, vision_tokens=None, **changes)
        if request.prompt_tokens is not None:
            count, images, seed = request.prompt_tokens, len(request.images), request.seed
            companions = tuple(
                replace(row.sample, question=self._words(count, len(row.images), row.seed)) for row in request.rows[1:]
            )
            sample = replace(request.sample, question=self._words(count, images, seed))
            request = replace(request, sample=sample, companions=companions, prompt_tokens=None)
        if request.frames is not None and not request.clip:
            request = replace(request, clip=self._clip_of(request))
        if request.turns > 1 and not request.earlier_answers:
            count = request.output.max_new_tokens
            answers = (self._words(count, 0, request.seed + 1 + turn) for turn in range(request.turns - 1))
            request = replace(request, earlier_answers=tuple(answers))
        if request.over_cache and request.kv_length is None:
            self._conversation_of(request)
        return request

    def _clip_of(self, request: Request) -> bytes:
        """The clip of a request, encoded; made once of its sample's first image.

        Raises:
            UnreachablePointError: the model takes no video, a package is missing, or there is nothing to make it of.
        """
        give_video_processor(self.processor, self.module.config.model_type)
        from vlmbench.data.clip import encode_clip

        if request.vision_tokens is not None or request.over_cache or request.turns > 1 or not request.sample.images:
            raise UnreachablePointError("frames need a sample with an image, one turn, and no target of vision tokens")
        if not self.prompter.image_placeholder:
            raise UnreachablePointError(
                f"frames: {type(self.processor).__name__} has no place for a clip in its prompt"
            )
        still = replace(request, frames=None, num_images=1)
        key = ("clip", request.frames, request.sample.sample_id, request.image_size)
        clip: bytes = self.remember(key, lambda: encode_clip(self._pictures(still)[0], request.frames or 1))
        return clip

    def _conversation_of(self, request: Request) -> Conversation:
        """The earlier turns of a request, prepared outside of any clock; the last one asked for is kept."""
        from vlmbench.models.conversation import Conversation

        fields = (request.sample.question, request.earlier_answers, request.num_images, request.batch_size)
        key = (request.sample.sample_id, *fields, request.image_size, repr(request.processor_kwargs))
        if self._conversation is None or self._conversation[0] != key:
            self._refuse_cache("reuse_cache")
            images, whole = self._pictures(request), self.prepare(replace(request, reuse_cache=False))
            self._conversation = (key, Conversation.of(self, request, images=images, whole=whole))
        return self._conversation[1]

    def _words(self, count: int, images: int, seed: int) -> str:
        """A random text of exactly ``count`` tokens beside so many images; the same for the same seed."""
        text: str = self.remember(
            ("prompt", count, images, seed), lambda: self.prompter.random_text(count, num_images=images, seed=seed)
        )
        return text

    def vision_counts(self, request: Request, most: int) -> list[int]:
        """Counts of vision tokens that the model can reach, for a sweep that leaves them open.

        Args:
            request: of one sample with an image; its processor arguments stay.
            most: how many counts at most.

        Raises:
            ConfigError: fewer than three can be reached.
        """
        from vlmbench.models.vision.auto_counts import spread_vision_tokens

        positions = None
        if self.module is not None:
            positions = getattr(self.module.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return spread_vision_tokens(self, request, most, positions=positions)

    def remember(self, key: tuple[Any, ...], find: Callable[[], Any]) -> Any:
        """The result of a search, made once; a search that failed fails again without searching."""
        if key not in self._resolved:
            try:
                self._resolved[key] = find()
            except (UnreachablePointError, SampleError) as error:
                self._resolved[key] = error
        found = self._resolved[key]
        if isinstance(found, VlmbenchError):
            raise type(found)(*found.args)
        return found

    def prepare(self, request: Request, encoded: Sequence[bytes] | None = None) -> Prepared:
        """Decode, resize, crop, normalise, apply the prompt format, tokenise: T_preprocess. Host only.

        Args:
            request: what is asked; unresolved targets are resolved first (see :meth:`resolve`).
            encoded: the images' bytes where they are read already (:func:`read_images`); read now otherwise.

        Raises:
            SampleError: an image that cannot be read or decoded, or that the processor refuses.
            UnreachablePointError: a knob this model does not have.
        """
        request = self.resolve(request)
        if request.frames is not None:
            return self._of_clip(request)
        if request.kv_length is not None:
            return self._over_random_cache(request, request.kv_length)
        if request.over_cache:
            return self._conversation_of(request).next_turn(self.prompter, request)

        return self.assemble(
            request,
            lambda row: self._pictures(row, encoded),
            lambda text, images: self.prompter.text_tokens(text, num_images=images),
        )

    def _pictures(self, row: Request, encoded: Sequence[bytes] | None = None) -> list[Any]:
        data = read_images(row) if encoded is None else encoded
        return decode_all(data, names=[source.name for source in row.images], size=row.image_size)

    def _of_clip(self, request: Request) -> Prepared:
        """The inputs of a request about a clip, whose file is decoded first.

        Raises:
            UnreachablePointError: the processor cannot prepare it.
        """
        from vlmbench.data.clip import FPS, decode_clip

        begin = time.perf_counter_ns()
        frames = decode_clip(request.clip)
        took = (time.perf_counter_ns() - begin) / 1e6
        token, rows = self.processor.video_token, request.batch_size
        asked = self.prompter.render(request.sample.question, num_images=1)
        metadata = {"total_num_frames": len(frames), "fps": FPS, "frames_indices": list(range(len(frames)))}
        options: dict[str, Any] = {"return_tensors": "pt", "padding": True, "do_sample_frames": False}
        if not self.prompter.adds_special_tokens(asked):
            options["add_special_tokens"] = False
        try:
            features = self.processor(
                text=[asked.replace(self.prompter.image_placeholder, token)] * rows,
                videos=[frames] * rows,
                video_metadata=[dict(metadata) for _ in range(rows)],
                **options,
            )
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, ImportError) as error:
            name = type(self.processor).__name__
            raise UnreachablePointError(f"frames: {name} cannot prepare {len(frames)} frames: {error}") from error
        inputs = {name: value for name, value in features.items() if name not in _NOT_FOR_CLIP}
        # Frames stand at the video token of some models, at the image token of others.
        places = (*self.marks.image_token_ids, self.prompter.tokenizer.convert_tokens_to_ids(token))
        marks = replace(self.marks, image_token_ids=places)
        prompt = self.prompter.text_tokens(request.sample.question, num_images=1)

        def counts() -> TokenCounts:
            shown = clip_as_images(inputs)
            found = observe(shown, marks, batch_size=rows, num_images=1, num_prompt_tokens=prompt)
            return replace(found, num_images=0)

        return Prepared(inputs=inputs, count=counts, output=request.output, num_frames=len(frames), T_video_decode=took)

    def _over_random_cache(self, request: Request, tokens: int) -> Prepared:
        """A text of ``tokens`` ordinary words of which the cache holds all but the last; no chat template, no image.

        Raises:
            UnreachablePointError: a cache of keys and values does not stand for what this model decodes over.
        """
        import torch

        from vlmbench.models.filled_cache import random_ids

        self._refuse_cache("kv_length")
        ids = self.remember(("ids", tokens), lambda: random_ids(self.prompter.tokenizer, self.prompter.words, tokens))
        batch = torch.tensor([ids] * request.batch_size)
        counts = TokenCounts(num_input_tokens=tokens, num_prompt_tokens=tokens, num_vision_tokens=0)
        return Prepared(
            inputs={"input_ids": batch, "attention_mask": torch.ones_like(batch)},
            count=lambda: counts,
            output=request.output,
            cached=Cached(tokens=tokens - 1),
        )

    def _refuse_cache(self, axis: str) -> None:
        """Refuse to begin over a cache where the model, or how it runs, does not allow it.

        Raises:
            UnreachablePointError: with the reason.
        """
        from vlmbench.models.filled_cache import refuse_unfit

        if self.team is not None or self.compile or self.cache_implementation is not None:
            raise UnreachablePointError(f"{axis} needs a dynamic cache in one process: runtime=eager")
        refuse_unfit(self.module, why=axis)

    def assemble(
        self, request: Request, pictures: Callable[[Request], list[Any]], text_tokens: Callable[[str, int], int]
    ) -> Prepared:
        """Make the inputs of a resolved request from decoded images.

        Args:
            request: resolved; of a batch of different requests each row gets its own images and text.
            pictures: gives the decoded images of a row.
            text_tokens: counts the tokens of the user's text beside so many images.

        Raises:
            SampleError: an image that cannot be read or decoded, or that the processor refuses.
            UnreachablePointError: a knob this model does not have.
        """
        rows = request.rows
        images = [pictures(row) for row in rows]
        rendered = [
            self.prompter.render(row.sample.question, num_images=len(seen), earlier_answers=row.earlier_answers)
            for row, seen in zip(rows, images, strict=True)
        ]
        if not request.companions:
            inputs = self.process(images[0], rendered[0], request)
            return Prepared(
                inputs=inputs,
                count=lambda: self._observed(inputs, request.batch_size, rows[0], len(images[0]), text_tokens),
                output=request.output,
            )
        inputs = self.process_rows(images, rendered, request.processor_kwargs)

        def each() -> tuple[TokenCounts, ...]:
            """By preparing each request once more by itself: no tensor of the batch tells whose patches are whose."""
            found = []
            for row, seen, prompt in zip(rows, images, rendered, strict=True):
                own = self.process(seen, prompt, row)
                found.append(self._observed(own, 1, row, len(seen), text_tokens))
            return tuple(found)

        samples = tuple((row.sample.sample_id, row.sample.question, row.num_images) for row in rows)
        key = ("rows", samples, request.image_size, repr(request.processor_kwargs))

        def remembered() -> tuple[TokenCounts, ...]:
            counts: tuple[TokenCounts, ...] = self.remember(key, each)
            return counts

        return Prepared(
            inputs=inputs,
            count=lambda: TokenCounts.mean(remembered()),
            output=request.output,
            count_each=remembered,
        )

    def _observed(
        self,
        inputs: Mapping[str, Any],
        batch_size: int,
        row: Request,
        num_images: int,
        text_tokens: Callable[[str, int], int],
    ) -> TokenCounts:
        return observe(
            inputs,
            self.marks,
            batch_size=batch_size,
            num_images=num_images,
            num_prompt_tokens=row.turns * text_tokens(row.sample.question, num_images),
        )

    def process(self, images: Sequence[Any], rendered: str, request: Request) -> dict[str, Any]:
        """The processor's own call, on ``batch_size`` copies of decoded images and a rendered prompt.

        Raises:
            SampleError: the processor refuses the images.
            UnreachablePointError: an argument that it does not have, or no image where it needs one.
        """
        rows = request.batch_size
        return self.process_rows([list(images)] * rows, [rendered] * rows, request.processor_kwargs)

    def process_rows(
        self, images: Sequence[Sequence[Any]], rendered: Sequence[str], kwargs: Mapping[str, object]
    ) -> dict[str, Any]:
        """The processor's own call on the rows of a batch, padded on the left.

        Args:
            images: decoded, of each row.
            rendered: prompt of each row.

        Raises:
            SampleError: the processor refuses the images.
            UnreachablePointError: an argument that it does not have, or no image where it needs one.
        """
        self.check_processor_kwargs(kwargs)
        options: dict[str, Any] = {"return_tensors": "pt", "padding": True}
        if not self.prompter.adds_special_tokens(rendered[0]):
            options["add_special_tokens"] = False
        some = any(images)
        if some:
            options["images"] = [list(row) for row in images]
        tokenizer: Any = getattr(self.processor, "tokenizer", None)
        side = getattr(tokenizer, "padding_side", None)
        try:
            if side is not None:
                tokenizer.padding_side = "left"  # what generation needs; a checkpoint may say otherwise
            features = self.processor(text=list(rendered), **options, **call_arguments(self.processor, kwargs))
        except (ValueError, TypeError, IndexError, KeyError, ZeroDivisionError, AttributeError) as error:
            if not some:
                raise UnreachablePointError(
                    f"{type(self.processor).__name__} takes no request without images"
                ) from error
            sizes = ", ".join(f"{image.width}x{image.height}" for row in images for image in row)
            raise SampleError(f"{type(self.processor).__name__} refuses {sizes}: {error}") from error
        finally:
            if side is not None:
                tokenizer.padding_side = side
        return {name: value for name, value in features.items() if name not in _NOT_FOR_GENERATE}

    def check_processor_kwargs(self, kwargs: Mapping[str, object]) -> None:
        """Refuse arguments that the processor does not take for images.

        Raises:
            UnreachablePointError: with those that it takes.
        """
        if not kwargs:
            return
        allowed = allowed_image_arguments(self.processor)
        if unknown := sorted(set(kwargs) - allowed):
            raise UnreachablePointError(
                f"{type(self.processor).__name__} has no argument {', '.join(unknown)}; "
                f"it has {', '.join(sorted(allowed))}"
            )

    def ready(self, prepared: Prepared) -> Mapping[str, Any]:
        """Fill the cache over which a request begins, and let the loop capture what it needs, before any clock:
        ``T_capture`` in ms where it did.

        Raises:
            UnreachablePointError: the model does not go on from a cache as it would after a prefill.
        """
        if self.loop is None:
            if prepared.cached is not None:
                self._cache = self._filled(self.transfer(prepared))
            return {}
        took = self.loop.ready(prepared, lambda: self.transfer(prepared).inputs)
        return {"T_capture": took} if took else {}

    def _filled(self, prepared: Prepared) -> Any:
        from vlmbench.models.filled_cache import fill_random, prefilled, proof_of_text, prove

        assert prepared.cached is not None
        module, inputs, cached = self.module, prepared.inputs, prepared.cached
        if prepared.prefill:
            axis, earlier = f"reuse_cache at {cached.tokens} tokens", self._moved_all(cached.earlier)
            wrong = self.remember(
                (axis,), lambda: prove(module, self._moved_all(cached.whole), inputs, prefilled(module, earlier))
            )
        else:
            axis = "kv_length"
            wrong = self.remember((axis,), lambda: proof_of_text(module, inputs))
        if wrong is not None:
            raise UnreachablePointError(f"{axis} is refused for {type(module).__name__}: {wrong}")
        return prefilled(module, earlier) if prepared.prefill else fill_random(module, prepared)

    @property
    def closing_facts(self) -> Mapping[str, Any]:
        """What the loop captured, under ``engine``; empty for ``generate()``."""
        return {} if self.loop is None else {"engine": dict(self.loop.facts)}

    def transfer(self, prepared: Prepared) -> Prepared:
        """The inputs on the device, floating ones in the model's dtype: T_transfer."""
        return replace(prepared, inputs=self._moved_all(prepared.inputs))

    def _moved_all(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._moved(value) for name, value in inputs.items()}

    def _moved(self, value: Any) -> Any:
        if hasattr(value, "is_floating_point"):
            dtype = self.dtype if value.is_floating_point() else None
            return value.to(device=self.device, dtype=dtype, non_blocking=True)
        if isinstance(value, list | tuple):
            return type(value)(self._moved(item) for item in value)
        return value

    def announce(self, prepared: Prepared) -> None:
        """Tell the other processes that share the model what is generated next, and wait for them; outside any clock.

        Raises:
            OutOfStepError: an earlier run left them out of step.
        """
        if self.team is not None:
            self.team.announce(prepared)

    def generate(self, prepared: Prepared, stopping_criteria: list[Any] | None = None) -> torch.Tensor:
        """One greedy ``generate()`` call, from an empty cache or from the one that :meth:`ready` filled.

        Args:
            stopping_criteria: called after every new token; the timeline probe's marks.

        Raises:
            DeviceError: ``compile`` was asked for and transformers did not compile.
        """
        if self.loop is not None:
            return self.loop.generate(prepared, stopping_criteria or ())
        import torch
        from transformers import StoppingCriteriaList

        most = prepared.output.max_new_tokens
        options: dict[str, Any] = {"max_new_tokens": most, "disable_compile": not self.compile}
        if prepared.output.forced:
            options["min_new_tokens"] = most
        if prepared.cached is not None:
            options["past_key_values"], self._cache = self._cache, None
        if self.cache_implementation is not None:
            options["cache_implementation"] = self.cache_implementation
        if stopping_criteria:
            options["stopping_criteria"] = StoppingCriteriaList(stopping_criteria)
        together = nullcontext() if self.team is None else self.team.in_step(prepared)
        with together, torch.inference_mode():
            produced = self.module.generate(**prepared.inputs, **options)
        if self.compile and "_compiled_call" not in vars(self.module):  # where transformers keeps what it compiled
            raise DeviceError(
                f"transformers runs the decode of {type(self.module).__name__} uncompiled (its cache or its placement "
                "cannot be compiled), so these would be eager times; use runtime=eager"
            )
        return self.new_tokens(getattr(produced, "sequences", produced), prepared.inputs.get("input_ids"))

    def new_tokens(self, produced: torch.Tensor, prompt: torch.Tensor | None) -> torch.Tensor:
        """Cut the prompt off, for the models that return it (those fed with embeddings do not).

        Comparing tokens waits for the device, so it is done on the first call only.
        """
        if prompt is None:
            return produced
        length = prompt.shape[1]
        if self._echoes_prompt is None:
            self._echoes_prompt = produced.shape[1] > length and bool((produced[:, :length] == prompt).all())
        return produced[:, length:] if self._echoes_prompt else produced

    def detokenize(self, tokens: torch.Tensor) -> list[str]:
        """Token ids to text: T_detokenize."""
        if self.team is not None:
            self.team.finished(tokens)
        try:
            return list(self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True))
        except (OverflowError, TypeError) as error:
            raise ModelError(f"the tokenizer cannot decode what the model produced: {error}") from error

    def own_columns(self) -> Mapping[str, Any]:
        """None: the loop times what there is."""
        return {}

    def release(self) -> str:
        """Give cached blocks back after an out-of-memory error (never inside a measurement); says what was free."""
        import gc

        import torch

        if self.loop is not None:
            self.loop.clear()
        gc.collect()
        # transformers makes every later static cache as long as the longest asked for, also one that did not fit
        vars(self.module).pop("_previous_max_cache_length", None)
        if self.device.type != "cuda":
            return "host memory"
        free, total = torch.cuda.mem_get_info(self.device)
        torch.cuda.empty_cache()
        return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB were free outside the allocator"


def module_facts(module: Any, processor: Any, dtype: torch.dtype) -> dict[str, Any]:
    """What a loaded module and its processor say of themselves, for the provenance."""
    return {
        "model_type": module.config.model_type,
        "architecture": type(module).__name__,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": getattr(module.config, "_attn_implementation", None),
        **experts_facts(module),
        "transformers_version": transformers_library().__version__,
        "processor": type(processor).__name__,
        "processor_backend": backend_of(processor),
        "processes": 1,  # more with tp_plan: the model's team says so
    }
