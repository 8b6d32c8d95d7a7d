"""Runs a model of any size without its weights: floating-point tensors are shapes only, integers are real.

On torch's ``meta`` device nothing has a value, so a model whose control flow depends on data (``.tolist()`` of a grid,
``nonzero`` of an image-token mask, a loop over the experts that were hit) stops with an error. What such code reads is
almost always an integer: token ids, grids, masks, lengths. :class:`Ghost` therefore keeps integer and boolean tensors
on the CPU with their true values while everything in floating point stays on ``meta``; where an integer would have
to come out of floating-point values (``argmax`` of logits, ``topk`` of a router), it makes one up that is in range.
Shapes, and with them the floating-point operations, are those of a true run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from vlmbench.errors import VlmbenchError

# Integers above this many elements (an attention mask of 8k x 8k, say) are shapes too: no control flow reads them.
_LARGEST_REAL = 1 << 21

_META = torch.device("meta")
_CPU = torch.device("cpu")
_aten = torch.ops.aten

# Operations whose result has the broadcast shape of their operands. torch works that out in Python, five times slower.
_ELEMENTWISE = frozenset(
    getattr(_aten, name)
    for name in ("add", "sub", "mul", "div", "neg", "silu", "gelu", "tanh", "sigmoid", "relu", "rsqrt", "pow", "exp")
)


class GhostError(VlmbenchError):
    """A model needs a value that a run without weights does not have."""

    exit_status = 1


def is_ghost(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a shape without values."""
    return tensor.device.type == "meta"


