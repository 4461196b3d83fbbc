"""Bytes of other layouts of the same sets, from their published rules. Torch is not needed."""

from __future__ import annotations

from collections.abc import Sequence

MEGATRON_ENTRY = 2 + 2 + 1  # float16, the low 16 bits of the id, its 17th bit as a bool


def megatron_bytes(micro_batches: Sequence[Sequence[int]], *, most: int) -> int:
    """Megatron-LM's padded top-p layout, before its zstd: every step has the largest set's room.

    Args:
        micro_batches: set sizes of the steps of each micro-batch.
        most: its k, which caps a set.

    Reference: https://github.com/NVIDIA/Megatron-LM, megatron/training/distillation.

    Example:
        >>> megatron_bytes([[1, 3], [300, 2]], most=256)
        2590
    """
    return sum(
        MEGATRON_ENTRY * min(max(sizes), most) * len(sizes) for sizes in micro_batches if sizes
    )
