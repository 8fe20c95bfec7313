# %% [markdown]
# # 2. Where the image goes
#
# A picture goes in as pixels, and a word comes out. Somewhere in between "blue" must have got from
# a few patches to the position where the answer is written. This notebook follows it with three
# instruments, from the simplest to the most seductive:
#
# 1. the **token map**: which position shows which part of the picture,
# 2. **attention**: which positions the answer looks at,
# 3. the **logit lens**: which words the model would read off a position, layer by layer.
#
# Each of them shows something true, and each is easily taken for more than it shows. So each is
# followed by a test.

# %%
import numpy as np
import pandas as pd
import plotly.express as px
import torch

from vlm_lens import HookedVLM, load_samples
from vlm_lens.analyses.logit_lens import logit_lens
from vlm_lens.plots import (
    attention_over_image,
    logit_lens_by_layer,
    logit_lens_over_image,
    neuron_over_image,
)
from vlm_lens.shapes_llava import IMAGES

torch.set_grad_enabled(False)
px.defaults.template = "plotly_white"

NAME = "shapes-llava"  # or "llava-hf/llava-1.5-7b-hf": see the end of this notebook
BUNDLED = NAME == "shapes-llava"
model = HookedVLM.from_pretrained(NAME, device="cuda" if torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## From pixels to positions
#
# The picture is cut into patches, row by row. The encoder makes a vector of each, the projector
# translates it, and these vectors stand in the language model where the prompt had its image token.
#
# > **Predict.** The picture begins at position 1, and has 8 patches a row. Where does position 10
# > lie?

# %%
sample = load_samples(IMAGES)[0]
picture = sample.images[0]
inputs = model.prepare(images=picture, text=sample.text)
token_map = inputs.token_map[0]
print(token_map)
print(sample.text, "->", model.generate(inputs))
print("position 10 is row, column", token_map.cell(10), "and shows", token_map.box(10))
neuron_over_image(
    picture,
    token_map.grid_values(np.arange(len(token_map))),
    grid=token_map.grid(),
    label="position",
    title="The positions of the picture",
)

# %% [markdown]
# Boxes are in pixels of *your* picture, not of what the model made of it. That matters as soon as
# the picture has another size: it is resized, and sometimes cropped, before it is cut.
#
# > **Predict.** The next picture has 320 × 240 pixels, and becomes 8 × 8 patches as well. How wide
# > and how high is a patch? Does every part of the picture have a position?

# %%
wide = load_samples(IMAGES)[5].images[0]
wide_map = model.prepare(images=wide, text="how many objects ?").token_map[0]
print(wide.size, "first patch:", wide_map.box(wide_map.positions("image")[0]))
for x in (10, 160, 310):
    print(f"the pixel ({x}, 120) is shown by position", wide_map.position(x, 120))

# %% [markdown]
# ## Attention: where the answer looks
#
# In each layer every position gathers from the positions before it. How much it takes from each is
# the *attention pattern*: for each head, numbers that add up to 1. The answer is written at the
# last position. How much of its attention goes to the picture?
#
# > **Predict.** Most of the sequence is picture. If attention were even, what share would the
# > picture get? In which layers do you expect more: early or late?

# %%
_, cache = model.run_with_cache(inputs, names_filter="blocks.*.attn.hook_pattern")
in_picture = token_map.positions("image")
shares = torch.stack(
    [cache["pattern", layer][0, :, -1, in_picture].sum(-1) for layer in range(model.cfg.n_layers)]
).cpu()
print(f"if it were even: {len(in_picture) / len(token_map):.0%}")
px.imshow(
    shares,
    labels={"x": "head", "y": "layer", "color": "share"},
    title="Share of the last position's attention that goes to the picture",
    text_auto=".0%",
    zmin=0,
    zmax=1,
    color_continuous_scale="Oranges",
    aspect="auto",
    width=520,
    height=380,
)

# %% [markdown]
# It is not even, and neither "early" nor "late": there are heads that look at the picture and
# nothing else, beside heads that ignore it. A share says nothing about *where* in the picture. Take
# the layer that looks at the picture most.
#
# > **Predict.** "What color is the square ?" Will the answer look at the square, at everything
# > coloured, or all over the place?

# %%
LAYER = int(shares.mean(1).argmax())
print("layer", LAYER)
attention_over_image(
    picture, cache["pattern", LAYER][0, :, -1], token_map, position=len(token_map) - 1
)

# %% [markdown]
# Three heads look at the square and hardly anywhere else. One picture is an anecdote; here are
# twenty, with the share of the attention that the object in question gets, beside the share that
# the other objects get together.


# %%
questions = []
for other in load_samples("shapes-llava", n=200):
    objects = other.annotations["objects"]
    if other.category != "color" or len(objects) == 1:
        continue
    prompt = model.prepare(images=other.images, text=other.text)
    positions = [prompt.token_map[0].positions_in(thing["box"]) for thing in objects]
    asked = positions[other.annotations["about"][0]]
    rest = {pos for some in positions for pos in some} - set(asked)
    questions.append((prompt, asked, sorted(rest)))
print(len(questions), "questions about a colour")

rows = []
for prompt, asked, rest in questions:
    _, cache = model.run_with_cache(prompt, names_filter=f"blocks.{LAYER}.attn.hook_pattern")
    last = cache["pattern", LAYER][0, :, -1]
    for head in range(len(last)):
        rows.append(
            {
                "head": head,
                "asked for": float(last[head, asked].sum()),
                "others": float(last[head, rest].sum()),
            }
        )
looks = pd.DataFrame(rows).groupby("head").mean()
if BUNDLED:
    assert len(questions) == 20
    assert (looks["asked for"] > 0.9).sum() == 2
looks.round(2)

# %% [markdown]
# ## The test: is what is looked at what is used?
#
# Two heads point at the right object nearly always. It is tempting to conclude that the answer's
# colour comes through them. If so, it must be lost when the view is cut: we set the attention of
# *all* words to the object's patches to zero, in *all* heads. As controls we cut the view of the
# other objects, and of the empty background.
#
# > **Predict.** How many of the twenty answers change if the object cannot be seen in this layer?
# > And if it cannot be seen in any layer? Guessing a colour would be wrong five times of six.


# %%
def share_changed(layers, which):
    """The share of answers that change when words cannot see some patches in these layers."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
    changed = 0
    for prompt, asked, rest in questions:
        tokens = prompt.token_map[0]
        keys = {
            "the object": asked,
            "other objects": rest,
            "background": sorted(set(tokens.positions("image")) - set(asked) - set(rest)),
        }[which]
        queries = torch.tensor(tokens.positions("text"))[:, None]

        def cut(pattern, hook, queries=queries, keys=keys):
            pattern[:, :, queries, keys] = 0
            return pattern

        hooked = model.run_with_hooks(prompt, fwd_hooks=[(names, cut)])
        changed += int(hooked[0, -1].argmax() != model(prompt)[0, -1].argmax())
    return changed / len(questions)


every = range(model.cfg.n_layers)
cuts = {
    which: {"this layer": share_changed([LAYER], which), "all layers": share_changed(every, which)}
    for which in ("the object", "other objects", "background")
}
if BUNDLED:
    assert 0.2 < cuts["the object"]["this layer"] < cuts["the object"]["all layers"] < 0.8
    assert cuts["other objects"]["all layers"] == cuts["background"]["all layers"] == 0
pd.DataFrame(cuts).T

# %% [markdown]
# The controls are clean: nothing changes when the words cannot see the other objects, or the
# background. The object's own patches do matter. But many answers survive the cut, even in all
# layers, and more than guessing would leave. So the colour must come some other way too. One guess:
# patches beside the object know a little of it, and they can still be seen. Exercise 6 in notebook
# 7 tests that.
#
# **What this shows:** attention tells where a head looks, and a cut whether the look is needed.
# **What it does not show:** what was read there. A head can look at the square for its place.
# Notebook 6 moves the colour alone.
#
# ## The logit lens: what a position would say
#
# The last layer's vectors become words by a final norm and a matrix, the unembedding. Nothing stops
# us from applying both to an earlier layer, as if the layers behind did not exist:
#
# $$\text{lens}_\ell = \mathrm{softmax}\big(W_U\,\mathrm{norm}(x_\ell)\big)$$
#
# First at the positions of the words.
#
# > **Predict.** After how many of the blocks does "blue" lead at the last position?

# %%
words = token_map.positions("text")
lens = logit_lens(model, inputs, positions=words)
logit_lens_by_layer(lens, token_map)

# %% [markdown]
# Row 3 is what layer 2 leaves, whose heads look at the square; "blue" leads from row 4 on. Looking
# and saying are two steps.

# %%
last = len(token_map) - 1
leads = [depth for depth in lens.depths if lens.words(depth, last)[0] == model.generate(inputs)]
print("the answer leads after so many blocks:", leads)
if BUNDLED:
    assert leads == [4, 5, 6]

# %% [markdown]
# The more exciting use is on the *picture's* positions. Nobody trained them to say anything: no
# loss was ever taken there. Yet in large models, late layers often name what a patch shows ([Neo et
# al. 2024](https://arxiv.org/abs/2410.07149)).
#
# > **Predict.** Move the slider below from left to right. Do patches name what they show?

# %%
COLOURS = ["red", "green", "blue", "yellow", "purple", "cyan"]
# In other vocabularies a word may be several tokens, which the lens cannot follow.
COLOURS = [c for c in COLOURS if model.to_tokens(c, prepend_bos=False).shape[1] == 1]
over_picture = logit_lens(model, inputs, follow=COLOURS)
logit_lens_over_image(picture, over_picture, token_map)

# %% [markdown]
# Hardly. Objects can be told from the background, but by words that mean nothing here. Some words
# do fit, and one can always find some that do. This is the moment to stop looking and to count: at
# the patch in the middle of an object, which of the *colour words* is the most probable? And how
# often is a colour the most probable of *all* words?
#
# > **Predict.** By chance it is the right one in one of six. What will it be after the first block,
# > and after the last?

# %%
hits = {depth: [] for depth in over_picture.depths}
says = {depth: [] for depth in over_picture.depths}
for other in load_samples("shapes-llava", n=40):
    prompt = model.prepare(images=other.images, text=other.text)
    decoded = logit_lens(model, prompt, follow=COLOURS)
    for thing in other.annotations["objects"]:
        x0, y0, x1, y1 = thing["box"]
        middle = prompt.token_map[0].position((x0 + x1) / 2, (y0 + y1) / 2)
        place = decoded.positions.index(middle)
        for row, depth in enumerate(decoded.depths):
            shares = [float(decoded.followed[c][row, place]) for c in COLOURS]
            hits[depth].append(COLOURS[int(np.argmax(shares))] == thing["color"])
            says[depth].append(decoded.words(depth, middle)[0] == thing["color"])
right = pd.DataFrame(
    {
        "the likeliest colour": {depth: np.mean(found) for depth, found in hits.items()},
        "the likeliest word": {depth: np.mean(found) for depth, found in says.items()},
    }
)
print(len(hits[0]), "objects; chance is", round(1 / len(COLOURS), 2), "among the colours")
if BUNDLED:
    likeliest = right["the likeliest colour"]
    assert likeliest[1] < 1 / 6 < 0.4 < likeliest[6]
    assert right["the likeliest word"].max() < 0.1
figure = px.line(right, markers=True, title="The object's own colour is ...")
figure.add_hline(1 / len(COLOURS), line_dash="dot", annotation_text="chance")
figure.update_layout(
    xaxis_title="blocks passed",
    yaxis_title="share of objects",
    yaxis_range=[0, 1],
    legend_title="",
    width=700,
    height=360,
)

# %% [markdown]
# Behind the last block the patches do know their colour, far better than chance, although they
# hardly ever *say* it: some other word leads. In the first blocks the lens is at chance or below.
# That is no proof that the colour is not there. It certainly is, since the answer comes from it.
# The lens reads one direction per word, the one that the *last* layer uses; early layers write in
# others.
#
# ## What this does not show
#
# - **Absence.** What the lens cannot read may be there in another direction. A trained probe, or
#   patching (notebook 6), finds more.
# - **Use.** What the patches know behind the last block cannot matter to the answer at all: no
#   block is left that could move it to the last position.
# - **Generality.** One kind of question in a world of six colours. Ask about digits or places, and
#   other heads look elsewhere.
#
# ## The same on a 7B model
#
# Set `NAME = "llava-hf/llava-1.5-7b-hf"` at the top. What changes:
#
# - a picture of the bundled world is enlarged to 336 × 336 and becomes 24 × 24 patches, so an
#   object covers dozens of positions;
# - there are 32 layers of 32 heads: the table of shares gets large, and looking at single heads by
#   eye stops being a method;
# - patterns of all layers take 32 × 32 × 600 × 600 numbers for each question: keep one layer, as
#   above, or one row of it with a hook of your own;
# - colour words may be several tokens (the filter above drops them), and answers are sentences.
