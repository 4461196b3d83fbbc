"""Answers of a real vLLM server to fixed questions, and how they were recorded.

    vllm serve FOLDER --served-model-name tiny --dtype float32 --max-model-len 128 \
        --max-logprobs -1 --logprobs-mode raw_logprobs
    python tests/recorded.py FOLDER                 # writes the model that is served
    python tests/recorded.py http://localhost:8000  # asks, and writes vllm_answers.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tdistill.evidence.rows import Row
from tdistill.models.language_model import LanguageModel, save
from tdistill.teacher.config import ServerConfig
from tdistill.teacher.listing.answers import request_for, request_to_read
from tdistill.teacher.listing.http import HttpClient
from tdistill.teacher.listing.steps import Asked, Asking
from tiny import tiny_lm

PATH = Path(__file__).parent / "vllm_answers.json"
HOW = Asking(
    listed=24, sampling_top_p=0.9, max_new_tokens=8, end_ids=(1, 10, 24), vocabulary_size=64
)
ASKED = tuple(
    Asked(prompt, seed)
    for prompt in ((9,), (3, 4, 5, 6), (10, 11, 12), tuple(range(20, 40)))
    for seed in (0, 1, 2**31 - 1)
)
ENDS_AT_ONCE = Asking(24, 0.9, 8, tuple(range(64)), 64)  # whatever is drawn
ROWS = (
    Row((9,), (33, 12, 60, 2), False),
    Row((3, 4, 5), (6, 7, 1), True),
    Row((20, 21), (1,), True),
)


def served_lm() -> LanguageModel:
    """A random model with heads of 64: vLLM on a CPU takes none of 8, and not everywhere of 16."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 64, "num_hidden_layers": 2}
    lm = tiny_lm("llama", seed=1, **sizes)
    norm: Any = lm.model.get_submodule("model.norm")
    torch.nn.init.constant_(norm.weight, 1.5)
    return lm


def record(url: str) -> dict[str, Any]:
    """Ask a server everything; its answers as they came."""
    http = HttpClient(ServerConfig(url))

    def ask(content: dict[str, Any]) -> Any:
        return http.ask("/v1/completions", content)

    return {
        "models": http.ask("/v1/models"),
        "responses": [ask(request_for(asked, HOW, "tiny")) for asked in ASKED],
        "at_once": ask(request_for(ASKED[0], ENDS_AT_ONCE, "tiny")),
        "read": [ask(request_to_read(row, HOW, "tiny")) for row in ROWS],
    }


if __name__ == "__main__":
    if sys.argv[1].startswith("http"):
        PATH.write_text(json.dumps(record(sys.argv[1])) + "\n")
    else:
        save(served_lm(), Path(sys.argv[1]))
