"""Whether a response is right: equal to a reference, or by a function of the user's. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdistill import strict
from tdistill.data import Example
from tdistill.data.thinking import without_reasoning
from tdistill.errors import DataError, InvalidValueError

EXACT = "exact"


@dataclass(frozen=True)
class Verifier:
    """A judge of responses, as ``evaluation.verify`` names it.

    Attributes:
        named: ``exact``, or the import path of a function.
        judge: ``(response, references, prompt)`` to true, false or a number in [0, 1].
    """

    named: str
    judge: Callable[[str, list[str], str], Any]

    @property
    def metric(self) -> str:
        """What its mean is called."""
        return "exact_match" if self.named == EXACT else "verified"

    @property
    def source_file(self) -> Path | None:
        """The file of a user's own function."""
        return strict.source_file_of(self.judge)

    def __call__(self, response: str, example: Example) -> float:
        """How right a response to the prompt of an example is, from 0 to 1.

        Raises:
            InvalidValueError: the function gives something else.
        """
        prompt = example.question or example.prompt
        references = [without_reasoning(reference) for reference in example.references]
        found = self.judge(response, references, prompt)
        if not (isinstance(found, (bool, int, float)) and 0 <= found <= 1):
            raise InvalidValueError(
                f"evaluation.verify: expected true, false or a number in [0, 1] from {self.named}, "
                f"found {found!r} ({type(found).__name__}) for the response {response[:60]!r}; "
                "make it return bool(...) or float(...)"
            )
        return float(found)

    def try_out(self, examples: Sequence[Example]) -> None:
        """Refuse prompts that it cannot judge, before any work is spent on them.

        Raises:
            DataError: a prompt has no reference, where responses must equal one.
            InvalidValueError: the function gives no truth value or number in [0, 1].
        """
        bare = [example for example in examples if not example.references]
        if bare and self.named == EXACT:
            raise DataError(
                f"evaluation.verify: exact: expected a reference for every prompt, found none for "
                f"{len(bare)} of {len(examples)}, the first {bare[0].prompt[:60]!r}; add them, or "
                "name a function that needs none (FILE.py:FUNCTION)"
            )
        for example in examples[:1]:
            self(next(iter(example.references), ""), example)


def load_verifier(named: str) -> Verifier:
    """The verifier of a name.

    Raises:
        InvalidValueError: there is none of that name.

    Example:
        >>> load_verifier("exact").judge(" 7\\n", ["seven", "7"], "3 + 4")
        True
    """
    if named == EXACT:
        return Verifier(named, equals_a_reference)
    if not strict.is_import_path(named):
        raise InvalidValueError(
            f"verify: expected {EXACT} or FILE.py:FUNCTION, found {named!r}"
            f"{strict.nearest(named, [EXACT])}"
        )
    return Verifier(named, strict.import_function(named, "response", "references", "prompt"))


def equals_a_reference(response: str, references: Sequence[str], prompt: str) -> bool:
    """Whether a response is one of the references, the white space around both left out.

    Example:
        >>> equals_a_reference("7", ["seven", "7 "], ""), equals_a_reference("7.", ["7"], "")
        (True, False)
    """
    return response.strip() in {reference.strip() for reference in references}
