"""Where a student comes from: its teacher's name, place on the hub and license."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from tdistill.files import hub_name, write_atomically
from tdistill.recipe import Recipe
from tdistill.report.card import Origin, model_card
from tdistill.report.result import Result

CARD = "README.md"
_MOST_READ = 1 << 16  # characters of a teacher's card
_LICENSE = re.compile(r"^license: *[\"']?([A-Za-z0-9.+-]{2,40})[\"']? *$", re.MULTILINE)
_HEAD = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_PREFIX = re.compile(r"^[a-z]+:")


def origin_of(recipe: Recipe, teacher: Path, *, chat: bool) -> Origin:
    """What a card says of the teacher.

    Args:
        recipe: of the run.
        teacher: its folder; of one on the hub, none that exists.
        chat: whether its tokenizer has a chat template.
    """
    path = recipe.teacher.path
    repository = hub_name(path)
    file = recipe.teacher.gguf_file
    name = Path(file).stem if file else Path(_PREFIX.sub("", path)).name
    text = _hub_card(repository) if repository else _own_card(teacher, path)
    return Origin(name or "the teacher", repository, license_in(text), chat)


def license_in(card: str) -> str | None:
    """The license that the metadata of a model card name.

    Example:
        >>> license_in("---\\nlicense: apache-2.0\\n---\\n# A model"), license_in("license: mit")
        ('apache-2.0', None)
    """
    head = _HEAD.search(card.replace("\r\n", "\n"))
    found = None if head is None else _LICENSE.search(head[1])
    return None if found is None else found[1].lower()


def _own_card(teacher: Path, path: str) -> str:
    """The card beside a teacher, or beside what it was converted from."""
    for folder in (teacher, Path(path)):
        with suppress(OSError):
            return (folder / CARD).read_text(encoding="utf-8", errors="replace")[:_MOST_READ]
    return ""


def _hub_card(repository: str) -> str:
    """The card of a teacher of the hub; empty where it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    with suppress(HfHubHTTPError, OSError, ValueError):
        place = hf_hub_download(repository, CARD)
        return Path(place).read_text(encoding="utf-8", errors="replace")[:_MOST_READ]
    return ""


def write_card(result: Result, origin: Origin, student: Path) -> None:
    """Write the card of a student into its folder."""
    write_atomically(student / CARD, model_card(result, origin).encode(errors="replace"))
