"""The real processor classes of transformers: built offline from a model's YAML, or loaded with a checkpoint.

Offline, the image processor's class and numbers come from the YAML and the tokenizer from
:mod:`vlmbench.models.offline_tokenizer`; what runs in ``T_preprocess`` is transformers' own code either way. The
image back end is torchvision where it is installed and PIL elsewhere (1.6–3.9 times as long): the record says which.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

from vlmbench.errors import ModelError, UnreachablePointError
from vlmbench.models.offline_tokenizer import build_tokenizer
from vlmbench.models.transformers_library import transformers_library, transformers_module

# Keys of the 'processor' mapping of a model's YAML.
PROCESSOR_KEYS = frozenset(
    {
        "class",  # processor class; the architecture's own unless given
        "arguments",  # of the processor class
        "image_processor_class",  # without the suffix of the back end
        "image_processor",  # arguments of the image processor
        "backend",  # auto | torchvision | pil
        "tokenizer",  # arguments of build_tokenizer
        "chat_template",  # Jinja
        "prompt_format",  # for models without a chat template: {images} and {text}
        "image_placeholder",  # what stands for one image in prompt_format
        "vision_token",  # the token whose positions are counted, where config has no image token id
    }
)
_BACKENDS = ("auto", "torchvision", "pil")


def torchvision_available() -> bool:
    """Whether transformers can use torchvision here."""
    return bool(transformers_module("utils").is_torchvision_available())


def _named_class(name: str) -> type[Any]:
    """A class of transformers by name, or of this package by dotted path."""
    module_name, _, class_name = name.rpartition(".")
    if module_name and not module_name.startswith("vlmbench."):
        raise ModelError(f"class '{name}' must be a class of transformers or lie in vlmbench.*")
    try:
        found = getattr(importlib.import_module(module_name or "transformers"), class_name, None)
    except (ImportError, RuntimeError) as error:
        raise ModelError(f"class '{name}' cannot be imported: {error}") from error
    if not isinstance(found, type):
        raise ModelError(
            f"transformers {transformers_library().__version__} has no class '{name}'; a newer one may have it"
        )
    return found


def _usable(cls: type[Any] | None) -> bool:
    return cls is not None and not getattr(cls, "is_dummy", False)


def _backend_order(name: str, backend: str) -> tuple[str, ...]:
    image_processing_auto = transformers_module("models.auto.image_processing_auto")
    if backend != "auto":
        return (backend,)
    # Lanczos resizing is not in older torchvision; transformers keeps such processors on PIL, and so do we.
    to_pil = getattr(image_processing_auto, "DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS", ())
    return ("torchvision", "pil") if torchvision_available() and name not in to_pil else ("pil",)


def _in_its_module(name: str) -> type[Any] | None:
    """A PIL class from the module that defines it: older transformers hide some at the top without torchvision."""
    if not name.endswith("Pil"):
        return None
    mapping = transformers_module("models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING_NAMES
    for model_type, classes in mapping.items():
        if isinstance(classes, Mapping) and name in classes.values():
            folder = model_type.replace("-", "_").replace(".", "_")
            try:
                module = transformers_module(f"models.{folder}.image_processing_pil_{folder}")
            except ImportError:
                continue  # an architecture that shares another's class
            if isinstance(found := getattr(module, name, None), type):
                return found
    return None


def image_processor_class(name: str, backend: str = "auto") -> type[Any]:
    """The class for a back end: ``CLIPImageProcessor`` (torchvision) or ``CLIPImageProcessorPil``.

    Raises:
        ModelError: the class is unknown, or its back end is not installed.
    """
    if backend not in _BACKENDS:
        raise ModelError(f"'processor.backend' must be one of {', '.join(_BACKENDS)} (got {backend!r})")
    if "." in name:
        return _named_class(name)
    transformers = transformers_library()
    for choice in _backend_order(name, backend):
        wanted = f"{name}Pil" if choice == "pil" else name
        if choice == "torchvision" and not torchvision_available():
            continue
        for found in (getattr(transformers, wanted, None), _in_its_module(wanted)):
            if isinstance(found, type) and _usable(found):
                return found
    if not torchvision_available() and getattr(transformers, name, None) is not None:
        raise ModelError(
            f"image processor '{name}' runs on torchvision only, which is not installed; "
            "install torchvision (of the version that fits this torch), or choose another model"
        )
    raise ModelError(
        f"transformers {transformers.__version__} has no image processor '{name}' for back end '{backend}'"
    )


def without_video(cls: Any) -> Any:
    """The processor class, content with ``video_processor=None``.

    Video processors exist only on torchvision, and images do not need them; transformers refuses None nevertheless.
    """
    if "video_processor" not in cls.get_attributes():
        return cls

    def check_argument_for_proper_class(self: Any, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor" and argument is None:
            return None
        return super(subclass, self).check_argument_for_proper_class(argument_name, argument)

    subclass: Any = type(cls.__name__, (cls,), {"check_argument_for_proper_class": check_argument_for_proper_class})
    _allow_missing_num2words(cls)
    return subclass


def _no_video(cls: Any) -> dict[str, None]:
    """The argument that says so, for the classes that have it."""
    return {"video_processor": None} if "video_processor" in cls.get_attributes() else {}


def _allow_missing_num2words(cls: Any) -> None:
    """SmolVLM's constructor insists on num2words, which only writes out the frame count of videos."""
    module: Any = importlib.import_module(cls.__module__)
    if hasattr(module, "num2words") and not module.num2words:
        module.num2words = str


