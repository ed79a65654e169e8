"""Export of a merged folder: copied as it is, or made ready for a model hub and pushed there.

The folder must be whole: every file is compared with the hash its certificate gives.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from fieldguide.errors import MergeError
from fieldguide.files import atomic_folder, read_json, sha256_file, write_text
from fieldguide.train.fingerprints import some
from fieldguide.train.folder import CERTIFICATE

CARD = "README.md"
# The hub's errors derive from OSError and from its HTTP library's, which differs between versions.
PUSH_ERRORS: tuple[type[Exception], ...] = (
    *cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__),
    ValueError,
    RuntimeError,
)


@dataclass(frozen=True)
class HubExport:
    """What was or would be pushed.

    Attributes:
        folder: ready to push.
        files: name and bytes of each file.
        url: where it lies on the hub; "" after a dry run.
    """

    folder: Path
    files: tuple[tuple[str, int], ...]
    url: str

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(size for _, size in self.files)

    def in_words(self, repo_id: str) -> str:
        """What happened, a line for each file."""
        what = f"pushed to {self.url}" if self.url else f"nothing was sent; to {repo_id} would go"
        names = [f"  {name}  {size:,} bytes" for name, size in self.files]
        return "\n".join([f"{self.folder}: {what} {len(self.files)} files, {self.size:,} bytes", *names])


def check_merged(folder: Path) -> dict[str, Any]:
    """The certificate of a merged folder, every file compared with it.

    Raises:
        MergeError: when there is none, or a file is missing, changed or not named in it.
    """
    if not (folder / CERTIFICATE).is_file():
        raise MergeError(f"{folder}: no merged model there", "fieldguide merge GUIDE --out " + str(folder))
    certificate: dict[str, Any] = read_json(folder / CERTIFICATE)
    files = certificate.get("files")
    if not isinstance(files, dict):
        raise MergeError(f"{folder / CERTIFICATE}: names no files", "merge again")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wrong = [name for name, digest in files.items() if name in there and sha256_file(folder / name) != digest]
    if missing := files.keys() - there:
        raise MergeError(f"{folder}: {some(missing)} missing", "copy the whole folder, or merge again")
    if wrong:
        raise MergeError(f"{folder}: {some(wrong)} changed since the merge", "merge again")
    if more := there - files.keys() - {CERTIFICATE}:
        raise MergeError(f"{folder}: {some(more)} came after the merge", "move them away, or merge again")
    return certificate


def export_transformers(merged: Path | str, out: Path | str) -> Path:
    """Copy a merged folder, checked file by file.

    Raises:
        MergeError: when it is not whole, or `out` holds something.
    """
    merged, out = Path(merged), Path(out)
    check_merged(merged)
    _check_free(out)
    with atomic_folder(out) as folder:
        _copy(merged, folder)
    return out


def export_hub(
    merged: Path | str,
    out: Path | str,
    card: str,
    *,
    repo_id: str,
    push: bool = False,
    private: bool = True,
    token: str | None = None,
) -> HubExport:
    """Write the folder that goes to a model hub, and push it when asked to.

    Args:
        merged: as `merge` wrote it.
        out: the folder to write; must not exist, or be empty.
        card: text of README.md, as `model_card` makes it.
        repo_id: "owner/name".
        push: False shows what would be pushed.
        private: of a repository that does not exist yet.
        token: None for the one huggingface_hub knows (`hf auth login`, or HF_TOKEN).

    Raises:
        MergeError: when something is in the way; in one line.
    """
    merged, out = Path(merged), Path(out)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise MergeError(f"{repo_id!r}: no name for a repository ({_line(error)})", "owner/name") from None
    if "/" not in repo_id:
        raise MergeError(f"{repo_id!r}: says not whose it is", "owner/name")
    token = token or get_token()
    if push and not token:
        raise MergeError(
            "pushing needs a token of the hub, and there is none", "hf auth login, or set HF_TOKEN"
        )
    check_merged(merged)
    _check_free(out)
    with atomic_folder(out) as folder:
        _copy(merged, folder)
        write_text(folder / CARD, card)
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    files = tuple((path.relative_to(out).as_posix(), path.stat().st_size) for path in paths)
    url = _push(out, repo_id, private, str(token)) if push else ""
    return HubExport(out, files, url)


def _push(folder: Path, repo_id: str, private: bool, token: str) -> str:
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Merged model and its card")
    except PUSH_ERRORS as error:
        raise MergeError(
            f"{repo_id}: not pushed ({_line(error)}); the folder is ready at {folder}",
            "check the token's rights and the network, then push again",
        ) from error
    return str(url)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _check_free(out: Path) -> None:
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise MergeError(f"{out}: already there", "choose a new folder, or delete this one")


def _copy(source: Path, target: Path) -> None:
    """All files; weights as a second name of the same file where the disk can do that."""
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> str:
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, target)
        return target
    return shutil.copyfile(source, target)
