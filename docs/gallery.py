"""Every figure on the bundled model, with the call that draws it: those of `vlm_lens.plots` take
arrays, tables and neurons, and results draw themselves with them. All calls start from these lines:

```python
from vlm_lens import HookedVLM, load_samples, plots
from vlm_lens.shapes_llava import IMAGES

model = HookedVLM.from_pretrained("shapes-llava")
sample = load_samples(IMAGES)[4]  # is the red star below the yellow circle ?
image = sample.images[0]
inputs = model.prepare(images=image, text=sample.text)
token_map = inputs.token_map[0]
logits, cache = model.run_with_cache(inputs)
```

Charts are plotly's: point at them to read values, drag to zoom.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

_FENCED = re.compile(r"```python\n(.*?)```", re.DOTALL)

CODES = {
    "A neuron over the image": """
name = "blocks.1.mlp.hook_act"
values = cache[name][0, :, 200]
plots.neuron_over_image(
    image, token_map.grid_values(values), grid=token_map.grid(), title=f"{name}[200]"
)
""",
    "A neuron over the tokens": """
plots.neuron_over_tokens(token_map.tokens, values, groups=token_map.role)
""",
    "Many neurons over the tokens": """
import torch

activations = torch.stack([cache["post", layer][0, :, :64] for layer in range(6)], dim=1)
plots.neurons_over_tokens(token_map.tokens, activations)
""",
    "Attention from a token over the image": """
last = cache["pattern", 3][0, :, -1]
plots.attention_over_image(image, last, token_map, position=-1)
""",
    "Attention from a patch over the image, in the vision encoder": """
pattern = cache["vision_encoder.blocks.2.attn.hook_pattern"]
plots.attention_over_image(image, pattern[0, :, 50], token_map, position=50, patches=True)
""",
    "Attention that a patch receives from the tokens": """
to_patch = cache["pattern", 3][0, :, :, 50]
plots.attention_over_tokens(to_patch, token_map, position=50, received=True, image=image)
""",
    "Attention from a token over the tokens": """
plots.attention_over_tokens(cache["pattern", 3][0, :, -1], token_map, position=-1)
""",
    "Attention patterns by head": """
plots.attention_heads(cache["pattern", 3][0], token_map.tokens)
""",
    "Logit lens over the image": """
from vlm_lens.analyses.logit_lens import logit_lens

lens = logit_lens(model, inputs, follow=["circle"])
plots.logit_lens_over_image(image, lens, token_map)
""",
    "Logit lens: one token's probability": """
plots.logit_lens_over_image(image, lens, token_map, follow="circle")
""",
    "Logit lens by layer": """
plots.logit_lens_by_layer(logit_lens(model, inputs, positions="text"), token_map)
""",
    "Any number of all neurons: their part in the answer": """
from vlm_lens.analyses import first_order_effect

effect = first_order_effect(model, inputs)
plots.layer_neuron_map(effect.scores, label="effect (logits)")
""",
    "Statistics of a data set by layer": """
from vlm_lens.statistics import collect

samples = load_samples("shapes-llava", n=32)
statistics = collect(model, samples, component="language_model")
plots.statistics_by_layer(statistics)
""",
    "Activations by type of token": """
from vlm_lens.neurons import Neuron
from vlm_lens.statistics import collect_histograms

neuron = Neuron("blocks.1.mlp.hook_act", 200)
found = collect_histograms(model, samples, [neuron], statistics=statistics)
plots.activation_histogram(found[neuron])
""",
    "Collapse: perplexity and answers as neurons are masked": """
from vlm_lens.analyses import can

few = samples[-8:]
critical = can.find_critical(model, few, can.score(model, few), max_k=512)
critical.plot()
""",
    "What is answered on the way": """
critical.gallery(n=4)
""",
    "Where neurons sit": """
critical.where()
""",
    "MINER: importance by layer": """
from vlm_lens.analyses import miner

scores = miner.score(model, samples)
selected = miner.select(scores, ratio=0.1)
scores.plot(selected=selected)
""",
    "MINER: what the sets share": """
from vlm_lens.experiments.sets import overlap

overlap(selected).plot()
""",
    "MINER: tasks as more neurons are masked": """
from vlm_lens.analyses.miner_curve import masking_curve

tasks = {"image": samples[:8], "text": load_samples("shapes-llava", task="text", n=8)}
masking_curve(model, scores, tasks, ratios=[0.02, 0.1, 0.3], seeds=[0]).plot()
""",
    "MINER: whose neurons matter for which task": """
from vlm_lens.experiments import matrix

matrix(model, selected, tasks, seeds=[0]).plot()
""",
    "MINER: how near modalities come to each other": """
from vlm_lens.analyses.miner_convergence import convergence

convergence(model, samples).plot()
""",
    "MINER: what the last token attends to": """
from vlm_lens.analyses.miner_attention import last_token_attention

last_token_attention(model, samples[:8], selected=selected).plot()
""",
    "Types of neurons by layer": """
from vlm_lens.analyses import neuron_types

captions = load_samples("shapes-llava", task="caption", n=32)
neuron_types.classify(model, captions, top_samples=10).plot()
""",
    "A neuron's exemplars, and what its explanation predicts": """
from vlm_lens.analyses.explain import explain

explain(model, samples, [neuron], top=3, random=3, shuffles=0).plot(neuron, n=3)
""",
    "Lines of any table": """
rows = statistics.to_dataframe().groupby(["layer", "token_type"], as_index=False)
rows = rows.mean(numeric_only=True)
drawn = plots.lines_of(rows.to_dict("records"), "layer", "active_rate", by=["token_type"])
plots.lines([plots.Panel("share of positions where active", drawn)], title="Activity by layer")
""",
    "Cells of any table": """
tokens = {"image": "patches", "text": "words", "special": "special tokens"}
entries = [
    plots.Cell(f"{row.layer}", row.token_type, row.mean, f"{row.mean:.3f}", "mean activation")
    for row in rows.itertuples()
]
plots.cells(
    entries,
    rows={f"{layer}": f"layer {layer}" for layer in rows.layer},
    columns=tokens,
    title="Mean activation by layer and type of token",
    colour_title="activation",
)
""",
    "A figure as a file": """
figure = plots.where_they_sit(selected["image"])
plots.save(figure, "where.html")  # or .png, .svg
figure
""",
}
"""By title; the last line of each is the figure."""


@dataclass(frozen=True)
class Example:
    """One figure.

    Attributes:
        title: What it shows.
        code: The lines that draw it, the last of which is the figure.
        figure: What they draw: a figure of plotly, or an `HtmlFigure`.
    """

    title: str
    code: str
    figure: Any


def examples() -> Iterator[Example]:
    """Runs all calls, one after the other: later ones use what earlier ones found."""
    known: dict[str, Any] = {}
    found = _FENCED.search(__doc__ or "")
    assert found is not None
    with TemporaryDirectory() as folder, chdir(folder):
        run(found[1], known)
        for title, code in CODES.items():
            yield Example(title, code.strip(), run(code, known))


def run(code: str, known: dict[str, Any]) -> Any:
    """Runs some lines; the value of the last one, as a notebook shows it.

    Args:
        code: The lines.
        known: The names that they know, and add to.

    Example:
        >>> run("a = 2\\na + 1", {})
        3
    """
    parsed = ast.parse(code)
    last = parsed.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(parsed, "<gallery>", "exec"), known)
        return None
    before = ast.Module(parsed.body[:-1], type_ignores=[])
    exec(compile(before, "<gallery>", "exec"), known)
    return eval(compile(ast.Expression(last.value), "<gallery>", "eval"), known)
