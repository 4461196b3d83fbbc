"""Sampling responses: one loop over a queue, whose batch is refilled as rows end.

The loop leaves the choice of each token to a sampler, so that capturing the teacher's top-p sets
happens in the same pass as sampling from them, and so that every model is decoded by the same code.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdistill.core import TopPSets, segment_cumsum, top_p_sets, truncated_sizes
from tdistill.errors import InvalidValueError
from tdistill.models.decoding import Decoding
from tdistill.models.finite import has_numbers, refuse_step
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import Pair
from tdistill.models.positions import check_positions, check_rows

if TYPE_CHECKING:
    from tdistill.models.reading import Reader

Sampler = Callable[[Float[Tensor, "A V"], Int[Tensor, " A"]], Int[Tensor, " A"]]
"""Maps logits of the active rows and their places in the queue to one token each."""

_REFILL = 8  # rows begin when this part of the batch is free


@dataclass(frozen=True)
class Response:
    """A response to one prompt.

    Attributes:
        ids: tokens, the end token included where the response ended.
        ended: whether it finished with an end token; false if it was cut at the length limit.
    """

    ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True, eq=False)
class Companion:
    """A second model that takes part in choosing tokens.

    Attributes:
        lm: the model, of the same tokenizer.
        weight: its share of the mixture of the two policies, in [0, 1].
    """

    lm: LanguageModel
    weight: float


@torch.inference_mode()
def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampler: Sampler,
    *,
    max_new_tokens: int | Sequence[int],
    batch_size: int | None = None,
    companion: Companion | None = None,
    on_finished: Callable[[int], None] = lambda count: None,
) -> list[Response]:
    """One response to each prompt of a queue; as rows of the batch end, others take their place.

    A prompt that is asked several times in a row is read once, and its keys and values copied.

    Args:
        lm: the model.
        prompts: token ids of each prompt, none empty.
        sampler: chooses the next token of each active row; it knows a row by its place in the
            queue. Rows are in no order.
        max_new_tokens: length limit, of all or of each; a response that reaches it without an end
            token is cut.
        batch_size: rows that are decoded together; all where None.
        companion: where given, the sampler sees the logarithm of the mixture of both policies.
        on_finished: told how many responses have ended with a step.

    Returns:
        The responses in the order of the prompts.

    Raises:
        InvalidValueError: for an empty prompt.
        ModelError: for rows that the model has no positions for.
        NonFiniteError: at the first step whose logits are no numbers.
    """
    from tdistill.models.readers import (
        open_reader,  # with transformers, which takes seconds to load
    )

    if not all(prompts):
        raise InvalidValueError("prompts: expected at least one token in each, found an empty one")
    queue = [tuple(prompt) for prompt in prompts]
    limits = [max_new_tokens] * len(queue) if isinstance(max_new_tokens, int) else max_new_tokens
    longest = max((len(p) + n for p, n in zip(queue, limits, strict=True)), default=1) - 1
    for model in _models(lm, companion):  # the last token is never read
        check_rows(model, [Pair(prompt, ()) for prompt in dict.fromkeys(queue)], "prompts")
        check_positions(model, longest, "max_new_tokens")
    slots = min(batch_size or len(queue), len(queue))
    policy = _Policy([open_reader(m, slots) for m in _models(lm, companion)], lm.device, companion)
    tokens: list[list[int]] = [[] for _ in queue]
    ended = [False] * len(queue)
    ends, rows, begun = set(lm.end_ids), list[int](), 0
    active = torch.zeros(0, dtype=torch.long, device=lm.device)  # the rows
    while rows or begun < len(queue):
        count = policy.room(slots, len(rows), len(queue) - begun)
        if count:
            rows += range(begun, begun + count)
            begun += count
            policy.begin([queue[row] for row in rows[-count:]])
            active = torch.tensor(rows, device=lm.device)
        chosen, read = _choose(
            sampler,
            policy.logits(),
            active,
            refuse=lambda rows=rows: policy.refuse([[*queue[r], *tokens[r]] for r in rows]),
        )
        going = []
        for place, (row, token) in enumerate(zip(rows, read, strict=True)):
            tokens[row].append(token)
            ended[row] = token in ends
            if not ended[row] and len(tokens[row]) < limits[row]:
                going.append(place)
        order = _closed_up(going)
        if len(going) < len(rows):
            on_finished(len(rows) - len(going))
            rows = [rows[place] for place in order]
            active = torch.tensor(rows, dtype=torch.long, device=lm.device)
        policy.read(chosen, order)
    return [Response(tuple(row), end) for row, end in zip(tokens, ended, strict=True)]


def _choose(
    sampler: Sampler,
    logits: Float[Tensor, "A V"],
    active: Int[Tensor, " A"],
    *,
    refuse: Callable[[], None],
) -> tuple[Int[Tensor, " A"], list[int]]:
    """The token of each row, where the model is and here.

    Whether the logits were numbers is read together with the tokens: every look at what a device
    has made waits for all that it was given.
    """
    sound = has_numbers(logits).all()
    try:
        chosen = sampler(logits, active)
    except Exception:
        if not bool(sound):
            refuse()
        raise
    *read, fine = torch.cat([chosen, sound[None].to(chosen.dtype)]).tolist()
    if not fine:
        refuse()
    return chosen, read


def _models(lm: LanguageModel, companion: Companion | None) -> list[LanguageModel]:
    return [lm] if companion is None else [lm, companion.lm]


def _closed_up(going: Sequence[int]) -> list[int]:
    """Places of the rows that go on, the last ones put where rows have ended.

    Example:
        >>> _closed_up([0, 2, 4])
        [0, 4, 2]
    """
    left = list(going)
    order = []
    for place in range(len(going)):
        order.append(left.pop(0) if left[0] == place else left.pop())
    return order


class _Policy:
    """What tokens are drawn from: one model, or the mixture of two that read in step."""

    def __init__(
        self, readers: Sequence[Reader], device: torch.device, companion: Companion | None
    ) -> None:
        self.readers, self.device, self.companion = readers, device, companion
        self.parts: list[Tensor | None] = [None for _ in readers]

    def room(self, slots: int, active: int, waiting: int) -> int:
        """How many rows shall begin now.

        Rows begin a few at a time, since a forward pass over one short prompt costs the same as
        over several.
        """
        free = min(slots - active, waiting)
        if active == 0:
            return free
        enough = min(waiting, max(1, slots // _REFILL))
        return free if free >= enough and all(reader.refills for reader in self.readers) else 0

    def begin(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Add rows."""
        for i, reader in enumerate(self.readers):
            old, new = self.parts[i], reader.begin(prompts)
            self.parts[i] = new if old is None else torch.cat([old, new])

    def read(self, tokens: Int[Tensor, " A"], order: Sequence[int]) -> None:
        """Let the rows that go on read the token chosen for them."""
        kept = tokens
        if list(order) != list(range(len(tokens))):
            kept = tokens[torch.tensor(order, dtype=torch.long, device=tokens.device)]
            for reader in self.readers:
                reader.keep(order)
        for i, reader in enumerate(self.readers):
            device = reader.lm.device
            self.parts[i] = reader.read(kept.to(device)) if order else None

    def refuse(self, rows: Sequence[Sequence[int]]) -> None:
        """Name the model and the row whose logits are no numbers; ``rows`` is what was read."""
        for reader, part in zip(self.readers, self.parts, strict=True):
            assert part is not None
            bad = (~has_numbers(part)).nonzero()
            if len(bad):
                row = int(bad[0])
                refuse_step(reader.lm.model, rows, row, len(rows[row]) - 1)

    def logits(self) -> Float[Tensor, "A V"]:
        """What the sampler sees, in float32 whatever the model computes in."""
        parts = (part.to(self.device) for part in self.parts if part is not None)
        own, *others = (part.float() for part in parts)  # softmax over a vocabulary, in float32
        return own if self.companion is None else _mixture(own, others[0], self.companion.weight)


