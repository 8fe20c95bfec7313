"""What all tests share: shape checks at run time, one thread, tiny models."""

from __future__ import annotations

import os
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import jaxtyping
from jaxtyping import install_import_hook

install_import_hook("vlm_lens", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests import tiers  # noqa: E402
from tests.tiny import TINY, Tiny, build_tiny  # noqa: E402
from vlm_lens import HookedVLM  # noqa: E402

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
torch.set_num_threads(1)  # tiny models run up to 100 times slower on many


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tiers.mark(items)


@pytest.fixture
def unchecked():
    """Turns the run-time checks of annotations off: users who pass a wrong type have none."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def tiny_cache() -> dict[str, Tiny]:
    return {}


@pytest.fixture(params=TINY, scope="session")
def tiny(request: pytest.FixtureRequest, tiny_cache: dict[str, Tiny]) -> Tiny:
    """Each supported pairing of vision tower and text model, tiny and randomly initialised."""
    return tiny_cache.setdefault(request.param, build_tiny(request.param))


@pytest.fixture(scope="session")
def llava(tiny_cache: dict[str, Tiny]) -> Tiny:
    """One tiny LLaVA, for what does not depend on the family."""
    return tiny_cache.setdefault("clip-llama", build_tiny("clip-llama"))


@pytest.fixture(scope="session")
def shapes() -> HookedVLM:
    """The bundled, trained model."""
    return HookedVLM.from_pretrained("shapes-llava")


@pytest.fixture(autouse=True)
def no_hook_is_left(request: pytest.FixtureRequest):
    """After every test, every tap is out of the model it is in."""
    yield
    for name in ("tiny", "llava"):
        if name in request.fixturenames:
            assert_no_hooks(request.getfixturevalue(name).model)


def is_ours(hook: Any) -> bool:
    """Whether a hook of PyTorch's is a function of vlm_lens, or one with some arguments set."""
    return "vlm_lens" in getattr(getattr(hook, "func", hook), "__module__", "")


def assert_no_hooks(model: HookedVLM) -> None:
    """No tap of ours, and no changed attention function, is left in the Hugging Face model."""
    for module in model.hf_model.modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        ours = [hook for hook in hooks if is_ours(hook)]
        assert not ours, f"{type(module).__name__} still has {ours}"
        config = getattr(module, "config", None)
        implementation = getattr(config, "_attn_implementation", None) or ""
        assert not implementation.startswith("vlm_lens"), type(module).__name__
    assert not any(tap.has_hooks() for tap in model.hook_dict.values())
