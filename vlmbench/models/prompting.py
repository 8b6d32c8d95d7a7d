"""From a user's text to the string that the processor takes; and texts of exactly so many tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from vlmbench.errors import ModelError, SampleError
from vlmbench.models.tokenizer import ordinary_words

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

    def render(self, text: str, *, num_images: int) -> str:
        """The prompt with ``num_images`` image placeholders before the text.

        Raises:
            ModelError: the chat template fails.
        """
        if self.chat_template is None:
            return self.prompt_format.format(images=self.image_placeholder * num_images, text=text)
        content = [*({"type": "image"} for _ in range(num_images)), {"type": "text", "text": text}]
        try:
            rendered = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # Jinja's errors and whatever the template raises
            raise ModelError(f"the chat template fails on a question with {num_images} image(s): {error}") from error
        return str(rendered)

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
