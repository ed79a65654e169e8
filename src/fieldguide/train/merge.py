"""Merging: an adapter and trained tensors become part of the weights, proved on the user's own rows.

    certificate = merge(network, adapter_folder, full_tensors, processor, probes, out, identity=identity)

An adapter that was trained on 4-bit weights belongs to those weights, so they are dequantised first and the
adapter is added to the result; neither the 4-bit weights nor the original ones will do. What is written is
read back with plain transformers before it gets its name; when any figure is off, nothing is written.
"""

from __future__ import annotations

import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fieldguide.errors import MergeError
from fieldguide.files import atomic_folder, fingerprint, write_json
from fieldguide.model.fourbit import four_bit, keep_unpacked
from fieldguide.model.language import load_adapter
from fieldguide.train.adapter import adapted_modules
from fieldguide.train.fingerprints import digests, some, tied
from fieldguide.train.folder import (
    CERTIFICATE,
    Licence,
    check_licences,
    file_hashes,
    needed_import,
    read_back,
    write_folder,
)
from fieldguide.train.identity import MergeIdentity, check_bound
from fieldguide.train.probe import Difference, Measured, Probe, Row, Tolerance, compare, measure, prepare

PACKAGES = ("fieldguide", "torch", "transformers", "peft", "safetensors")


@dataclass(frozen=True)
class Certificate:
    """What was merged, and how far the answers moved; lies as certificate.json in the merged folder."""

    base: str
    base_sha256: str
    quantised: bool
    dtype: str
    adapter: dict[str, str]  # file: SHA-256
    full_sha256: str
    merged_sha256: str
    adapter_modules: int
    merged_modules: int  # equal to adapter_modules
    full_tensors: int
    unchanged_tensors: int  # bit for bit those of the (dequantised) base
    tied_weights: int
    probe_rows: int
    probe_positions: int
    before_and_after: Difference
    relative_loss_difference: float
    read_back: Difference  # the folder, loaded anew, against the network before merging, on the first row
    tolerance: Tolerance
    needed_import: str  # the module that must be imported before transformers opens the folder; "" for none
    licences: tuple[Licence, ...]
    files: dict[str, str]  # SHA-256
    versions: dict[str, str]
    created: str

    def to_dict(self) -> dict[str, Any]:
        """The content of certificate.json; licence texts lie in files of their own."""
        record = asdict(self)
        for card in record["licences"]:
            del card["text"]
        return record


@dataclass(frozen=True)
class _Counts:
    modules: int
    unchanged: int
    tied: int
    sha256: str


