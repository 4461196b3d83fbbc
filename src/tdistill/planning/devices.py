"""Kinds of devices, by their makers' data sheets, and how much of that programs reach."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tdistill.checks import check
from tdistill.strict import nearest

_USABLE = 0.9  # of a device's memory: the rest is the driver's, the libraries', and fragments
_CORE = 2.0e10  # operations a second that a core of a CPU does in float32 products: an assumption
_CPU_BANDWIDTH = 1.0e10


@dataclass(frozen=True)
class Device:
    """What one device has.

    Attributes:
        name: as users write it.
        memory: bytes.
        speed: operations a second that training reaches, an assumption.
        bandwidth: bytes a second that decoding reaches, an assumption.
        overhead: seconds that a layer costs at each token, an assumption.
        measured: whether the last three are no assumptions, but were measured.
    """

    name: str
    memory: float
    speed: float
    bandwidth: float
    overhead: float
    measured: bool = False

    @property
    def is_cpu(self) -> bool:
        """Whether weights are loaded in float32 by default, as on a CPU."""
        return self.name == "cpu"

    @property
    def usable(self) -> float:
        """Bytes that tensors may fill."""
        return self.memory * _USABLE

    def holds(self, needed: float) -> bool:
        """Whether tensors of so many bytes fit."""
        return needed <= self.usable


# Memory in GB, bfloat16 products without sparsity in TFLOP/s, GB/s: NVIDIA's data sheets of each.
_SHEETS = {
    "t4": (16, 65, 320),
    "v100": (32, 125, 900),
    "a10": (24, 125, 600),
    "l4": (24, 121, 300),
    "l40s": (48, 362, 864),
    "rtx-3090": (24, 71, 936),
    "rtx-4090": (24, 165, 1008),
    "a100-40gb": (40, 312, 1555),
    "a100": (80, 312, 2039),
    "h100": (80, 989, 3350),
    "h200": (141, 989, 4800),
    "b200": (180, 2250, 8000),
}
DEVICES = ("cpu", *_SHEETS)
"""Names of the kinds that are known."""

_REACHED = 0.2  # of the sheet's speed, by training in bfloat16, layer by layer
_WITHOUT_BF16 = 0.5  # of that, in float32 by way of TF32
_MOVED = 0.5  # of the sheet's bandwidth, by decoding
_OVERHEAD = 4.0e-4  # seconds a layer and token: kernels that the host starts one by one
_CPU_OVERHEAD = 3.0e-4


def device_of(name: str, *, bf16: bool = True) -> Device:
    """The device of a name.

    Args:
        name: one of `DEVICES`; ``cpu`` is this machine's.
        bf16: whether products are in bfloat16.

    Raises:
        InvalidValueError: no such kind is known.

    Example:
        >>> device_of("h100").memory, device_of("h100").holds(73e9)
        (80000000000.0, False)
    """
    known = f"one of {', '.join(DEVICES)}"
    check("--device", name in DEVICES, known, f"{name}{nearest(name, DEVICES)}")
    if name == "cpu":
        return _this_cpu()
    memory, speed, bandwidth = _SHEETS[name]
    reached = _REACHED * speed * 1e12 * (1.0 if bf16 else _WITHOUT_BF16)
    return Device(name, memory * 1e9, reached, _MOVED * bandwidth * 1e9, _OVERHEAD)


def _this_cpu() -> Device:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    speed = _CORE * len(os.sched_getaffinity(0))
    return Device("cpu", float(memory), speed, _CPU_BANDWIDTH, _CPU_OVERHEAD)


def device_here() -> str:
    """The kind of the devices of this machine; of a GPU that is not known, the one nearest in
    memory."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    found = torch.cuda.get_device_properties(0)
    plain = found.name.lower().replace(" ", "-")
    named = [kind for kind in _SHEETS if kind.removesuffix("-40gb") in plain]
    kinds = named or list(_SHEETS)
    return min(kinds, key=lambda kind: abs(_SHEETS[kind][0] * 1e9 - found.total_memory))
