"""The examples of a run, split by split."""

from __future__ import annotations

from typing import Any

from tdistill.data import DataConfig, Example, load_examples
from tdistill.errors import DataError
from tdistill.run.stages import Say


def load_splits(
    config: DataConfig, tokenizer: Any, say: Say
) -> tuple[dict[str, list[Example]], str]:
    """Training, validation and test examples, none of whose prompts are in two of them.

    Prompts of training are left out of the other two, and those of the test out of validation: what
    is chosen on validation prompts must not be chosen on the test's.

    Args:
        config: of the data.
        tokenizer: shared by teacher and student.
        say: prints a line for people.

    Returns:
        The examples by split, and what the data doctor found.

    Raises:
        DataError: if no test prompt is left.
    """
    loaded: dict[str, list[Example]] = {"valid": []}
    reports = []
    for split in ("train", "valid", "test"):
        source, limit = getattr(config, split), getattr(config, f"limit_{split}")
        if source is not None:
            loaded[split], report = load_examples(source, tokenizer, config, limit=limit)
            reports.append(report.text())
    say(reports[0])
    for split, other in (("test", "train"), ("valid", "train"), ("valid", "test")):
        seen = {example.prompt_ids for example in loaded[other]}
        unseen = [e for e in loaded[split] if e.prompt_ids not in seen]
        if len(unseen) < len(loaded[split]):
            dropped = len(loaded[split]) - len(unseen)
            say(f"  {split}: left out {dropped} prompts that are also in {other}")
        loaded[split] = unseen
    if not loaded["test"]:
        raise DataError(
            f"{config.test}: expected test prompts that are not in {config.train}, found none; "
            "name another data.test"
        )
    return loaded, "\n\n".join(reports)
