"""An offline tokenizer of exact size, with special tokens at exact ids.

Random weights need no learned vocabulary, but latency needs the right *number* of tokens: the size of the embedding and
of the head, the ids that mark images, and an English question that costs 1–1.3 tokens a word. So this is a byte-level
BPE whose merges spell a list of ordinary English words (``words.txt``), and whose remaining ids are pronounceable
filler that no merge reaches: a model with random weights may emit them, and they decode; no text encodes to them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from vlmbench.errors import ModelError
from vlmbench.models.transformers_library import transformers_library

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_SPACE, _NEWLINE = "\u0120", "\u010a"  # how byte-level BPE writes a space and a line feed
_BYTES = 256
# Words of chat templates, which stand without a space before them.
_TEMPLATE_WORDS = ("USER", _SPACE + "ASSISTANT", "user", "assistant", "system", "model")
# Merges for what is left of a word that the list does not hold; they rank behind the words and never break one.
_FRAGMENT_TEXT = (
    "in er on at re es ed en al ar or is it th he an nd st ou ea le te ti ng ll ss ee oo ch sh ck "
    "ing ion tion ation ent ment able ness ally ly ers ies ight ound ack ick"
)
_FRAGMENTS = tuple(_FRAGMENT_TEXT.split())
# Roles that every tokenizer class knows; others (image_token, boi_token …) become attributes of their own.
_STANDARD_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@cache
def ordinary_words() -> tuple[str, ...]:
    """Lower-case English words of image questions, the commonest first, each once."""
    text = resources.files("vlmbench.models").joinpath("words.txt").read_text(encoding="utf-8")
    return tuple(dict.fromkeys(text.split()))


def expand_series(series: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Consecutive special tokens: ``{pattern: "<row_%d_col_%d>", start: 49153, shape: [6, 6], first: 1}``.

    The last index runs fastest; ``first`` (0 unless given) is what each index counts from.

    Raises:
        ModelError: a key is missing, or the pattern does not take as many numbers as the shape has.
    """
    tokens: dict[str, int] = {}
    for entry in series:
        try:
            first = int(entry.get("first", 0))
            ranges = [range(first, first + int(n)) for n in entry["shape"]]
            for offset, indices in enumerate(itertools.product(*ranges)):
                tokens[str(entry["pattern"]) % indices] = int(entry["start"]) + offset
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"a series of special tokens needs 'pattern' (one %d a dimension), 'start' and 'shape' "
                f"(got {dict(entry)}): {error}"
            ) from error
    return tokens


def _spell(word: str) -> Iterator[tuple[str, str]]:
    """The chain of merges that builds ``word`` from its left end."""
    for end in range(1, len(word)):
        yield word[:end], word[end]


def _merges(room: int) -> list[tuple[str, str]]:
    """Merges in rank order, as many as make at most ``room`` new tokens.

    Every chain starts with a space or a capital, which stand only at the start of a word; so no merge of one chain can
    take a letter out of another, and each listed word ends as one token.
    """
    words = ordinary_words()
    spelled = [_NEWLINE * 2, *(_SPACE + word for word in words), *(word.capitalize() for word in words)]
    spelled += [_SPACE + word.capitalize() for word in words]
    merges: dict[str, tuple[str, str]] = {}
    for pair in itertools.chain.from_iterable(_spell(word) for word in [*spelled, *_TEMPLATE_WORDS, *_FRAGMENTS]):
        if len(merges) >= room:
            break
        merges.setdefault(pair[0] + pair[1], pair)
    return list(merges.values())


def _filler() -> Iterator[str]:
    """Endless pronounceable words that no merge reaches (a doubled ``~`` never starts a chain)."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    for length in itertools.count(2):
        for parts in itertools.product(syllables, repeat=length):
            yield _SPACE + "~~" + "".join(parts)


def _vocabulary(size: int, special: Mapping[str, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token to id for every id below the total size, and the merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    total = max(size, *(i + 1 for i in special.values())) if special else size
    taken = set(special.values())
    room = total - len(taken) - _BYTES
    if room < 0:
        raise ModelError(
            f"a tokenizer of {size} ids has no room for {_BYTES} bytes and {len(taken)} special tokens; "
            f"'tokenizer.size' must be at least {_BYTES + len(taken)}"
        )
    merges = _merges(room)
    ordinary = itertools.chain(sorted(ByteLevel.alphabet()), (left + right for left, right in merges), _filler())
    vocabulary = dict(special)
    free = (index for index in range(total) if index not in taken)
    vocabulary.update((token, index) for index, token in zip(free, ordinary, strict=False))
    return vocabulary, merges


def _check(special: Mapping[str, int], roles: Mapping[str, str]) -> None:
    by_id: dict[int, str] = {}
    for token, index in special.items():
        if index < 0:
            raise ModelError(f"the id of special token '{token}' must be 0 or more (got {index})")
        if by_id.setdefault(index, token) != token:
            raise ModelError(f"special tokens '{by_id[index]}' and '{token}' have the same id {index}")
    for role, token in roles.items():
        if token not in special:
            raise ModelError(
                f"tokenizer role '{role}' names '{token}', which is not among its special tokens {sorted(special)[:20]}"
            )


def build_tokenizer(
    *,
    size: int,
    special_tokens: Mapping[str, int],
    roles: Mapping[str, str],
    series: Sequence[Mapping[str, Any]] = (),
    add_bos: bool = False,
    padding_side: str = "left",
    model_max_length: int | None = None,
) -> PreTrainedTokenizerBase:
    """A tokenizer without any file: deterministic, about half a second for 262,000 ids.

    Args:
        size: number of ids, special ones included. A special id of ``size`` or above makes it grow to hold that id.
        roles: role to token: ``bos_token``, ``eos_token``, ``pad_token`` …, and any other name (``image_token``), which
            becomes an attribute of the tokenizer (``tokenizer.image_token``, ``tokenizer.image_token_id``).
        series: numbered special tokens, see :func:`expand_series`.
        add_bos: whether encoding puts ``bos_token`` first.
        padding_side: ``left`` (what generation needs) or ``right``.
        model_max_length: longest input in tokens; None for no limit.

    Raises:
        ModelError: two tokens share an id, a role names an unknown token, or there is no room.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = {**special_tokens, **expand_series(series)}
    _check(special, roles)
    vocabulary, merges = _vocabulary(size, special)
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    standard = {role: token for role, token in roles.items() if role in _STANDARD_ROLES}
    extra = {role: token for role, token in roles.items() if role not in _STANDARD_ROLES}
    options: dict[str, Any] = {"add_bos_token": True} if add_bos else {}
    if model_max_length is not None:
        options["model_max_length"] = model_max_length
    tokenizer: PreTrainedTokenizerBase = transformers_library().PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side=padding_side, extra_special_tokens=extra, **standard, **options
    )
    return tokenizer
