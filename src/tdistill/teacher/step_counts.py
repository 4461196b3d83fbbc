"""Counts of the steps of a cache, a block at a time: sizes, masses, what is outside, what lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from tdistill.teacher.cache.blocks import Block
from tdistill.teacher.cache.manifest import CacheIdentity
from tdistill.teacher.gap_sums import Members

_MASS_UNITS = 1 << 21  # captured masses are counted in steps of this part


class StepCounts:
    """Counts, from which means and quantiles follow.

    Args:
        identity: of the cache.
        menu: masses p that sets may be cut to.

    Attributes:
        sizes: how many sets have each size, as captured.
        cut_sizes: the same of the sets of each p of the menu.
        masses: how many sets have each captured mass.
        mass: sum of the captured masses.
        least_mass: the smallest one.
        rows: responses.
        ended: responses that ended.
        marked_steps: sets that lack members which the teacher did not list.
        marked_rows: responses that have such sets.
        outside: response tokens outside their set.
        tail_tokens: distinct sampled tail tokens.
        capped: sets that the cap ended before p.
        rows_of: responses of each teacher, by its fingerprint.
        steps_of: steps of each.
    """

    def __init__(self, identity: CacheIdentity, menu: Sequence[float]) -> None:
        self._identity = identity
        self.sizes = np.zeros(1, dtype=np.int64)
        self.cut_sizes = {p: np.zeros(1, dtype=np.int64) for p in menu}
        self.masses = np.zeros(_MASS_UNITS + 1, dtype=np.int64)
        self.mass, self.least_mass = 0.0, 1.0
        self.rows = self.ended = self.marked_steps = self.marked_rows = 0
        self.outside = self.tail_tokens = self.capped = 0
        self.rows_of: Counter[str] = Counter()
        self.steps_of: Counter[str] = Counter()

    @property
    def steps(self) -> int:
        """Of all responses."""
        return int(self.sizes.sum())

    @property
    def members(self) -> int:
        """Of all sets."""
        return int((self.sizes * np.arange(len(self.sizes))).sum())

    def add(self, block: Block, members: Members) -> None:
        """Count a block."""
        sizes = block.sets.sizes
        self.sizes = _added(self.sizes, sizes)
        self.rows += len(block.lengths)
        self.ended += int(block.ended.sum())
        self.rows_of.update(block.teachers)
        for teacher, length in zip(block.teachers, block.lengths.tolist(), strict=True):
            self.steps_of[teacher] += length
        self.marked_steps += int(block.marks.sum())
        self.marked_rows += int((block.marks > 0).sum())
        self.tail_tokens += int(block.tail_sizes.sum())
        hits = (block.sets.ids == block.action[members.step]).long()
        inside = torch.zeros_like(sizes).index_add(0, members.step, hits)
        self.outside += int((inside == 0).sum())
        for p, counts in self.cut_sizes.items():
            kept = (members.before < p) | members.first | (p == 1.0)
            cut = torch.zeros_like(sizes).index_add(0, members.step, kept.long())
            self.cut_sizes[p] = _added(counts, cut)
        losses = torch.zeros(len(sizes), dtype=torch.float64)
        self._add_masses((-losses.index_add(0, members.step, members.loss)).exp().numpy(), sizes)

    def _add_masses(self, mass: np.ndarray, sizes: torch.Tensor) -> None:
        self.mass += float(mass.sum())
        self.least_mass = min(self.least_mass, float(mass.min()))
        np.add.at(self.masses, np.rint(mass * _MASS_UNITS).astype(np.int64), 1)
        # Mass is summed from rounded log-probabilities: allow for their rounding.
        short = mass < self._identity.captured_top_p - 1e-3
        self.capped += int((short & (sizes.numpy() == self._identity.max_set_size)).sum())

    def mass_quantile(self, q: float) -> float:
        """A quantile of the captured masses."""
        return quantile(self.masses, q) / _MASS_UNITS


def _added(counts: np.ndarray, values: torch.Tensor) -> np.ndarray:
    found = np.bincount(values.numpy(), minlength=len(counts))
    found[: len(counts)] += counts
    return found


def quantile(counts: np.ndarray, q: float) -> float:
    """A quantile of whole numbers, given how often each one is there; linear between neighbours.

    Example:
        >>> quantile(np.array([0, 1, 0, 1]), 0.25)  # of 1 and 3
        1.5
    """
    place = q * (int(counts.sum()) - 1)
    ends, low = counts.cumsum(), int(place)
    below, above = np.searchsorted(ends, [low, int(np.ceil(place))], side="right")
    return float(below + (above - below) * (place - low))


def histogram(counts: np.ndarray) -> dict[str, list[int]]:
    """Counts of sizes in bins that grow: 1, 2, 3 to 4, 5 to 8, ..."""
    edges = [1, 2]
    while edges[-1] <= len(counts) - 1:
        edges.append(2 * edges[-1] - 1)  # 1, 2, 3, 5, 9, 17, ...
    ends = counts.cumsum()[np.minimum(edges, len(counts)) - 1]
    return {"edges": edges, "counts": np.diff(ends).tolist()}
