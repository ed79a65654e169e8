"""Run the frozen vision network in whatever runs it fastest on this machine.

Candidates are PyTorch, ONNX Runtime and, when installed, OpenVINO. Each must agree with PyTorch within
`TOLERANCE`, or it is refused; the fastest by a short measurement is remembered for this machine.

On a CPU every picture goes through the network alone, on one thread, as many at a time as there are cores:
that is at least as fast as batches here, and the numbers of a picture cannot depend on its neighbours in a
batch, on the batch size or on the number of cores.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fieldguide.errors import FieldguideError
from fieldguide.files import atomic_path, cache_dir, fingerprint, read_json, write_json
from fieldguide.progress import console

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-3  # largest difference from PyTorch that a runtime may show, in any feature
Features = tuple[np.ndarray, np.ndarray]  # grid (N, P, C), pooled (N, D), both float32


class Runtime(Protocol):
    """One way to run the network."""

    name: str

    def run(self, pictures: np.ndarray) -> Features:
        """(N, H, W, 3) uint8 → features of the N pictures, float32."""


def threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _OneByOne:
    """Runs pictures singly on worker threads; subclasses give `_one`."""

    name = ""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(threads(), thread_name_prefix=self.name)

    def _one(self, picture: np.ndarray) -> Features:
        """(1, H, W, 3) → ((1, P, C), (1, D))."""
        raise NotImplementedError

    def run(self, pictures: np.ndarray) -> Features:
        """(N, H, W, 3) uint8 → features of the N pictures."""
        results = list(self._pool.map(self._one, np.split(pictures, len(pictures))))
        return _joined(results)


def _joined(results: list[Features]) -> Features:
    return np.concatenate([grid for grid, _ in results]), np.concatenate([pooled for _, pooled in results])


class TorchRuntime:
    """PyTorch, channels last: the reference the others are compared with."""

    name = "torch"

    def __init__(self, network: torch.nn.Module) -> None:
        import torch

        self._network = network.eval().to(memory_format=torch.channels_last)

    def run(self, pictures: np.ndarray) -> Features:
        """(N, H, W, 3) uint8 → features of the N pictures."""
        import torch

        # PyTorch spreads one picture over all cores by itself; worker threads would only fight for them.
        with torch.inference_mode():
            results = [self._network(torch.from_numpy(one)) for one in np.split(pictures, len(pictures))]
        return _joined([(grid.numpy(), pooled.numpy()) for grid, pooled in results])


class OnnxRuntime(_OneByOne):
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, model: Path) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def _one(self, picture: np.ndarray) -> Features:
        grid, pooled = self._session.run(None, {"pictures": picture})
        return grid, pooled


class OpenVino(_OneByOne):
    """OpenVINO on the CPU, at full precision (its default would be bfloat16 where the CPU has it)."""

    name = "openvino"

    def __init__(self, model: Path) -> None:
        import openvino

        super().__init__()
        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads(),
            "NUM_STREAMS": threads(),  # as many streams as threads: each picture on one thread
        }
        compiled = core.compile_model(str(model), "CPU", settings)
        self._requests = [compiled.create_infer_request() for _ in range(threads())]

    def _one(self, picture: np.ndarray) -> Features:
        request = self._requests.pop()  # list.pop and append are atomic; there are as many as worker threads
        try:
            request.infer({0: picture})
            return request.get_output_tensor(0).data.copy(), request.get_output_tensor(1).data.copy()
        finally:
            self._requests.append(request)


def export_onnx(network: torch.nn.Module, size: int, path: Path) -> None:
    """Write the network as ONNX for one picture of (1, size, size, 3) uint8, whole or not at all."""
    import torch

    example = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    with atomic_path(path) as temporary:
        torch.onnx.export(
            network.eval(),
            (example,),
            temporary,
            dynamo=True,
            input_names=["pictures"],
            output_names=["grid", "pooled"],
            external_data=False,
            verbose=False,
        )


def candidates(network: torch.nn.Module, size: int, onnx_file: Path) -> dict[str, Callable[[], Runtime]]:
    """Builders of the runtimes that are installed here, by name; PyTorch first."""

    def with_onnx(build: Callable[[Path], Runtime]) -> Callable[[], Runtime]:
        def ready() -> Runtime:
            if not onnx_file.is_file():
                export_onnx(network, size, onnx_file)
            return build(onnx_file)

        return ready

    found: dict[str, Callable[[], Runtime]] = {"torch": lambda: TorchRuntime(network)}
    builders: dict[str, Callable[[Path], Runtime]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}
    for name, build in builders.items():
        if importlib.util.find_spec(name):
            found[name] = with_onnx(build)
    return found


def difference(runtime: Runtime, reference: Runtime, size: int) -> float:
    """Largest difference of any feature between two runtimes, over four made pictures."""
    pictures = sample_pictures(4, size)
    pairs = zip(runtime.run(pictures), reference.run(pictures), strict=True)
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)


def sample_pictures(count: int, size: int) -> np.ndarray:
    """(count, size, size, 3) uint8: smooth colour fields with grain, always the same."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 8, 8, 3)).astype(np.float32)
    smooth = np.kron(coarse, np.ones((1, -(-size // 8), -(-size // 8), 1), np.float32))[:, :size, :size]
    return np.clip(smooth + random.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def rate(runtime: Runtime, size: int, seconds: float = 1.0) -> float:
    """Pictures a second, median of single batches over about `seconds`."""
    pictures = sample_pictures(4 * threads(), size)
    runtime.run(pictures[: threads()])  # the first run allocates
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 3:
        start = time.perf_counter()
        runtime.run(pictures)
        taken.append(time.perf_counter() - start)
    return len(pictures) / float(np.median(taken))


def choose(
    network: torch.nn.Module,
    size: int,
    onnx_file: Path,
    identity: str,
    wanted: str = "auto",
    announce: Callable[[str], None] = print,
) -> Runtime:
    """The runtime to use: the one asked for, the one remembered for this machine, or the fastest now.

    Args:
        network: the PyTorch network, (N, size, size, 3) uint8 → grid, pooled.
        size: height and width of its input in pixels.
        onnx_file: where its ONNX form is or will be.
        identity: hash of weights and preprocessing: what a remembered choice is valid for.
        wanted: `"auto"` or the name of a runtime.
        announce: told when something is measured or refused.

    Raises:
        FieldguideError: when the runtime asked for is not installed or computes something else than PyTorch.
    """
    builders = candidates(network, size, onnx_file)
    store = cache_dir() / "runtimes.json"
    key = fingerprint([identity, *_machine()])[:16]
    remembered = _remembered(store)
    record = remembered.get(key, {})
    name = record.get("runtime", "") if wanted == "auto" else wanted
    if wanted != "auto" and wanted not in builders:
        raise FieldguideError(f"the runtime {wanted} is not installed", f"pip install {wanted}")
    if name in builders:
        with console.status("loading the vision encoder …"):  # its ONNX form may have to be made first
            runtime = builders[name]()
        # A runtime is checked again when it was not part of the measurement, or is another version now.
        if name != "torch" and record.get("versions", {}).get(name) != _version(name):
            _check(runtime, builders["torch"](), size)
        return runtime
    announce("finding the fastest way to run the vision encoder on this machine (once, about half a minute)")
    with console.status("measuring …"):
        best, record = _measure(builders, size, announce)
    fresh = _remembered(store)  # another process may have added its own meanwhile
    write_json(store, {**fresh, key: record})
    return best


def _measure(
    builders: dict[str, Callable[[], Runtime]], size: int, announce: Callable[[str], None]
) -> tuple[Runtime, dict[str, Any]]:
    reference = builders["torch"]()
    best, rates, differences = reference, {"torch": rate(reference, size)}, {"torch": 0.0}
    for name, build in builders.items():
        if name == "torch":
            continue
        try:
            runtime = build()
            differences[name] = _check(runtime, reference, size)
        except Exception as error:  # without this runtime the machine is slower, not broken
            differences.pop(name, None)
            announce(f"{name} is not used: {error}")
            continue
        rates[name] = rate(runtime, size)
        if rates[name] > rates[best.name]:
            best = runtime
    announce("pictures a second: " + ", ".join(f"{name} {value:.0f}" for name, value in rates.items()))
    return best, {
        "runtime": best.name,
        "rates": rates,
        "differences": differences,
        "versions": {name: _version(name) for name in rates},
        "machine": _machine(),
    }


def _check(runtime: Runtime, reference: Runtime, size: int) -> float:
    found = difference(runtime, reference, size)
    if not found <= TOLERANCE:  # also refuses NaN
        raise FieldguideError(f"{runtime.name} differs from PyTorch by {found:.2g} (allowed {TOLERANCE:g})")
    return found


def _remembered(store: Path) -> dict[str, Any]:
    if not store.is_file():
        return {}
    try:
        found = read_json(store)
    except FieldguideError:  # a damaged note of measurements is worth a new measurement, not a stop
        return {}
    return found if isinstance(found, dict) else {}


def measured_rates() -> dict[str, float]:
    """Pictures a second by runtime, as last measured on this machine; empty when nothing was."""
    records = _remembered(cache_dir() / "runtimes.json").values()
    own = [record["rates"] for record in records if record.get("machine") == _machine()]
    return own[-1] if own else {}


def _version(name: str) -> str:
    return importlib.metadata.version(name)


def _machine() -> list[str]:
    return [platform.node(), platform.machine(), processor(), str(threads())]


def processor() -> str:
    """The processor's name, "" when the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def gpus() -> tuple[str, ...]:
    """Names of the devices, besides the processor, that PyTorch can use."""
    import torch

    if torch.cuda.is_available():
        return tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return ("Apple (MPS)",) if torch.backends.mps.is_available() else ()
