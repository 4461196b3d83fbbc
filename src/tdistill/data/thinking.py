"""Reasoning in a response: the tags around it, and what a prompt that opens a block asks for."""

from __future__ import annotations

from dataclasses import dataclass

from tdistill.data.formats import Response
from tdistill.data.messages import Message

TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought", "<channel|>"),
)


@dataclass(frozen=True)
class ThinkBlock:
    """What a generation prompt ends with.

    Attributes:
        tags: what opens the block and what closes it.
        base: the prompt before the block.
        space: white space that the prompt puts after the opening tag.
        closed: whether the prompt closes it too, so that the answer follows at once.
    """

    tags: tuple[str, str]
    base: str
    space: str
    closed: bool


def block_of_prompt(prompt: str) -> ThinkBlock | None:
    """The block that a generation prompt ends with, if it does.

    Example:
        >>> block = block_of_prompt("<|assistant|><think>\\n")
        >>> block.base, block.space, block.closed
        ('<|assistant|>', '\\n', False)
        >>> block_of_prompt("<|assistant|><think>\\n\\n</think>\\n\\n").closed
        True
        >>> block_of_prompt("<|assistant|>") is None
        True
    """
    for opening, closing in TAGS:
        base, opened, block = prompt.rpartition(opening)
        inside, closed, after = block.partition(closing)
        # An open block is empty still; a closed one may say that there is no time to think.
        if opened and not after.strip() and (closed or not inside.strip()):
            space = inside[: len(inside) - len(inside.lstrip())]
            return ThinkBlock((opening, closing), base, space, bool(closed))
    return None


def divide(answer: Message) -> tuple[str | None, str, str]:
    """Reasoning, what stands between it and the answer, and the answer.

    Args:
        answer: reasoning may be a field of its own, or in tags at the start of the content, where
            the opening tag may be missing (a prompt has opened the block already).

    Returns:
        The reasoning without its tags (None: there is none); closing tag and white space as they
        stand in the content, else an empty text; the answer.

    Example:
        >>> divide({"content": "<think>\\nTwo and two.\\n</think>\\n\\n4"})
        ('\\nTwo and two.\\n', '</think>\\n\\n', '4')
        >>> divide({"content": "4", "reasoning_content": "Two and two."})
        ('Two and two.', '', '4')
        >>> divide({"content": "4"})
        (None, '', '4')
    """
    content = answer.get("content", "")
    for opening, closing in TAGS:
        thought, closed, rest = content.partition(closing)
        head, opened, inside = thought.partition(opening)
        if closed and (not opened or not head.strip()):
            body = rest.lstrip()
            reasoning = inside if opened else thought
            return reasoning, closed + rest[: len(rest) - len(body)], body
    reasoning = answer.get("reasoning_content")
    return reasoning, "", content


def without_reasoning(text: str) -> str:
    """What a text answers: what stands after its reasoning.

    Example:
        >>> without_reasoning("<think>\\nTwo and two.\\n</think>\\n\\n4"), without_reasoning("4")
        ('4', '4')
    """
    return divide({"content": text})[2]


def with_answer_alone(answer: Message) -> Message:
    """The turn without its reasoning."""
    rest = {key: value for key, value in answer.items() if key != "reasoning_content"}
    text = divide(answer)[2]
    return rest | ({"content": text} if "content" in answer else {})


def with_reasoning_apart(answer: Message) -> Message | None:
    """The turn with its reasoning as a field, where it stands in the content; else None."""
    reasoning, between, _ = divide(answer)
    if not between:
        return None
    return {**with_answer_alone(answer), "reasoning_content": (reasoning or "").strip()}


def inside_open_block(block: ThinkBlock, answer: Message) -> str:
    """What continues a prompt that has opened a block, up to where the answer begins.

    The reasoning goes into the block; without any the block is closed at once. It begins with no
    white space where the prompt ends with some, since the tokens of both would merge.

    Example:
        >>> block = block_of_prompt("<think>\\n")
        >>> inside_open_block(block, {"content": "<think>\\nYes.\\n</think>\\n\\n4"})
        'Yes.\\n</think>\\n\\n'
        >>> inside_open_block(block, {"content": "4"})
        '</think>\\n\\n'
    """
    reasoning, between, _ = divide(answer)
    closing = block.tags[1]
    if reasoning is None or not reasoning.strip():
        return f"{closing}\n\n"
    if between:
        inner = reasoning.lstrip() if block.space else reasoning
        return f"{inner}{closing}{between[len(between.rstrip()) :]}"
    return f"{reasoning.strip()}{block.space}{closing}\n\n"


def as_message(response: Response) -> Message:
    """A response as the assistant's turn."""
    return {"role": "assistant", "content": response} if isinstance(response, str) else response
