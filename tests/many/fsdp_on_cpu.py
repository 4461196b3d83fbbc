"""FSDP on the CPU, which accelerate only allows on accelerators: ``python fsdp_on_cpu.py run ...``.

The environment is that of `accelerate launch --use_fsdp`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


def allow() -> None:
    """Let accelerate take gloo for what it shards over."""
    state: Any = PartialState
    state._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    torch.distributed.init_process_group("gloo")


if __name__ == "__main__":
    from tdistill import cli

    allow()
    sys.exit(cli.main(sys.argv[1:]))
