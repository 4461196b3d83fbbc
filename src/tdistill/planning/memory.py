"""The memory of each stage on each device, by part."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

from tdistill.models.weights import FLOAT32 as IN_FLOAT32
from tdistill.planning import formulas
from tdistill.planning.devices import Device
from tdistill.planning.formulas import FLOAT32, Strategy
from tdistill.planning.networks import Network
from tdistill.planning.scale import Scale
from tdistill.planning.tracing import reading_bytes, update_bytes
from tdistill.recipe import Recipe
from tdistill.training.config import TrainConfig
from tdistill.training.objectives import CriticConfig, Objective

_SPARE = 64  # columns of a buffer for keys and values beyond what is in use
_PREFILLED = 4096  # prompt tokens of one forward pass
_CAPTURED = 6  # tensors over rows and vocabulary that capture holds at once
_DRAWN = 3  # the same, of a plain decoding
_NORMALISED = 2  # tensors over a chunk of steps and the vocabulary: the exact normaliser
_COMPARED = 6  # the same, of a divergence over the whole vocabulary
_MEASURED = 1024  # tokens of a pass while layers are chosen
_MEMBER = 80  # bytes of a set member in an update: ids, log-probabilities, scores, their gradients
_RECORDED = 24  # of a member while responses are sampled: id and log-probability, twice
_CHUNK = 128  # steps that judging reads at once


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the moment when most are needed.

    Attributes:
        weights: of all models that are there.
        gradients: of what is trained, buckets included.
        moments: of the optimiser, and averaged copies and critics with theirs.
        activations: what a pass leaves for its backward pass, or holds while it reads.
        keys: keys and values while responses are sampled.
        logits: over the vocabulary, and the gradient of the output layer in the making.
        sets: members of top-p sets, and what is computed of each.
    """

    weights: float = 0.0
    gradients: float = 0.0
    moments: float = 0.0
    activations: float = 0.0
    keys: float = 0.0
    logits: float = 0.0
    sets: float = 0.0

    @property
    def total(self) -> float:
        """All parts."""
        return sum(astuple(self))

    def parts(self) -> dict[str, float]:
        """Bytes by the name of the part."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Job:
    """What memory and hours follow from.

    Attributes:
        recipe: what is done, its paths placed.
        teacher: in numbers; likewise ``student``.
        scale: prompts and lengths.
        device: of which there are ``processes``, one for each process.
    """

    recipe: Recipe
    teacher: Network
    student: Network
    scale: Scale
    device: Device
    processes: int = 1

    @property
    def served(self) -> bool:
        """Whether the teacher is on other machines, whose pace is not that of the device."""
        return self.recipe.teacher.backend == "server"

    @property
    def teacher_bytes(self) -> float:
        """Of the teacher's weights, wherever they are in this process."""
        config = self.recipe.teacher
        if self.served:
            return 0.0
        parts = config.vllm.devices if config.backend == "vllm" else 1
        return self.teacher.weight_bytes(config.weights, self.device) / parts

    @property
    def judge_bytes(self) -> float:
        """Of the teacher's weights that models are judged by, where those are in this process."""
        if self.recipe.judges_at_hand:
            return self.teacher.weight_bytes(self.recipe.teacher.weights, self.device)
        return self.teacher_bytes

    @property
    def student_bytes(self) -> float:
        """Of the student's weights, which are float32."""
        return self.student.weight_bytes(IN_FLOAT32, self.device)

    @property
    def teacher_itemsize(self) -> float:
        """Bytes of a number that the teacher computes with."""
        return self.teacher.itemsize(self.recipe.teacher.weights, self.device)


