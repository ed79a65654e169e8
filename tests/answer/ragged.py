"""A model whose pictures take different numbers of positions, and plain passes to hold it against.

Its pictures are embeddings made at random, as many as wanted; the position of the word that follows one may
be another than the number of positions read, as with Qwen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers import DynamicCache

from fieldguide.model.local import LocalModel, Started, layers_of
from fieldguide.model.prompt import Prompt
from fieldguide.testing import tiny_tokenizer

HIDDEN = 32
QUESTION = "What is it?"


@dataclass(frozen=True)
class Embedded:
    """Pictures as embeddings, and what each adds to the position of the word behind it."""

    visual: tuple[Tensor, ...]  # each (T, H), T differs
    offsets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.visual)

    def rows(self, chosen: Tensor | slice) -> Embedded:
        numbers = range(len(self))[chosen] if isinstance(chosen, slice) else chosen.tolist()
        return Embedded(tuple(self.visual[i] for i in numbers), tuple(self.offsets[i] for i in numbers))

    def to(self, device: torch.device) -> Embedded:
        return Embedded(tuple(one.to(device) for one in self.visual), self.offsets)


class RaggedModel(LocalModel):
    """Reads `Embedded`, one picture after the other, and pads what it has read."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.tokenizer = tiny_tokenizer(["cat", "dog"])
        self.prompt = Prompt(self.tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.language_model: Any = _network(kind, len(self.tokenizer))
        self.requires_grad_(False).eval()

    @property
    def decoder(self) -> nn.Module:
        found = self.language_model.model
        return getattr(found, "language_model", found)

    def part_of(self, name: str) -> str:
        return "language model: base"

    def visual_tokens(self, pictures: Embedded) -> tuple[int, ...]:
        return tuple(len(one) for one in pictures.visual)

    def forward(self, question: str, pictures: Embedded, ids: Tensor, supervised: Tensor) -> Tensor:
        found = []
        for row, wanted in enumerate(supervised):
            last = int(wanted.nonzero().max()) + 1
            logits = self.plain(pictures.rows(slice(row, row + 1)), ids[row, :last].tolist(), question)
            found.append(logits[:-1][wanted[:last]])
        return torch.cat(found)

    def read_prefix(self, question: str) -> DynamicCache | None:
        return None

    def start(self, question: str, pictures: Embedded, prefix: DynamicCache | None = None) -> Started:
        caches, logits = [], []
        for visual in pictures.visual:
            cache = DynamicCache()
            hidden = self.read(cache, self._prompt(question, visual))
            caches.append(layers_of(cache))
            logits.append(self.head(hidden[:, -1]))
        lengths = tuple(layers[0][0].shape[2] for layers in caches)

        def padded(part: Tensor) -> Tensor:  # with what would be noticed if it were seen
            return nn.functional.pad(part, (0, 0, 0, max(lengths) - part.shape[2]), value=7.0)

        keys = tuple(
            tuple(torch.cat([padded(layers[i][side]) for layers in caches]) for side in (0, 1))
            for i in range(len(caches[0]))
        )
        return Started(keys, lengths, pictures.offsets, torch.cat(logits))  # type: ignore[arg-type]

    def _prompt(self, question: str, visual: Tensor) -> Tensor:
        before = self.embed(self.token_ids(self.prompt.before(question)))
        after = self.embed(self.token_ids(self.prompt.after(question)))
        return torch.cat([before, visual[None], after], dim=1)

    @torch.no_grad()
    def plain(self, picture: Embedded, tokens: list[int], question: str = QUESTION) -> Tensor:
        """(1 + len(tokens), V): behind the prompt of one picture, and behind each token after it.

        One pass over the whole row: no cache that goes on, no padding, no mask.
        """
        prompt = self._prompt(question, picture.visual[0])
        length = prompt.shape[1]
        words = self.embed(self.token_ids(tokens)) if tokens else prompt[:, :0]
        positions = torch.arange(length + len(tokens))
        positions[length:] += picture.offsets[0]
        hidden = self.read(DynamicCache(), torch.cat([prompt, words], dim=1), positions[None])
        return self.head(hidden[0, length - 1 :])


def embedded(lengths: tuple[int, ...], offsets: tuple[int, ...], seed: int = 0) -> Embedded:
    """Random pictures of such lengths."""
    generator = torch.Generator().manual_seed(seed)
    made = tuple(torch.randn(length, HIDDEN, generator=generator) for length in lengths)
    return Embedded(made, offsets)


def _network(kind: str, vocabulary: int) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "initializer_range": 0.2, "tie_word_embeddings": False,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**settings))
    if kind == "mistral":
        return hf.MistralForCausalLM(hf.MistralConfig(**settings, sliding_window=600))
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "out_hidden_size": HIDDEN,
    }
    config = hf.Qwen2_5_VLConfig(text_config=settings, vision_config=vision)
    return hf.Qwen2_5_VLForConditionalGeneration(config)
