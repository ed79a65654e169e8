"""Work on many pictures that several processes divide among them; one process alone does all of it."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState

DRAIN = 0.5  # seconds

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

# The first process calibrates and writes while the others wait: longer than the ten minutes that NCCL allows.
PATIENCE = timedelta(hours=6)


def process_count() -> int:
    """How many processes were started together, as the launcher says; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this process tells how far it is: the first one, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def on_cpus() -> bool:
    """Whether several processes share the CPUs of a machine without a GPU: accelerate has to be told."""
    import torch

    return process_count() > 1 and not torch.cuda.is_available()


def group() -> PartialState:
    """This process among those it was started with; the first call waits until all have come."""
    from accelerate import PartialState

    state = PartialState(cpu=on_cpus(), timeout=PATIENCE)
    leave_at_exit()
    return state


@cache
def leave_at_exit() -> None:
    """Have this process leave its group in an orderly way when it ends.

    A thread of gloo that still lets go of what it has sent needs Python's lock; if Python ends meanwhile, a
    process that has done all its work aborts. So it is given time. NCCL does without, and would wait for
    processes that have failed.
    """

    def leave() -> None:
        import torch

        if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
            torch.distributed.destroy_process_group()
            time.sleep(DRAIN)

    atexit.register(leave)


def first_says(values: T) -> T:
    """The first process's values, in all of them; each must ask.

    What is to be done must be agreed before it is divided: who looks a moment later sees some of it done.
    """
    if process_count() == 1:
        return values
    import torch

    group()
    shared = [values]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]


def divide(items: Sequence[T], work: Callable[[Sequence[T]], dict[K, V]]) -> dict[K, V]:
    """Each process works on every Nth item, then waits; all get what all have found.

    Args:
        items: the same in every process.
    """
    if process_count() == 1:
        return work(items)
    import torch

    state = group()
    found: list[Any] = [None] * state.num_processes
    torch.distributed.all_gather_object(found, work(items[state.process_index :: state.num_processes]))
    return {key: value for part in found for key, value in part.items()}
