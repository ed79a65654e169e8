"""Several processes that train one model: who takes which rows, and what they tell each other."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from fieldguide.errors import SettingsError
from fieldguide.train.checkpoint import random_state
from fieldguide.train.sharing import group, leave_at_exit

SPLITTING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)

T = TypeVar("T")


class Processes:
    """The processes of this training, this one among them. With one process nothing is sent anywhere.

    Raises:
        SettingsError: when accelerate itself would split weights: certificates, checkpoints and validation
            read whole ones, which `train.sharded` gathers.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        if (kind := accelerator.distributed_type) in SPLITTING:
            raise SettingsError(
                f"{kind.value} splits every weight over the processes in a way that is not known here",
                "launch with recipes/accelerate/fsdp2.yaml, or with torchrun and train.shard=true",
            )
        self.count = int(accelerator.num_processes)
        self.number = int(accelerator.process_index)
        self.first = self.number == 0
        self._accelerator = accelerator
        if self.count > 1:
            leave_at_exit()

    def share(self, rows: Sequence[T]) -> list[T]:
        """This process's rows of a batch; none where there are fewer rows than processes."""
        return list(rows[self.number :: self.count])

    def sum(self, value: float) -> float:
        """The sum of a number over the processes."""
        if self.count == 1:
            return value
        total: Tensor = self._accelerator.reduce(
            torch.tensor(value, dtype=torch.float64, device=self._accelerator.device), "sum"
        )
        return float(total)

    def any(self, value: bool) -> bool:
        """Whether it is so in any process."""
        return self.sum(float(value)) > 0

    def agreed(self, values: T) -> T:
        """The first process's values, in all of them."""
        if self.count == 1:
            return values
        shared = [values]
        torch.distributed.broadcast_object_list(shared, src=0)
        return shared[0]

    def wait(self) -> None:
        """Until all have come here."""
        self._accelerator.wait_for_everyone()

    def random_states(self) -> list[dict[str, Tensor]]:
        """The random generators' states of all processes, in their order."""
        if self.count == 1:
            return [random_state()]
        states: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(states, random_state())
        return states


def first_process() -> bool:
    """Whether this is the process that writes and speaks; so it is when it is the only one."""
    return bool(group().is_main_process)


def first_writes(write: Callable[[], object]) -> None:
    """Let the first process write while the others wait for it."""
    if first_process():
        write()
    group().wait_for_everyone()


class StopSignal:
    """Within it, SIGTERM (a scheduler that wants the machine back) is noted instead of obeyed at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
