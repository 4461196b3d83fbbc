"""Settings of capturing and of rollouts; torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field

from tdistill.checks import check, check_at_least, check_mass

MOST_TAIL_SAMPLES = 255  # counts are stored in one byte


@dataclass(frozen=True)
class CaptureConfig:
    """Which part of the teacher's distribution is kept at every step."""

    captured_top_p: float = 0.9  # mass of the stored set; every smaller p is served by truncation
    max_set_size: int | None = 256  # cap K on a stored set; null keeps the whole set
    tail_samples: int = 0  # draws a step from the mass off the set
    # Ends a set where one more member adds less to its log mass, nats: the fewest bytes for a mass.
    min_gain: float | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_mass("captured_top_p", self.captured_top_p)
        check_at_least(1, max_set_size=self.max_set_size)
        within = 0 <= self.tail_samples <= MOST_TAIL_SAMPLES
        check("tail_samples", within, f"from 0 to {MOST_TAIL_SAMPLES}", self.tail_samples)
        gain = self.min_gain
        check("min_gain", gain is None or gain >= 0.0, "at least 0 nats", gain)


@dataclass(frozen=True)
class RolloutConfig:
    """How the teacher's responses are sampled."""

    n: int = 8  # responses a prompt (the paper: 8)
    sampling_top_p: float = 0.8  # p of the policy proj_p that responses are drawn from
    max_new_tokens: int = 256  # length limit of a response
    batch_size: int = 32  # responses sampled together
    batches_per_shard: int = 8  # batches written as one file
    seed: int = 0
    capture: CaptureConfig = field(default_factory=CaptureConfig)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_mass("sampling_top_p", self.sampling_top_p)
        check_at_least(
            1,
            n=self.n,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            batches_per_shard=self.batches_per_shard,
        )
