"""Converts a released Molmo checkpoint: ``python -m vlmbench.models.molmo.convert SRC DST``.

A folder of the hub with safetensors is loaded without this step, see :mod:`vlmbench.models.molmo.released`.

Every tensor is checked by name and shape, and every file whose hash is known (``SHA256SUMS``, or what the hub gave when
it was downloaded) by that, before anything is written; then tensors are read, rearranged and written one
shard at a time, so that memory holds a shard, not the checkpoint. ``DST`` appears when it is complete.
"""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from vlmbench.errors import ModelError
from vlmbench.models.checkpoint import check_hashes, downloaded_hashes, listed_hashes
from vlmbench.models.molmo.checkpoint_config import convert_config, read_released_config
from vlmbench.models.molmo.checkpoint_plan import Target, detect_layout, make_plan
from vlmbench.models.molmo.checkpoint_source import TensorSource
from vlmbench.models.molmo.configuration import MolmoConfig
from vlmbench.models.molmo.image_processing import MolmoImageProcessor
from vlmbench.models.molmo.processing import MolmoProcessor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD_BYTES = 1 << 30
_END = "<|endoftext|>"  # the end-of-sequence token of all four tokenizers
_TOKENIZER_FIELDS = ("bos_token", "eos_token", "pad_token", "unk_token")


