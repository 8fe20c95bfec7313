# %% [markdown]
# # 8. One neuron: a real language model that ends without it
#
# Notebook 3 looked for a handful of neurons that a model cannot do without, and found none: the
# bundled model is too small for one. This notebook asks the same of a language model that people
# trained on real text, SmolLM2-135M. It is small enough for a laptop, and comes from a
# package: one command, which the next cell says if it is missing.
#
# The papers that claim such neurons (CAN and PCICN, see notebook 3) call them *critical*. Whether
# "critical" means that a neuron *knows* something is the question here.

# %%
import math

import pandas as pd
import plotly.express as px
import torch

from vlm_lens import HookedVLM, Neuron, NeuronSet, load_samples
from vlm_lens.analyses import can
from vlm_lens.masking import PERPLEXITY_RATIO, Criterion
from vlm_lens.neurons.sites import sites

torch.set_grad_enabled(False)
px.defaults.template = "plotly_white"

NAME = "smollm2-135m"  # or "shapes-llava", which has no such neuron
try:
    model = HookedVLM.from_pretrained(NAME)
except ImportError as missing:
    print(missing, "\nUntil then, this notebook shows a model that has no such neuron.")
    NAME = "shapes-llava"
    model = HookedVLM.from_pretrained(NAME)
REAL = NAME == "smollm2-135m"
samples = load_samples("austen", n=4) if REAL else load_samples(NAME, task="text", n=4)
TEXTS = [" ".join(sample.text.split()[:40]) for sample in samples]
print(model)
print(TEXTS[0])

# %% [markdown]
# The texts are from Jane Austen's novels. How surprised the model is by each next word, averaged
# in logarithms, is its *perplexity*: 1 for a model that knows everything in advance, the size of
# its vocabulary (49,152) for one that guesses blindly.


# %%
def perplexity(hooks=()):
    """Of all texts together, with hooks set."""
    losses = []
    with model.hooks(list(hooks)):
        for text in TEXTS:
            losses.append(model(text, return_type="loss", loss_per_token=True).flatten())
    return math.exp(min(torch.cat(losses).mean().item(), 50))


CLEAN = perplexity()
print(f"perplexity {CLEAN:.1f}")

# %% [markdown]
# ## A number that is too large
#
# Everything that a language model knows about a position is in its *residual stream*: here 576
# numbers, to which every layer adds something. Let us look at the largest of them, layer by layer.
#
# > **Predict.** Most of the numbers are around 1. How large is the largest one, and at which word
# > of the text would you look for it?

# %%
_, cache = model.run_with_cache(TEXTS[0])
streams = torch.stack([cache["resid_post", layer][0] for layer in range(model.cfg.n_layers)])
sizes = streams.abs()
table = pd.DataFrame(
    {
        "block": range(model.cfg.n_layers),
        "largest at the first token": sizes[:, 0].amax(-1),
        "largest elsewhere": sizes[:, 1:].amax((1, 2)),
        "median": sizes.flatten(1).median(1).values,
    }
)
fig = px.line(
    table.melt("block", var_name="entry", value_name="size"),
    x="block",
    y="size",
    color="entry",
    log_y=True,
    markers=True,
    title="The residual stream's largest entries, block by block",
    width=680,
    height=320,
)
fig.update_layout(legend={"orientation": "h", "y": -0.3, "title": None})
fig

# %%
block = int(sizes[:, 0].amax(-1).diff().argmax()) + 1
channel = int(sizes[block, 0].argmax())
print(f"block {block}, channel {channel}: {streams[block, 0, channel]:,.0f} at the first token")
if REAL:
    assert (block, channel) == (11, 507)
    assert sizes[block, 0, channel] > 1000 * sizes[block].median()

# %% [markdown]
# One channel at one position, the *first token, whatever it is*, is thousands of times larger than
# the rest. This is a *massive activation* (Sun et al. 2024). It appears in one block, stays the
# same for many, and is taken back before the end. What adds it?

# %%
ONE = Neuron(f"blocks.{block}.hook_mlp_out", channel)
written = {}
for part in ("attn_out", "mlp_out"):
    added = [cache[f"blocks.{layer}.hook_{part}"][0, 0, channel].item() for layer in table["block"]]
    written[part] = added
px.bar(
    pd.DataFrame(written),
    labels={"index": "block", "value": f"added to channel {channel}", "variable": "by"},
    title=f"What each block adds to channel {channel} at the first token",
    width=680,
    height=300,
)

# %% [markdown]
# ## Without it
#
# `ONE` is one output channel of one MLP: one number per position, of the 17,280 that all MLPs of
# this model write. We set it to zero.
#
# > **Predict.** What is the perplexity without it: 10% higher, twice as high, a thousand times?
# > And without 100 others of the same MLP?


# %%
def ratio(hooks):
    """How many times as high perplexity is with hooks set."""
    return perplexity(hooks) / CLEAN


others = [n for n in range(model.cfg.d_model) if n != channel]
some = torch.tensor(others)[torch.randperm(len(others), generator=torch.manual_seed(0))[:100]]
hundred = NeuronSet.from_indices({ONE.name: some})
alone, control = ratio(NeuronSet([ONE]).ablate("zero")), ratio(hundred.ablate("zero"))
print(f"without the one: {alone:,.1f} times as high; without 100 others: {control:.2f} times")
if REAL:
    assert alone > 1000 > 2 > control

# %%
question = "What is the capital of France?" if REAL else samples[0].text
asked = model.prepare(text=question)
print("with it:   ", model.generate(asked, max_new_tokens=12, do_sample=False))
with model.hooks(NeuronSet([ONE]).ablate("zero")):
    print("without it:", model.generate(asked, max_new_tokens=12, do_sample=False))

