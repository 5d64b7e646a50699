"""What a person looks like: skin, hair and clothes as colours and a few named kinds."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from xdyna.data.synthetic.body import Body, random_body

Colour = tuple[int, int, int]

HAIR_STYLES = ("short", "bun", "long", "ponytail", "pigtails")  # the last three swing
HATS = ("none", "cap", "beanie", "brim")
SLEEVES = ("none", "short", "long")
#: Kinds of skirts and how far down the leg their hem is; a dress has the top's colour.
SKIRTS = {"skirt": 0.36, "dress": 0.5}
BOTTOMS = ("trousers", "shorts", *SKIRTS)
PATTERNS = ("plain", "band", "vest", "stripes", "dots")

#: Colours that differ by this much (of 441, from black to white) cannot be taken for each other.
APART = 60.0
_SKIN = ((246, 212, 184), (232, 184, 150), (208, 156, 118), (168, 116, 80), (124, 82, 56), (92, 58, 40))
_EYES = ((92, 56, 30), (60, 110, 170), (60, 130, 70), (40, 34, 34))
_LIPS = ((196, 88, 88), (226, 104, 110), (190, 44, 60))
_HAIR = (
    (34, 26, 24), (70, 44, 28), (128, 76, 36), (224, 178, 88), (190, 70, 30), (196, 196, 204), (214, 90, 150)
)  # fmt: skip


@dataclass(frozen=True)
class Character:
    """One person's body, colours (RGB, 0..255) and clothes; `hair_length` in body heights, of hair that swings."""

    body: Body
    skin: Colour
    hair: Colour
    hair_style: str
    top: Colour
    trim: Colour
    sleeve: str
    pattern: str
    bottom: Colour
    bottom_kind: str
    shoes: Colour
    eyes: Colour
    lips: Colour = (200, 84, 88)
    hair_length: float = 0.2
    hat: str = "none"
    hat_colour: Colour = (200, 60, 60)
    cape: Colour | None = None


def random_character(rng: np.random.Generator) -> Character:
    """A person with bold clothes; skin, hair, top and bottom differ clearly in colour (a dress is all top)."""
    skin = _near(rng, _SKIN[int(rng.integers(len(_SKIN)))], 8)
    hair = _apart(lambda: _near(rng, _HAIR[int(rng.integers(len(_HAIR)))], 8), skin)
    top = _apart(lambda: _cloth(rng, rng.random()), skin, hair)
    bottom = _apart(lambda: _cloth(rng, rng.random(), dark=rng.random() < 0.5), skin, top)
    bottom_kind = str(rng.choice(BOTTOMS, p=[0.4, 0.15, 0.25, 0.2]))
    return Character(
        body=random_body(rng),
        skin=skin,
        hair=hair,
        hair_style=str(rng.choice(HAIR_STYLES, p=[0.25, 0.1, 0.25, 0.2, 0.2])),
        top=top,
        trim=_apart(lambda: _cloth(rng, rng.random()), top, skin),
        sleeve=str(rng.choice(SLEEVES, p=[0.25, 0.4, 0.35])),
        pattern=str(rng.choice(PATTERNS, p=[0.4, 0.12, 0.12, 0.18, 0.18])),
        bottom=top if bottom_kind == "dress" else bottom,
        bottom_kind=bottom_kind,
        shoes=_cloth(rng, rng.random(), dark=rng.random() < 0.6),
        eyes=_EYES[int(rng.integers(len(_EYES)))],
        lips=_near(rng, _LIPS[int(rng.integers(len(_LIPS)))], 8),
        hair_length=float(rng.uniform(0.16, 0.26)),
        hat=str(rng.choice(HATS, p=[0.79, 0.07, 0.07, 0.07])),
        hat_colour=_apart(lambda: _cloth(rng, rng.random()), hair),
        cape=_apart(lambda: _cloth(rng, rng.random(), dark=rng.random() < 0.5), top) if rng.random() < 0.15 else None,
    )


def with_head(person: Character, other: Character) -> Character:
    """A person's body and clothes with another's head: its shape, face, skin (all over), hair and hat."""
    body = replace(person.body, head_rx=other.body.head_rx, head_ry=other.body.head_ry, face=other.body.face)
    return replace(
        person, body=body, skin=other.skin, hair=other.hair, hair_style=other.hair_style,
        hair_length=other.hair_length, eyes=other.eyes, lips=other.lips, hat=other.hat, hat_colour=other.hat_colour,
    )  # fmt: skip


def stranger(person: Character, rng: np.random.Generator) -> Character:
    """Somebody whose skin and hair have clearly other colours, which also differ from the person's top."""
    while True:
        other = random_character(rng)
        if min(
            distance(person.skin, other.skin), distance(person.hair, other.hair), distance(person.top, other.skin)
        ) > APART:  # fmt: skip
            return other


def distance(first: Colour, second: Colour) -> float:
    """Between two colours, 0..441."""
    return float(np.linalg.norm(np.subtract(first, second)))


def _apart(draw: Callable[[], Colour], *others: Colour) -> Colour:
    """A drawn colour that differs clearly from some others."""
    while True:
        colour = draw()
        if all(distance(colour, other) > APART for other in others):
            return colour


def shade(colour: Colour, amount: float) -> Colour:
    """The colour made darker (amount < 0, towards black) or lighter (> 0, towards white); -1..1."""
    goal = 255 if amount > 0 else 0
    red, green, blue = (round(value + (goal - value) * abs(amount)) for value in colour)
    return red, green, blue


def _cloth(rng: np.random.Generator, hue: float, *, dark: bool = False) -> Colour:
    if rng.random() < 0.12:
        grey = int(rng.uniform(40, 70) if dark else rng.uniform(200, 245))
        return grey, grey, grey
    value = rng.uniform(0.28, 0.5) if dark else rng.uniform(0.7, 1.0)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.55, 0.95), value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _near(rng: np.random.Generator, colour: Colour, spread: int) -> Colour:
    red, green, blue = (int(np.clip(value + rng.integers(-spread, spread + 1), 0, 255)) for value in colour)
    return red, green, blue
