"""vLLM in this process as the engine: an optional extra, for machines with room for the teacher."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from tdistill.errors import ModelError, ServerError, one_line
from tdistill.evidence.rows import Row
from tdistill.hashing import key_of
from tdistill.models.language_model import tokenizer_fingerprint
from tdistill.models.model_files import model_content
from tdistill.teacher.config import VllmConfig
from tdistill.teacher.listing.answers import WrongAnswer, checked_response, checked_steps
from tdistill.teacher.listing.steps import Answer, Asked, Asking, Step


class VllmEngine:
    """The offline engine of vLLM; it is made when it is first asked.

    Args:
        path: of the teacher, a folder or a name of the hub.
        config: how it is run.
        dtype: of its weights, as vLLM names it.
    """

    def __init__(self, path: str, config: VllmConfig, *, dtype: str = "auto") -> None:
        self.path, self.config, self.dtype = path, config, dtype
        self._alone = threading.Lock()

    @property
    def model(self) -> str:
        """The name of the model."""
        return Path(self.path).name

    @property
    def fingerprint(self) -> str:
        """Of what is at its path."""
        return key_of("vllm", model_content(self.path))

    @cached_property
    def _module(self) -> Any:
        """Raises: ModelError: vLLM is not installed."""
        try:
            return import_module("vllm")
        except ImportError as error:
            raise ModelError(
                "teacher.backend: vllm: expected the package vllm, found none that can be imported "
                f"({one_line(error)}); pip install 'tdistill[vllm]', or use backend: server"
            ) from error

    @cached_property
    def _engine(self) -> Any:
        """Raises: ModelError: vLLM cannot run the model."""
        module = self._module
        try:
            return module.LLM(
                model=self.path,
                dtype=self.dtype,
                max_logprobs=-1,
                logprobs_mode="raw_logprobs",
                generation_config="vllm",  # the model's own would set other defaults
                tensor_parallel_size=self.config.devices,
                gpu_memory_utilization=self.config.memory_share,
                max_model_len=self.config.max_model_len,
                enforce_eager=self.config.enforce_eager,
            )
        except Exception as error:
            raise ModelError(
                f"teacher.backend: vllm: expected a model that vLLM runs, found that {self.path} "
                f"does not start: {one_line(error)}"
            ) from error

    @property
    def most_tokens(self) -> int | None:
        """The longest row that it takes, in tokens."""
        return int(self._engine.llm_engine.model_config.max_model_len)

    def check(self, tokenizer: Any, how: Asking) -> str:
        """See :class:`tdistill.teacher.listing.teacher.Engine`."""
        theirs = tokenizer_fingerprint(self._engine.get_tokenizer())
        if theirs != tokenizer_fingerprint(tokenizer):
            raise ModelError(
                f"{self.path}: expected the tokenizer that transformers reads there, found another "
                "in vLLM; look at tokenizer_config.json"
            )
        return f"{self.model} in vLLM, {how.listed} tokens listed a step"

    def respond(
        self,
        asked: Sequence[Asked],
        how: Asking,
        keep: Callable[[int, Answer], None],
    ) -> list[Answer]:
        """See :class:`tdistill.teacher.listing.teacher.Engine`."""
        params = [
            self._params(
                temperature=how.temperature,
                seed=wanted.seed,
                top_p=how.sampling_top_p,
                max_tokens=how.max_new_tokens,
                logprobs=how.listed,
                stop_token_ids=list(how.end_ids),
            )
            for wanted in asked
        ]
        answers = []
        made = self._generate([wanted.prompt for wanted in asked], params)
        for place, output in enumerate(made):
            (response,) = output.outputs
            tops = [_entries(top) for top in response.logprobs or ()]
            ids = tuple(map(int, response.token_ids))
            answers.append(self._checked(checked_response, ids, response.finish_reason, tops, how))
            keep(place, answers[-1])
        return answers

    def read(self, rows: Sequence[Row], how: Asking) -> list[tuple[Step, ...]]:
        """See :class:`tdistill.teacher.listing.teacher.Engine`."""
        params = [
            self._params(temperature=1.0, max_tokens=1, prompt_logprobs=how.listed) for _ in rows
        ]
        made = self._generate([(*row.prompt_ids, *row.response_ids) for row in rows], params)
        found = []
        for row, output in zip(rows, made, strict=True):
            tops = [_entries(top) for top in output.prompt_logprobs[len(row.prompt_ids) :]]
            found.append(self._checked(checked_steps, row.response_ids, tops, how))
        return found

    def stop(self) -> None:
        """See :class:`tdistill.teacher.listing.teacher.Engine`; a pass goes on to its end."""

    def _params(self, **settings: Any) -> Any:
        return self._module.SamplingParams(detokenize=False, **settings)

    def _generate(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        wanted = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with self._alone:
            return self._engine.generate(wanted, list(params), use_tqdm=False) if wanted else []

    def _checked(self, check: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return check(*arguments)
        except WrongAnswer as error:
            raise ServerError(f"vLLM, {self.path}: {error}; nothing of it was kept") from error


def _entries(top: Mapping[int, Any]) -> dict[int, float]:
    return {int(token): float(entry.logprob) for token, entry in top.items()}
