"""Questions and answers with the statistics of VQA v2, seeded. Standard library only.

Aims: most questions have 4–10 words, 6.2 on average; answers of 1/2/3 words 89/7/3 %; 38 % of answers are yes or no,
the rest numbers and words; ten annotators a question, who mostly agree.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

ANNOTATORS = 10

# words of a question -> weight; mean 6.2
_LENGTHS: Mapping[int, float] = {
    3: 2.5,
    4: 15,
    5: 26,
    6: 21,
    7: 14,
    8: 9,
    9: 5.5,
    10: 3.5,
    11: 1.5,
    12: 1,
    14: 0.7,
    17: 0.3,
}
_AGREEMENT = 0.75  # the share of annotators who give the consensus answer
_KINDS = {"yes_no": 38.0, "number": 12.0, "other": 50.0}
# Yes/no and numbers have one word, so that the other half makes all of the longer answers: 7 % of all are 14 % of it.
_OTHER_WORDS = {1: 78.0, 2: 14.0, 3: 6.0, 4: 2.0}

_NOUNS = [
    "man", "woman", "boy", "girl", "child", "dog", "cat", "horse", "bird", "bus", "train", "car", "truck",
    "bicycle", "motorcycle", "boat", "plane", "table", "chair", "bench", "bed", "couch", "plate", "bowl", "cup",
    "fork", "knife", "pizza", "sandwich", "cake", "banana", "apple", "orange", "clock", "sign", "umbrella", "kite",
    "surfboard", "skateboard", "racket", "ball", "bat", "helmet", "hat", "shirt", "jacket", "shoe", "bag", "phone",
    "laptop", "keyboard", "screen", "book", "lamp", "window", "door", "wall", "fence", "building", "tree", "flower",
    "sheep", "cow", "elephant", "giraffe", "zebra", "bear", "sink", "toilet", "mirror", "towel",
]  # fmt: skip
_ADJECTIVES = [
    "big", "small", "tall", "old", "new", "red", "blue", "green", "white", "black", "yellow", "brown", "wooden",
    "wet", "dirty", "clean", "empty", "full",
]  # fmt: skip
_STATES = [
    "open", "closed", "on", "off", "clean", "dirty", "wet", "dry", "full", "empty", "broken", "moving", "old",
    "new", "sleeping", "standing", "wooden",
]  # fmt: skip

# What may follow a question, by its number of words; longer ones are put together from these.
_TAILS: Mapping[int, Sequence[str]] = {
    1: ("here", "today", "outside", "now", "there", "exactly"),
    2: ("right now", "in front", "over there", "at night", "on top"),
    3: ("in the picture", "in the background", "on the left", "on the right", "in this photo", "near the wall"),
    4: ("in front of it", "on the left side", "on top of it", "next to the window"),
    5: ("in the middle of it", "on the edge of it", "at the side of it"),
}

_YES_NO = (
    "Is it {state}", "Is this a {noun}", "Is the {noun} {state}", "Is that {noun} {state}", "Is there a {noun}",
    "Are there any {noun}s", "Can you see a {noun}",
)  # fmt: skip
_NUMBER = ("How many {noun}s", "How many {adjective} {noun}s", "How many {noun}s are there", "What number is shown")
_COLOUR = ("What color is it", "What color is the {noun}", "What color is that {adjective} {noun}")
_OBJECT = ("What is this", "What is that {noun}", "What is on the {noun}", "Which {noun} is {state}", "Who made this")
_PLACE = ("Where is it", "Where is the {noun}", "Where was this taken", "Where are the {noun}s")
_DOING = ("What is happening", "What is he doing", "What is the {noun} doing", "What sport is this")

# answers by number of words
_COLOURS: Mapping[int, Sequence[str]] = {
    1: ("white", "black", "red", "blue", "green", "brown", "yellow", "gray", "orange", "pink", "silver", "tan"),
    2: ("light blue", "dark brown", "dark green", "light gray"),
    3: ("black and white", "red and white", "blue and white", "brown and white"),
    4: ("red white and blue", "black white and brown"),
}
_OBJECTS: Mapping[int, Sequence[str]] = {
    1: tuple(_NOUNS),
    2: ("tennis racket", "stop sign", "cell phone", "fire hydrant", "hot dog", "teddy bear", "baseball bat"),
    3: ("bottle of water", "piece of cake", "cup of coffee", "pair of shoes"),
    4: ("knife and a fork", "bowl of fresh fruit"),
}
_PLACES: Mapping[int, Sequence[str]] = {
    1: ("outside", "kitchen", "beach", "street", "park", "left", "right", "table", "zoo", "field"),
    2: ("living room", "on table", "in water", "train station", "tennis court"),
    3: ("on the table", "in the sink", "on the wall", "in the water"),
    4: ("on top of counter", "in front of him"),
}
_DOINGS: Mapping[int, Sequence[str]] = {
    1: ("surfing", "eating", "sitting", "standing", "skiing", "tennis", "baseball", "walking", "sleeping", "playing"),
    2: ("playing tennis", "riding horse", "brushing teeth", "flying kite"),
    3: ("riding a bike", "playing video games", "talking on phone", "catching a ball"),
    4: ("looking at the camera", "waiting for the bus"),
}
_OTHER = ((_COLOUR, _COLOURS), (_OBJECT, _OBJECTS), (_PLACE, _PLACES), (_DOING, _DOINGS))


def _pick(rng: random.Random, weights: Mapping[int, float]) -> int:
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def _question(rng: random.Random, openings: Sequence[str]) -> str:
    length = _pick(rng, _LENGTHS)
    fitting = [text for text in openings if len(text.split()) <= length]
    opening = rng.choice(fitting or [min(openings, key=lambda text: len(text.split()))])
    text = opening.format(noun=rng.choice(_NOUNS), adjective=rng.choice(_ADJECTIVES), state=rng.choice(_STATES))
    while missing := max(length - len(text.split()), 0):
        text += " " + rng.choice(_TAILS[min(missing, rng.choice((3, 4, 5)))])
    return text + "?"


def question_and_answers(rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """One question and the answers of ten annotators, the consensus being the most frequent of them as a rule.

    Those who disagree draw from the same distribution as the consensus, so that the statistics hold for all answers
    and for the consensus alike.
    """
    kind = rng.choices(list(_KINDS), weights=list(_KINDS.values()))[0]
    openings: Sequence[str]
    openings, pool = rng.choice(_OTHER)
    if kind == "yes_no":
        openings = _YES_NO
    elif kind == "number":
        openings = _NUMBER

    def answer() -> str:
        if kind == "yes_no":
            return "yes" if rng.random() < 0.51 else "no"
        if kind == "number":
            return str(min(int(rng.expovariate(0.5)), 60))
        return rng.choice(pool[_pick(rng, _OTHER_WORDS)])

    consensus = answer()
    given = [consensus if rng.random() < _AGREEMENT else answer() for _ in range(ANNOTATORS)]
    return _question(rng, openings), tuple(given)
