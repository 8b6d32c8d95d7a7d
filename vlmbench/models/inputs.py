"""From a user's text to the string that the processor takes; and texts of exactly so many tokens."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmbench.errors import ModelError, SampleError
from vlmbench.models.offline_tokenizer import ordinary_words

if TYPE_CHECKING:
    from PIL.Image import Image


_ATTEMPTS = 64


@dataclass(frozen=True, kw_only=True)
class Prompter:
    """A model's prompt format.

    Args:
        tokenizer: a transformers tokenizer.
        chat_template: Jinja; where there is none, ``prompt_format`` is used.
        prompt_format: ``str.format`` pattern with ``{images}`` and ``{text}``.
        image_placeholder: what stands for one image in ``{images}``.
    """

    tokenizer: Any
    chat_template: str | None
    prompt_format: str = "{images}{text}"
    image_placeholder: str = ""
    _empty: dict[int, int] = field(default_factory=dict)
    _words: list[tuple[list[str], list[str]]] = field(default_factory=list)

    @classmethod
    def of(cls, processor: Any, *, prompt_format: str | None = None, image_placeholder: str | None = None) -> Prompter:
        """The format of a processor: its chat template, else its tokenizer's, else the given format."""
        template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        placeholder = image_placeholder or getattr(processor, "image_token", None) or ""
        return cls(
            tokenizer=processor.tokenizer,
            chat_template=template if prompt_format is None else None,
            prompt_format=prompt_format or "{images}{text}",
            image_placeholder=str(placeholder),
        )

    def render(self, text: str, *, num_images: int, earlier_answers: Sequence[str] = ()) -> str:
        """The prompt with ``num_images`` image placeholders before the text.

        Args:
            text: the user's.
            earlier_answers: of the turns before the last, in each of which the text was asked.

        Raises:
            ModelError: the chat template fails.
        """
        if self.chat_template is None:
            first = self.prompt_format.format(images=self.image_placeholder * num_images, text=text)
            later = self.prompt_format.format(images="", text=text)
            return first + "".join(f"\n{answer}\n{later}" for answer in earlier_answers)
        asked = {"type": "text", "text": text}
        messages = [{"role": "user", "content": [*({"type": "image"} for _ in range(num_images)), asked]}]
        for answer in earlier_answers:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            messages.append({"role": "user", "content": [asked]})
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # Jinja's errors and whatever the template raises
            raise ModelError(f"the chat template fails on a question with {num_images} image(s): {error}") from error
        return str(rendered)

    def check(self, text: str) -> None:
        """Refuse a question that no tokenizer takes as text.

        Raises:
            SampleError: it holds a lone surrogate, or the token that stands for an image.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            odd = f"\\u{ord(text[error.start]):04x}"
            raise SampleError(f"the question holds a character that is no Unicode text ({odd})") from None
        if self.image_placeholder and self.image_placeholder in text:
            raise SampleError(f"the question holds the image token {self.image_placeholder}")

    def adds_special_tokens(self, rendered: str) -> bool:
        """Whether encoding should add the tokenizer's own special tokens: not when the template wrote them."""
        bos = self.tokenizer.bos_token
        return not (bos and rendered.startswith(bos))

    def text_tokens(self, text: str, *, num_images: int) -> int:
        """Tokens that the user's text adds to the prompt: with it, less the same prompt with an empty text."""
        if num_images not in self._empty:
            self._empty[num_images] = self._length("", num_images)
        return self._length(text, num_images) - self._empty[num_images]

    def _length(self, text: str, num_images: int) -> int:
        rendered = self.render(text, num_images=num_images)
        return len(self.tokenizer(rendered, add_special_tokens=self.adds_special_tokens(rendered)).input_ids)

    def _single(self, text: str, count: int) -> bool:
        return len(self.tokenizer(text, add_special_tokens=False).input_ids) == count

    @property
    def words(self) -> list[str]:
        """Ordinary words that cost one token each within a text, where the tokenizer has such."""
        return self._single_token_words()[1]

    def _single_token_words(self) -> tuple[list[str], list[str]]:
        """(words that can start a text, words that can follow), each costing one token."""
        if not self._words:
            words = ordinary_words()
            follow = [word for word in words if self._single(f" {word}", 1) and self._single(f" {word} {word}", 2)]
            start = [form for word in follow for form in (word.capitalize(), word) if self._single(form, 1)]
            # A tokenizer of another kind: any word will do, the count is checked below.
            self._words.append((start or follow or list(words), follow or list(words)))
        return self._words[0]

    def random_text(self, count: int, *, num_images: int, seed: int) -> str:
        """Random ordinary words that add exactly ``count`` tokens; none of them is a special token.

        Raises:
            SampleError: no such text was found (a tokenizer that merges across words, a template that rewrites).
        """
        start, words = self._single_token_words()
        rng = random.Random(f"{seed}/{count}")
        chosen = [rng.choice(start), *(rng.choice(words) for _ in range(count - 1))]
        for _ in range(_ATTEMPTS):
            text = " ".join(chosen)
            surplus = self.text_tokens(text, num_images=num_images) - count
            if surplus == 0:
                return text
            if surplus > 0 and len(chosen) > surplus:
                del chosen[-surplus:]
            elif surplus > 0:
                chosen = [rng.choice(start), *(rng.choice(words) for _ in chosen[1:])]
            else:
                chosen.extend(rng.choice(words) for _ in range(-surplus))
        raise SampleError(f"no text of exactly {count} prompt tokens was found for this model's tokenizer and template")


