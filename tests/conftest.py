"""Shapes and types of ``tdistill.core`` are checked under test: this must stay the first import."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from pipeline import Finished

# Tiny models: more threads only wait for each other. Before torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

for _name in [name for name in sys.modules if name.split(".")[0] == "tdistill"]:
    del sys.modules[_name]  # loaded before the hook: load again, checked
# Not the kernels: Triton compiles a function as it is written.
_HEAD = [
    f"tdistill.models.head.{name}" for name in ("devices", "linear", "full_logits", "row_products")
]
install_import_hook(
    ("tdistill.core", *_HEAD),
    # The numeric tower: an int is a float, as for every other type checker.
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


def pytest_collection_finish() -> None:
    """Collect no garbage among what was imported: every training calls the collector."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter take down what it built up; extensions complain otherwise."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One whole run of the pipeline, shared by the tests that only read it."""
    from pipeline import finish_once

    several = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    return finish_once((base.parent if several else base) / "finished", base / "copy")


import jaxtyping  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from torch import Tensor  # noqa: E402

settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

# Whole runs and searches call ``core`` many thousand times with shapes that the tests of single
# calls, of objectives and of evaluation have checked: there, checking is half of the time.
_MANY_CALLS = ("cli", "run", "report", "test_tabular_", "test_every_objective", "test_train.")
_MANY_CALLS += (
    "test_trainer",
    "test_parts",
    "test_mixing",
    "test_branches",
    "test_likelihood_filter",
)


@pytest.fixture(scope="module", autouse=True)
def _shapes(request: pytest.FixtureRequest) -> None:
    where = request.path.relative_to(Path(__file__).parent)
    many = any(part.startswith(_MANY_CALLS) for part in where.parts)
    jaxtyping.config.update("jaxtyping_disable", many)


@pytest.fixture(scope="module")
def plain_pages() -> Iterator[None]:
    """Pages without figures, which are two of the ten seconds of a run that nobody looks at."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("interval_figures", "learning_curves", "loss_panels"):
            patch.setattr(f"tdistill.report.page.{name}", lambda result: [])
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of random numbers."""
    return torch.Generator().manual_seed(7)


@pytest.fixture
def offsets() -> Tensor:
    """Rows of 3, 1, 7, 1, 2 and 40 members."""
    return torch.tensor([0, 3, 4, 11, 12, 14, 54])
