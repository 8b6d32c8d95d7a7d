"""Models of the Python API: shipped ones loaded by name, and any loaded model of transformers adopted as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from vlmbench.api.arguments import check, check_model
from vlmbench.api.shipped import choice, component
from vlmbench.errors import ConfigError, DeviceError
from vlmbench.models.runtime import Runtime

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from vlmbench.models.spec import ModelSpec
    from vlmbench.models.transformers_model import TransformersModel

_measuring = Lock()
_loaded: WeakKeyDictionary[Any, TransformersModel] = WeakKeyDictionary()


def load(
    model: str | ModelSpec, *, weights: str | None = None, path: Path | str | None = None, seed: int = 0, **runtime: Any
) -> tuple[nn.Module, Any]:
    """Load a model and its processor: a shipped one by name, or any that a :class:`ModelSpec` describes.

    Args:
        model: a name of ``conf/model`` (``"llava_1_5_7b"``), or a specification.
        weights: ``random`` (real dimensions, no download: latency is real, answers are not) or ``pretrained``.
        path: a local folder with the checkpoint.
        runtime: fields of :class:`vlmbench.models.runtime.Runtime`: ``device="cuda:1"``, ``dtype="bfloat16"``,
            ``attn_implementation="eager"`` …

    Returns:
        The transformers model, in eval mode on its device, and its processor.

    Raises:
        ConfigError: no such model or setting.
        ModelError: it cannot be found, built or loaded.
        DeviceError: no such device, or too little memory on it.

    Examples:
        >>> import vlmbench
        >>> model, processor = vlmbench.load("tiny", device="cpu")
        >>> type(model).__name__
        'Qwen2_5_VLForConditionalGeneration'
    """
    from vlmbench.models.loading import load as load_model
    from vlmbench.models.spec import ModelSpec

    if not isinstance(model, str | ModelSpec):
        raise ConfigError(f"'model' must be a name of conf/model or a ModelSpec (got {type(model).__name__})")
    check(load.__annotations__, {"seed": seed}, least={"seed": 0})
    given = {"weights": weights, "path": str(path) if isinstance(path, Path) else path}
    changes = {name: value for name, value in given.items() if value is not None}
    spec = component(choice("model", model), **changes) if isinstance(model, str) else model
    if not isinstance(model, str) and changes:
        raise ConfigError("'weights' and 'path' go with a name; a specification has its own")
    known = {f.name for f in fields(Runtime)}
    if unknown := sorted(set(runtime) - known):
        raise ConfigError(f"'{unknown[0]}' must be a setting of the runtime: {', '.join(sorted(known))}")
    check({f.name: f.type for f in fields(Runtime)}, runtime)
    try:
        chosen = Runtime(**runtime)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    target = load_model(spec, chosen, seed=seed)
    _loaded[target.module] = target
    return target.module, target.processor


def adopt(model: nn.Module, processor: Any) -> TransformersModel:
    """Return the target that measures a loaded model: the one that :func:`load` made, else a new one around it.

    Args:
        model: an image-text-to-text model of transformers, loaded by whomever.

    Raises:
        ConfigError: no model, or no processor.
    """
    from vlmbench.models.transformers_model import TransformersModel

    check_model(model)
    if not hasattr(processor, "tokenizer"):
        raise ConfigError(
            f"'processor' must be the model's processor, with a tokenizer (got {type(processor).__name__})"
        )
    known = _loaded.get(model)
    if known is not None and processor is known.processor:
        return known
    return TransformersModel.of(model, processor)


@contextmanager
def alone() -> Iterator[None]:
    """Let one thread of this process measure at a time.

    Raises:
        DeviceError: another one does.
    """
    if not _measuring.acquire(blocking=False):
        raise DeviceError(
            "another measurement is under way in this process, and two at once are latencies of neither\n"
            "measure one after the other"
        )
    try:
        yield
    finally:
        _measuring.release()


@contextmanager
def lent(target: TransformersModel) -> Iterator[None]:
    """Hold a model in eval mode with the settings of measurement, and give it back as it was, whatever happens."""
    from vlmbench.models.building import set_generation

    module = target.module
    modes = [(part, part.training) for part in module.modules()]
    settings = module.generation_config
    module.generation_config = deepcopy(settings)
    try:
        module.eval()
        set_generation(module, target.processor.tokenizer, keep_ids=True)
        yield
    finally:
        module.generation_config = settings
        for part, training in modes:
            part.training = training


def anatomy(model: nn.Module, override: Mapping[str, Sequence[str]] | None = None) -> pd.DataFrame:
    """Tell which module of a model is which stage, and by which rule it was found.

    Args:
        model: an image-text-to-text model of transformers, on any device (``meta`` too).
        override: stage to dotted module paths, where the rules need help.

    Returns:
        One row a module: ``stage``, ``path``, ``module_class``, ``parameters``, ``share`` (of all parameters, 0 to 1),
        ``rule``; ``attrs["notes"]`` holds what is unusual.

    Raises:
        AnatomyError: a stage cannot be found, or the override names what is not there.
        ConfigError: no model, or no override.

    Examples:
        >>> import vlmbench
        >>> model, _ = vlmbench.load("tiny", device="cpu")
        >>> vlmbench.anatomy(model)["stage"].tolist()
        ['vision_encoder', 'projector', 'language_model', 'head']
    """
    import pandas as pd

    from vlmbench.models.anatomy.find import anatomy_table, find_anatomy

    check_model(model)
    if override is not None and not (isinstance(override, Mapping) and all(map(_is_paths, override.values()))):
        raise ConfigError(f"'override' must map stages to lists of module paths (got {override!r})")
    found = find_anatomy(model, override)
    table = pd.DataFrame([asdict(row) for row in anatomy_table(model, found)])
    table.attrs["notes"] = list(found.notes)
    return table


def _is_paths(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(one, str) for one in value))