def default_classes(model_type: str) -> tuple[str | None, str | None]:
    """(processor class, image processor class) that transformers uses for an architecture."""
    entry = transformers_module("models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type)
    image_class = None
    if isinstance(entry, Mapping):
        name = entry.get("torchvision") or entry.get("pil")
        image_class = str(name).removesuffix("Pil") if name else None
    return transformers_module("models.auto.processing_auto").PROCESSOR_MAPPING_NAMES.get(model_type), image_class


def _registered_class(model_type: str) -> str | None:
    """The processor class of an architecture that a plugin registered with ``AutoProcessor``."""
    mapping = transformers_module("models.auto.processing_auto").PROCESSOR_MAPPING
    found = {config.model_type: cls for config, cls in getattr(mapping, "_extra_content", {}).items()}
    return getattr(found.get(model_type), "__name__", None)


def build_processor(spec: Mapping[str, Any], *, model_type: str, vocab_size: int) -> Any:
    """The processor of a model with random weights, from the ``processor`` mapping of its YAML. No file, no network.

    Args:
        spec: see ``PROCESSOR_KEYS``.
        model_type: of the architecture; names the classes that the YAML leaves out.
        vocab_size: rows of the model's embedding; the tokenizer's size unless the YAML gives one.

    Raises:
        ModelError: unknown keys, unknown classes, arguments that a class refuses, a back end that is not installed.
    """
    if unknown := sorted(set(spec) - PROCESSOR_KEYS):
        raise ModelError(f"'processor' has unknown keys {unknown}; allowed are {sorted(PROCESSOR_KEYS)}")
    processor_name, image_name = default_classes(model_type)
    processor_name = spec.get("class") or processor_name
    image_name = spec.get("image_processor_class") or image_name
    if processor_name is None or image_name is None:
        raise ModelError(f"'{model_type}' needs 'processor.class' and 'processor.image_processor_class' in its YAML")
    tokenizer_arguments = {"size": vocab_size, **spec.get("tokenizer", {})}
    image_class = image_processor_class(image_name, spec.get("backend") or "auto")
    processor_class: Any = without_video(_named_class(processor_name))
    arguments = spec.get("arguments", {})
    if surplus := sorted(set(arguments) - set(inspect.signature(processor_class.__init__).parameters)):
        raise ModelError(f"'processor.arguments' has {surplus}, which {processor_name} does not take")
    try:
        tokenizer = build_tokenizer(**tokenizer_arguments)
        image_processor = image_class(**spec.get("image_processor", {}))
        processor = processor_class(
            image_processor=image_processor,
            tokenizer=tokenizer,
            chat_template=spec.get("chat_template"),
            **_no_video(processor_class),
            **arguments,
        )
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise ModelError(f"processor '{processor_name}' cannot be built from the model's YAML: {error}") from error
    return processor


def load_processor(source: str, *, model_type: str, options: Mapping[str, Any]) -> Any:
    """The processor that a checkpoint comes with: ``AutoProcessor``, or its class without the video part.

    Args:
        model_type: of the checkpoint's model; the processor must be the one that belongs to it.
        options: arguments of ``from_pretrained``: revision, whether its Python files may run, whether to ask the hub.

    Raises:
        ModelError: files are missing, or the processor belongs to another architecture.
    """
    try:
        processor = transformers_library().AutoProcessor.from_pretrained(source, **options)
    except (ImportError, TypeError, ValueError, AttributeError) as error:
        processor = _load_without_video(source, model_type, options, error)
    except OSError as error:
        raise ModelError(f"no processor in '{source}': {_first_line(error)}") from error
    check_processor(processor, model_type=model_type, source=source)
    return processor


def _load_without_video(source: str, model_type: str, options: Mapping[str, Any], cause: Exception) -> Any:
    """The parts one by one, where AutoProcessor failed because of the video processor."""
    name, image_name = default_classes(model_type)
    if name is None:
        raise ModelError(f"the processor of '{source}' cannot be loaded: {_first_line(cause)}") from cause
    cls = without_video(_named_class(name))
    try:
        arguments, _ = cls.get_processor_dict(source, **options)
        accepted = set(inspect.signature(cls.__init__).parameters) - {"image_processor", "tokenizer", "video_processor"}
        return cls(
            image_processor=_load_image_processor(source, image_name, options),
            tokenizer=transformers_library().AutoTokenizer.from_pretrained(source, **options),
            **_no_video(cls),
            **{key: value for key, value in arguments.items() if key in accepted},
        )
    except (ImportError, TypeError, ValueError, AttributeError, OSError) as error:
        raise ModelError(f"the processor of '{source}' cannot be loaded: {_first_line(error)}") from error


def _load_image_processor(source: str, default: str | None, options: Mapping[str, Any]) -> Any:
    """The class that the checkpoint names, on the back end that is here (5.17 has AutoImageProcessor on one only)."""
    mixin = transformers_module("image_processing_base").ImageProcessingMixin
    stored, _ = mixin.get_image_processor_dict(source, **options)
    name = str(stored.get("image_processor_type") or default).removesuffix("Fast").removesuffix("Pil")
    cls: Any = image_processor_class(name)
    return cls.from_pretrained(source, **options)


def check_processor(processor: Any, *, model_type: str, source: str) -> None:
    """Refuse a processor of another architecture, or something without images and text.

    Raises:
        ModelError: says which class belongs to the architecture.
    """
    expected = default_classes(model_type)[0] or _registered_class(model_type)
    have = {cls.__name__ for cls in type(processor).__mro__}
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise ModelError(
            f"'{source}' holds a {type(processor).__name__}, which does not process images and text together; "
            f"'{model_type}' needs {expected or 'an image-text processor'}"
        )
    if expected is not None and expected not in have:
        raise ModelError(
            f"the processor in '{source}' ({type(processor).__name__}) does not belong to the model: "
            f"'{model_type}' needs {expected}"
        )


def give_video_processor(processor: Any, model_type: str) -> None:
    """See to it that a processor can prepare a clip; one that was loaded without its video part gets the model's own.

    Raises:
        UnreachablePointError: the model takes no video, or a package is missing.
    """
    name = type(processor).__name__
    if "video_processor" not in type(processor).get_attributes() or not getattr(processor, "video_token", None):
        raise UnreachablePointError(f"frames: {name} takes no video")
    if missing := [package for package in ("av", "torchvision") if importlib.util.find_spec(package) is None]:
        raise UnreachablePointError(
            f"frames needs {' and '.join(missing)}, which is not installed: pip install 'vlmbench-latency[video]'"
        )
    if getattr(processor, "video_processor", None) is not None:
        return
    entry = transformers_module("models.auto.video_processing_auto").VIDEO_PROCESSOR_MAPPING_NAMES.get(model_type)
    chosen = entry.get("torchvision") if isinstance(entry, Mapping) else entry
    if not chosen:
        raise UnreachablePointError(f"frames: transformers has no video processor for '{model_type}'")
    size = getattr(processor.image_processor, "size", None) or {}
    fixed = {side: size[side] for side in ("height", "width") if side in size}  # of models with one size of image
    made: Any = getattr(transformers_library(), chosen)
    processor.video_processor = made(size=fixed) if len(fixed) == 2 else made()


def backend_of(processor: Any) -> str:
    """``pil`` or ``torchvision``: what resizes and normalises; ``other`` for classes that do it themselves."""
    return str(getattr(processor.image_processor, "backend", None) or "other")


def allowed_image_arguments(processor: Any) -> frozenset[str]:
    """Names that the processor takes for images at call time."""
    names: set[str] = set()
    for holder in (processor.image_processor, processor):
        kwargs_type = getattr(holder, "valid_kwargs", None) or getattr(holder, "valid_processor_kwargs", None)
        annotations = dict(getattr(kwargs_type, "__annotations__", {}))
        if holder is processor:
            annotations = dict(getattr(annotations.get("images_kwargs"), "__annotations__", {}))
        names.update(annotations)
    return frozenset(names)


_BOUNDS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}


def call_arguments(processor: Any, given: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments of a call as the image processor wants them: bounds of an image's pixels within ``size``.

    Processors like Qwen2-VL's keep ``min_pixels`` and ``max_pixels`` under the names of edges, and warn, in each call,
    of the names that users know. Others keep them as they are.
    """
    images, wanted = processor.image_processor, dict(given)
    if wanted.keys().isdisjoint(_BOUNDS) or not _bounds_are_a_size(type(images)):
        return wanted
    bounds = {edge: wanted.pop(name) for name, edge in _BOUNDS.items() if name in wanted}
    size: Any = wanted.get("size") or images.size
    return {**wanted, "size": {**dict(size), **bounds}}


def _bounds_are_a_size(image_class: type[Any]) -> bool:
    """Whether a class turns these arguments of a call into its ``size`` by itself."""
    standardize = getattr(image_class, "_standardize_kwargs", None)
    return standardize is not None and set(_BOUNDS) <= set(inspect.signature(standardize).parameters)


def _first_line(error: BaseException) -> str:
    """The first line, or all of them in one where the first only announces the others."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(" ".join(lines).split())[:300] if lines[0].rstrip().endswith(":") else lines[0]
