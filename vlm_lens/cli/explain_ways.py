"""How ``vlm-lens explain`` explains and predicts, and asking before anything is sent."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lens.cli.checks import InputError, reading_input
from vlm_lens.cli.progress import Steps
from vlm_lens.cli.values import finite

if TYPE_CHECKING:
    from vlm_lens.analyses.chat import Chat
    from vlm_lens.analyses.explain import Cost, Explainer, Simulator
    from vlm_lens.model import HookedVLM

_EXPLAINERS = ("concepts", "chat", "model")
_SIMULATORS = ("concepts", "clip", "chat")
_SHUFFLES, _SHUFFLES_OF_CHAT = 100, 2
_LONGEST, _LONGEST_OF_SIMULATOR = 300, 1000
_KEY_VARIABLE = "OPENAI_API_KEY"


def add_ways(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how neurons are explained and scored."""
    add = parser.add_argument_group("explanations").add_argument
    who = "who explains: annotated concepts, a chat endpoint, or a model here (default: concepts)"
    add("--explainer", choices=_EXPLAINERS, default=_EXPLAINERS[0], help=who)
    whom = "of --explainer model: folder or Hugging Face id (default: the model itself)"
    add("--explainer-model", metavar="NAME", help=whom)
    predicts = (
        "who predicts from explanations (default: concepts, or clip or chat where it is named)"
    )
    add("--simulator", choices=_SIMULATORS, help=predicts)
    add("--clip", metavar="NAME", help="of --simulator clip: folder or Hugging Face id of a CLIP")
    shown = "top samples that a chat or a model is shown (default: %(default)s)"
    add("--shown", type=int, default=5, metavar="N", help=shown)
    top = "top samples of a neuron that it is explained from, and tested on (default: %(default)s)"
    add("--exemplars", type=int, default=10, metavar="N", help=top)
    others = "random ones beside them (default: %(default)s)"
    add("--random-exemplars", type=int, default=10, metavar="N", help=others)
    share = "share of the samples that explanations are tested on (default: %(default)s)"
    add("--held-out", type=finite, default=0.5, metavar="X", help=share)
    many = f"default: {_SHUFFLES}; {_SHUFFLES_OF_CHAT} where a chat endpoint simulates"
    shuffles = f"each neuron is scored with the explanations of so many others too ({many})"
    add("--shuffles", type=int, metavar="N", help=shuffles)
    alpha = "false discovery rate of what is called better than chance (default: %(default)s)"
    add("--alpha", type=finite, default=0.05, metavar="X", help=alpha)


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a chat endpoint."""
    what = "images and texts of the samples are sent to it, after the cost is told"
    add = parser.add_argument_group("chat endpoint", what).add_argument
    add("--endpoint", metavar="URL", help="its address, such as http://localhost:8000/v1")
    add("--chat-model", metavar="NAME", help="what it calls the model")
    key = "environment variable with its key, if it wants one (default: %(default)s)"
    add("--key-variable", default=_KEY_VARIABLE, metavar="NAME", help=key)
    add("--yes", action="store_true", help="send what the cost is told of, without being asked")
    prices = "what a million tokens cost, sent and received, for the estimate"
    add("--prices", nargs=2, type=finite, metavar="X", help=prices)
    rate = "at most so many (default: no limit)"
    add("--requests-per-minute", type=finite, metavar="X", help=rate)
    seconds = "seconds to wait for a reply (default: %(default)s)"
    add("--timeout", type=finite, default=60.0, metavar="X", help=seconds)
    retries = "how often a request that failed is sent again (default: %(default)s)"
    add("--retries", type=int, default=5, metavar="N", help=retries)
    longest = f"of a reply (default: {_LONGEST}; {_LONGEST_OF_SIMULATOR:,} of a simulator)"
    add("--max-tokens", type=int, metavar="N", help=longest)


NO_DIFFERENCE = ("yes", "key_variable", "prices", "requests_per_minute", "timeout", "retries")
"""Options that may change from one run to the next, since results do not depend on them."""


@dataclass(frozen=True)
class Ways:
    """Who explains and who simulates, as far as they are known without a model.

    Attributes:
        arguments: What was given.
        simulator: "concepts", "clip" or "chat".
        chat: The endpoint, if one is asked.
    """

    arguments: argparse.Namespace
    simulator: str
    chat: Chat | None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Ways:
        """The ways that are asked for, checked.

        Raises:
            InputError: Options do not go together, or the endpoint's make no sense.
        """
        simulator = _simulator(arguments)
        _check_models(arguments, simulator)
        return cls(arguments, simulator, _chat(arguments, simulator))

    @property
    def shuffles(self) -> int:
        """With the explanations of how many others each neuron is scored."""
        given = self.arguments.shuffles
        usual = _SHUFFLES_OF_CHAT if self.simulator == "chat" else _SHUFFLES
        return usual if given is None else given

    def explainer(self, model: HookedVLM) -> Explainer:
        """The explainer; loads its model where it has one of its own.

        Raises:
            InputError: That does not work.
        """
        from vlm_lens.analyses.explain import by_chat, by_model, concepts
        from vlm_lens.model import HookedVLM

        if self.arguments.explainer == "concepts":
            return concepts()
        if self.arguments.explainer == "chat":
            assert self.chat is not None  # it is checked
            return by_chat(self.chat, shown=self.arguments.shown)
        with reading_input():
            if (name := self.arguments.explainer_model) is not None:
                model = HookedVLM.from_pretrained(name, device=self.arguments.device)
            return by_model(model, shown=self.arguments.shown)

    def simulating(self) -> Simulator:
        """The simulator; loads a CLIP where it is one.

        Raises:
            InputError: That does not work.
        """
        from vlm_lens.analyses import simulate

        if self.simulator == "concepts":
            return simulate.by_concepts()
        if self.simulator == "chat":
            assert self.chat is not None  # it is checked
            return simulate.by_chat(self.chat)
        from transformers import AutoProcessor, CLIPModel

        name, device = self.arguments.clip, self.arguments.device or "cpu"
        try:
            loaded: Any = CLIPModel.from_pretrained(name)
            return simulate.by_clip(loaded.to(device).eval(), AutoProcessor.from_pretrained(name))
        except (OSError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"--clip {name} cannot be loaded: {reason}") from error

    def consent(self, cost: Cost, step: Steps) -> None:
        """Tells what is about to be sent, and goes on only if the user wants that.

        Raises:
            InputError: They do not, or cannot be asked.
        """
        if not cost.requests:
            return
        step(f"about to be sent to {self.arguments.endpoint}: {cost}")
        if self.arguments.yes:
            return
        if not sys.stdin.isatty():
            raise InputError("nothing was sent: add --yes if all of that may be")
        print("Send it? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise InputError("nothing was sent")


def _simulator(arguments: argparse.Namespace) -> str:
    explains = arguments.explainer
    usual = "clip" if arguments.clip is not None else explains
    found = arguments.simulator or usual
    if found == "model" or (found == "concepts" and explains != "concepts"):
        raise InputError(
            f"--explainer {explains} explains in words, which concepts cannot be predicted from: "
            "add --clip NAME, or --simulator chat"
        )
    return found


def _check_models(arguments: argparse.Namespace, simulator: str) -> None:
    """Refuses models that nothing is done with, and asks for those that are missing."""
    if simulator == "clip" and arguments.clip is None:
        raise InputError("--simulator clip needs --clip NAME, such as openai/clip-vit-base-patch16")
    if simulator != "clip" and arguments.clip is not None:
        raise InputError(f"--clip has no meaning with --simulator {simulator}")
    if simulator == "clip" and arguments.text is not None:
        raise InputError("--simulator clip predicts patches of images, which --text has none of")
    if arguments.explainer_model is not None and arguments.explainer != "model":
        raise InputError(f"--explainer-model has no meaning with --explainer {arguments.explainer}")
    if arguments.shown < 1:
        raise InputError(f"expected --shown of at least 1, got {arguments.shown}")


def _chat(arguments: argparse.Namespace, simulator: str) -> Chat | None:
    given = {"--endpoint": arguments.endpoint, "--chat-model": arguments.chat_model}
    if "chat" not in (arguments.explainer, simulator):
        for option, value in given.items():
            if value is not None:
                raise InputError(
                    f"{option} has no meaning here, as no endpoint is asked: add --explainer chat "
                    "or --simulator chat"
                )
        return None
    if missing := [option for option, value in given.items() if value is None]:
        raise InputError(f"a chat endpoint needs {' and '.join(missing)}; there is no default")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", arguments.key_variable):
        raise InputError(
            "--key-variable is the name of an environment variable, such as OPENAI_API_KEY, not "
            "the key itself"
        )
    from vlm_lens.analyses.chat import Chat

    longest = _LONGEST_OF_SIMULATOR if simulator == "chat" else _LONGEST
    prices = arguments.prices or (None, None)
    with reading_input():
        return Chat(
            arguments.endpoint,
            arguments.chat_model,
            key_variable=arguments.key_variable,
            timeout=arguments.timeout,
            max_retries=arguments.retries,
            requests_per_minute=arguments.requests_per_minute,
            cache=replies_in(arguments.out),
            max_tokens=longest if arguments.max_tokens is None else arguments.max_tokens,
            input_price=prices[0],
            output_price=prices[1],
        )


def replies_in(folder: Path) -> Path:
    """Where replies are kept, so that nothing is asked twice."""
    return folder / "replies"
