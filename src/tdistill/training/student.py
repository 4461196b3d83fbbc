"""Students made from a teacher by keeping some of its layers."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn

from tdistill.errors import ModelError, one_line
from tdistill.models.language_model import LanguageModel
from tdistill.models.layout import Pair, pack
from tdistill.models.probes import disagreement, on_trial, probe_tokens
from tdistill.training.bypass import Bypass, layer_stack
from tdistill.training.layer_pattern import shortened

_TRIED = 200  # choices of layers near one that does not fit
_PROBED = 12  # tokens


def evenly_spaced(layers: int, keep: int) -> tuple[int, ...]:
    """Which of ``layers`` to keep: evenly spaced, first and last among them.

    Example:
        >>> evenly_spaced(30, 4)
        (0, 10, 19, 29)
        >>> evenly_spaced(5, 1)
        (0,)

    Raises:
        ModelError: for fewer than one layer, or more than there are.
    """
    if not 1 <= keep <= layers:
        raise ModelError(f"layers: expected from 1 to the teacher's {layers}, found {keep}")
    if keep == 1:
        return (0,)
    return tuple(round(i * (layers - 1) / (keep - 1)) for i in range(keep))


def drop_layers(teacher: LanguageModel, keep: Sequence[int]) -> LanguageModel:
    """A model of the same architecture and weights with only the kept decoder layers.

    Every layer is of the kind that it was, and the student gives what the teacher gives when the
    other layers are passed over: both are checked. It must be healed by training; how much depends
    on the layers (see `layer_choice`).

    Args:
        teacher: the model to take layers from; not changed.
        keep: indices of the layers, ascending.

    Returns:
        The student, in evaluation mode, with the teacher's tokenizer.

    Raises:
        ModelError: for layers that do not exist, a model without one stack of layers, or layers
            that its architecture cannot have without the others; it names some that it can.
    """
    depth = teacher.model.config.get_text_config().num_hidden_layers
    if not keep or list(keep) != sorted(set(keep)) or not 0 <= keep[0] <= keep[-1] < depth:
        raise ModelError(
            f"layers: expected ascending indices in [0, {depth}), the {depth} layers of "
            f"{teacher.name}, found {list(keep)}"
        )
    config = _fitting_config(teacher, keep)
    if config is None:
        raise ModelError(_misfit(teacher, keep, nearest_fit(teacher, keep)))
    student = _built(teacher, config, keep)
    apart = _apart(teacher, student, keep)
    if apart is not None:
        raise ModelError(
            f"{type(teacher.model).__name__}: expected layers {_listed(keep)} to do what they do "
            f"in {teacher.name}, found logits that differ {apart}: what a layer computes depends "
            "on its index there; keep the first layers (choose: first), or start from a smaller "
            "checkpoint of the same tokenizer (student.path)"
        )
    return student


def nearest_fit(teacher: LanguageModel, keep: Sequence[int]) -> tuple[int, ...]:
    """Layers that the architecture can have without the others: those asked for, or near ones.

    Args:
        teacher: the model to take layers from.
        keep: indices of the layers, ascending.

    Raises:
        ModelError: so many layers do not fit, whichever they are.
    """
    first = tuple(range(len(keep)))
    for tried in (tuple(keep), *islice(_neighbours(teacher, keep), _TRIED), first):
        if _fitting_config(teacher, tried) is not None:
            return tried
    raise ModelError(_misfit(teacher, keep, None))


def _misfit(teacher: LanguageModel, keep: Sequence[int], others: Sequence[int] | None) -> str:
    cure = (
        f"layers {_listed(others)} can"
        if others
        else "no others of that number were found that can"
    )
    return (
        f"{type(teacher.model).__name__}: layers {_listed(keep)} of {teacher.name} cannot be kept "
        f"without changing their kind, which follows from their index; {cure}"
    )


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _neighbours(teacher: LanguageModel, keep: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Choices with one layer moved, then two, by as little as can be."""
    depth = teacher.model.config.get_text_config().num_hidden_layers
    seen, edge = {tuple(keep)}, [tuple(keep)]
    while edge:
        moved = []
        for layers in edge:
            for place, by in ((p, b) for b in (1, -1, 2, -2) for p in range(len(layers))):
                other = (*layers[:place], layers[place] + by, *layers[place + 1 :])
                rising = all(a < b for a, b in zip((-1, *other), (*other, depth), strict=True))
                if rising and other not in seen:
                    seen.add(other)
                    moved.append(other)
                    yield other
        edge = moved


