"""A later turn of a conversation that goes on from the cache of the turns before it.

What an earlier turn would have done (its image decoded, processed and encoded, its text prefilled, its answer decoded)
is no part of the turn that is measured: it is made here, outside of any clock, and anew for every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmbench.errors import UnreachablePointError
from vlmbench.models.protocol import Cached, Prepared

if TYPE_CHECKING:
    from vlmbench.models.inputs import Prompter
    from vlmbench.models.protocol import Processes
    from vlmbench.request import Request


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """The turns before the last, and what is new in it.

    Args:
        earlier: inputs of the turns before, up to the end of the last answer.
        whole: the last turn from an empty cache.
        new: text that the last turn adds.
    """

    earlier: Mapping[str, Any]
    whole: Prepared
    new: str

    @classmethod
    def of(cls, model: Processes, request: Request, *, images: Sequence[Any], whole: Prepared) -> Conversation:
        """Prepare the turns before.

        Args:
            request: resolved.
            whole: the request, prepared from an empty cache.

        Raises:
            UnreachablePointError: the prompt of the last turn does not begin with the tokens of those before.
        """
        answers, question = request.earlier_answers, request.sample.question
        all_text = model.prompter.render(question, num_images=len(images), earlier_answers=answers)
        before = all_text[: all_text.rfind(answers[-1]) + len(answers[-1])]  # as far as the model has written
        earlier = model.process(images, before, request)
        held = earlier["input_ids"].shape[1]
        if answers[-1] not in all_text or not bool((whole.inputs["input_ids"][:, :held] == earlier["input_ids"]).all()):
            raise UnreachablePointError(
                "reuse_cache: the prompt of this model's last turn does not begin with the tokens of those before it"
            )
        return cls(earlier=earlier, whole=whole, new=all_text[len(before) :])

    def next_turn(self, prompter: Prompter, request: Request) -> Prepared:
        """The last turn: its text tokenised and put behind the ids of the turns before; no image.

        Tensors that go along with the ids are kept, pixels and what belongs to them are not.
        """
        import torch

        ids = self.whole.inputs["input_ids"]
        held = self.earlier["input_ids"]
        new = prompter.tokenizer(self.new, add_special_tokens=False, return_tensors="pt").input_ids
        joined = torch.cat([held, new.expand(held.shape[0], -1)], dim=1)
        if not torch.equal(joined, ids):
            raise UnreachablePointError("reuse_cache: the tokens of a new turn depend on the text before it")
        along = {name: value for name, value in self.whole.inputs.items() if _goes_along(value, ids)}
        return Prepared(
            inputs={**along, "input_ids": joined},
            count=lambda: self.whole.counts,
            output=request.output,
            cached=Cached(
                tokens=held.shape[1], filled_with="earlier turns", earlier=self.earlier, whole=self.whole.inputs
            ),
        )


def _goes_along(value: Any, ids: Any) -> bool:
    return bool(getattr(value, "shape", None) == ids.shape)
