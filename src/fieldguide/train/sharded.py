"""Weights, gradients and optimizer sharded over the processes, layer by layer (FSDP2, torch's `fully_shard`).

Every process loads the whole model and keeps its share of it. What reads or writes weights (checkpoints,
certificates, the guide) sees whole tensors all the same: `whole` gathers one, `put` gives each process its
share. Both need all processes, in the same order, and so does every pass through the model: all of them must
call each sharded layer equally often.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fieldguide.errors import SettingsError
from fieldguide.model.families import module_at
from fieldguide.model.hub import HubModel
from fieldguide.settings import TrainSettings

# What `accelerate launch` sets for a configuration that shards. DeepSpeed's own checkpoints are pickles, and
# what its ZeRO does FSDP2 does too.
ASKED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed ZeRO"}


def launched_sharded() -> str:
    """What the launcher was told to shard with; "" for nothing.

    It is taken at its word, by this module, and its own way of doing so is switched off.
    """
    found = [how for name, how in ASKED.items() if os.environ.pop(name, "").lower() in ("true", "1")]
    return found[0] if found else ""


def check_shard(model: nn.Module, settings: TrainSettings, precision: str) -> None:
    """Refuse what cannot be sharded.

    Raises:
        SettingsError: saying what to do instead.
    """
    faults = [
        (
            not isinstance(model, HubModel),
            "the starter is small and is not sharded",
            "leave out train.shard; launch with torchrun or ddp.yaml",
        ),
        (
            bool(settings.quantise),
            "weights in 4 bits are not sharded",
            "leave out train.shard: in 4 bits each device holds them whole; or leave out train.quantise",
        ),
        (settings.optimizer != "adamw", f"{settings.optimizer} is not sharded", "use train.optimizer=adamw"),
        (precision == "fp16", "fp16 losses are not scaled over shards", "use train.precision=bf16"),
    ]
    for found, what, remedy in faults:
        if found:
            raise SettingsError(f"train.shard: {what}", remedy)


class Shards:
    """A model of which this process holds its share.

    Args:
        model: whole, as it is to be trained; the same in every process. It is sharded in place.
        device: where the shares lie: "cpu" or "cuda".
        count: of processes.

    Frozen vision towers stay whole: not every row has a picture, and a process without one would not call
    them.
    """

    def __init__(self, model: HubModel, device: str, count: int) -> None:
        self._hollow = _hollow(model)
        mesh = torch.distributed.init_device_mesh(device, (count,))
        family = model.family
        towers = [module_at(model.bare, path) for path in family.vision]
        frozen = [t for t in towers if t is not None and not any(p.requires_grad for p in t.parameters())]
        kept = {parameter for tower in frozen for parameter in tower.parameters()}
        self.trains_tower = len(frozen) < len(towers)
        for part in (model.decoder, *(t for t in towers if t is not None and t not in frozen)):
            for layer in _layers(part):
                fully_shard(layer, mesh=mesh, ignored_params=kept or None)
        root: nn.Module = model
        self.model: Any = fully_shard(
            root, mesh=mesh, reshard_after_forward=False, ignored_params=kept or None
        )
        model.every_pass_alike = True

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Within it the model answers: what lies outside its layers is whole.

        Logits are the first process's in all of them: a search goes where they point, and processes that went
        different ways would wait for each other's layers for ever.
        """
        own = self.model.head

        def agreed(hidden: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
            logits: Tensor = own(hidden, tokens).contiguous()
            torch.distributed.broadcast(logits, src=0)
            return logits

        self.model.unshard()
        self.model.head = agreed
        try:
            yield
        finally:
            del self.model.head
            self.model.reshard()

    def norms(self, total: Callable[[float], float]) -> dict[str, float]:
        """The gradient's norm of each part.

        Args:
            total: the sum of a number over the processes.
        """
        squares: dict[str, float] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                part, gradient = self.model.part_of(name), parameter.grad
                squares.setdefault(part, 0.0)
                if gradient is not None:
                    squares[part] += float(_own(gradient).double().square().sum())
        return {part: total(square) ** 0.5 for part, square in squares.items()}

    def clip(self, norm: float, most: float) -> None:
        """Scale all gradients, whose norm is given, to `most`, as `clip_grad_norm_` does."""
        factor = min(1.0, most / (norm + 1e-6))
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    @torch.no_grad()
    def joined(self) -> HubModel:
        """The whole model again, in every process, as one that was never sharded."""
        self.model.reshard()
        sharded = dict(self.model.named_parameters())
        made: dict[int, nn.Parameter] = {}
        for name, hollow in self._hollow.named_parameters():
            made[id(hollow)] = nn.Parameter(whole(sharded[name].detach()), sharded[name].requires_grad)
        for module in self._hollow.modules():
            for name, hollow_one in module._parameters.items():
                if hollow_one is not None:
                    module._parameters[name] = made[id(hollow_one)]
        return self._hollow


def _hollow(model: HubModel) -> HubModel:
    """A copy without numbers, to be filled again: sharding leaves hooks in a model for good."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
    }
    memo |= {id(part): part for part in (model.tokenizer, model.processor, model.prompt, model.family)}
    return copy.deepcopy(model, memo)


def _layers(part: nn.Module) -> list[nn.Module]:
    """The layers of a part: its longest list of modules."""
    lists = [module for module in part.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def _own(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_numbers(tensor: Tensor) -> int:
    """How many numbers of a tensor this process holds."""
    return _own(tensor).numel()


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which this process may hold a share, as a whole; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def all_whole(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Several tensors, each as `whole` gives it, one after the other: no device holds all of them at once.

    Args:
        keep: whether this process wants them; {} where it only takes part.
    """
    found = {}
    for name, tensor in tensors.items():
        sharded = isinstance(tensor, DTensor)
        value = whole(tensor.detach())
        if keep:
            found[name] = value.cpu() if sharded else value
    return found


def share_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, lying as `like` does; all processes must ask."""
    if isinstance(like, DTensor):
        place = value.to(like.device)  # in every process: each takes its share, and nothing is sent
        return distribute_tensor(place, like.device_mesh, like.placements, src_data_rank=None)
    return value.to(like.device)


@torch.no_grad()
def put(place: Tensor, value: Tensor) -> None:
    """Set a tensor, of which this process may hold a share, to a whole value; all processes must ask."""
    place.copy_(share_like(value, place))
