"""Settings of capturing and of rollouts; torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from tdistill.checks import check, check_at_least, check_mass

Backend = Literal["transformers", "vllm", "server"]
"""Who samples the teacher: this process, vLLM in this process, or a server."""

Incomplete = Literal["refuse", "score", "accept"]
"""What happens to sets that the listed tokens do not complete."""

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
    tf32: bool = False  # a float32 teacher on CUDA multiplies in TF32: faster, .01 nats less exact
    capture: CaptureConfig = field(default_factory=CaptureConfig)
    # In place of sampling: the responses of a cache, or of the run in a folder.
    cache: str | None = None
    # Of a cache of several teachers only these, by name or fingerprint, each row so often an epoch.
    teachers: dict[str, int] | None = None
    # Or those of a source of data, prompts with responses, which the teacher reads once.
    responses: str | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        both = f"cache = {self.cache} and responses = {self.responses}"
        one = self.cache is None or self.responses is None
        check("cache, responses", one, "at most one of the two", both)
        check_mass("sampling_top_p", self.sampling_top_p)
        if self.teachers is not None:
            chosen = self.cache is not None and bool(self.teachers)
            check("teachers", chosen, "names of teachers of rollouts.cache", str(self.teachers))
            check_at_least(1, **{f"teachers.{name}": n for name, n in self.teachers.items()})
        check_at_least(
            1,
            n=self.n,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            batches_per_shard=self.batches_per_shard,
        )

    @property
    def given(self) -> bool:
        """Whether the responses are there already."""
        return self.cache is not None or self.responses is not None


@dataclass(frozen=True)
class ServerConfig:
    """A vLLM-compatible HTTP server that has the teacher."""

    url: str = "http://localhost:8000"  # without a path
    model: str | None = None  # as the server names it; null: the only one that it has
    key_variable: str = "TDISTILL_API_KEY"  # name of the environment variable with its API key
    concurrency: int = 32  # requests at a time
    timeout: float = 600.0  # seconds that one answer may take
    retries: int = 5  # further tries after a connection, a status or an answer that failed
    first_wait: float = 1.0  # seconds before the second try; each further wait is twice as long

    def __post_init__(self) -> None:
        """Refuse values out of range, and keys where they would be written down."""
        check_at_least(1, concurrency=self.concurrency)
        check_at_least(0, retries=self.retries)
        for name in ("timeout", "first_wait"):
            value = getattr(self, name)
            check(name, value > 0.0, "a number of seconds above 0", value)
        try:
            parts = urlsplit(self.url)
            bare = not (parts.username or parts.password or parts.query)
        except ValueError:
            parts, bare = urlsplit(""), True
        # The address itself is not repeated: it may hold a key.
        check("url", bare, "an address without name, password or key", "one with them")
        fits = parts.scheme in ("http", "https") and bool(parts.netloc)
        check("url", fits, "http://HOST:PORT or https://HOST", "another address")


@dataclass(frozen=True)
class VllmConfig:
    """vLLM in this process."""

    devices: int = 1  # that the teacher is divided among (tensor parallel)
    memory_share: float = 0.9  # of each device's memory
    max_model_len: int | None = None  # longest row in tokens; null: the model's own
    enforce_eager: bool = False  # no graphs: starts sooner, runs slower

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_at_least(1, devices=self.devices, max_model_len=self.max_model_len)
        share = self.memory_share
        check("memory_share", 0.0 < share <= 1.0, "a share in (0, 1]", share)
