"""The command that says what a recipe will ask for, before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tdistill.checks import check, check_at_least
from tdistill.cli.run import helped, read_words
from tdistill.errors import InvalidValueError
from tdistill.progress import tell
from tdistill.strict import split_words

_NUMBERS = ("prompts", "test_prompts", "prompt_tokens", "response_tokens", "set_size")
_FLAGS = ("json", "probe")
_HELP = """
Options of a plan, beside the fields of the recipe:
  --devices N           processes, each with a device of its own; 1
  --device KIND         cpu (this machine's), t4, v100, a10, l4, l40s, rtx-3090,
                        rtx-4090, a100-40gb, a100, h100, h200, b200; what is here
  --out DIR             a run, begun or finished: its cache and its rates are used
  --prompts N           to train on; counted where the data can be
  --test-prompts N      to judge on
  --prompt-tokens N     of a prompt, in the mean; half of data.max_prompt_tokens
  --response-tokens N   of a response, in the mean; rollouts.max_new_tokens
  --set-size N          members of a top-p set, in the mean
  --rate KIND=N         tokens a second of sampling, reading, choosing, training or
                        judging; may be given several times
  --probe               measure the rates on this machine, for up to a minute
  --json                plain JSON: bytes, seconds, tokens
"""


@dataclass(frozen=True)
class PlanOptions:
    """What is asked of a plan beside the recipe.

    Attributes:
        devices: processes, each with one.
        device: kind of them; None: that of this machine.
        numbers: that are stated, by name.
        rates: that are stated, tokens a second.
        json: print JSON.
        probe: measure the rates.
    """

    devices: int = 1
    device: str | None = None
    numbers: dict[str, Any] | None = None
    rates: dict[str, float] | None = None
    json: bool = False
    probe: bool = False


def plan(words: list[str]) -> int:
    """Say parameters, bytes, memory and hours; nothing is loaded, nothing is written."""
    if helped("plan", words):
        print(_HELP)
        return 0
    options, left = read_options(words)
    recipe, out = read_words("plan", left, out="run")
    from tdistill.planning.devices import device_here
    from tdistill.planning.plan import make_plan
    from tdistill.planning.scale import Known
    from tdistill.run.outlook import job_in, known_of

    numbers: dict[str, Any] = options.numbers or {}
    stated = Known(**numbers, rates=options.rates or {})
    known = stated.over(known_of(recipe, out))
    device = options.device or device_here()
    job = job_in(recipe, out, known, device=device, processes=options.devices)
    if options.probe:
        from tdistill.planning.probe import probed

        job = probed(job)
    made = make_plan(job, known)
    if options.json:
        print(json.dumps(made.plain(), indent=1))
    else:
        from tdistill.planning.text import plan_text

        tell(plan_text(made))
    return 0


def read_options(words: list[str]) -> tuple[PlanOptions, list[str]]:
    """The options of a plan, and the words that are left for the recipe.

    Raises:
        InvalidValueError: a value that cannot be used.
    """
    alone, options = split_words(words)
    found: dict[str, Any] = {"numbers": {}, "rates": {}}
    left = list(alone)
    for option in options:
        name, text = option.name.replace("-", "_"), option.text
        if name in _NUMBERS:
            found["numbers"][name] = _number(option.name, text)
        elif name == "rate":
            kind, _, rate = (text or "").partition("=")
            kinds = ("sampling", "reading", "choosing", "training", "judging")
            check("--rate", kind in kinds, f"KIND=N with KIND of {', '.join(kinds)}", text)
            found["rates"][kind] = _number("rate", rate)
        elif name in _FLAGS:
            found[name] = True
            left += [] if text is None else [text]
        elif name == "devices":
            found[name] = int(_number(name, text))
            check_at_least(1, devices=found[name])
        elif name == "device":
            found[name] = text or ""
        else:
            left += [f"--{option.name}" if text is None else f"--{option.name}={text}"]
    return PlanOptions(**found), left


def _number(name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError as error:
        raise InvalidValueError(
            f"--{name}: expected a number, found {text or 'nothing'}"
        ) from error
    check(f"--{name}", 0 < value < float("inf"), "a number above 0", text)
    return value
