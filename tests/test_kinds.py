"""A mapping or list of the configuration that is given a value of another kind says what it wants: no traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmbench.cli import hydra_errors, validate
from vlmbench.errors import ConfigError, VlmbenchError

KINDS: list[Any] = [1, True, "abc", None, ["a"], {"a": 1}]
BASES = (
    ("experiment=phase2",),
    ("experiment=smoke", "dataset=image_folder"),
    ("runtime=endpoint", "load=open", "runtime.base_url=http://h/v1", "runtime.model=m"),
)
Compose = Callable[..., DictConfig]


def keys(node: Any, path: str = "") -> Iterator[str]:
    """Dotted keys of mappings and lists; a model's own configuration is its library's."""
    if isinstance(node, DictConfig) and not node._is_none():
        for name in map(str, node):
            key = f"{path}.{name}" if path else name
            child = node._get_node(name)
            if isinstance(child, DictConfig | ListConfig) and key not in ("hydra", "model.config", "model.processor"):
                yield key
                yield from keys(child, key)


def test_a_value_of_another_kind_is_refused_in_words(compose: Compose) -> None:
    broken, seen = [], set[str]()
    for base in BASES:
        whole = compose(*base)
        for key in [k for k in keys(whole) if k not in seen]:
            seen.add(key)
            broken += [
                f"{key}={value!r}: {found}" for value in KINDS if (found := _traceback(whole.copy(), key, value))
            ]
    assert broken == []


def _traceback(config: DictConfig, key: str, value: Any) -> str:
    """What would end in a traceback; empty where it is refused in words, or taken."""
    try:
        OmegaConf.update(config, key, value, merge=False, force_add=True)
        validate.validate(config)
        component = next((name for name in validate._COMPONENTS if key.startswith(name)), None)
        if component is not None:
            validate.build(OmegaConf.select(config, component))
    except (HydraException, OmegaConfBaseException) as error:
        return "" if hydra_errors.compact(error) else "no words"
    except VlmbenchError as error:
        return "" if str(error) else "no words"
    except Exception as error:  # what would be a traceback
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("measurement.warmup=1", "'measurement.warmup' must be a mapping with '_target_' (got 1)"),
        ("measurement.stopping=abc", "'measurement.stopping' must be a mapping with '_target_' (got 'abc')"),
        ("probe.memory=null", "'probe.memory' must be a mapping with '_target_' (got None)"),
    ],
)
def test_what_is_wanted_and_given_is_said(compose: Compose, setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate.validate(compose("experiment=phase1", setting))
    assert message in str(refused.value)
