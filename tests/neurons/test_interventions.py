"""Interventions on neurons, against loops that are slow and obvious."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformer_lens import ActivationCache, HookedRootModule
from transformer_lens.hook_points import HookPoint

from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.hook import NeuronHook
from vlm_lens.neurons.interventions import ForwardHooks

POST, OUT = "blocks.0.mlp.hook_post", "blocks.1.hook_mlp_out"
NEURONS = NeuronSet.from_indices({POST: [4, 1]})
REFERENCE = {POST: torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(1))}
PARTS = torch.tensor([[True, False, True, True], [False, False, True, False]])

INTERVENTIONS = {
    "zero": lambda **kw: NEURONS.ablate(**kw),
    "number": lambda **kw: NEURONS.ablate(2.5, **kw),
    "mean": lambda **kw: NEURONS.ablate("mean", reference=REFERENCE, **kw),
    "min": lambda **kw: NEURONS.ablate("min", reference=REFERENCE, **kw),
    "scale": lambda **kw: NEURONS.scale(-3, **kw),
    "clamp": lambda **kw: NEURONS.clamp(-0.2, 0.3, **kw),
    "clamp_below": lambda **kw: NEURONS.clamp(minimum=0.1, **kw),
    "clamp_above": lambda **kw: NEURONS.clamp(maximum=0.1, **kw),
}


def reference_list(neuron: int) -> list[float]:
    return [float(row[neuron]) for sample in REFERENCE[POST] for row in sample]


def one_value(kind: str, old: float, neuron: int) -> float:
    """What an intervention makes of one activation of one neuron."""
    values = reference_list(neuron)
    return {
        "zero": 0.0,
        "number": 2.5,
        "mean": sum(values) / len(values),
        "min": min(values),
        "scale": -3 * old,
        "clamp": min(max(old, -0.2), 0.3),
        "clamp_below": max(old, 0.1),
        "clamp_above": min(old, 0.1),
    }[kind]


def slowly(kind: str, tensor: torch.Tensor, where: torch.Tensor | None) -> torch.Tensor:
    """The intervention on [batch, pos, d], one activation at a time."""
    expected = tensor.clone()
    for batch in range(tensor.shape[0]):
        for pos in range(tensor.shape[1]):
            if where is None or where[batch, pos]:
                for neuron in (4, 1):
                    old = float(tensor[batch, pos, neuron])
                    expected[batch, pos, neuron] = one_value(kind, old, neuron)
    return expected


def only_hook(pairs: ForwardHooks) -> NeuronHook:
    [(name, hook)] = pairs
    assert name == POST
    assert isinstance(hook, NeuronHook)
    return hook


def activations(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("where", [None, PARTS], ids=["everywhere", "somewhere"])
@pytest.mark.parametrize("kind", INTERVENTIONS)
def test_interventions_agree_with_loops_and_leave_the_input_alone(kind, where):
    tensor = activations(2, 4, 6)
    before = tensor.clone()
    edited = only_hook(INTERVENTIONS[kind](where=where))(tensor, hook=HookPoint())
    torch.testing.assert_close(edited, slowly(kind, tensor, where))
    assert torch.equal(tensor, before)
    assert edited.data_ptr() != tensor.data_ptr()


@given(
    kind=st.sampled_from(sorted(INTERVENTIONS)),
    batch=st.integers(1, 3),
    pos=st.integers(1, 4),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_interventions_agree_with_loops_for_any_mask(kind, batch, pos, seed, data):
    flags = data.draw(st.lists(st.booleans(), min_size=batch * pos, max_size=batch * pos))
    where = torch.tensor(flags).reshape(batch, pos)
    tensor = activations(batch, pos, 6, seed=seed)
    edited = only_hook(INTERVENTIONS[kind](where=where))(tensor, hook=None)
    torch.testing.assert_close(edited, slowly(kind, tensor, where))


@pytest.mark.parametrize("kind", INTERVENTIONS)
@pytest.mark.parametrize("where", [None, PARTS[:1], PARTS[0]], ids=["none", "batch of 1", "flat"])
def test_activations_without_a_batch_dimension(kind, where):
    tensor = activations(4, 6)
    edited = only_hook(INTERVENTIONS[kind](where=where))(tensor, hook=None)
    expected = slowly(kind, tensor[None], None if where is None else where.reshape(1, 4))
    torch.testing.assert_close(edited[None], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", INTERVENTIONS)
@pytest.mark.parametrize("where", [None, PARTS], ids=["everywhere", "somewhere"])
def test_dtype_is_kept(kind, dtype, where):
    tensor = activations(2, 4, 6, dtype=dtype)
    edited = only_hook(INTERVENTIONS[kind](where=where))(tensor, hook=None)
    assert edited.dtype == dtype
    expected = slowly(kind, tensor.double(), where)
    digits = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float64: 1e-6}[dtype]
    torch.testing.assert_close(edited.double(), expected, rtol=digits, atol=digits)


@pytest.mark.parametrize("kind", INTERVENTIONS)
@pytest.mark.parametrize("where", [None, PARTS], ids=["everywhere", "somewhere"])
def test_every_constant_moves_to_the_activations_device(kind, where):
    # The meta device stands in for an accelerator: it refuses operands from the CPU as one does.
    tensor = torch.empty(2, 4, 6, device="meta", dtype=torch.float16)
    edited = only_hook(INTERVENTIONS[kind](where=where))(tensor, hook=None)
    assert (edited.device.type, edited.dtype, edited.shape) == ("meta", torch.float16, (2, 4, 6))


@pytest.mark.parametrize("kind", INTERVENTIONS)
def test_gradients_flow_through_all_that_was_not_overwritten(kind):
    tensor = activations(2, 4, 6).requires_grad_()
    hook = only_hook(INTERVENTIONS[kind](where=PARTS))
    hook(tensor, hook=None).sum().backward()
    expected = torch.ones(2, 4, 6)
    for neuron in (4, 1):
        for batch, pos in PARTS.nonzero().tolist():
            old = tensor[batch, pos, neuron].item()
            step = one_value(kind, old + 1e-4, neuron) - one_value(kind, old - 1e-4, neuron)
            expected[batch, pos, neuron] = step / 2e-4
    torch.testing.assert_close(tensor.grad, expected)


@pytest.mark.parametrize("kind", INTERVENTIONS)
def test_a_hook_made_and_used_in_inference_mode_still_works_with_gradients(kind):
    with torch.inference_mode():
        hook = only_hook(INTERVENTIONS[kind](where=PARTS.clone()))
        hook(activations(2, 4, 6), hook=None)
    tensor = activations(2, 4, 6).requires_grad_()
    hook(tensor, hook=None).sum().backward()
    assert tensor.grad is not None


def test_overwriting_hides_nan_and_infinity():
    tensor = torch.full((1, 1, 6), float("nan"))
    edited = only_hook(NEURONS.ablate())(tensor, hook=None)
    assert edited[0, 0, [1, 4]].tolist() == [0, 0]
    assert edited.isnan().sum() == 4


def test_a_mask_changed_later_does_not_change_the_hook():
    where = PARTS.clone()
    hook = only_hook(NEURONS.ablate(where=where))
    where[:] = False
    tensor = activations(2, 4, 6)
    torch.testing.assert_close(hook(tensor, hook=None), slowly("zero", tensor, PARTS))


# Generation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("generated", [True, False])
def test_generation_sees_the_prompt_and_then_single_positions(generated):
    hook = only_hook(NEURONS.ablate(where=PARTS, generated=generated))
    prompt, step = activations(2, 4, 6), activations(2, 1, 6, seed=5)
    torch.testing.assert_close(hook(prompt, hook=None), slowly("zero", prompt, PARTS))
    expected = slowly("zero", step, None) if generated else step
    for _ in range(3):
        assert torch.equal(hook(step, hook=None), expected)
    torch.testing.assert_close(hook(prompt, hook=None), slowly("zero", prompt, PARTS))


def test_without_a_mask_every_length_is_touched():
    hook = only_hook(NEURONS.scale(-3))
    for length in (4, 1, 7):
        tensor = activations(2, length, 6)
        torch.testing.assert_close(hook(tensor, hook=None), slowly("scale", tensor, None))


@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 4, 6), (1, 1, 6), (4, 6), (2, 6)])
def test_any_other_shape_is_refused(shape):
    hook = only_hook(NEURONS.ablate(where=PARTS))
    with pytest.raises(ValueError, match=r"where has shape \(2, 4\) but .* expected \(2, 4, 'd'\)"):
        hook(torch.zeros(shape), hook=None)


def test_a_flat_mask_does_not_fit_a_batch():
    hook = only_hook(NEURONS.ablate(where=PARTS[0]))
    with pytest.raises(ValueError, match="Build where for this component and batch"):
        hook(torch.zeros(1, 4, 6), hook=None)


def test_not_touching_generated_positions_needs_a_mask():
    for make in (NEURONS.ablate, lambda **kw: NEURONS.scale(2, **kw)):
        with pytest.raises(ValueError, match="generated=False needs where.*torch.ones"):
            make(generated=False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("where", [PARTS.float(), PARTS.tolist()], ids=["float", "list"])
def test_a_mask_is_boolean(where):
    with pytest.raises(TypeError, match="where must be a boolean tensor.*positions_mask"):
        NEURONS.ablate(where=where)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 4, 3, 6), (6,)])
def test_other_shapes_are_refused(shape):
    hook = only_hook(NEURONS.ablate())
    with pytest.raises(ValueError, match=r"activations \[batch, pos, d\] or \[pos, d\]"):
        hook(torch.zeros(shape), hook=None)


def test_a_neuron_beyond_the_activations_is_named():
    hook = only_hook(NEURONS.ablate())
    with pytest.raises(IndexError, match=r"neuron blocks\.0\.mlp\.hook_post\[4\] .* 0 to 3"):
        hook(torch.zeros(1, 2, 4), hook=None)


@pytest.mark.parametrize("sized_by", ["set", "reference"])
def test_neurons_of_another_model_are_refused(sized_by):
    sized = NeuronSet.from_indices({POST: [1]}, sizes={POST: 6})
    pairs = sized.ablate() if sized_by == "set" else NEURONS.ablate("mean", reference=REFERENCE)
    with pytest.raises(ValueError, match=r"hook point with 6 neurons, .* \(1, 2, 8\).*another mo"):
        only_hook(pairs)(torch.zeros(1, 2, 8), hook=None)
    with pytest.raises(ValueError, match="6 neurons in this set but 7"):
        sized.ablate("mean", reference={POST: torch.zeros(1, 7)})


@pytest.mark.parametrize("value", ["mean", "min"])
def test_a_reference_must_be_there_and_usable(value):
    with pytest.raises(ValueError, match=rf"ablate\('{value}'\) needs .* Pass reference=cache"):
        NEURONS.ablate(value)
    with pytest.raises(KeyError, match=POST):
        NEURONS.ablate(value, reference={OUT: torch.zeros(1, 2, 6)})
    with pytest.raises(IndexError, match=r"blocks\.0\.mlp\.hook_post\[4\] .* 0 to 2"):
        NEURONS.ablate(value, reference={POST: torch.zeros(1, 2, 3)})
    with pytest.raises(ValueError, match="'blocks.0.mlp.hook_post' are empty or NaN"):
        NEURONS.ablate(value, reference={POST: torch.zeros(0, 6)})
    broken = torch.zeros(2, 6)
    broken[1, 1] = float("nan")
    with pytest.raises(ValueError, match="'blocks.0.mlp.hook_post' are empty or NaN"):
        NEURONS.ablate(value, reference={POST: broken})


def test_a_reference_in_half_precision_is_averaged_in_full():
    reference = {POST: torch.full((4, 40_000, 6), 3.0, dtype=torch.float16)}  # sums overflow fp16
    hook = only_hook(NEURONS.ablate("mean", reference=reference))
    assert hook(torch.zeros(1, 1, 6), hook=None)[0, 0].tolist() == [0, 3, 0, 0, 3, 0]


def test_a_reference_can_be_the_wanted_values_themselves():
    hook = only_hook(NEURONS.ablate("mean", reference={POST: torch.arange(6.0)}))
    assert hook(torch.zeros(1, 1, 6), hook=None)[0, 0].tolist() == [0, 1, 0, 0, 4, 0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: NEURONS.ablate("max"),
            "unless 'zero', 'mean' or 'min', must be a finite number, got 'max'",
        ),  # type: ignore[arg-type]
        (lambda: NEURONS.ablate(float("nan")), "must be a finite number, got nan"),
        (lambda: NEURONS.ablate(None), "finite number, got None"),  # type: ignore[arg-type]
        (lambda: NEURONS.scale(float("inf")), "factor must be a finite number, got inf"),
        (lambda: NEURONS.scale("2"), "factor must be a finite number, got '2'"),  # type: ignore[arg-type]
        (lambda: NEURONS.scale(True), "factor must be a finite number, got True"),
        (lambda: NEURONS.clamp(), "needs a limit, got none"),
        (lambda: NEURONS.clamp(2, 1), "minimum <= maximum, got minimum=2.0 and maximum=1.0"),
        (lambda: NEURONS.clamp(float("nan")), "minimum must be a finite number"),
        (lambda: NEURONS.clamp(0, float("inf")), "maximum must be a finite number"),
    ],
)
def test_values_are_checked_when_the_hooks_are_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# In a model ---------------------------------------------------------------------------------------


class TinyModel(HookedRootModule):
    """Two hook points in a row: doubled activations at POST, then squared ones at OUT."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Module(), torch.nn.Module()])
        self.blocks[0].mlp = torch.nn.Module()
        self.blocks[0].mlp.hook_post = HookPoint()
        self.blocks[1].hook_mlp_out = HookPoint()
        self.setup()

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        post = self.blocks[0].mlp.hook_post(2 * tensor)  # type: ignore[operator]
        return self.blocks[1].hook_mlp_out(post**2)  # type: ignore[operator]


