"""Which names are those of secrets, and of which values that depends. Standard library only."""

from __future__ import annotations

import re
from functools import lru_cache


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# One of these words anywhere makes a name a secret's …
_ALWAYS = _words("password passwd passphrase pwd secret secrets credential credentials authorization cookie bearer")
# … these at its end unless the value is a number, or what stands before says which token, or pass, is meant …
_LAST = _words("token apikey authtoken accesskey secretkey pat pass")
_OF_A_MODEL = _words(
    "image video vision audio img im pad eos bos unk sep cls mask boi eoi special newline patch placeholder start end",
    "stop text new row col tile fake global latent first last next previous per each every one input output prompt",
    "question unexpected forward backward second single two",
)
# … these at its end where the value looks random; and a key that is one of these in any case.
_LAST_RANDOM = _words("key keys sig signature")
_SECRET_KEYS = _words(
    "api access secret private auth signing encryption ssh account shared master license wandb hf aes hmac rsa client",
    "consumer app service storage subscription deploy session openai azure",
)
_OTHER_KEYS = _words("public sort primary foreign cache group row config state partition image id git commit content")
_RANDOM = re.compile(r"(?=[^\d]{0,60}\d)(?=[^A-Za-z]{0,60}[A-Za-z])[A-Za-z0-9+/=_.%-]{20,}")
_NUMBER = re.compile(r"[-+]?[\d.,_]+(?:e[-+]?\d+)?")
_WORD = re.compile(r"[a-z0-9]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

ANY, TEXT, RANDOM = "any", "text", "random"


def is_secret_name(name: str) -> bool:
    """Tell whether a name, as of a key or a variable, is that of a secret: ``MY_TOKEN``, ``api_key``, ``x.password``.

    An ``image_token`` and ``max_new_tokens`` are none.
    """
    return kind_of(name) in (ANY, TEXT)


@lru_cache(maxsize=4096)
def kind_of(name: str) -> str:
    """What a name makes a secret: ``any`` value, any ``text`` but a number, what looks ``random``; empty for none."""
    words = _WORD.findall(_CAMEL.sub("_", name).lower())
    if not words:
        return ""
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if any("passw" in word or "secret" in word for word in words) or _ALWAYS & set(words):
        return ANY
    if last == "key" and before in _SECRET_KEYS:
        return ANY
    if last in _LAST:
        return "" if before in _OF_A_MODEL else TEXT
    is_key = (last in _LAST_RANDOM and before not in _OTHER_KEYS) or {"private", "key"} <= set(words)
    return RANDOM if is_key else ""


def holds_secret(kind: str, value: str) -> bool:
    """Whether a name of this kind makes this value a secret."""
    if kind == RANDOM:
        return _RANDOM.fullmatch(value) is not None
    return kind == ANY or (kind == TEXT and not is_number(value))


def is_number(text: str) -> bool:
    """Whether a text is a number and nothing else."""
    return _NUMBER.fullmatch(text) is not None
