"""The two settings that DistillKit publishes, and the bytes that follow from a setting.

Reference: https://github.com/arcee-ai/DistillKit, README, "Logit Compression".
"""

from __future__ import annotations

from typing import Any

_COMMON = {
    "exact_dtype": "bfloat16",
    "term_dtype": "float32",
    "residual_bins": [],
    "delta_encoding": False,
    "error_diffusion": False,
}
RECOMMENDED: dict[str, Any] = {
    "k": 128,
    "exact_k": 16,
    "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"],
    **_COMMON,
}
BUDGET: dict[str, Any] = {"k": 50, "exact_k": 1, "polynomial_terms": [0, 1, "sqrt"], **_COMMON}
SETTINGS = {"recommended": RECOMMENDED, "budget": BUDGET}


def setting_of(published: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """A published setting for a vocabulary."""
    return {"d": vocabulary, **published}


def bytes_per_step(published: dict[str, Any], vocabulary: int) -> int:
    """Bytes of one position: packed ids, the exact values, the coefficients.

    Example:
        >>> bytes_per_step(RECOMMENDED, 151_936), bytes_per_step(BUDGET, 151_936)
        (344, 127)
    """
    id_bits = (vocabulary - 1).bit_length()
    ids = -(-published["k"] * id_bits // 8)
    return ids + 2 * published["exact_k"] + 4 * len(published["polynomial_terms"])
