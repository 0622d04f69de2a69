"""What an objective needs of the machine: gradients that are whole, finite and shared, and a step of the optimiser."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fdm.model.denoiser import Denoiser
from fdm.training import processes


class Batch(NamedTuple):
    """This process's part of the batch of a step."""

    step: int
    images: Tensor  # float32 (n, C, H, W) in [-1, 1], augmented
    class_labels: Tensor | None  # one-hot (n, classes)
    augment_labels: Tensor | None  # (n, 9)
    random: dict[str, Tensor]  # what the objective drew for them


Losses = dict[str, Tensor]  # the mean losses of a part of a batch by name, () each; the first is called `loss`


class Objective(Protocol):
    """What a training minimises. Its networks, averages and optimisers go by the same names."""

    @property
    def denoiser(self) -> Denoiser:
        """The one that is trained."""

    @property
    def ema(self) -> Denoiser:
        """Its average over the training, which is kept as a checkpoint."""

    def modules(self) -> dict[str, nn.Module]: ...
    def averages(self) -> dict[str, nn.Module]: ...
    def optimisers(self) -> dict[str, torch.optim.Optimizer]: ...
    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]: ...
    def step(self, engine: "Engine", batch: Batch) -> Losses: ...


class Engine:
    """The networks of an objective on this process's device, in its precision."""

    def __init__(self, objective: Objective, accelerator: Accelerator, tf32: bool) -> None:
        self.objective, self.accelerator = objective, accelerator
        self.prepared: dict[str, tuple[nn.Module, Any]] = {
            name: accelerator.prepare(module, objective.optimisers()[name])
            for name, module in objective.modules().items()
        }
        processes.use_tf32(tf32)  # preparing may change it

    @contextlib.contextmanager
    def part(self) -> Iterator[dict[str, Any]]:
        """One part of a batch of all networks, by name; gradients are shared by all processes after the last part."""
        models = {name: model for name, (model, _) in self.prepared.items()}
        with self.accelerator.accumulate(*models.values()):
            yield models

    def descend(self, name: str, loss: Tensor, clip: float | None = None) -> None:
        """Add the gradients of a scalar loss; after the last part of a batch, take a step and forget them.

        Gradients that are not finite are replaced, as EDM does; with fp16 the step is skipped instead. `clip` is the
        largest norm of a gradient: longer ones are shortened.
        """
        _, optimizer = self.prepared[name]
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            self._unscale()
            weights = [*self.objective.modules()[name].parameters()]
            for grad in (weight.grad for weight in weights if weight.grad is not None):
                torch.nan_to_num(grad, nan=0.0, posinf=1e5, neginf=-1e5, out=grad)
            if clip is not None:
                nn.utils.clip_grad_norm_(weights, clip)
            optimizer.step()
            optimizer.zero_grad()

    def _unscale(self) -> None:
        if self.accelerator.scaler:  # pragma: no cover, as it needs a GPU
            self.accelerator.unscale_gradients()  # which finds what is not finite, and then skips the step

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of all optimisers, each times its own `relative` rate, where it has one."""
        for optimiser in self.objective.optimisers().values():
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("relative", 1)

    def average(self, beta: float) -> None:
        """Move the averages towards the weights: average <- beta average + (1 - beta) weights."""
        for name, average in self.objective.averages().items():
            weights = [weight.detach() for weight in self.objective.modules()[name].parameters()]
            torch._foreach_lerp_(list(average.parameters()), weights, 1 - beta)

    def state(self) -> dict[str, Any]:
        """Networks, averages and optimisers, for resuming."""
        out = {kind: {key: each.state_dict() for key, each in named.items()} for kind, named in self._parts().items()}
        return out | {"scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {}}

    def _parts(self) -> dict[str, Mapping[str, Any]]:
        of = self.objective
        return {"modules": of.modules(), "averages": of.averages(), "optimisers": of.optimisers()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        for kind, named in self._parts().items():
            for name, each in named.items():
                each.load_state_dict(state[kind][name])
        if self.accelerator.scaler:  # pragma: no cover, as it needs a GPU
            self.accelerator.scaler.load_state_dict(state["scaler"])