# Encoded bytes to what a processor takes: an upright RGB image, or an error that names the sample's image.

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def decode(encoded: bytes, *, name: str, size: tuple[int, int] | None = None) -> Image:
    """One image: first frame, EXIF rotation applied, any mode to RGB, resized when asked.

    Transparency is laid on white; 16-bit greyscale keeps its highest eight bits (PIL alone would clip it to white).

    Args:
        encoded: JPEG, PNG, GIF … bytes.
        size: (width, height) in pixels to resize to (bicubic), aspect ratio not kept.

    Raises:
        SampleError: not an image, truncated, more pixels than PIL's decompression-bomb limit, or pixels without a
            defined white.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Too many pixels is checked below, with a better message; damaged metadata does not matter to a model.
            warnings.simplefilter("ignore")
            opened = Pillow.open(io.BytesIO(encoded))
            limit = Pillow.MAX_IMAGE_PIXELS
            if limit is not None and opened.width * opened.height > limit:
                raise SampleError(
                    f"image '{name}' has {opened.width}x{opened.height} pixels; the limit is {limit:,}: make it smaller"
                )
            image = _to_rgb(ImageOps.exif_transpose(opened), name)
    except SampleError:
        raise
    except Pillow.DecompressionBombError as error:
        raise SampleError(f"image '{name}' is too large to decode safely, make it smaller: {error}") from error
    except UnidentifiedImageError as error:
        raise SampleError(f"image '{name}' is not an image that PIL knows ({len(encoded)} bytes)") from error
    except Exception as error:  # damaged bytes make PIL's many decoders raise anything: TypeError, struct.error …
        raise SampleError(f"image '{name}' cannot be decoded: {error or type(error).__name__}") from error
    return image if size is None or image.size == size else image.resize(size, Pillow.Resampling.BICUBIC)


def _to_rgb(image: Image, name: str) -> Image:
    from PIL import Image as Pillow

    image.load()
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BIT or image.mode in ("I", "F"):
        return _deep_grey(image, name)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Pillow.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image, name: str) -> Image:
    """More than eight bits a pixel: integers up to 65,535 lose their lower byte; floating point counts as 0..255."""
    import numpy as np
    from PIL import Image as Pillow

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        if not (low >= 0 and (high == 0 or 1 < high <= 255)):
            raise SampleError(
                f"image '{name}' holds floating-point values {low:g}..{high:g}; they must be 0..255 "
                "(0..1 would be taken for black)"
            )
    elif low < 0 or high > 0xFFFF:
        raise SampleError(f"image '{name}' holds values {low:.0f}..{high:.0f}; greyscale must be 0..255 or 0..65535")
    elif image.mode in _SIXTEEN_BIT or high > 0xFF:  # mode "I" is what some 16-bit files open as
        values = values >> 8
    return Pillow.fromarray(values.astype(np.uint8)).convert("RGB")


def decode_all(encoded: Sequence[bytes], *, names: Sequence[str], size: tuple[int, int] | None = None) -> list[Image]:
    """:func:`decode` for the images of a request, in order."""
    return [decode(data, name=name, size=size) for data, name in zip(encoded, names, strict=True)]
