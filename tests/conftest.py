"""Shapes and types of ``tdistill.core`` are checked under test: this must stay the first import."""

from __future__ import annotations

import sys

from jaxtyping import install_import_hook

for _name in [name for name in sys.modules if name.split(".")[0] == "tdistill"]:
    del sys.modules[_name]  # loaded before the hook: load again, checked
install_import_hook(
    "tdistill.core",
    # The numeric tower: an int is a float, as for every other type checker.
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
