"""Chat templates with the habits of well-known ones, in few lines."""

from __future__ import annotations

from data_tokenizers import byte_level
from transformers import PreTrainedTokenizerFast

_TURN = "<|im_start|>{{ message.role }}\n"
_SPLIT = (
    "{% set content = message.content if message.content is string else '' %}"
    "{% set thought = message.reasoning_content if message.reasoning_content is string else '' %}"
    "{% if not thought and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
_CALLS = (
    "{% for call in message.tool_calls %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments if call.function.arguments is string else "
    "call.function.arguments | tojson }}}\n</tool_call>{% endfor %}"
)
_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "<|im_end|>\n{% endif %}"
)

# A hybrid: the last turn always has a block, an empty one where there is no reasoning; what went
# before has none. The generation prompt closes an empty block where thinking is off.
HYBRID = (
    _TOOLS
    + "{% for message in messages %}{% if message.role == 'assistant' %}"
    + _SPLIT
    + _TURN
    + "{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ content }}"
    + _CALLS
    + "<|im_end|>\n{% else %}"
    + _TURN
    + "{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
# The generation prompt opens a block; the same template writes it into the last turn.
THINKER = HYBRID.replace(
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}",
    "<think>\n",
)
# The generation prompt opens a block; whole conversations never have one.
FORGETFUL = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    + _TURN
    + "{{ message.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n{% else %}"
    + _TURN
    + "{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# The generation prompt opens a block; texts are written as they stand.
LITERAL = FORGETFUL.replace(".split('</think>')[-1].lstrip('\n')", "")
# The last turn has a block from the field alone; tags in the text are left as they are.
FIELD_ONLY = THINKER.replace("{% if not thought and '</think>' in content %}", "{% if false %}")
# The block of whole conversations is closed at once, unlike that of the generation prompt.
EMPTY_BLOCK = FORGETFUL.replace(
    "{{ message.content.split", "<think></think>{{ message.content.split"
)


def thinking(
    template: str, *, special: bool = False, merges_lines: bool = True
) -> PreTrainedTokenizerFast:
    """A tokenizer whose think tags are tokens of their own; two line feeds may be one."""
    tokenizer = byte_level(template, merges_lines=merges_lines)
    assert len(tokenizer("\n\n")["input_ids"]) == (1 if merges_lines else 2)
    tags = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    tokenizer.add_tokens(tags, special_tokens=special)
    return tokenizer
