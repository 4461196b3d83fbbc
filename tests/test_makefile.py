"""What `make` says to people whose machine is not as it must be."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("version", "refused"), [((3, 10), True), ((3, 11), False)])
def test_an_old_python_is_refused_with_the_cure(
    tmp_path: Path, version: tuple[int, int], refused: bool
):
    claimed = f"import sys; sys.version_info = ({version[0]}, {version[1]}, 0); "
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || exit 0\nexec "{sys.executable}" -c "{claimed}$2"\n'
    )
    python.chmod(0o755)
    target = f"{tmp_path}/env/bin/python"
    words = ["make", target, f"VENV={tmp_path}/env", f"PYTHON={python}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == refused
    said = "expected Python 3.11 or newer, found 3.10; name another: make PYTHON=python3.12"
    assert (said in done.stderr) == refused
