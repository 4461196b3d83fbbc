"""The comparison of containers: each gives back what was written, in the order asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.cache_formats import FORMATS, Container, Ours, check
from benchmarks.cache_material import material

from teaching import roll


@pytest.mark.parametrize("vocabulary", [None, 151_936])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_format_gives_the_same_evidence(
    form: Ours | Container, vocabulary: int | None, tmp_path: Path
):
    roll(tmp_path / "cache", n=2)
    made = material(tmp_path / "cache", 2, vocabulary)
    assert len(made.shards) == 2
    (tmp_path / "out").mkdir()
    form.write(made, tmp_path / "out")
    order = [7, 0, 19, 3, 3]
    check(form.open(made, tmp_path / "out")(order), [made.records[i] for i in order])