def test_hooks_run_in_a_hooked_model_and_leave_its_cache_intact():
    model, tensor = TinyModel(), activations(2, 4, 6)
    neurons = NeuronSet.from_indices({OUT: [0], POST: [4, 1]})
    clean, cache = model.run_with_cache(tensor)
    kept = {name: value.clone() for name, value in cache.items()}
    pairs = neurons.ablate("mean", reference=cache, where=PARTS)
    assert [name for name, _ in pairs] == [POST, OUT]
    edited = model.run_with_hooks(tensor, fwd_hooks=pairs)
    expected = clean.clone()
    for batch, pos in PARTS.nonzero().tolist():
        expected[batch, pos, [4, 1]] = kept[POST].mean((0, 1))[[4, 1]] ** 2
        expected[batch, pos, 0] = kept[OUT].mean((0, 1))[0]
    torch.testing.assert_close(edited, expected)
    assert all(torch.equal(cache[name], kept[name]) for name in kept)
    torch.testing.assert_close(model(tensor), clean)


def test_hooks_on_the_same_neurons_apply_one_after_the_other():
    tensor = activations(2, 4, 6)
    pairs = NEURONS.scale(10) + NEURONS.clamp(maximum=1) + NEURONS.ablate(-7, where=PARTS)
    edited = TinyModel().run_with_hooks(tensor, fwd_hooks=pairs)
    expected = 2 * tensor
    expected[..., [4, 1]] = (expected[..., [4, 1]] * 10).clamp(max=1)
    expected[..., [4, 1]] = expected[..., [4, 1]].masked_fill(PARTS[..., None], -7)
    torch.testing.assert_close(edited, expected**2)


def test_an_activation_cache_is_a_reference():
    cache = ActivationCache(copy.deepcopy(REFERENCE), model=None)
    hook = only_hook(NEURONS.ablate("mean", reference=cache))
    tensor = activations(2, 4, 6)
    torch.testing.assert_close(hook(tensor, hook=None), slowly("mean", tensor, None))
    with pytest.raises(KeyError, match=OUT):
        NeuronSet.from_indices({OUT: [0]}).ablate("mean", reference=cache)


def test_an_empty_set_has_no_hooks_and_a_hook_says_what_it_is_for():
    assert NeuronSet().ablate() == []
    assert repr(only_hook(NEURONS.ablate("zero"))) == f"NeuronHook(2 neurons of {POST})"