def convert_checkpoint(
    source: Path,
    destination: Path,
    *,
    tokenizer: Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[str], None] = lambda _: None,
) -> MolmoConfig:
    """Convert a checkpoint folder into one that ``from_pretrained`` loads.

    Args:
        source: folder with config.json (or config.yaml), weights, tokenizer.json.
        destination: folder to make; must not exist, or be empty.
        tokenizer: folder of the tokenizer where ``source`` has none (allenai/molmo's own checkpoints).
        dtype: ``float32``, ``bfloat16`` or ``float16``; None keeps that of each tensor.
        shard_bytes: largest file written, one tensor excepted.

    Raises:
        ModelError: anything about the source that is not as it must be, or no room at the destination.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"'dtype' must be one of {', '.join(DTYPES)} (got {dtype!r})")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ModelError(f"'{destination}' exists and is not an empty folder; name another, or remove it")
    raw = read_released_config(source)
    tensors = TensorSource(source)
    processor = processor_of(tokenizer or source)
    config = convert_config(raw, special_ids(processor))
    plan = make_plan(config, detect_layout(tensors.shapes))
    plan.check(tensors)
    check_tokenizer(processor, config)
    check_hashes(source, {**downloaded_hashes(source), **listed_hashes(source)})
    sizes = {target.name: _size(target, tensors, dtype) for target in plan.targets}
    _check_room(destination, sum(sizes.values()))

    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        shards = list(_shards(plan.targets, sizes, shard_bytes))
        kind = None if dtype is None else DTYPES[dtype]
        found = _write_weights(shards, sizes, tensors, folder=partial, dtype=kind, progress=progress)
        config.architectures = ["MolmoForConditionalGeneration"]
        config.dtype = found
        config.save_pretrained(partial)
        generation_config(config).save_pretrained(partial)
        processor.save_pretrained(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if destination.exists():
        destination.rmdir()
    partial.rename(destination)
    return config


def processor_of(folder: Path) -> MolmoProcessor:
    """Build the processor around the tokenizer of a released checkpoint.

    Raises:
        ModelError: there is no tokenizer.json, it cannot be read, or it is not Molmo's.
    """
    from transformers import PreTrainedTokenizerFast

    file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not file.is_file():
        raise ModelError(f"no tokenizer.json in '{folder}'; give the folder that has it with --tokenizer DIR")
    # Not AutoTokenizer: it asks whether to run the folder's Python. Roles come from tokenizer_config.json only;
    # MolmoE's added_tokens.json and special_tokens_map.json are leftovers of another tokenizer.
    try:
        given = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        roles = {name: _text_of(given[name]) for name in _TOKENIZER_FIELDS if given.get(name) is not None}
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), padding_side="left", **roles)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ModelError(f"the tokenizer in '{folder}' cannot be read: {error}") from error
    if tokenizer.eos_token is None and _END in tokenizer.get_vocab():
        tokenizer.eos_token = _END
    try:
        return MolmoProcessor(image_processor=MolmoImageProcessor(), tokenizer=tokenizer)
    except ValueError as error:
        raise ModelError(f"the tokenizer in '{folder}' is not Molmo's: {error}") from error


def _text_of(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def special_ids(processor: MolmoProcessor) -> dict[str, int | None]:
    """List the ids that the configuration repeats from the tokenizer."""
    ids = processor.image_ids
    return {
        "image_token_id": ids.patch,
        "image_start_token_id": ids.start,
        "image_end_token_id": ids.end,
        "image_col_token_id": ids.col,
        "bos_token_id": processor.bos_token_id,
        "eos_token_id": processor.tokenizer.eos_token_id,
        "pad_token_id": processor.pad_token_id,
    }


def check_tokenizer(processor: MolmoProcessor, config: MolmoConfig) -> None:
    """Refuse a tokenizer with ids that the model has no row for.

    Raises:
        ModelError: says the id and the rows.
    """
    rows = config.text_config.vocab_size + config.additional_vocab_size
    largest = max(value for value in special_ids(processor).values() if value is not None)
    if largest >= rows:
        raise ModelError(
            f"the tokenizer has the id {largest}, but the model's table only {rows} rows: they are of different models"
        )


def generation_config(config: MolmoConfig) -> Any:
    """Make the generation settings of a checkpoint: its token ids and nothing else."""
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )


def _size(target: Target, tensors: TensorSource, dtype: str | None) -> int:
    """Bytes of a tensor as written."""
    kind = tensors.dtypes[target.pieces[0].key] if dtype is None else DTYPES[dtype]
    count = 1
    for n in target.shape:
        count *= n
    return count * kind.itemsize


def _check_room(destination: Path, needed: int) -> None:
    parent = destination.absolute()
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ModelError(f"'{destination}' needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there")


def _shards(targets: Sequence[Target], sizes: dict[str, int], most: int) -> Iterator[list[Target]]:
    """Consecutive targets of at most ``most`` bytes together (one target alone may have more)."""
    shard: list[Target] = []
    filled = 0
    for target in targets:
        if shard and filled + sizes[target.name] > most:
            yield shard
            shard, filled = [], 0
        shard.append(target)
        filled += sizes[target.name]
    if shard:
        yield shard


def _write_weights(
    shards: Sequence[Sequence[Target]],
    sizes: dict[str, int],
    tensors: TensorSource,
    *,
    folder: Path,
    dtype: torch.dtype | None,
    progress: Callable[[str], None],
) -> str:
    """Shards and index; returns the name of the largest tensors' dtype."""
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    found = torch.float32
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        made = {target.name: target.make(tensors, dtype) for target in shard}
        save_file(made, folder / name, metadata={"format": "pt"})
        found = next(iter(made.values())).dtype
        weight_map.update(dict.fromkeys(made, name))
        del made
        progress(f"{number}/{len(shards)} {name} ({sum(sizes[target.name] for target in shard) / 1e9:.2f} GB)")
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return str(found).removeprefix("torch.")


def _print(line: str) -> None:
    sys.stderr.write(line + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; exit status 2 with one line of explanation when the checkpoint cannot be converted."""
    parser = argparse.ArgumentParser(
        prog="python -m vlmbench.models.molmo.convert",
        description="Convert a released Molmo 1 checkpoint (hub folder, or allenai/molmo's own) for transformers 5.",
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of the released checkpoint")
    parser.add_argument("destination", type=Path, metavar="DST", help="folder to make")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="folder of tokenizer.json, where SRC has none")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the written weights; default: as they are")
    arguments = parser.parse_args(argv)
    try:
        convert_checkpoint(
            arguments.source,
            arguments.destination,
            tokenizer=arguments.tokenizer,
            dtype=arguments.dtype,
            progress=_print,
        )
    except ModelError as error:
        _print(f"error: {error}")
        return error.exit_status
    _print(f"converted to '{arguments.destination}'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
