"""Nested mappings (YAML, command line) to typed dataclasses and back, every problem in one error.

Accepted types: int, float, bool, str, Path, None, Literal, ``list[T]``, ``tuple[T, ...]``,
``dict[str, T]``, dataclasses, and unions of these. The class of a union of dataclasses is the one
whose ``name: ClassVar[str]`` stands under the key ``objective``; in a dictionary a missing key is
taken from the entry's name::

    objectives:
      bellman_distill: {}
      bd10: {objective: bellman_distill, alpha: 10}

A name with a colon (``mine.py:MyClass``) is a class of the user's own, derived from the base that
the classes of the union share. It is looked for beside the document, then in the current folder.

A section left empty in YAML is a section without keys. An absent section takes the default of its
field; a present one takes the defaults of its class for the keys it does not have.
"""

from __future__ import annotations

from tdistill.strict.dumping import dump
from tdistill.strict.help import describe
from tdistill.strict.imported import (
    beside,
    import_function,
    import_maker,
    is_import_path,
    source_file_of,
    source_files_of,
)
from tdistill.strict.kinds import nearest
from tdistill.strict.overrides import Option, split_words
from tdistill.strict.structuring import structure
from tdistill.strict.yaml_text import load_yaml

__all__ = [
    "Option",
    "beside",
    "describe",
    "dump",
    "import_function",
    "import_maker",
    "is_import_path",
    "load_yaml",
    "nearest",
    "source_file_of",
    "source_files_of",
    "split_words",
    "structure",
]
