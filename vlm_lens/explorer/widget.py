"""The explorer in a notebook: an anywidget whose questions the kernel answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from vlm_lens.explorer.page import fallback, page
from vlm_lens.explorer.requests import Requests
from vlm_lens.explorer.scripts import STYLE, WIDGET
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.pages.write import check_target, write_report


class Explorer(anywidget.AnyWidget):
    """One prompt, its answer and every neuron, to be looked at; see `explore`.

    What is chosen in the browser is known here, and the other way round: `neuron` is the one that
    is shown, `selection` those that were kept.

    Args:
        requests: What answers the page's questions.
        start: The neuron that is shown first.
    """

    _esm = WIDGET
    _css = STYLE

    _shown = traitlets.List().tag(sync=True)
    _kept = traitlets.List().tag(sync=True)

    def __init__(self, requests: Requests, *, start: Neuron | None = None) -> None:
        self._requests = requests
        first = requests.first() if start is None else self._checked(start)
        super().__init__(_shown=[first.name, first.index], _kept=[])
        self.on_msg(self._on_message)

    # What is chosen ---------------------------------------------------------------------------

    @property
    def neuron(self) -> Neuron:
        """The neuron that is shown; set it to show another one.

        Raises:
            KeyError, IndexError: There is no such neuron here.
        """
        name, index = self._shown
        return Neuron(name, index)

    @neuron.setter
    def neuron(self, neuron: Neuron | str) -> None:
        chosen = self._checked(Neuron.parse(neuron) if isinstance(neuron, str) else neuron)
        self._shown = [chosen.name, chosen.index]

    @property
    def selection(self) -> NeuronSet:
        """The neurons that were kept, in the order of keeping; set it to show others as kept.

        Raises:
            KeyError, IndexError: There is no such neuron here.
        """
        neurons = [Neuron(name, index) for name, index in self._kept]
        return NeuronSet(neurons, sizes=self._requests.layers.sizes)

    @selection.setter
    def selection(self, neurons: Iterable[Neuron]) -> None:
        chosen = [self._checked(neuron) for neuron in neurons]
        self._kept = [[neuron.name, neuron.index] for neuron in chosen]

    def on_neuron(self, tell: Callable[[Neuron], None]) -> None:
        """Has a function called with each neuron that is shown from now on."""
        self.observe(lambda _: tell(self.neuron), names="_shown")

    def _checked(self, neuron: Neuron) -> Neuron:
        n = self._requests.layers.sizes.get(neuron.name)
        if n is None:
            raise KeyError(
                f"there is no hook point {neuron.name!r} to explore: it has no neurons, was left "
                "out, or this prompt does not reach it"
            )
        if neuron.index >= n:
            raise IndexError(f"there is no neuron {neuron}: {neuron.name} has 0 to {n - 1}")
        return neuron

    # What the page asks -----------------------------------------------------------------------

    def _on_message(self, _: Any, asked: Mapping[str, Any], __: list[Any]) -> None:
        """Answers a question of one view; the others see by its number that it is not theirs."""
        number = asked.get("id")
        try:
            found, buffers = self._requests({k: v for k, v in asked.items() if k != "id"})
        except Exception as error:  # whatever it is, the page has to say so
            self.send({"id": number, "error": _sentence(error)})
            if not isinstance(error, LookupError | ValueError):
                raise  # a bug, whose traceback belongs below the cell
        else:
            self.send({"id": number, **found}, buffers=buffers)

    # Without a kernel -------------------------------------------------------------------------

    def to_html(
        self, path: str | os.PathLike[str], *, names: NamesFilter = None, neurons: int = 512
    ) -> None:
        """Writes one page that needs neither a kernel nor a network.

        Activations are stored in a byte each, between a neuron's smallest and largest value: they
        are off by at most (largest - smallest) / 510, which the page says.

        Args:
            path: The file.
            names: Hook points; by default the neurons of every MLP, or as many layers of them,
                evenly chosen, as fit into a page of 5 MB.
            neurons: At most so many neurons of each hook point: in turn the next by largest
                activation, by effect on the answer, and by selectivity for image and for text.
                Those that are kept or shown are always among them.

        Raises:
            HookNameError: A name matches nothing.
            ValueError: The number is not positive, or a name is none that can be explored.
            OSError: The file cannot be written.
        """
        target = Path(path)
        check_target(target)
        chosen = {"start": self.neuron, "kept": self.selection}
        write_report(page(self._requests, names=names, neurons=neurons, **chosen), target)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget; and for front ends that cannot run it, a small page without a kernel."""
        shown = super()._repr_mimebundle_(**kwargs)
        data, metadata = shown if isinstance(shown, tuple) else (shown, {})
        html = fallback(self._requests, start=self.neuron, kept=self.selection)
        frame = (
            f'<iframe srcdoc="{escape(html)}" sandbox="allow-scripts" title="neuron explorer" '
            'style="width:100%;height:900px;border:0"></iframe>'
        )
        return {**(data or {}), "text/html": frame}, metadata


def _sentence(error: Exception) -> str:
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(f"{type(error).__name__}: {message}".split())
