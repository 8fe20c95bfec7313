"""Opening an explorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlm_lens.hooks.names import NamesFilter
from vlm_lens.neurons import Neuron, NeuronSet

if TYPE_CHECKING:
    from vlm_lens.analyses.critical import CriticalNeurons
    from vlm_lens.analyses.explanations import Explanations
    from vlm_lens.analyses.miner_scores import ModalityScores
    from vlm_lens.analyses.neuron_types_result import NeuronTypes
    from vlm_lens.data import Sample
    from vlm_lens.explorer.widget import Explorer
    from vlm_lens.inputs import Inputs
    from vlm_lens.model import HookedVLM
    from vlm_lens.statistics import NeuronStatistics


def explore(
    model: HookedVLM,
    inputs: Inputs,
    *,
    answer: str | None = None,
    max_new_tokens: int = 20,
    names: NamesFilter = None,
    neuron: Neuron | str | None = None,
    effects: bool = True,
    statistics: NeuronStatistics | None = None,
    samples: Sequence[Sample] | None = None,
    types: NeuronTypes | None = None,
    modalities: ModalityScores | Mapping[str, NeuronSet] | None = None,
    critical: CriticalNeurons | None = None,
    explanations: Explanations | None = None,
) -> Explorer:
    """Shows every neuron over the image and in the words, linked both ways.

    Choose a neuron and see where it is active; choose a patch or a token and see which neurons are
    most active there; set neurons to zero and see what the model answers without them. Activations
    are read from the model one hook point at a time, when they are asked for, over prompt and
    answer in one sequence.

    Where the language model reads an image through queries (BLIP-2, InstructBLIP, Kosmos-2), these
    have no place in it; a neuron's values at them are spread over the encoder's patches by the
    queries' attention, see `TokenMap.through`. Of the heads and blocks that attend to the patches
    the mean is taken, which is a choice of ours.

    Args:
        model: The model; nothing about it is changed.
        inputs: One prompt without an answer, as `model.prepare` returns it.
        answer: A text to put behind the prompt; by default what the model answers.
        max_new_tokens: At most so many tokens of a generated answer.
        names: Hook points to offer, as names, globs or a predicate; by default all with neurons.
        neuron: The one that is shown first; by default, in the middle of the language model, the
            one that helps the answer most.
        effects: Whether each neuron's effect on the answer is estimated (to first order), which
            takes a backward pass for each hook point.
        statistics: Of `vlm_lens.statistics.collect`: what is usual for each neuron, and its top
            samples.
        samples: The samples that the statistics were collected on, in their order.
        types: Of `neuron_types.classify`.
        modalities: MINER's scores, or the sets that it selected for each modality.
        critical: Of `can.find_critical` or `pcicn.find_critical`.
        explanations: Of `explain`; their exemplars are shown as top samples.

    Returns:
        A widget. In a notebook it shows itself; ``explorer.to_html(path)`` writes a page.

    Raises:
        TypeError: The inputs are not what `model.prepare` returns.
        ValueError: They are several prompts or hold an answer, or no hook point is reached.
        HookNameError: A name matches nothing.
        KeyError, IndexError: There is no such neuron to start with.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> [sample] = load_samples("shapes-llava", n=1)
        >>> inputs = model.prepare(images=sample.images, text=sample.text)
        >>> explorer = explore(model, inputs, neuron="blocks.2.mlp.hook_post[7]")
        >>> explorer.selection = [explorer.neuron]
        >>> explorer.selection
        NeuronSet(1 neuron: blocks.2.mlp.hook_post 1)
    """
    # Widget libraries take time to import; nobody else needs them.
    from vlm_lens.explorer.cards import Cards
    from vlm_lens.explorer.facts import Results
    from vlm_lens.explorer.layers import Layers
    from vlm_lens.explorer.requests import Requests
    from vlm_lens.explorer.subject import make_subject
    from vlm_lens.explorer.widget import Explorer

    subject = make_subject(model, inputs, answer=answer, max_new_tokens=max_new_tokens)
    layers = Layers(subject, names=names, effects=effects)
    known: dict[str, Any] = {"statistics": statistics, "explanations": explanations}
    cards = Cards(model, samples=samples, **known)
    results = Results(types=types, modalities=modalities, critical=critical, **known)
    start = Neuron.parse(neuron) if isinstance(neuron, str) else neuron
    return Explorer(Requests(subject, layers, results, cards), start=start)
