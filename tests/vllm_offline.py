"""Asks the offline engine of vLLM in its own environment; prints what it found as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tdistill.evidence.rows import Row
from tdistill.models.language_model import load_tokenizer, tokenizer_fingerprint
from tdistill.teacher.cache.row_encoder import CachedResponse
from tdistill.teacher.config import CaptureConfig, RolloutConfig, VllmConfig
from tdistill.teacher.listing.teacher import ListingTeacher
from tdistill.teacher.listing.vllm_engine import VllmEngine
from tdistill.teacher.rollouts import plan_units


def plain(found: list[CachedResponse]) -> dict[str, Any]:
    return {
        "rows": [[r.row.prompt_ids, r.row.response_ids, r.row.ended] for r in found],
        "action": [x for r in found for x in r.evidence.action_log_prob.tolist()],
        "sizes": [x for r in found for x in r.evidence.sets.sizes.tolist()],
    }


def main(folder: str) -> None:
    tokenizer, capture = load_tokenizer(folder), CaptureConfig(0.9, 32)
    engine = VllmEngine(folder, VllmConfig(max_model_len=128, enforce_eager=True), dtype="float32")
    with tempfile.TemporaryDirectory() as unfinished:
        teacher = ListingTeacher(
            engine,
            capture,
            tokenizer_fingerprint(tokenizer),
            vocabulary_size=64,
            end_ids=(1,),
            listed=32,
            incomplete="refuse",
            unfinished=Path(unfinished),
        )
        said = teacher.check(tokenizer, 100)
        config = RolloutConfig(n=4, max_new_tokens=8, capture=capture)
        (unit,) = plan_units([(9,), (3, 4, 5, 6)], config)
        rolled = teacher.sample_unit(unit, config)
        scored = teacher.score([Row((9,), (33, 1), True), Row((3, 4), (5,), False)])
    found = {"said": said, "most_tokens": engine.most_tokens}
    print(json.dumps(found | {"rollouts": plain(rolled), "score": plain(scored)}))


if __name__ == "__main__":
    main(sys.argv[1])
