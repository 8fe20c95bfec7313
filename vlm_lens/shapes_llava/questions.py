"""Questions about a scene, with answers, balanced so that guessing does not pay.

Each question type is one function that takes a random source and the objects and gives a
`Question`, or None when the scene allows no unambiguous question of that type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from vlm_lens.shapes_llava.scenes import Scene, SceneObject
from vlm_lens.shapes_llava.words import COLORS, NAMES, NUMBERS, PLACES, PLURALS, RELATIONS

Objects = Sequence[SceneObject]

TASKS = ("image", "caption", "text")
"""A question about an image, a description of an image, a question about a told scene."""

DESCRIBE = {"image": "describe the image .", "text": "describe the scene ."}


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answer.

    Attributes:
        category: the question type, a key of `QUESTIONS`, or "description".
        text: the question.
        answer: the expected answer.
        about: indices of the objects that the question is about (those that it names, counts or
            asks for); empty when there are none, as for an object that does not exist.
    """

    category: str
    text: str
    answer: str
    about: tuple[int, ...]


def ask(rng: Random, category: str, scene: Scene) -> Question | None:
    """Asks one question of a type, or gives None when the scene allows none.

    Raises:
        KeyError: when `category` is not a key of `QUESTIONS`.

    Example:
        >>> from vlm_lens.shapes_llava.scenes import sample_scene
        >>> ask(Random(0), "count", sample_scene(Random(0))).category
        'count'
    """
    return QUESTIONS[category](rng, scene.objects)


def describe(scene: Scene, *, modality: str = "image") -> Question:
    """Asks for the description of a scene; `modality` is "image" or "text".

    Example:
        >>> from vlm_lens.shapes_llava.scenes import sample_scene
        >>> describe(sample_scene(Random(0))).text
        'describe the image .'
    """
    about = tuple(range(len(scene.objects)))
    return Question("description", DESCRIBE[modality], scene.description, about)


def tell(rng: Random, scene: Scene) -> str:
    """Tells a scene in words, its objects in random order.

    Example:
        >>> from vlm_lens.shapes_llava.scenes import sample_scene
        >>> tell(Random(0), sample_scene(Random(0))).startswith("scene : a ")
        True
    """
    phrases = [thing.phrase for thing in scene.objects]
    rng.shuffle(phrases)
    return "scene : " + " . ".join(phrases) + " ."


def _only(objects: Objects, **wanted: str) -> list[int]:
    """Indices of the objects whose attribute value occurs once, and that match `wanted`."""
    [(key, kind)] = wanted.items()
    times = Counter(getattr(thing, key) for thing in objects)
    return [
        index
        for index, thing in enumerate(objects)
        if times[getattr(thing, key)] == 1 and kind in ("any", thing.kind)
    ]


def _color(rng: Random, objects: Objects) -> Question | None:
    index = rng.randrange(len(objects))
    text = f"what color is the object at the {PLACES[objects[index].place]} ?"
    named = _only(objects, name="any")
    if named and rng.random() < 0.7:
        index = rng.choice(named)
        text = f"what color is the {objects[index].name} ?"
    return Question("color", text, objects[index].color, (index,))


def _name(kind: str) -> Callable[[Random, Objects], Question | None]:
    def question(rng: Random, objects: Objects) -> Question | None:
        candidates = [index for index, thing in enumerate(objects) if thing.kind == kind]
        if not candidates:
            return None
        index = rng.choice(candidates)
        text = f"what {kind} is at the {PLACES[objects[index].place]} ?"
        colored = _only(objects, color=kind)
        if colored and rng.random() < 0.7:
            index = rng.choice(colored)
            text = f"what {kind} is the {objects[index].color} object ?"
        return Question(kind, text, objects[index].name, (index,))

    return question


def _place(rng: Random, objects: Objects) -> Question | None:
    index = rng.randrange(len(objects))
    text = f"where is the {_pair(objects[index])} ?"
    named = _only(objects, name="any")
    if named and rng.random() < 0.5:
        index = rng.choice(named)
        text = f"where is the {objects[index].name} ?"
    return Question("place", text, PLACES[objects[index].place], (index,))


