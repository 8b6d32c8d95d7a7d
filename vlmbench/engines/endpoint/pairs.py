"""Paired requests that differ in one thing: what a server that shows no stages can be asked all the same.

Each contrast is a difference of two *runs*, with an interval, and is reported as that: it is never a stage of one
request. Pairs come in random order, and so do the two requests of a pair where their order does not matter.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from vlmbench.engines.endpoint.bodies import chat_body
from vlmbench.engines.endpoint.client import ExchangeError
from vlmbench.engines.endpoint.exchange import Exchanger, Order, Result
from vlmbench.engines.endpoint.settings import Endpoint
from vlmbench.errors import SampleError
from vlmbench.request import Output, Request

SMALL, LARGE = (224, 224), (896, 896)
_TRIES, _CLOSE = 8, 0.05  # to find a text as long as an image's prompt, to within this share


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two requests that differ in one thing.

    Args:
        name: of the contrast.
        arms: names of the two; the difference is the first minus the second.
        metric: that is compared.
        question: what the difference is an answer to.
        ordered: the second must follow the first (it sends the same image again).
    """

    name: str
    arms: tuple[str, str]
    metric: str
    question: str
    ordered: bool = False


CONTRASTS: tuple[Contrast, ...] = (
    Contrast(
        name="image_text",
        arms=("image", "text"),
        metric="TTFT",
        question="How much later is the first token of a request with an image than of a text of as many tokens?",
    ),
    Contrast(
        name="same_image",
        arms=("new", "again"),
        metric="TTFT",
        question="How much earlier is the first token when the same image comes again?",
        ordered=True,
    ),
    Contrast(
        name="answer_length",
        arms=("whole", "one_token"),
        metric="T_request",
        question="How much longer is a whole answer than one token?",
    ),
    Contrast(
        name="image_size",
        arms=("large", "small"),
        metric="TTFT",
        question=f"How much later is the first token with an image of {LARGE[0]} x {LARGE[1]} pixels than of "
        f"{SMALL[0]} x {SMALL[1]}?",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Half:
    """One request of a pair.

    Args:
        contrast: that it belongs to.
        arm: which of the two.
        number: of the pair within its contrast.
        first: it is sent before the other.
    """

    contrast: Contrast
    arm: str
    number: int
    first: bool

    @property
    def point_id(self) -> str:
        """Of its row."""
        return f"paired,contrast={self.contrast.name},arm={self.arm}"


def plan(contrasts: Sequence[Contrast], pairs: int, seed: int) -> Iterator[tuple[Half, Half]]:
    """Pairs in random order, each in the order in which it is sent.

    Args:
        contrasts: to ask about.
        pairs: of each.
        seed: of all orders.
    """
    rng = random.Random(f"{seed}/pairs")
    left = [(contrast, number) for contrast in contrasts for number in range(pairs)]
    rng.shuffle(left)
    for contrast, number in left:
        arms = list(contrast.arms)
        if not contrast.ordered:
            rng.shuffle(arms)
        one, two = (Half(contrast=contrast, arm=a, number=number, first=i == 0) for i, a in enumerate(arms))
        yield one, two


def request_of(half: Half, base: Request, words: int | None) -> Request:
    """The request of one half.

    Args:
        half: which.
        base: a request with an image, as the workload sends them.
        words: of the text that is as long as the image's prompt; None where it was not looked for.
    """
    one = replace(base, batch_size=1)
    if half.arm == "text":
        return replace(one, num_images=0, prompt_tokens=words)
    if half.arm == "one_token":
        return replace(one, output=Output(max_new_tokens=1, forced=base.output.forced))
    if half.arm in ("small", "large"):
        return replace(one, image_size=LARGE if half.arm == "large" else SMALL)
    return one


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Sends the halves, one at a time.

    Args:
        endpoint: how the server is configured.
        exchanger: sends a request.
        run_id: of this run: no image of another run comes again.
    """

    endpoint: Endpoint
    exchanger: Exchanger
    run_id: str

    async def words_like(self, base: Request) -> tuple[int, int, int] | None:
        """(words, tokens of that text's prompt, tokens of the image's prompt) for a text as long as the image's prompt.

        The server counts the tokens; None where it does not, or where no text comes close.
        """
        target = await self._prompt_tokens(base, "image")
        if target is None:
            return None
        seen: dict[int, int] = {}
        words = target
        while len(seen) < _TRIES and words not in seen:
            found = await self._prompt_tokens(replace(base, num_images=0, prompt_tokens=words), "text")
            if found is None:
                return None
            seen[words] = found
            if found == target:
                break
            words = _next_words(seen, words, target)
        nearest = min(seen, key=lambda w: abs(seen[w] - target))
        best = (nearest, seen[nearest], target)
        return best if abs(best[1] - target) <= max(2, _CLOSE * target) else None

    async def send(self, half: Half, base: Request, words: int | None) -> Result:
        """Send one half and wait for its answer."""
        same = half.contrast.name == "same_image"
        salt = f"{self.run_id}/{half.contrast.name}/{half.number}" + ("" if same else f"/{half.arm}")
        request = request_of(half, base, words)
        result = await self._send(request, str(half.number), salt, f"{salt}/{half.arm}")
        values = {
            **result.values,
            "pair_contrast": half.contrast.name,
            "pair_arm": half.arm,
            "pair_number": half.number,
            "pair_first": half.first,
        }
        return replace(result, values=values)

    async def _prompt_tokens(self, request: Request, name: str) -> int | None:
        short = replace(request, output=Output(max_new_tokens=1, forced=request.output.forced))
        result = await self._send(short, "length", f"{self.run_id}/length/{name}", None)
        found = result.values.get("num_input_tokens")
        return int(found) if result.ok and found is not None else None

    async def _send(self, request: Request, sample_id: str, salt: str, prefix_salt: str | None) -> Result:
        body = chat_body(
            request,
            model=self.endpoint.model,
            kind=self.exchanger.kind,
            salt=salt,
            prefix_salt=prefix_salt,
            extra=self.endpoint.extra_body,
        )
        order = Order(
            sample_id=sample_id,
            repeat=0,
            body=body,
            asked_tokens=request.output.max_new_tokens,
            forced=request.output.forced,
            values={"num_images": len(request.images), "bytes_sent": len(body)},
        )
        payload = self.exchanger.payload(body)
        try:
            connection = await self.exchanger.connection()
        except ExchangeError as error:
            return self.exchanger.not_sent(order, time.monotonic_ns(), error.kind, str(error))
        return await self.exchanger.send(order, payload, connection, time.monotonic_ns())


def _next_words(seen: dict[int, int], words: int, target: int) -> int:
    """The next number of words to try: along the line through the nearest two tries, or one token a word at first."""
    nearest = sorted(seen, key=lambda w: abs(seen[w] - target))[:2]
    slope = 1.0
    if len(nearest) == 2 and seen[nearest[0]] != seen[nearest[1]]:
        slope = (seen[nearest[0]] - seen[nearest[1]]) / (nearest[0] - nearest[1])
    elif len(nearest) == 1:
        slope = seen[words] / words  # the template's own tokens count in: too many words rather than too few
    found = nearest[0] + round((target - seen[nearest[0]]) / slope)
    return found if found >= 1 else 1


async def ask_pairs(
    asker: Asker,
    base: Request,
    *,
    pairs: int,
    seed: int,
    done: Callable[[Half], bool],
    took: Callable[[Half, Result], None],
    stop_requested: Callable[[], bool],
) -> str | None:
    """Ask all contrasts, each as often as wanted; returns why one was left out, None where none was.

    Args:
        asker: sends.
        base: a request with an image.
        pairs: of each contrast.
        seed: of all orders.
        done: whether a half was measured before; a pair of which one is missing is sent again whole.
        took: given each result.
        stop_requested: asked between pairs.

    Raises:
        SampleError: the image of ``base`` cannot be read or decoded.
    """
    if not base.images:
        raise SampleError("paired requests need a sample with an image")
    found = await asker.words_like(base)
    asked = [c for c in CONTRASTS if c.name != "image_text" or found is not None]
    for halves in plan(asked, pairs, seed):
        if stop_requested():
            break
        if all(done(half) for half in halves):
            continue
        for half in halves:
            took(half, await asker.send(half, base, found[0] if found else None))
    if found is None:
        return "image_text is left out: no text of as many tokens was found (the server must count prompt tokens)"
    return None
