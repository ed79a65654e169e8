"""Sentence embeddings by all-MiniLM-L6-v2: texts of like meaning lie near each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from transformers.utils.logging import disable_progress_bar

from fieldguide.model.starter import starter_folder

BATCH = 64


class SentenceEncoder:
    """The network and its tokenizer.

    Attributes:
        size: numbers an embedding.
        sha256: of the weights.
    """

    def __init__(self, tokenizer: Any, network: Any, sha256: str) -> None:
        self.tokenizer, self.network, self.sha256 = tokenizer, network, sha256
        self.size = int(network.config.hidden_size)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(n, size) float32 unit vectors; of texts longer than 256 tokens, the beginning."""
        found = [np.zeros((0, self.size), np.float32)]
        for start in range(0, len(texts), BATCH):
            batch = self.tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            hidden = self.network(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            found.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
        return np.concatenate(found)


@cache
def load_sentences() -> SentenceEncoder:
    """The encoder, from the user cache.

    Raises:
        ModelMissing: when it was never fetched (`fieldguide models get starter-text`).
    """
    from fieldguide.model.weights import licence_card

    folder = starter_folder("text")
    disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    network: Any = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return SentenceEncoder(tokenizer, network.eval().requires_grad_(False), licence_card(folder)["sha256"])