def _mixture(own: Tensor, other: Tensor, weight: float) -> Tensor:
    """``log((1 - w) pi + w pi')`` over the tokens that both models have."""
    shared = min(own.shape[1], other.shape[1])
    parts = own[:, :shared].log_softmax(-1), other[:, :shared].log_softmax(-1)
    shares = [math.log(share) if share > 0.0 else -math.inf for share in (1.0 - weight, weight)]
    return torch.logaddexp(parts[0] + shares[0], parts[1] + shares[1])


def decoding_sampler(
    decoding: Decoding, rows: int | Sequence[object], *, seed: int, device: Any = "cpu"
) -> Sampler:
    """The sampler of a plain decoding.

    Args:
        decoding: how tokens are chosen.
        rows: names of the rows of the queue, by which they draw; a number stands for 0, 1, 2, ...
        seed: of the random numbers; a row's depend on it and on the row's name alone.
        device: of the logits.

    Returns:
        A sampler for :func:`generate`.
    """
    names = range(rows) if isinstance(rows, int) else rows
    uniform = row_uniforms([seed_of(seed, name) for name in names], device=device)

    def sample(logits: Tensor, active: Tensor) -> Tensor:
        if decoding.greedy:
            return logits.argmax(-1)
        log_probs = (logits / decoding.temperature).log_softmax(-1)
        draws = uniform(active)
        if decoding.sampling_top_p < 1.0:
            return draw_from_sets(top_p_sets(log_probs, decoding.sampling_top_p), draws)
        return draw(log_probs, draws)

    return sample