def _count(rng: Random, objects: Objects) -> Question | None:
    """Picks the answer first, evenly among those that some query has, then the query."""
    matches: dict[str, tuple[int, ...]] = {"objects are there": tuple(range(len(objects)))}
    for color in COLORS:
        matches[f"{color} objects are there"] = _where(objects, "color", color)
    for shape, plural in PLURALS.items():
        matches[f"{plural} are there"] = _where(objects, "name", shape)
    for kind in ("shape", "digit"):
        matches[f"{kind}s are there"] = _where(objects, "kind", kind)
    answer = rng.choice(sorted({len(about) for about in matches.values()}))
    query = rng.choice([key for key, about in matches.items() if len(about) == answer])
    return Question("count", f"how many {query} ?", NUMBERS[answer], matches[query])


def _where(objects: Objects, key: str, value: str) -> tuple[int, ...]:
    return tuple(index for index, thing in enumerate(objects) if getattr(thing, key) == value)


def _exists(rng: Random, objects: Objects) -> Question | None:
    answer = rng.choice(("yes", "no"))
    if rng.random() < 0.25:
        return _exists_single(rng, objects, answer)
    present = {(thing.color, thing.name): index for index, thing in enumerate(objects)}
    pair = rng.choice(list(present)) if answer == "yes" else _absent_pair(rng, objects)
    about = (present[pair],) if answer == "yes" else ()
    return Question("existence", f"is there a {' '.join(pair)} ?", answer, about)


def _exists_single(rng: Random, objects: Objects, answer: str) -> Question:
    key, words = rng.choice((("color", COLORS), ("name", NAMES)))
    present = {getattr(thing, key) for thing in objects}
    word = rng.choice([word for word in words if (word in present) == (answer == "yes")])
    text = f"is there a {word} object ?" if key == "color" else f"is there a {word} ?"
    return Question("existence", text, answer, _where(objects, key, word))


def _absent_pair(rng: Random, objects: Objects) -> tuple[str, str]:
    """A pair that is not there: mostly both words occur, but never on the same object."""
    present = {(thing.color, thing.name) for thing in objects}
    colors, names = {pair[0] for pair in present}, {pair[1] for pair in present}
    crossed = sorted((c, n) for c in colors for n in names if (c, n) not in present)
    if crossed and rng.random() < 0.6:
        return rng.choice(crossed)
    there = rng.choice(objects)
    if rng.random() < 0.5:
        return there.color, rng.choice([name for name in NAMES if name not in names])
    return rng.choice([color for color in COLORS if color not in colors]), there.name


def _relation(rng: Random, objects: Objects) -> Question | None:
    """Half of the answers are yes; half of the no's are a relation turned around."""
    if len(objects) < 2:
        return None
    answer = rng.choice(("yes", "no"))
    while True:
        first, second = rng.sample(range(len(objects)), 2)
        relation = rng.choice(RELATIONS)
        turned = holds(relation, objects[second], objects[first])
        true = holds(relation, objects[first], objects[second])
        if true == (answer == "yes") and (true or turned or rng.random() < 0.5):
            break
    text = f"is the {_pair(objects[first])} {relation} the {_pair(objects[second])} ?"
    return Question("relation", text, answer, (first, second))


def holds(relation: str, first: SceneObject, second: SceneObject) -> bool:
    """Whether `first` is "left of", "right of", "above" or "below" `second`, by grid place.

    Objects of one column are neither left nor right of each other; rows likewise.
    """
    return {
        "left of": first.column < second.column,
        "right of": first.column > second.column,
        "above": first.row < second.row,
        "below": first.row > second.row,
    }[relation]


def _pair(thing: SceneObject) -> str:
    return f"{thing.color} {thing.name}"


QUESTIONS: dict[str, Callable[[Random, Objects], Question | None]] = {
    "color": _color,
    "shape": _name("shape"),
    "digit": _name("digit"),
    "place": _place,
    "count": _count,
    "existence": _exists,
    "relation": _relation,
}