def sampling_memory(job: Job) -> Memory:
    """Of the teacher's responses, captured while they are sampled.

    Keys and values are in buffers of whole rows; while one layer's buffer moves it is there twice.
    """
    config, teacher = job.recipe.rollouts, job.teacher
    rows = min(config.batch_size, job.scale.prompts * config.n)
    size, longest = job.teacher_itemsize, job.scale.longest_prompt
    together = max(1, min(-(-rows // config.n), _PREFILLED // longest))  # prompts, read once
    columns = longest + config.max_new_tokens + _SPARE
    buffers = rows * columns * teacher.state * size * (1 + 0.5 / teacher.layers)
    unit = min(rows * config.batches_per_shard, job.scale.prompts * config.n)
    members = unit * job.scale.response_tokens * job.scale.set_size
    if job.recipe.teacher.backend == "server":
        return Memory(sets=members * _RECORDED)
    return Memory(
        weights=job.teacher_bytes,
        activations=reading_bytes(teacher, together, longest, itemsize=size),
        keys=buffers + together * longest * teacher.state * size,
        logits=_CAPTURED * rows * teacher.vocabulary * FLOAT32,
        sets=members * _RECORDED,
    )


def choosing_memory(job: Job) -> Memory:
    """Of making the student: the teacher, and its copy with fewer layers or what measures them.

    While a model is written, its largest tensor is there twice, as bytes: safetensors.

    Reference: the hidden states between all layers, and the teacher's log-probabilities, of
    :mod:`tdistill.training.layer_choice`.
    """
    student = job.recipe.student
    weights = job.teacher_bytes + job.student_bytes + FLOAT32 * job.student.head
    if not student.measured or student.choose == "influence":
        return Memory(weights=weights)
    tokens = min(_MEASURED, student.measured_tokens)
    steps = tokens * job.scale.response_tokens / job.scale.row
    states = tokens * job.teacher.layers * job.teacher.hidden * job.teacher_itemsize
    over_vocabulary = 2 * steps + _COMPARED * _CHUNK
    measured = Memory(
        weights=job.teacher_bytes,
        activations=states,
        logits=over_vocabulary * job.teacher.vocabulary * FLOAT32,
    )
    return max(measured, Memory(weights=weights), key=lambda memory: memory.total)


def training_memory(
    job: Job, config: TrainConfig, objective: Objective, strategy: Strategy = "one"
) -> Memory:
    """Of one training on one device.

    Where an update is one pass, gradients take the place of the activations that they come from, so
    only the larger of the two counts.

    Args:
        job: models and lengths.
        config: of the training.
        objective: what is minimised.
        strategy: how the processes share the student.
    """
    student, processes = job.student, job.processes
    rows, length = pass_shape(config, job)
    steps = rows * length * job.scale.response_tokens / job.scale.row
    own, grads, moments = formulas.shares(strategy, processes)
    trained = trained_parameters(student, config)
    gradients = FLOAT32 * trained * grads
    pull = {"bf16": config.bf16, "checkpointing": config.gradient_checkpointing}
    activations = update_bytes(student, rows, length, **pull)
    weights = job.student_bytes * own
    if own < 1.0:
        weights += formulas.gathered_bytes(max(student.sizes), student.tables)
    if own == 1.0 and strategy == "one" and not accumulates(config, job):
        activations = max(0.0, activations - gradients)
    beside = _beside(job, objective)
    members = steps * job.scale.set_size if objective.needs_sets else 0.0
    return Memory(
        weights=weights + beside.weights,
        gradients=gradients,
        moments=formulas.adam_bytes(trained) * moments + beside.moments,
        activations=activations,
        logits=_loss_bytes(student, config, objective),
        sets=members * _MEMBER + min(members, student.vocabulary) * student.hidden * FLOAT32,
    )


def accumulates(config: TrainConfig, job: Job) -> bool:
    """Whether an update is made of several passes, so that gradients are there beside the last."""
    each = config.rows_of_process(job.processes)
    return config.gradient_accumulation > 1 or pass_shape(config, job)[0] < each


def pass_shape(config: TrainConfig, job: Job) -> tuple[int, int]:
    """Rows of a forward pass of training, and tokens of the longest."""
    longest = job.scale.longest_prompt + job.recipe.rollouts.max_new_tokens - 1
    rows = config.rows_of_process(job.processes)
    if config.tokens_per_forward is not None:
        rows = max(1, min(rows, config.tokens_per_forward // longest))
    return rows, longest


def trained_parameters(student: Network, config: TrainConfig) -> int:
    """Parameters that have gradients and moments.

    Reference: Hu et al. 2021, "LoRA", arXiv 2106.09685, section 4.1: a matrix of n to m is trained
    as two of n to r and r to m.
    """
    if config.lora is not None:
        return config.lora.rank * sum(student.sides)
    return student.in_layers if config.freeze_embeddings else student.parameters


def _loss_bytes(student: Network, config: TrainConfig, objective: Objective) -> float:
    """A chunk of logits and the output layer's gradient, where the vocabulary is summed over."""
    copies = _COMPARED if objective.needs_live_teacher else _NORMALISED
    if not reads_vocabulary(objective):
        return 0.0
    chunk = copies * config.chunk_size * student.vocabulary * FLOAT32
    return chunk + (0 if config.lora or config.freeze_embeddings else FLOAT32 * student.head)


def reads_vocabulary(objective: Objective) -> bool:
    """Whether the loss sums over every token at every step, not over sets or samples alone."""
    settings = (getattr(objective, name, None) for name in ("support", "normaliser"))
    return not any(value in ("set", "sampled") for value in settings)


def _beside(job: Job, objective: Objective) -> Memory:
    """What is there beside the student: the teacher, an averaged copy, a critic."""
    weights = 0.0
    if objective.needs_live_teacher or objective.uses_student_rows or not job.recipe.keep_models:
        weights += job.teacher_bytes
    if objective.target_network is not None:
        weights += job.student_bytes
    moments = 0.0
    if objective.critic_config is not None:
        moments = critic_bytes(job.student, objective.critic_config)
    return Memory(weights=weights, moments=moments)


def critic_bytes(student: Network, config: CriticConfig) -> float:
    """A critic with its average, gradient and both moments; the frozen table is there once.

    Reference: :mod:`tdistill.training.critic`.
    """
    table = student.vocabulary * student.hidden
    inner = {"map": student.hidden**2, "rows": table}
    trained = inner.get(config.form, 2 * config.rank * student.hidden) + student.vocabulary
    frozen = 0 if config.form == "rows" else table
    return FLOAT32 * (5.0 * trained + frozen)


def judging_memory(job: Job) -> Memory:
    """Of judging one model beside the teacher: it responds, then both read its responses.

    A served teacher reads them where it is.
    """
    config, scale = job.recipe.evaluation, job.scale
    longest = scale.longest_prompt + config.max_new_tokens
    responses = sum(1 if d.greedy else config.seeds for d in config.decodings.values())
    rows = max(1, min(config.batch_size, scale.test_prompts * responses))
    student, teacher = job.student, job.teacher
    each = max(1 if d.greedy else config.seeds for d in config.decodings.values())
    together = max(1, min(-(-rows // each), _PREFILLED // scale.longest_prompt))
    kept = scale.test_prompts * config.rollouts_per_prompt * scale.response_tokens * teacher.hidden
    here = float(job.recipe.judges_at_hand)
    common = {"weights": job.judge_bytes + job.student_bytes}
    held = here * kept * job.teacher_itemsize
    sampling = Memory(
        **common,
        activations=held + reading_bytes(student, together, scale.longest_prompt),
        keys=FLOAT32
        * student.state
        * (
            rows * (longest + _SPARE) * (1 + 0.5 / student.layers) + together * scale.longest_prompt
        ),
        logits=_DRAWN * rows * student.vocabulary * FLOAT32,
    )
    states = rows * config.max_new_tokens * (student.hidden + here * teacher.hidden) * FLOAT32
    pass_ = max(
        reading_bytes(student, rows, longest),
        here * reading_bytes(teacher, rows, longest, itemsize=job.teacher_itemsize),
    )
    reading = Memory(
        **common,
        activations=held + states + pass_,
        logits=_COMPARED * _CHUNK * teacher.vocabulary * FLOAT32,
    )
    return max(sampling, reading, key=lambda memory: memory.total)


def largest(found: list[Memory]) -> Memory:
    """The one that needs most."""
    return max(found, key=lambda memory: memory.total, default=Memory())