def merge(
    network: Any,
    adapter_folder: Path | str | None,
    full_tensors: Mapping[str, Tensor],
    processor: Any,
    probes: Sequence[Probe],
    out: Path | str,
    *,
    identity: MergeIdentity,
    tolerance: Tolerance | None = None,
) -> Certificate:
    """Merge an adapter and fully trained tensors into a base, and write a standard transformers folder.

    Args:
        network: the base as training loaded it, without PEFT, perhaps held in 4 bits. It is used up.
        adapter_folder: in PEFT's format; None when only `full_tensors` were trained.
        full_tensors: trained tensors by the base's names of their parameters.
        processor: the processor, or the tokenizer of a model that reads text only.
        probes: rows of the user, prepared or callables that prepare them with a processor.
        out: the folder to write; must not exist, or be empty.
        identity: what training recorded of the parts.
        tolerance: None for what the type of the weights allows.

    Raises:
        GuideError: when base, adapter and tensors do not belong together.
        MergeError: when something would be lost; the figures are in its message, and nothing is written.
    """
    out = Path(out)
    adapter = Path(adapter_folder) if adapter_folder is not None else None
    full = dict(full_tensors)
    _check_out(out)
    check_licences(identity.licences)
    check_bound(network, adapter, full, identity)
    rows = prepare(probes, processor)
    network.eval().requires_grad_(False)
    modules = adapted_modules(adapter, network) if adapter else []
    _put_in(network, full)
    before = _measure_live(network, adapter, rows)
    with _quiet():
        network = network.dequantize() if four_bit(network) else network
        counts = _merge_weights(network, adapter, modules, full)
    tolerance = tolerance or Tolerance.of(network.dtype)
    moved = compare(before, _measured(network, rows))
    if not moved.within(tolerance):
        raise MergeError(
            f"{out}: not written, the merged model answers otherwise than the trained one: "
            f"{moved.in_words()}; allowed {tolerance.loss:g} of the loss, {tolerance.logits:g} of the spread"
        )
    with atomic_folder(out) as folder:
        again = _write_and_read(
            folder, network, processor, identity, probes[0], before[0], rows[0], tolerance
        )
        certificate = Certificate(
            base=identity.base,
            base_sha256=identity.base_sha256,
            quantised=identity.quantised,
            dtype=str(network.dtype).removeprefix("torch."),
            adapter=dict(identity.adapter),
            full_sha256=identity.full_sha256,
            merged_sha256=counts.sha256,
            adapter_modules=len(modules),
            merged_modules=counts.modules,
            full_tensors=len(full),
            unchanged_tensors=counts.unchanged,
            tied_weights=counts.tied,
            probe_rows=len(rows),
            probe_positions=sum(len(m.losses) for m in before),
            before_and_after=moved,
            relative_loss_difference=moved.relative_loss,
            read_back=again,
            tolerance=tolerance,
            needed_import=needed_import(network),
            licences=identity.licences,
            files=file_hashes(folder),
            versions=_versions(identity.quantised),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_json(folder / CERTIFICATE, certificate.to_dict())
    return certificate


def _check_out(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise MergeError(f"{out}: is a file or a link", "choose a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise MergeError(f"{out}: is not empty", "choose a new folder, or delete this one")


@torch.no_grad()
def _put_in(network: Any, full: Mapping[str, Tensor]) -> None:
    """Set the trained tensors; at least one must differ from the base."""
    names = dict(network.named_parameters(remove_duplicate=False))
    changed = 0
    for name, tensor in full.items():
        old = names[name].detach().clone()
        names[name].copy_(tensor)
        changed += not torch.equal(old, names[name])
    if full and not changed:
        raise MergeError(f"all {len(full)} trained tensors equal the base: they were never trained")


def _measured(network: Any, rows: Sequence[Row]) -> list[Measured]:
    found = [measure(network, row) for row in rows]
    for number, one in enumerate(found, 1):
        if not bool(torch.isfinite(one.logits).all()):
            raise MergeError(f"probe row {number}: the model's answer is not a number")
    return found


def _measure_live(network: Any, adapter: Path | None, rows: Sequence[Row]) -> list[Measured]:
    """What the trained model says, adapter beside the weights as in training; leaves the network bare."""
    keep_unpacked(network)
    if adapter is None:
        return _measured(network, rows)
    with _quiet():
        adapted: Any = load_adapter(network, adapter).eval()
        found = _measured(adapted, rows)
        adapted.unload()
    return found


def _merge_weights(
    network: Any, adapter: Path | None, modules: list[str], full: Mapping[str, Tensor]
) -> _Counts:
    """Add the adapter to the weights of `network`, and check tensor by tensor what that changed."""
    base, bound, ties = digests(network), tied(network), network.config.to_dict()
    if adapter is not None:
        adapted: Any = load_adapter(network, adapter)
        adapted.merge_and_unload(safe_merge=True)
    merged = digests(network)
    targets = {f"{name}.weight" for name in modules}
    same = [name for name in targets if merged.get(name) == base[name]]
    if same:
        raise MergeError(
            f"{len(same)} of {len(targets)} target modules equal the base after merging ({some(same)}): "
            "the adapter does nothing there",
            "train it longer, or leave those modules out of the targets",
        )
    other = [n for n in base.keys() | merged if n not in targets and base.get(n) != merged.get(n)]
    if other:
        raise MergeError(f"merging changed tensors that the adapter does not target: {some(other)}")
    if tied(network) != bound or network.config.to_dict() != ties:
        raise MergeError("merging untied weights that the base shares, or changed its configuration")
    unchanged = len(base.keys() - targets - full.keys())
    return _Counts(len(targets) - len(same), unchanged, len(bound), fingerprint(merged))


def _write_and_read(
    folder: Path,
    network: Any,
    processor: Any,
    identity: MergeIdentity,
    probe: Probe,
    before: Measured,
    row: Row,
    tolerance: Tolerance,
) -> Difference:
    """Write the folder, load it anew, and let it answer one row."""
    values, bound = digests(network), tied(network)
    device = next(network.parameters()).device
    try:
        write_folder(folder, network, processor, identity.licences)
    except OSError as error:
        raise MergeError(
            f"{folder.parent}: cannot be written ({error.strerror or error}), "
            f"{shutil.disk_usage(folder.parent).free / 1e9:.1f} GB are free"
        ) from error
    network.to("meta")  # one copy of the weights in memory is enough
    loaded, reader = read_back(folder, network, processor)
    loaded.to(device)
    if (read := digests(loaded)) != values or tied(loaded) != bound:
        other = [name for name in read.keys() | values if read.get(name) != values.get(name)]
        raise MergeError(f"what was written reads back otherwise: {some(other) or 'shared weights'}")
    if callable(probe):
        prepared = prepare([probe], reader)[0]
        if not _same_row(row, prepared):
            raise MergeError("the processor that was written prepares the first probe row otherwise")
        row = prepared
    again = compare([before], _measured(loaded, [row]))
    if not again.within(tolerance):
        raise MergeError(f"what was written answers otherwise: {again.in_words()}")
    return again


def _same_row(first: Row, second: Row) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key]
        for key, value in first.items()
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT's and transformers' warnings of what is checked here anyway."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def _versions(quantised: bool) -> dict[str, str]:
    names = (*PACKAGES, "bitsandbytes") if quantised else PACKAGES
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
