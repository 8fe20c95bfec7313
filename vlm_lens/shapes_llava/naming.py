"""Naming: linear heads that say which object an image token or a word is about.

Answers alone teach slowly what has to come before them: seeing what lies in a patch, tying the
words of a told phrase together, finding the object that a question speaks of. So in the training
each position that is about one object also names it. The heads are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm

from vlm_lens.shapes_llava.build import IMAGE_TOKENS
from vlm_lens.shapes_llava.draw import locate_objects
from vlm_lens.shapes_llava.questions import Question
from vlm_lens.shapes_llava.scenes import Scene, SceneObject
from vlm_lens.shapes_llava.words import COLORS, NAMES, PLACES

LABELS = {"color": COLORS, "name": NAMES, "place": PLACES}
"""What is said of an object, and the words to choose from."""
NOTHING = tuple(len(words) for words in LABELS.values())
"""Label of an image token that shows no object."""
SHOWN_FRACTION = 0.1
"""A patch shows an object that covers more of it than this."""
NOTHING_WEIGHT = 0.1
"""Weight of an empty patch; most patches are empty, and easily seen to be."""


class Namer(nn.Module):
    """One linear head for each of `LABELS`.

    Args:
        width: width of the states that are to name their object.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.heads = nn.ModuleList(nn.Linear(width, len(words) + 1) for words in LABELS.values())

    def loss(
        self, states: Float[Tensor, "*pos width"], labels: Int[Tensor, "*pos 3"]
    ) -> Float[Tensor, ""]:
        """Weighted mean over positions of the summed cross-entropies of all heads."""
        states = rms_norm(states.flatten(0, -2), (self.width,))
        labels = labels.flatten(0, -2)
        losses = [
            cross_entropy(head(states), wanted, reduction="none")
            for head, wanted in zip(self.heads, labels.unbind(1), strict=True)
        ]
        empty = labels[:, 0] == NOTHING[0]
        weights = torch.where(empty, NOTHING_WEIGHT, 1.0)
        return (torch.stack(losses).sum(0) * weights).sum() / weights.sum()


def label_object(thing: SceneObject) -> tuple[int, int, int]:
    """Indices of an object's words in `LABELS`."""
    return COLORS.index(thing.color), NAMES.index(thing.name), thing.place


def label_patches(scenes: Sequence[Scene]) -> Int[Tensor, "batch patches 3"]:
    """What each patch shows, as indices into `LABELS`; `NOTHING` where it shows no object."""
    labels = torch.tensor(NOTHING).repeat(len(scenes), IMAGE_TOKENS, 1)
    for row, scene in enumerate(scenes):
        for thing, drawing in zip(scene.objects, locate_objects(scene), strict=True):
            shown = torch.from_numpy(drawing.patch_fraction.ravel() > SHOWN_FRACTION)
            labels[row, shown] = torch.tensor(label_object(thing))
    return labels


Mention = tuple[int, SceneObject]
"""The index of a word, and the object that it is about."""


def find_told(words: Sequence[str], scene: Scene) -> list[Mention]:
    """The full stops of a told scene; each is about the object of the phrase that it ends.

    Example:
        >>> from random import Random
        >>> from vlm_lens.shapes_llava.questions import tell
        >>> from vlm_lens.shapes_llava.scenes import sample_scene
        >>> scene = sample_scene(Random(0))
        >>> words = tell(Random(0), scene).split()
        >>> [words[index] for index, _ in find_told(words, scene)]
        ['.', '.', '.', '.']
    """
    phrases = {thing.phrase: thing for thing in scene.objects}
    ends = [index for index, word in enumerate(words) if word == "."]
    starts = [words.index("a"), *(end + 1 for end in ends)] if ends else []
    told = [" ".join(words[start:end]) for start, end in zip(starts, ends, strict=False)]
    return [(end, phrases[phrase]) for end, phrase in zip(ends, told, strict=True)]


def find_asked(words: Sequence[str], question: Question, scene: Scene) -> list[Mention]:
    """The words of a prompt from which on it is clear which object the question is about.

    These are all from the last word of the question, before "?", to the end of the prompt; in a
    question about a relation also the name of the first object. A question that is not about one
    object, or about a relation of two, has none.

    Args:
        words: the prompt, with the question and what follows it.
        question: the question.
        scene: what the question is about.
    """
    about = [scene.objects[index] for index in question.about]
    related = question.category == "relation"
    if question.category in ("count", "description") or not (related or len(about) == 1):
        return []
    known = [(index, about[-1]) for index in range(words.index("?") - 1, len(words))]
    return [(words.index(about[0].name), about[0]), *known] if related else known