# %% [markdown]
# ## The method finds it
#
# CAN scores every output channel of every matrix by activation and gradient, ranks them all in one
# list, and masks from the top until perplexity is ten times as high. It knows nothing of what we
# have just seen.

# %%
with torch.enable_grad():
    names = sites(model, "output", component="language_model")  # what texts reach
    scores = can.score(model, samples[:2], sites=names, target="text", batch_size=2)
found = can.find_critical(
    model,
    samples[:2],
    scores,
    target="text",
    collapse=(Criterion(PERPLEXITY_RATIO, at_least=10.0),),
    max_k=8,
    probes=0,
)
print(f"k* = {found.k}")
if REAL:
    assert (found.k, found.ranking[0]) == (1, ONE)
scores.to_dataframe(5)

# %% [markdown]
# ## What is it for?
#
# A single neuron that a model cannot speak without: does it hold the language? Let us be careful
# with it, and change it at some positions only.
#
# > **Predict.** It is zero at the first token alone, or everywhere *but* at the first token. In
# > which of the two cases does the model still speak?


# %%
def setting(first=None, rest=None):
    """A hook that sets the neuron at the first token, at all others, or both."""

    def write(tensor, hook):
        tensor = tensor.clone()
        if first is not None:
            tensor[:, 0, channel] = first
        if rest is not None:
            tensor[:, 1:, channel] = rest
        return tensor

    return [(ONE.name, write)]


at_first = ratio(setting(first=0.0))
elsewhere = ratio(setting(rest=0.0))
print(
    f"zero at the first token alone: {at_first:,.1f} times; everywhere else: {elsewhere:.2f} times"
)
if REAL:
    assert at_first > 100
    assert elsewhere < 1.5

# %% [markdown]
# The words that are being read do not matter to it: all that counts is the first position, where
# the model has read nothing yet. What is a constant at a place without content good for? Attention
# heads must look somewhere, even when nothing fits; many look at the first token then, an
# *attention sink* (Xiao et al. 2023). A head that is to take in nothing needs nothing to be there.
#
# > **Predict.** Without the neuron, do heads look away from the first token? And how much do they
# > then add to the other positions, compared with before?


# %%
def attention(hooks=()):
    """By block, behind the first position: share of attention to it, and size of what is added."""
    names = ["blocks.*.attn.hook_pattern", "blocks.*.hook_attn_out"]
    with model.hooks(list(hooks)):
        _, kept = model.run_with_cache(TEXTS[0], names_filter=names)
    shares = [kept["pattern", layer][0, :, 1:, 0].mean().item() for layer in table["block"]]
    sizes = [kept["attn_out", layer][0, 1:].norm(dim=-1).mean().item() for layer in table["block"]]
    return shares, sizes


with_it, without_it = attention(), attention(setting(0.0, 0.0))
behind = slice(block + 1, block + 10)
share, shared = (sum(one[0][behind]) / 9 for one in (with_it, without_it))
print(f"of attention, {share:.0%} go to the first token, and {shared:.0%} without the neuron")
added, adding = (sum(one[1][behind]) / 9 for one in (with_it, without_it))
print(f"what is added to the other positions: {added:.0f}, and {adding:.0f} without the neuron")
if REAL:
    assert shared > share / 2
    assert adding > 2 * added
px.line(
    pd.DataFrame({"with it": with_it[1], "without it": without_it[1]}),
    labels={"index": "block", "value": "size of attention's output", "variable": "the neuron"},
    title="What attention adds to the positions behind the first",
    width=680,
    height=300,
)

# %% [markdown]
# Heads go on looking at the first token. But what they take from there was close to nothing: the
# norm in front of attention divides by the size of the stream, so that one huge entry makes all
# others tiny. Without it the first token has content, and every head pours that into every word.

# %% [markdown]
# ## Exercise: bring it back
#
# The neuron is gone (`setting(0.0, 0.0)`). Rescue the model *without its own value on this text*:
# put one number, the same for every text, at the first token. Where does that number come from?
# What else could you put there: the value of another text, half of it, a tenth? And could you put
# it somewhere else, for example straight into the residual stream a block later?

# %%
values = []
for sample in load_samples("austen", split="train", n=4) if REAL else samples:
    _, kept = model.run_with_cache(sample.text, names_filter=ONE.name)
    values.append(kept[ONE.name][0, 0, channel].item())
mean = sum(values) / len(values)
print("at the first token of other texts:", ", ".join(f"{value:,.0f}" for value in values))
tries = {
    "their mean": ratio(setting(mean, 0.0)),
    "half of it": ratio(setting(mean / 2, 0.0)),
    "a tenth of it": ratio(setting(mean / 10, 0.0)),
    "a hundredth of it": ratio(setting(mean / 100, 0.0)),
    "nothing": ratio(setting(0.0, 0.0)),
}
if REAL:
    assert tries["their mean"] < 1.5
pd.DataFrame({"perplexity, times as high": tries})

# %% [markdown]
# A constant rescues the model. So nothing about the text was lost with the neuron, and the
# collapse measures how the network *works*, not what it *knows*: without a place where nothing is,
# every head takes in something at every word.
#
# ## What this does not show
#
# - That the neurons in the papers are sinks, too: they report more than one, in larger models. The
#   checks (first token alone, a constant in its place) take a minute each. Make them there.
# - That a sink is unimportant. A model that cannot rest cannot speak, as we have seen; only that
#   "critical" is no word for "knows".
# - Anything about images. `HookedVLM.from_pretrained("shapes-smollm2")` puts this very language
#   model behind the tower of `shapes-llava`: the same neuron ends that model's answers about
#   pictures.
#
# The README's findings have the whole table: three draws of passages, PCICN beside CAN, matrices,
# layers, random and matched neurons, mean ablation, and float64.
