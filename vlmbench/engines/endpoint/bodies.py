"""Requests as chat bodies: text and images as data URLs, encoded before any clock starts."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
from collections.abc import Mapping
from typing import Any

from vlmbench.engines.endpoint.dialects import Dialect
from vlmbench.errors import SampleError
from vlmbench.request import ImageSource, Request

_MARK = 8  # side of the square that makes an image new to a server's cache, pixels
_WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work number night point home water room mother area money story fact
month lot right study book eye job word business issue side kind head house service friend father power hour game line
end member law car city name team minute idea body back parent face level office door health person art war history
party result change morning reason research girl guy moment air teacher force education
"""
_MEDIA = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"GI": "gif", b"RI": "webp"}


def chat_body(
    request: Request,
    *,
    model: str,
    kind: Dialect,
    salt: str | None,
    extra: Mapping[str, Any],
    prefix_salt: str | None = None,
) -> bytes:
    """The JSON body of a request.

    Args:
        request: images, text and answer length.
        model: as the server calls it.
        kind: the server's dialect.
        salt: makes images (and where the dialect can, the prefix) new to the server's caches; None leaves them.
        extra: fields that the user adds.
        prefix_salt: for the prefix alone, where it must differ from that of the images.

    Raises:
        SampleError: an image cannot be read, or not be decoded where it must be changed.
    """
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(image_bytes(image, request.image_size, salt, i))}}
        for i, image in enumerate(request.images)
    ]
    content.append({"type": "text", "text": prompt_text(request, salt)})
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content if request.images else content[0]["text"]}],
        "max_tokens": request.output.max_new_tokens,
        "temperature": 0.0,
        "stream": True,
        **kind.extra,
    }
    if kind.stream_options:
        body["stream_options"] = dict(kind.stream_options)
    if request.output.forced:
        body.update(kind.forced)
    if kind.salted and (own := prefix_salt or salt):
        body[kind.salted] = hashlib.sha256(own.encode()).hexdigest()  # vLLM refuses a slash, and more than 128 signs
    return json.dumps({**body, **extra}, ensure_ascii=False).encode()


def prompt_text(request: Request, salt: str | None = None) -> str:
    """The user's text: the question, or as many random ordinary words as ``prompt_tokens`` asks for.

    Most tokenizers have each of these words as one token; how many tokens it was is what the server counts.

    Args:
        request: which text it wants.
        salt: the same words in another order for another salt, so that their tokens stay as many.
    """
    if request.prompt_tokens is None:
        return request.sample.question
    words = random.Random(str(request.seed)).choices(_WORDS.split(), k=request.prompt_tokens)
    inner = words[1:-1]  # the first and the last stand beside other text, with which a tokenizer may join them
    random.Random(salt or "").shuffle(inner)
    return " ".join([*words[:1], *inner, *words[1:][-1:]])


def image_bytes(image: ImageSource, size: tuple[int, int] | None, salt: str | None, number: int) -> bytes:
    """The encoded image; decoded and encoded again only where its size or its pixels must change.

    A salted image differs in a square of 8 x 8 pixels in its corner, drawn from the salt: servers know an image again
    by its pixels. A JPEG keeps its own quantisation, so that the upload stays as long as it was.

    Args:
        image: as the data set has it.
        size: (width, height) in pixels to resize to; None keeps it.
        salt: what the square is drawn from; None draws none.
        number: of the image in its request.

    Raises:
        SampleError: it cannot be read or decoded.
    """
    data = image.encoded()
    if size is None and salt is None:
        return data
    from PIL import Image, JpegImagePlugin

    try:
        with Image.open(io.BytesIO(data)) as opened:
            kept: dict[str, Any] = {}
            if opened.format == "JPEG":
                kept = {
                    "format": "JPEG",
                    "qtables": getattr(opened, "quantization", None),
                    "subsampling": JpegImagePlugin.get_sampling(opened),
                }
            picture = opened.convert("RGB")
        if size is not None:
            picture = picture.resize(size)
        if salt is not None:
            seed = hashlib.sha256(f"{salt}/{number}".encode()).digest()
            mark = Image.frombytes("L", (_MARK // 2, _MARK // 2), seed[: (_MARK // 2) ** 2])
            picture.paste(mark.resize((_MARK, _MARK), Image.Resampling.NEAREST).convert("RGB"), (0, 0))
        buffer = io.BytesIO()
        picture.save(buffer, **(kept or {"format": "PNG", "compress_level": 1}))
    except Exception as error:
        raise SampleError(f"image '{image.name}' cannot be decoded: {error}") from error
    return buffer.getvalue()


def data_url(data: bytes) -> str:
    """An encoded image as a URL that holds it."""
    return f"data:image/{_MEDIA.get(data[:2], 'png')};base64,{base64.b64encode(data).decode('ascii')}"