def ghost_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a model as :class:`Ghost` wants them: floats become shapes, integers and booleans go to the CPU."""

    def one(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(_META) if tensor.is_floating_point() else tensor.to(_CPU)

    return {name: tree_map_only(torch.Tensor, one, value) for name, value in inputs.items()}


class Ghost(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, floats are shapes on ``meta`` and integers are real on the CPU (see the module's docstring).

    Build the model under it (``with Ghost(), torch.device("meta")``), so that its integer buffers are real too.

    Raises:
        GhostError: an operation needs the value of a float (``.item()`` of an activation, say).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Sends one operation to real integers, to ``meta``, or to both (see the class)."""
        kwargs = dict(kwargs or {})
        tensors = list(_tensors((args, kwargs)))
        if not any(is_ghost(t) for t in tensors):
            return self._real(func, args, kwargs)
        if func.overloadpacket in _ELEMENTWISE and (quick := _elementwise(args, kwargs)) is not None:
            return quick
        if "device" in kwargs:
            kwargs["device"] = _META
        if func is _aten._local_scalar_dense.default:
            return _scalar(tensors[0])
        if func is _aten.nonzero.default or func is _aten.masked_select.default:
            return _select_by_mask(func, args)
        if func is _aten.index.Tensor:
            args = (args[0], [p for i in args[1] for p in _as_positions(i)])
        elif func._schema.is_mutable:
            # Unknown values written into a real tensor: it keeps the values it has.
            return args[0] if not is_ghost(args[0]) else func(*_mapped(_to_meta, args), **_mapped(_to_meta, kwargs))
        return _mapped(_made_up, func(*_mapped(_to_meta, args), **_mapped(_to_meta, kwargs)))

    def _real(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation without unknown values; what it makes for ``meta`` stays real if it is made of integers."""
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "meta" or not _makes_integers(func, args, kwargs):
            return func(*args, **kwargs)
        if func is _aten._to_copy.default:
            dtype = kwargs.get("dtype")
            return args[0] if dtype in (None, args[0].dtype) else args[0].to(dtype)
        out = func(*args, **{**kwargs, "device": _CPU})
        return out.to(_META) if out.numel() > _LARGEST_REAL else out


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, Mapping):
        yield from _tensors(list(tree.values()))


def _elementwise(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The result of an element-wise operation on one or two float operands; None where it is not that simple."""
    if not set(kwargs) <= {"alpha", "approximate"} or not all(isinstance(a, torch.Tensor | int | float) for a in args):
        return None
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    if not all(t.is_floating_point() for t in tensors) or len(args) > 2:
        return None
    dtype = tensors[0].dtype if len(args) == 1 else torch.result_type(*args)
    shape = tensors[0].shape
    if len(tensors) > 1 and tensors[1].shape != shape:
        shape = torch.broadcast_shapes(shape, tensors[1].shape)  # type: ignore[no-untyped-call]
    like = next((t for t in tensors if t.shape == shape), None)
    if like is None:
        return torch.empty(shape, dtype=dtype, device=_META)
    return torch.empty_strided(shape, like.stride(), dtype=dtype, device=_META)


def _mapped(change: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    # Arguments of operations nest lists and tuples only; torch's tree_map takes three times as long here.
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if type(tree) in (list, tuple):
        return type(tree)([_mapped(change, item) for item in tree])
    if type(tree) is dict:
        return {name: _mapped(change, item) for name, item in tree.items()}
    return tree


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    if is_ghost(tensor):
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)


def _makes_integers(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a factory or a copy yields integers or booleans."""
    dtype = kwargs.get("dtype")
    if isinstance(dtype, torch.dtype):
        return not (dtype.is_floating_point or dtype.is_complex)
    name = func.overloadpacket.__name__
    if name == "_to_copy" or name.endswith("_like") or name.startswith("new_"):
        like = next(_tensors(args))
        return not (like.is_floating_point() or like.is_complex())
    if name in ("arange", "full", "scalar_tensor"):
        return all(isinstance(a, int) for a in args if not isinstance(a, list | tuple))
    return name in ("tril_indices", "triu_indices", "randint", "randperm")


def _scalar(tensor: torch.Tensor) -> Any:
    # A large mask reduced to one truth value ("is anything infinite?"): no.
    if tensor.dtype == torch.bool:
        return False
    raise GhostError(
        f"a run without weights met .item() of a {tensor.dtype} tensor of shape {tuple(tensor.shape)}; "
        "the control flow of this model depends on activations, so its FLOPs cannot be counted from shapes"
    )


def _select_by_mask(func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    mask = args[-1]
    if is_ghost(mask):
        raise GhostError(
            f"a run without weights met {func} of a mask of shape {tuple(mask.shape)} that depends on activations"
        )
    return args[0].new_empty((int(mask.sum()),), device=_META)


def _as_positions(index: torch.Tensor | None) -> list[torch.Tensor | None]:
    """A boolean mask as that many positions in each of its dimensions, as indexing does (values do not matter)."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    if is_ghost(index):
        raise GhostError(f"a run without weights met a mask of shape {tuple(index.shape)} that depends on activations")
    return [torch.zeros(int(index.sum()), dtype=torch.long)] * index.ndim


def _made_up(tensor: torch.Tensor) -> torch.Tensor:
    """Integers in range for an integer result of unknown values: 0, 1, 2 … along the last dimension (topk, sort)."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.numel() > _LARGEST_REAL or not is_ghost(tensor):
        return tensor
    if tensor.dtype == torch.bool or tensor.ndim == 0:
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return torch.arange(tensor.shape[-1], dtype=tensor.dtype).expand(tensor.shape).contiguous()


def build_ghost(build: Callable[[], nn.Module]) -> nn.Module:
    """A model of any size without weights.

    Args:
        build: makes the model from its configuration (``lambda: AutoModelForImageTextToText.from_config(config)``).

    Returns:
        the model with shapes for weights, in eval mode, its generation free of an end-of-sequence token.
    """
    with Ghost(), torch.device("meta"), torch.no_grad():
        model = build().eval().requires_grad_(False)
    if hasattr(model, "set_experts_implementation"):
        # Gathered products: the same operations as grouped ones, without kernels that exist for CUDA only.
        model.set_experts_implementation("batched_mm")  # type: ignore[operator]
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.eos_token_id = None
    return model


def ghost_of_config(config: Any) -> nn.Module:
    """:func:`build_ghost` for a transformers configuration of an image-text-to-text model, in bfloat16.

    The configuration is copied: building writes the attention kernel's name into it.
    """
    from transformers import AutoModelForImageTextToText

    own = copy.deepcopy(config)
    auto: Any = AutoModelForImageTextToText
    return build_ghost(lambda: auto.from_config(own, dtype=torch.bfloat16))
