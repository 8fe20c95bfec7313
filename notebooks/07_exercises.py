# %% [markdown]
# # 7. Exercises
#
# Reading about a method is pleasant, using it is how one finds out what one has understood. Here
# are eight exercises, from a minute to half an hour each. Put your answer in place of the three
# dots and run the cell: the check says what is wrong with an answer, and does not give it away.
#
# The tools are those of the notebooks before; each exercise names the one to look into. Solutions
# are in `07_solutions.ipynb`. Look there late.

# %%
import torch

from vlm_lens import HookedVLM, NeuronSet, load_samples
from vlm_lens.teaching import Exercises, make_pairs
from vlm_lens.teaching.claims import CLAIMS

torch.set_grad_enabled(False)

NAME = "shapes-llava"  # or "llava-hf/llava-1.5-7b-hf": see the end of this notebook
BUNDLED = NAME == "shapes-llava"
model = HookedVLM.from_pretrained(NAME, device="cuda" if torch.cuda.is_available() else "cpu")
exercises = Exercises(model)
inputs, token_map = exercises.inputs, exercises.token_map
_, cache = model.run_with_cache(inputs, names_filter=["*.hook_pattern", "*.mlp.hook_post"])
print(exercises.question, "->", model.generate(inputs))
exercises.picture.resize((256, 256), resample=0)

# %% [markdown]
# ## 1. Where is it? (notebook 1)
#
# Which position of the prompt shows the pixel 52 from the left and 30 from the top?

# %%
exercises.check(1, ...)

# %% [markdown]
# ## 2. How much of it is picture? (notebook 2)
#
# What share of its attention does the last position pay to the picture, in layer 2, head 3? A
# number from 0 to 1.

# %%
exercises.check(2, ...)

# %% [markdown]
# ## 3. A hook that blurs (notebook 1)
#
# Write a hook function for `projector.hook_out`, a tensor [batch, patch, d]: every patch becomes
# the mean of all patches *of its own picture*. The model then knows what is in the picture on
# average, but no longer where.
#
# > **Predict.** Which questions will it still answer: how many objects? is there something red?
# > what color is the square?


# %%
def average(tensor, hook):
    """Every patch becomes the mean of its picture's patches."""
    ...  # your code


exercises.check(3, average)

# %%
for text in ("how many objects are there ?", "is there a red object ?", exercises.question):
    asked = model.prepare(images=exercises.picture, text=text)
    with model.hooks([("projector.hook_out", average)]):
        print(f"{text:30} {model.generate(asked)}")

# %% [markdown]
# ## 4. Neurons for the picture (notebook 1)
#
# For each neuron of layer 3 (`blocks.3.mlp.hook_post`) take its mean over the picture's positions
# minus its mean over the words' positions. Make a `NeuronSet` of the ten neurons where this is
# largest, best first.

# %%
exercises.check(4, ...)

# %% [markdown]
# ## 5. Better than chance? (notebook 3)
#
# You zeroed some neurons, and the margin fell by 3. Is that much? Write a function that compares
# with `n` random controls: `neurons.sample_control(sizes, seed=...)` with the seeds 0 to n - 1. It
# returns the **share** of controls that do *at least* as much harm as the neurons. `harm` is a
# function of a NeuronSet that returns a number.


# %%
def share_of_controls(harm, neurons, sizes, n):
    """Which share of n random controls does at least as much harm."""
    ...  # your code


exercises.check(5, share_of_controls)

# %% [markdown]
# ## 6. Is the colour in the surroundings? (notebook 2)
#
# In notebook 2, words that could not see the object's patches often got its colour right all the
# same. A guess was that patches beside the object know a little of it. To test that, one has to cut
# the view of the surroundings too. Write a function that returns all positions whose patch is at
# most `distance` patches from one of the given positions, in any direction, diagonally too. Mind
# the borders of the picture.


# %%
def neighbours(token_map, positions, distance):
    """The positions within some patches of the given ones, those included."""
    ...  # your code


exercises.check(6, neighbours)

# %% [markdown]
# > **Predict.** The more of the surroundings is cut, the more answers change? How many for the
# > whole picture?


# %%
def changed(sample, distance):
    """Whether the answer changes when words cannot see an object and its surroundings."""
    prompt = model.prepare(images=sample.images, text=sample.text)
    tokens = prompt.token_map[0]
    x0, y0, x1, y1 = sample.annotations["objects"][sample.annotations["about"][0]]["box"]
    boxes = {p: tokens.box(p) for p in tokens.positions("image")}
    seen = [p for p, b in boxes.items() if b[0] < x1 and b[2] > x0 and b[1] < y1 and b[3] > y0]
    keys = sorted(neighbours(tokens, seen, distance))
    queries = torch.tensor(tokens.positions("text"))[:, None]

    def cut(pattern, hook):
        pattern[:, :, queries, keys] = 0
        return pattern

    hooked = model.run_with_hooks(prompt, fwd_hooks=[("blocks.*.attn.hook_pattern", cut)])
    return bool(hooked[0, -1].argmax() != model(prompt)[0, -1].argmax())


if exercises.is_right(6):
    samples = [s for s in load_samples("shapes-llava", n=140) if s.category == "color"]
    for distance in (0, 1, 2, 8):
        n_changed = sum(changed(sample, distance) for sample in samples)
        print(f"{distance} patches around: {n_changed} of {len(samples)} answers change")

# %% [markdown]
# ## 7. Who moves the shape? (notebook 6)
#
# Three heads move the colour from the object to the answer. Does the *shape* come the same way?
# `make_pairs("shape")` draws pairs of pictures in which one object is a circle (clean) or a square
# (corrupted), and asks which; `make_pairs("color")` draws pairs of red and blue. Patch the output
# of one head at a time, from the clean into the corrupted run, for both kinds of pairs.
#
# Which head moves the shape most *beyond* what it moves of the colour? Answer with `(layer, head)`.

# %%
shape_pairs, color_pairs = make_pairs("shape"), make_pairs("color")
print(shape_pairs.questions[0], "|", color_pairs.questions[0])

# %%
exercises.check(7, ...)

# %% [markdown]
# ## 8. What follows? (all of them)
#
# Two of these six claims follow from what was measured, the others say more. Each of them has been
# published in some form. Which two? Answer with a set of letters.

# %%
for letter, claim in CLAIMS.items():
    print(f"{letter}) {claim}\n")

# %%
exercises.check(8, ...)

# %% [markdown]
# ## How far you are

# %%
exercises

# %% [markdown]
# ## What this does not show
#
# A check compares with one way to work the answer out, on one small model. That all eight are right
# means that you can use the tools, not that what they found holds elsewhere.
#
# ## The same on a 7B model
#
# Set `NAME = "llava-hf/llava-1.5-7b-hf"` at the top. The checks work the answers out on the model
# at hand, so exercises 1 to 6 stay what they are with other answers. Exercise 7 then needs two runs
# for each of 1,024 heads, and answers that differ in their first word; exercise 8 stays as it is.