def _fitting_config(teacher: LanguageModel, keep: Sequence[int]) -> Any:
    """The configuration with which the kept layers are built as they are in the teacher, if any."""
    _, layers = layer_stack(teacher.model)
    for config in _valid(teacher, keep):
        try:
            with torch.device("meta"):
                built: Any = type(teacher.model)(config)
            _, made = layer_stack(built)
        except Exception:  # an architecture's own checks may refuse with anything
            continue
        numbers = len(layers), len(made)
        pairs = [(layers[old], made[new], {numbers, (old, new)}) for new, old in enumerate(keep)]
        if len(made) == len(keep) and all(_alike(a, b, keep, at) for a, b, at in pairs):
            return config
    return None


def _valid(teacher: LanguageModel, keep: Sequence[int]) -> Iterator[Any]:
    """Configurations that the architecture accepts and that keep the types of the layers."""
    types = getattr(teacher.model.config.get_text_config(), "layer_types", None)
    configs = shortened(teacher.model.config, keep)
    while True:
        try:
            config = next(configs, None)
        except Exception:
            return
        if config is None:
            return
        found = getattr(config.get_text_config(), "layer_types", None)
        if types is None or found is None or list(found) == [types[old] for old in keep]:
            yield config


def _alike(
    theirs: nn.Module, ours: nn.Module, keep: Sequence[int], renumbered: set[tuple[int, int]]
) -> bool:
    """Whether two layers have the same modules, settings and shapes of weights.

    Args:
        theirs: a layer of the teacher.
        ours: what it becomes.
        keep: all layers that are kept; a setting may be a list of all layers.
        renumbered: settings that may differ, before and after: index and number of layers.
    """
    before, after = list(theirs.named_modules()), list(ours.named_modules())
    if [(name, type(m)) for name, m in before] != [(name, type(m)) for name, m in after]:
        return False
    shapes = [{name: w.shape for name, w in layer.state_dict().items()} for layer in (theirs, ours)]
    if shapes[0] != shapes[1]:
        return False
    for (_, a), (_, b) in zip(before, after, strict=True):
        first, second = _settings(a), _settings(b)
        for name in first.keys() | second.keys():
            one, other = first.get(name), second.get(name)
            if isinstance(one, tuple) and len(one) > keep[-1] and isinstance(other, tuple):
                one = one if one == other else tuple(one[old] for old in keep)
            if (one, other) not in renumbered and not _equal(one, other):
                return False
    return True


def _equal(a: Any, b: Any) -> bool:
    rounded = isinstance(a, float) and isinstance(b, float) and math.isclose(a, b)
    return rounded or a == b


def _settings(module: nn.Module) -> dict[str, Any]:
    """Plain attributes of a module: what its configuration and its index made of it."""
    plain = bool | int | float | str | tuple
    listed = {n: tuple(v) if isinstance(v, list) else v for n, v in vars(module).items()}
    own = {name: value for name, value in listed.items() if isinstance(value, plain)}
    state = ("training", "gradient_checkpointing")
    return {n: v for n, v in own.items() if not n.startswith("_") and n not in state}


def _built(teacher: LanguageModel, config: Any, keep: Sequence[int]) -> LanguageModel:
    stack, _ = layer_stack(teacher.model)
    build: Any = type(teacher.model)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(teacher.model.dtype)
    try:
        student = build(config)
    finally:
        torch.set_default_dtype(dtype)
    new_index = {old: new for new, old in enumerate(keep)}
    weights = {}
    for name, weight in teacher.model.state_dict().items():
        match = re.match(rf"{re.escape(stack)}\.(\d+)\.(.*)", name)
        if match is None:
            weights[name] = weight
        elif int(match[1]) in new_index:
            weights[f"{stack}.{new_index[int(match[1])]}.{match[2]}"] = weight
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(
            f"{build.__name__}: expected the weights of layers {_listed(keep)} to fit; "
            f"{one_line(error)}"
        ) from error
    student.tie_weights()
    student.generation_config = copy.deepcopy(teacher.model.generation_config)
    student = student.to(teacher.device).eval()
    return LanguageModel(student, teacher.tokenizer, f"{teacher.name} with {len(keep)} layers")


def _apart(teacher: LanguageModel, student: LanguageModel, keep: Sequence[int]) -> str | None:
    """By how much a student differs from its teacher with the other layers passed over."""
    row = probe_tokens(teacher.model, _PROBED)
    layout = pack([Pair(row[:1], (*row[1:], row[0]))], pad_id=teacher.pad_id).to(teacher.device)
    with on_trial(teacher.model), on_trial(student.model):
        with Bypass(teacher) as layers:
            layers.scores(layout)  # in full once
            layers.kept = list(keep)
            expected = layers.scores(layout).rows(0, _PROBED)
        ids = layout.input_ids
        network: Any = student.model
        found = network(input_ids=ids, use_cache=False).logits[0, :, : teacher.vocabulary_size]
    return disagreement(found, expected, teacher.model.dtype)