def draw(log_probs: Float[Tensor, "A V"], uniform: Float[Tensor, " A"]) -> Int[Tensor, " A"]:
    """One token of each row of probabilities, by inverting their sums.

    Example:
        >>> draw(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([0.6])).tolist()
        [1]
    """
    mass = log_probs.exp().cumsum(-1, dtype=torch.float64)
    target = uniform * mass[:, -1]
    # right: the first sum above the target, so that a token without mass is never drawn.
    return torch.searchsorted(mass, target[:, None], right=True).squeeze(1)


def seed_of(*parts: object) -> int:
    """A seed from words and numbers, the same everywhere.

    Example:
        >>> seed_of("draw", 0, 1) == seed_of("draw:0:1") != seed_of("draw", 1, 0)
        True
    """
    text = ":".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def row_uniforms(
    seeds: Sequence[int], *, device: Any = "cpu", each: int | None = None
) -> Callable[[Int[Tensor, " A"]], Float[Tensor, "A ..."]]:
    """Streams of uniform numbers, one for each row of a queue.

    A row's numbers depend on its seed and on how many it has drawn: not on the other rows, nor on
    when it began.

    Args:
        seeds: of the rows.
        device: of the numbers.
        each: numbers of a row and call, [A, each]; one, [A], where None.

    Returns:
        A function that draws for the rows it is given.
    """
    keys = torch.tensor(seeds, dtype=torch.long, device=device)
    drawn = torch.zeros_like(keys)
    within = torch.arange(1 if each is None else each, device=device)

    def draw(rows: Tensor) -> Tensor:
        counts = drawn[rows, None] * len(within) + within
        drawn[rows] += 1
        numbers = uniforms(keys[rows, None], counts)
        return numbers.squeeze(1) if each is None else numbers

    return draw


def uniforms(seeds: Int[Tensor, " ..."], counts: Int[Tensor, " ..."]) -> Float[Tensor, " ..."]:
    """Number ``counts`` of the stream of each seed: float64, uniform in [0, 1), on any device.

    SplitMix64: a counter is scrambled, so a number can be had without those before it. Streams of
    seeds from :func:`seed_of` start far apart.

    Reference:
        Steele, Lea, Flood, 2014, OOPSLA, "Fast splittable pseudorandom number generators".

    Example:
        >>> uniforms(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]))
        tensor([0.8833, 0.4315, 0.5666], dtype=torch.float64)
    """
    state = seeds + (counts + 1) * _signed(0x9E3779B97F4A7C15)  # int64 wraps around
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return _shifted(state ^ _shifted(state, 31), 11).double() * 2.0**-53


def _signed(bits: int) -> int:
    """64 bits as the two's complement that int64 holds."""
    return bits - (1 << 64) if bits >> 63 else bits


def _shifted(state: Tensor, by: int) -> Tensor:
    """Shift to the right, zeros from the left."""
    return (state >> by) & ((1 << (64 - by)) - 1)


def draw_from_sets(
    sets: TopPSets, uniform: Float[Tensor, " T"], *, top_p: float = 1.0
) -> Int[Tensor, " T"]:
    """One token of each set, from the policy projected onto it (2.3), by inverting its sums.

    Args:
        sets: candidate sets.
        uniform: a number in [0, 1) for each step.
        top_p: mass of the smaller sets that are drawn from, see :func:`tdistill.core.truncate`.

    Returns:
        Token ids.

    Example:
        >>> sets = top_p_sets(torch.tensor([[0.5, 0.25, 0.25]]).log(), 0.7)
        >>> draw_from_sets(sets, torch.tensor([0.9])).tolist()
        [1]
    """
    mass = segment_cumsum(sets.log_probs.exp(), sets.offsets)
    last = truncated_sizes(sets, top_p) - 1
    total = mass[sets.offsets[:-1] + last]
    below = (mass <= (uniform * total)[sets.step]).long()
    passed = torch.zeros_like(last).index_add(0, sets.step, below)
    return sets.ids[sets.offsets[:-1] + torch.minimum(passed, last)]
