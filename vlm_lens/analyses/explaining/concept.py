"""Concepts that annotations name, and the patches and tokens where they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Float

from vlm_lens.analyses.exemplars import Kind, SampleView

ATTRIBUTES = ("color", "shape", "digit", "place", "kind", "category")
"""The entries of an annotated object that name what it is; what an object lacks is left out."""

COVER = 0.25
"""An object is in a patch of which it covers this share (or that holds half of the object)."""

_THIRDS = ("top", "middle", "bottom"), ("left", "center", "right")
_SEVERAL = "|"


@dataclass(frozen=True, order=True)
class Concept:
    """Something that may be so at a patch or at a token.

    Attributes:
        kind: What it is a concept of: a patch ("image") or a token ("text").
        parts: Pairs of an attribute and its value, all of which must hold: at a patch, of one
            object in it; or "image patch" (any, object, background), "image row" and "image column"
            (the third of the image). At a token: "word", "after" (the word before), "one of"
            (words), "token" (any) and "role".
        name: What to call it where the parts alone do not say.

    Example:
        >>> print(Concept("image", (("color", "red"), ("shape", "circle"))))
        red circle
        >>> print(Concept("text", (("after", "red"), ("word", "circle"))))
        “circle” after “red”
    """

    kind: Kind
    parts: tuple[tuple[str, str], ...]
    name: str = ""

    def __str__(self) -> str:
        if self.name:
            return self.name
        said = dict(self.parts)
        if self.kind == "image":
            return _patch_name(said)
        after = f" after “{said['after']}”" if "after" in said else ""
        return f"“{said['word']}”{after}" if "word" in said else " ".join(said.values())


def _patch_name(said: dict[str, str]) -> str:
    where = [said.pop(name) for name in ("image row", "image column") if name in said]
    place = [f"at the {said.pop('place')}"] if "place" in said else []
    region = [f"the image's {' '.join(where)}"] if where else []
    return " ".join([*said.values(), *place, *region])


ANY_PATCH = Concept("image", (("image patch", "any"),), "any patch")
OBJECT = Concept("image", (("image patch", "object"),), "any object")
BACKGROUND = Concept("image", (("image patch", "background"),), "background")
ANY_TOKEN = Concept("text", (("token", "any"),), "any token")


class ViewConcepts:
    """What holds where in one sample.

    Annotations are read from ``sample.annotations["objects"]``, a list with one dictionary for
    each object: "box" (x0, y0, x1, y1 in pixels, ends exclusive), or "mask" (the image's pixels,
    height x width, boolean), or both; "image" (which of the sample's images; by default the first
    one); all other entries that are texts are attributes. A sample without any has words only.

    Args:
        view: The sample's positions.
        cover: See `COVER`.

    Raises:
        ValueError: The annotations have another form.
    """

    def __init__(self, view: SampleView, *, cover: int | float = COVER) -> None:
        self._is_patch = view.is_kind("image")
        words = [
            token.strip().lower() if kind == "text" else ""
            for token, kind in zip(view.tokens, view.kinds, strict=True)
        ]
        self._words = np.array(words, dtype=object)
        self._before = np.array(["", *words][: len(words)], dtype=object)
        self._roles = np.array(view.roles, dtype=object)
        self._thirds = _thirds(view)
        objects = _objects(view)
        self.attributes = [_attributes(thing) for thing in objects]
        rows = [_covered(view, thing, cover) for thing in objects]
        self._covered = np.array(rows, dtype=bool).reshape(len(objects), len(view))
        self._nowhere = np.zeros(len(view), dtype=bool)
        self._masks: dict[Concept, Bool[np.ndarray, " n"]] = {}

    def __getitem__(self, concept: Concept) -> Bool[np.ndarray, " n"]:
        """Where a concept holds."""
        if concept not in self._masks:
            is_text = concept.kind == "text"
            found = self._at_tokens(concept) if is_text else self._at_patches(concept)
            # Most hold nowhere in most samples: those share one array.
            self._masks[concept] = found if found.any() else self._nowhere
        return self._masks[concept]

    def _at_patches(self, concept: Concept) -> Bool[np.ndarray, " n"]:
        said = dict(concept.parts)
        found = self._is_patch.copy()
        for axis, name in enumerate(("image row", "image column")):
            if name in said:
                found &= self._thirds[axis] == said.pop(name)
        patch = said.pop("image patch", "any")
        if said or patch != "any":
            wanted = said.items()
            fits = [wanted <= attributes.items() for attributes in self.attributes]
            covered = self._covered[fits].any(0)
            found &= ~covered if patch == "background" else covered
        return found

    def _at_tokens(self, concept: Concept) -> Bool[np.ndarray, " n"]:
        found = ~self._is_patch
        for attribute, value in concept.parts:
            if attribute == "word":
                found &= self._words == value
            elif attribute == "after":
                found &= self._before == value
            elif attribute == "one of":
                found &= np.isin(self._words, value.split(_SEVERAL))
            elif attribute == "role":
                found &= self._roles == value
        return found

    def named(self, attributes: Sequence[str], *, pairs: bool) -> set[Concept]:
        """The concepts that hold somewhere in this sample."""
        found = {BACKGROUND} if (self._is_patch & ~self._covered.any(0)).any() else set()
        if not self.attributes:
            found = set()  # nothing is known to be background
        for own, covered in zip(self.attributes, self._covered, strict=True):
            if covered.any():
                parts = [(name, own[name]) for name in attributes if name in own]
                several = combinations(parts, 2) if pairs else ()
                found |= {Concept("image", both) for both in [*((p,) for p in parts), *several]}
                found.add(OBJECT)
        return found | self._regions() | self._named_tokens(pairs=pairs)

    def _regions(self) -> set[Concept]:
        if not self._is_patch.any():
            return set()
        rows, columns = self._thirds
        shown = {(r, c) for r, c in zip(rows[self._is_patch], columns[self._is_patch], strict=True)}
        parts = [(("image row", r), ("image column", c)) for r, c in shown]
        single = {(part,) for both in parts for part in both}
        return {ANY_PATCH} | {Concept("image", region) for region in [*parts, *single]}

    def _named_tokens(self, *, pairs: bool) -> set[Concept]:
        if self._is_patch.all():
            return set()
        found = {ANY_TOKEN}
        for is_patch, word, before, role in zip(
            self._is_patch, self._words, self._before, self._roles, strict=True
        ):
            if is_patch:
                continue
            found.add(Concept("text", (("role", role),), f"the {role}'s tokens"))
            if word:
                found.add(Concept("text", (("word", word),)))
            if pairs and word and before:
                found.add(Concept("text", (("after", before), ("word", word))))
        return found


_KNOWN: WeakKeyDictionary[SampleView, dict[float, ViewConcepts]] = WeakKeyDictionary()


def concepts_of(view: SampleView, *, cover: int | float = COVER) -> ViewConcepts:
    """The concepts of a view, worked out once."""
    known = _KNOWN.setdefault(view, {})
    if cover not in known:
        known[cover] = ViewConcepts(view, cover=cover)
    return known[cover]


def word_classes(views: Sequence[SampleView], attributes: Sequence[str]) -> set[Concept]:
    """For each attribute the concept of all words that its values consist of.

    Example:
        >>> import numpy as np
        >>> objects = [{"box": (0, 0, 1, 1), "color": color} for color in ("red", "blue")]
        >>> from vlm_lens.data import Sample
        >>> view = SampleView(0, Sample([], "", annotations={"objects": objects}), (), (), (),
        ...                   np.zeros(0, dtype=int), np.zeros((0, 4)))
        >>> [str(concept) for concept in word_classes([view], ["color", "shape"])]
        ['words for color']
    """
    values: dict[str, set[str]] = {}
    for view in views:
        for thing in _objects(view):
            for name, value in _attributes(thing).items():
                if name in attributes:
                    values.setdefault(name, set()).update(value.lower().split())
    return {
        Concept("text", (("one of", _SEVERAL.join(sorted(words))),), f"words for {name}")
        for name, words in values.items()
    }


# Annotations --------------------------------------------------------------------------------------


def _objects(view: SampleView) -> list[Mapping[str, Any]]:
    objects = view.sample.annotations.get("objects", [])
    is_list = isinstance(objects, list | tuple)
    if not is_list or not all(isinstance(thing, Mapping) for thing in objects):
        raise ValueError(
            f"expected annotations['objects'] of sample {view.number} to be a list of "
            f"dictionaries, got {type(objects).__name__}"
        )
    return list(objects)


def _attributes(thing: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in thing.items() if isinstance(value, str)}


def _covered(
    view: SampleView, thing: Mapping[str, Any], cover: int | float
) -> Bool[np.ndarray, " n"]:
    """The patches that an object is in."""
    found = np.zeros(len(view), dtype=bool)
    shown = view.image_index == int(thing.get("image", 0))
    if not shown.any():
        return found
    boxes = view.boxes[shown]
    if (mask := thing.get("mask")) is not None:
        shared, whole = _pixels_in(boxes, np.asarray(mask, dtype=bool))
    elif (box := thing.get("box")) is not None:
        shared, whole = _overlap(boxes, np.asarray(box, dtype=np.float64))
    else:
        raise ValueError(
            f"expected a box or a mask of every annotated object, but one of sample {view.number} "
            f"has only {sorted(thing)}"
        )
    area = np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), 1e-9)
    found[shown] = (shared > 0) & ((shared >= cover * area) | (shared >= 0.5 * whole))
    return found


def _overlap(
    boxes: Float[np.ndarray, "n 4"], box: Float[np.ndarray, " 4"]
) -> tuple[Float[np.ndarray, " n"], float]:
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    return np.prod(np.maximum(high - low, 0.0), axis=1), float(np.prod(box[2:] - box[:2]))


def _pixels_in(
    boxes: Float[np.ndarray, "n 4"], mask: Bool[np.ndarray, "height width"]
) -> tuple[Float[np.ndarray, " n"], float]:
    """How many of the mask's pixels lie in each box, whose edges are rounded to pixels."""
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    sums[1:, 1:] = mask.cumsum(0).cumsum(1)
    x0, y0, x1, y1 = np.rint(boxes).astype(np.int64).T
    x0, x1 = (np.clip(x, 0, mask.shape[1]) for x in (x0, x1))
    y0, y1 = (np.clip(y, 0, mask.shape[0]) for y in (y0, y1))
    return sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0], float(mask.sum())


def _thirds(view: SampleView) -> tuple[np.ndarray, np.ndarray]:
    """The third of its image that each patch's centre lies in; "" for tokens."""
    found = np.full((2, len(view)), "", dtype=object)
    for image in view.pictured:
        shown = view.image_index == image
        boxes = view.boxes[shown]
        low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        share = ((boxes[:, :2] + boxes[:, 2:]) / 2 - low) / np.maximum(high - low, 1e-9)
        third = np.clip((share * 3).astype(np.int64), 0, 2)
        for axis, names in enumerate(_THIRDS):
            found[axis, shown] = np.array(names, dtype=object)[third[:, 1 - axis]]
    return found[0], found[1]
