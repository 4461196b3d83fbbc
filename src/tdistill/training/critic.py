"""The critic beside the student: g(s,a) of set members from the student's hidden states (9.4)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tdistill.errors import ModelError
from tdistill.evidence.batch import Batch
from tdistill.models.head import LinearHead
from tdistill.models.language_model import inner_model
from tdistill.models.score_forms import LinearStepScores
from tdistill.models.set_scores import SetScores
from tdistill.training.objectives.critic_config import CriticConfig

CRITIC_FILE = "critic.safetensors"
_LENGTHS_MOVE = 0.02  # an update: about the last 50 count


@dataclass(frozen=True, eq=False)
class CriticScores(LinearStepScores):
    """g at T states: what a head gives for the tokens, and a value for each state."""

    value: Float[Tensor, " T"]

    def at(self, ids: Tensor, step: Tensor) -> Tensor:
        """g of chosen tokens at chosen steps."""
        return super().at(ids, step) + self.value[step]


class Critic(nn.Module):
    """``g(s,a) = v(h(s)) + f(h(s)) . e(a)``, 0 at the start, at the cost of the set members.

    h is the student's hidden state scaled to unit root mean square, v is linear; e is a frozen
    token embedding of unit length, or a row of its own for each token (``rows``, where f is the
    identity). Both parts are scaled so that one update of Adam moves them by about its learning
    rate, for every width.

    Args:
        embeddings: of the tokens [V, E], copied.
        width: D of the hidden states.
        config: which f.

    Attributes:
        price: of each token whatever the state [V], nats: no part of g (see ``ValueTilt``).
        constant: direction of hidden states along which a fold charged prices [D]; 0: it did not.
        length: root mean square of the hidden states that it has seen, 0 before the first update.
    """

    table: Tensor
    length: Tensor
    constant: Tensor

    def __init__(self, embeddings: Float[Tensor, "V E"], width: int, config: CriticConfig) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(width))
        self.offset = nn.Parameter(torch.zeros(()))
        self.price = nn.Parameter(torch.zeros(len(embeddings)))
        self.register_buffer("length", torch.zeros(()))
        self.register_buffer("constant", torch.zeros(width))
        self.function: nn.Module = nn.Identity()
        self.scale = 1.0 / width
        if config.form == "rows":
            self.table = nn.Parameter(torch.zeros(len(embeddings), width))
            return
        self.register_buffer("table", nn.functional.normalize(embeddings.detach().float(), dim=1))
        inner = width if config.form == "map" else config.rank
        last = nn.Linear(inner, embeddings.shape[1], bias=False)
        self.scale = 1.0 / (inner * math.sqrt(embeddings.shape[1]))
        nn.init.zeros_(last.weight)
        self.function = last
        if config.form != "map":
            first = nn.Linear(width, inner, bias=config.form == "mlp")
            between = [nn.GELU()] if config.form == "mlp" else []
            self.function = nn.Sequential(first, *between, last)

    def scores(self, hidden: Float[Tensor, "T D"]) -> CriticScores:
        """g at T states, in float32; read at tokens like any model's scores."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            unit = hidden * hidden.square().mean(1, keepdim=True).clamp(min=1e-12).rsqrt()
            value = unit @ self.value / len(self.value) + self.offset
            head = LinearHead(self.table, scale=self.scale)
            return CriticScores(head, self.function(unit), value)

    def output_rows(self) -> Float[Tensor, "V D"]:
        """Rows of an output layer that gives g, less what it is for all tokens alike.

        Exact for hidden states of the usual length. Where f is linear: every form but ``mlp``.
        """
        linear = self.function(torch.eye(len(self.value), device=self.value.device))
        return self.scale / self.length * self.table @ linear.T

    def keep(self, folder: Path) -> None:
        """Write it alone; :func:`load_critic` reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / CRITIC_FILE)

    def price_rows(self) -> Float[Tensor, "V D"]:
        """Rows of an output layer that gives the prices of a fold (9.9)."""
        return torch.outer(self.price, self.constant)


def load_critic(folder: Path, config: CriticConfig) -> Critic:
    """A finished critic, as :meth:`Critic.keep` wrote it beside its student."""
    found = load_file(folder / CRITIC_FILE)
    critic = Critic(found["table"], len(found["value"]), config)
    critic.load_state_dict(found)
    return critic.requires_grad_(False)


class CriticLearner:
    """A critic with what training it takes: its optimiser, its averaged copy, its token means.

    It is no part of the student: neither in its weights nor in its optimiser.

    Args:
        model: the student, whose token embeddings are taken as they are now.
        config: settings.
        device: where the student trains.
    """

    def __init__(self, model: nn.Module, config: CriticConfig, device: torch.device) -> None:
        lm, self.config = inner_model(model), config
        embeddings: Any = lm.get_input_embeddings()
        read: Any = getattr(lm.get_output_embeddings(), "weight", None)  # [V, D]
        width = lm.config.get_text_config().hidden_size if read is None else read.shape[1]
        with torch.random.fork_rng(devices=[]):  # the student's own draws stay as they were
            torch.manual_seed(0)
            critic = Critic(embeddings.weight, width, config)
        self.critic = critic.to(device)
        fixed = () if config.form == "rows" else (self.critic.table,)
        shared = {id(tensor): tensor for tensor in (self.critic.length, *fixed)}
        self.averaged = copy.deepcopy(self.critic, shared).requires_grad_(False)
        of_g = [w for w in self.critic.parameters() if w is not self.critic.price]
        groups = [
            {"params": of_g, "rate": config.learning_rate},
            {"params": [self.critic.price], "rate": config.price_rate},
        ]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.lengths = torch.zeros(2, device=device)  # of this update's hidden states: sum, count

    def scores(self, student: SetScores, batch: Batch) -> tuple[SetScores, SetScores]:
        """g at a batch, with its gradient, and that of the averaged copy, without."""
        hidden = student.scores.hidden
        if hidden is None:
            raise ModelError(
                "critic: expected a model whose output layer is a module, to read the hidden "
                "states that it reads, found none; take an objective without a critic"
            )
        fixed, weight = hidden.detach(), self.config.into_student
        length = fixed.float().square().mean(1).sqrt()
        self.lengths += torch.stack((length.sum(), length.new_tensor(len(length))))
        if weight > 0.0:
            hidden = fixed + weight * (hidden - fixed)
        own = self._at(self.critic, hidden if weight > 0.0 else fixed, batch)
        with torch.no_grad():
            return own, self._at(self.averaged, fixed, batch)

    @staticmethod
    def _at(critic: Critic, hidden: Tensor, batch: Batch) -> SetScores:
        return SetScores(critic.scores(hidden), batch.sets, batch.action, places=batch.places)

    def update(self, *, factor: float, mean: Callable[[Tensor], Tensor]) -> None:
        """One update of the critic, then of its averaged copy.

        Args:
            factor: of the learning rate: the student's schedule.
            mean: averages a gradient over the processes of the run.
        """
        for weight in self.critic.parameters():
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            weight.grad = mean(gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["rate"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self._measure(*mean(self.lengths))
            pairs = zip(self.averaged.parameters(), self.critic.parameters(), strict=True)
            for average, weight in pairs:
                average.lerp_(weight, 1.0 - (self.config.averaged or 0.0))

    def _measure(self, total: Tensor, count: Tensor) -> None:
        """Move the usual length of hidden states by this update's."""
        known, now = self.critic.length, total / count.clamp(min=1.0)
        moved = torch.where(known == 0.0, now, known.lerp(now, _LENGTHS_MOVE))
        known.copy_(torch.where(count > 0.0, moved, known))
        self.lengths.zero_()

    def save(self, folder: Path) -> None:
        """Write critic, average and the optimiser's moments beside a checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._state(), folder / CRITIC_FILE)

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote: training goes on as if never interrupted."""
        for weight in self.critic.parameters():  # a moment exists once there was an update
            weight.grad = torch.zeros_like(weight)
        self.optimizer.step()
        self.optimizer.zero_grad()
        found = load_file(folder / CRITIC_FILE)
        with torch.no_grad():
            for name, tensor in self._state().items():
                tensor.copy_(found[name])

    def _state(self) -> dict[str, Tensor]:
        named = {f"critic.{n}": t for n, t in self.critic.state_dict().items()}
        named |= {f"averaged.{n}": t for n, t in self.averaged.named_parameters()}
        for name, weight in self.critic.named_parameters():
            moments = self.optimizer.state[weight]
            named |= {f"optimizer.{name}.{k}": t for k, t in moments.items()}
        return {name: tensor.detach().contiguous() for name, tensor in named.items()}
