"""Sizes and times in closed form: pure arithmetic, each with where it comes from. Torch-free."""

from __future__ import annotations

from typing import Literal

Strategy = Literal["one", "DDP", "ZeRO-2", "ZeRO-3", "FSDP2"]
"""How processes share a student: whole copies, or parts of what training it takes."""

FLOAT32 = 4  # bytes
_FREQUENT = 0.928  # of the tokens of a large vocabulary have a place in a shard's table
_LEVEL_BITS = 5.2  # of a member's level below the one before, escapes to 8 and 16 bits included
_STEP_BITS = 8 + 16 + 8  # size of the set, log-normaliser, level of its first member
_ROW_BYTES = 16 + 14 + 1 + 4 + 4 + 4  # key, source with its offset, ended, lengths, offset
_TAIL_BITS = 12 + 4  # level and count of a sampled token
_SHARD_BYTES = 1230  # schema, metadata and padding of an Arrow file, and its line in the manifest


def token_bytes(vocabulary: int) -> float:
    """Bytes of a token in a cache.

    Up to 16 bits it takes ``ceil(log2 V)``. Above them 14 bits hold a place in the shard's table,
    and a rare token takes 14 and itself; how many are rare was measured on the demo's cache with
    its tokens spread over 151,936 (docs/performance.md, section "Cache").

    Example:
        >>> token_bytes(49_152), round(token_bytes(151_936), 2)
        (2.0, 1.91)
    """
    bits = max(1, (vocabulary - 1).bit_length())
    return (bits if bits <= 16 else 14 + (1 - _FREQUENT) * bits) / 8


def step_bytes(set_size: float, vocabulary: int, *, tail_tokens: float = 0.0) -> float:
    """Bytes of a step of a cache: its token, its set, its log-normaliser, its sampled tail.

    The streams are those of :mod:`tdistill.teacher.cache.row_layout`. The levels of a set fall, so
    that each is stored as its distance from the one before, which takes 4 bits or escapes; their
    mean was measured on the demo's cache.

    Args:
        set_size: mean members of a set.
        vocabulary: of the teacher.
        tail_tokens: mean distinct tokens sampled off the set.

    Example:
        >>> round(step_bytes(33.0, 49_152))
        94
    """
    token = token_bytes(vocabulary)
    members = set_size * (token + _LEVEL_BITS / 8)
    bits_of_token = max(1, (vocabulary - 1).bit_length())
    tail = (tail_tokens * (bits_of_token + _TAIL_BITS) + 8 * (tail_tokens > 0)) / 8
    return token + _STEP_BITS / 8 + members + tail


def cache_bytes(
    rows: int, steps: float, each_step: float, *, prompt_bytes: float, shards: int
) -> float:
    """Bytes of a whole cache.

    Args:
        rows: responses.
        steps: of all of them.
        each_step: bytes of a step.
        prompt_bytes: of a response's share of its prompt, which a shard holds once for neighbours.
        shards: files.

    Example:
        >>> cache_bytes(10, 100, 50.0, prompt_bytes=7.0, shards=1)
        8100.0
    """
    return steps * each_step + rows * (_ROW_BYTES + prompt_bytes) + shards * _SHARD_BYTES


def adam_bytes(parameters: int) -> int:
    """Both moments of Adam, in float32 whatever is computed in.

    Reference: Rajbhandari et al. 2020, "ZeRO", arXiv 1910.02054, section 3.1, where the master copy
    of the weights is counted too; here the weights themselves are float32.

    Example:
        >>> adam_bytes(10)
        80
    """
    return 2 * FLOAT32 * parameters


def shares(strategy: Strategy, processes: int) -> tuple[float, float, float]:
    """Which part of weights, gradients and moments a process holds.

    DDP keeps a second copy of the gradients, its buckets. ZeRO-2 shares gradients and moments out,
    ZeRO-3 and FSDP2 the weights as well.

    Reference: Rajbhandari et al. 2020, arXiv 1910.02054, figure 1; Zhao et al. 2023, "PyTorch
    FSDP", arXiv 2304.11277; Li et al. 2020, "PyTorch Distributed", arXiv 2006.15704, on buckets.

    Example:
        >>> shares("one", 1), shares("DDP", 8), shares("ZeRO-2", 8), shares("FSDP2", 8)
        ((1.0, 1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 0.125, 0.125), (0.125, 0.125, 0.125))
    """
    part = 1.0 / processes
    return {
        "one": (1.0, 1.0, 1.0),
        "DDP": (1.0, 2.0, 1.0),
        "ZeRO-2": (1.0, part, part),
        "ZeRO-3": (part, part, part),
        "FSDP2": (part, part, part),
    }[strategy]


def gathered_bytes(largest_layer: int, tables: int, *, itemsize: int = FLOAT32) -> int:
    """What exists whole of weights in shards: two layers, one computed and one on its way, and the
    embedding with the output layer, which are gathered with the model itself; gradients of a layer.

    Reference: Zhao et al. 2023, arXiv 2304.11277, section 3.3.

    Args:
        largest_layer: parameters of the largest layer.
        tables: parameters outside the layers.
        itemsize: bytes of a gathered weight.

    Example:
        >>> gathered_bytes(10, 100)
        920
    """
    return itemsize * (2 * (largest_layer + tables)) + FLOAT32 * largest_layer


def forward_flops(parameters: int, layers: int, hidden: int, context: float) -> float:
    """Operations of a token's forward pass: two a weight, and attention to what precedes it.

    Reference: Kaplan et al. 2020, arXiv 2001.08361, section 2.1.

    Args:
        parameters: that are multiplied with, the output layer's where it is read in full.
        layers: of attention.
        hidden: size.
        context: mean tokens that are attended to.

    Example:
        >>> forward_flops(1000, 2, 8, 10)
        2640.0
    """
    return 2.0 * parameters + 4.0 * layers * hidden * context


def passes(*, checkpointing: bool) -> float:
    """Forward passes that an update costs: one, and backward twice as much; recomputing one more.

    Example:
        >>> passes(checkpointing=False), passes(checkpointing=True)
        (3.0, 4.0)
    """
    return 4.0 if checkpointing else 3.0


def decoding_step_seconds(
    flops: float, moved: float, layers: int, *, speed: float, bandwidth: float, overhead: float
) -> float:
    """Time of one token of every row of a batch: the longer of computing and of moving bytes, and
    what a layer costs whatever is in it.

    Reference: Williams et al. 2009, "Roofline", doi 10.1145/1498765.1498785.

    Args:
        flops: operations of the step.
        moved: bytes of the weights, and of keys and values.
        layers: of the model.
        speed: operations a second.
        bandwidth: bytes a second.
        overhead: seconds of a layer, as the host starts its kernels one by one.

    Example:
        >>> decoding_step_seconds(1e9, 1e9, 10, speed=1e12, bandwidth=1e11, overhead=1e-4)
        0.011
    """
    return max(flops / speed, moved / bandwidth) + layers * overhead
