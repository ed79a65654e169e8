"""Export of merged folders: only whole ones, a dry run sends nothing, a failed push is one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError
from tiny_merge import base_folder, identity_of, load_base, probes, write_adapter
from transformers import AutoModelForCausalLM

from fieldguide.errors import MergeError
from fieldguide.train import export
from fieldguide.train.export import check_merged, export_hub, export_transformers
from fieldguide.train.merge import merge


@pytest.fixture(scope="module")
def merged_once(tmp_path_factory: pytest.TempPathFactory, draw: Any) -> Path:
    folder = tmp_path_factory.mktemp("merging")
    base, tokenizer = base_folder("llama", folder / "base")
    network = load_base("llama", base)
    adapter = write_adapter("llama", network, folder / "adapter")
    identity = identity_of(network, adapter, {})
    merge(network, adapter, {}, tokenizer, probes("llama", draw), folder / "merged", identity=identity)
    return folder / "merged"


@pytest.fixture
def merged(merged_once: Path, tmp_path: Path) -> Path:
    return export_transformers(merged_once, tmp_path / "merged")


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "get_token", lambda: None)


def test_a_copy_is_the_same_and_loads(merged_once: Path, merged: Path) -> None:
    assert check_merged(merged) == check_merged(merged_once)
    AutoModelForCausalLM.from_pretrained(merged)


def test_a_folder_that_is_not_whole_is_refused(merged: Path, tmp_path: Path) -> None:
    (merged / "note.txt").write_text("mine")
    with pytest.raises(MergeError, match=r"note\.txt came after the merge"):
        export_transformers(merged, tmp_path / "out")
    (merged / "note.txt").unlink()
    text = (merged / "config.json").read_text()
    (merged / "config.json").write_text(text.replace("llama", "mistral"))
    with pytest.raises(MergeError, match=r"config\.json changed"):
        export_transformers(merged, tmp_path / "out")
    (merged / "config.json").write_text(text)
    os.remove(merged / "model.safetensors")
    with pytest.raises(MergeError, match=r"model\.safetensors missing"):
        export_hub(merged, tmp_path / "out", "card", repo_id="me/birds")
    with pytest.raises(MergeError, match="no merged model"):
        export_transformers(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_target_that_holds_something_is_left_alone(merged: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo.jpg").write_bytes(b"mine")
    for run in (
        lambda: export_transformers(merged, tmp_path / "out"),
        lambda: export_hub(merged, tmp_path / "out", "card", repo_id="me/birds"),
    ):
        with pytest.raises(MergeError, match="already there"):
            run()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["photo.jpg"]


class FakeHub:
    """Stands for the hub; what reaches it is in `sent`."""

    sent: list[tuple[str, Any]]
    fault: Exception | None

    def __init__(self, fault: Exception | None = None) -> None:
        self.sent, self.fault = [], fault

    def __call__(self, token: str) -> FakeHub:
        self.sent.append(("token", token))
        return self

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        if self.fault:
            raise self.fault
        self.sent.append(("repo", (repo_id, private, exist_ok)))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.sent.append(("files", sorted(p.name for p in Path(folder_path).iterdir())))


def test_a_dry_run_writes_the_folder_and_sends_nothing(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub()
    monkeypatch.setattr(export, "HfApi", hub)
    found = export_hub(merged, tmp_path / "out", "# Birds\n", repo_id="me/birds")
    assert hub.sent == []
    assert (tmp_path / "out" / "README.md").read_text() == "# Birds\n"
    names = [name for name, _ in found.files]
    assert {"README.md", "model.safetensors", "certificate.json", "licences.json", "config.json"} <= set(
        names
    )
    assert found.size == sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file())
    words = found.in_words("me/birds")
    assert "nothing was sent; to me/birds would go" in words
    assert "model.safetensors" in words


def test_a_push_sends_that_folder(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(export, "HfApi", hub)
    found = export_hub(merged, tmp_path / "out", "card", repo_id="me/birds", push=True, token="secret")
    assert found.url == "https://hub.example/me/birds"
    assert hub.sent[0] == ("token", "secret")
    assert hub.sent[1] == ("repo", ("me/birds", True, True))
    assert "README.md" in hub.sent[2][1]
    assert "pushed to https://hub.example/me/birds" in found.in_words("me/birds")


def test_a_failed_push_is_one_line_and_the_folder_stays(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = HfHubHTTPError.__bases__[0]
    for number, fault in enumerate((OSError("no\nroute"), http("connection\nrefused"))):
        monkeypatch.setattr(export, "HfApi", FakeHub(fault))
        out = tmp_path / f"out{number}"
        with pytest.raises(MergeError, match="me/birds: not pushed") as caught:
            export_hub(merged, out, "card", repo_id="me/birds", push=True, token="secret")
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
        assert (out / "README.md").is_file()


def test_no_token_and_no_name(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="needs a token"):
        export_hub(merged, tmp_path / "out", "card", repo_id="me/birds", push=True)
    for name in ("birds", "me/bi rds", "a/b/c"):
        with pytest.raises(MergeError, match=r"owner/name|no name for"):
            export_hub(merged, tmp_path / "out", "card", repo_id=name)
    assert not (tmp_path / "out").exists()
