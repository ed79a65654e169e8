"""Public fakes for tests, also those of users: the real classes, tiny and random, made in memory.

    from fieldguide.testing import tiny_features, tiny_model

    model = tiny_model(["cat", "catfish"])
    started = model.start("What is it?", tiny_features(model, 3))

Nothing is downloaded or written, and equal seeds give equal weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fieldguide.model.assemble import Assembled
from fieldguide.model.language import attach_adapter
from fieldguide.model.projector import PictureFeatures, Projector, ProjectorConfig
from fieldguide.model.prompt import Prompt
from fieldguide.testing.conformance import check_model

__all__ = ["check_model", "tiny_features", "tiny_model", "tiny_tokenizer"]


def tiny_tokenizer(merges: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that can write any script, with the chat marks of the starter.

    Args:
        merges: words (of ASCII letters) that become one token each; all else is a token a byte.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, pairs = list(alphabet), []
    for word in merges:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if word[:end] not in pieces:
                pieces.append(word[:end])
                pairs.append(pair)
    tokenizer = Tokenizer(BPE({piece: number for number, piece in enumerate(pieces)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in ("<|im_start|>", "<|im_end|>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )


def tiny_model(
    labels: Sequence[str],
    *,
    patches: int = 4,
    channels: int = 3,
    pooled: int = 5,
    summary_tokens: int = 1,
    patch_tokens: int = 0,
    hidden: int = 32,
    layers: int = 2,
    merges: Sequence[str] = (),
    lora_rank: int = 0,
    lora_dropout: float = 0.0,
    seed: int = 0,
) -> Assembled:
    """A random model of the real classes: a Llama of some 30,000 weights, tokenizer, projector and prompt.

    Its weights are large enough that its answers differ between pictures and between labels.

    Args:
        labels: one number of evidence each.
        patches, channels, pooled: shape of the features (`tiny_features` makes such).
        summary_tokens, patch_tokens: as in `TrainSettings`.
        hidden: embedding size, a multiple of 4.
        merges: see `tiny_tokenizer`.
        lora_rank, lora_dropout: of a fresh adapter, as training begins with; rank 0 for none.
        seed: of all weights; the global random state is left alone.
    """
    tokenizer = tiny_tokenizer(merges)
    config = ProjectorConfig(patches, channels, pooled, hidden, len(labels), summary_tokens, patch_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        language_model: Any = LlamaForCausalLM(_llama(len(tokenizer), hidden, layers, tokenizer.eos_token_id))
        language_model.requires_grad_(False)
        if lora_rank:
            language_model = attach_adapter(
                language_model, rank=lora_rank, alpha=2 * lora_rank, dropout=lora_dropout, base_name="tiny"
            )
        projector = Projector(config)
        if summary_tokens:
            torch.nn.init.normal_(projector.evidence_map, std=config.flat**-0.5)
            torch.nn.init.normal_(projector.table, std=0.5)
    return Assembled(tokenizer, language_model, projector, Prompt(tokenizer)).eval()


def _llama(vocabulary: int, hidden: int, layers: int, end: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )


def tiny_features(model: Assembled, count: int, seed: int = 0) -> PictureFeatures:
    """Random features of `count` pictures, in the shape that `model` reads."""
    config = model.projector.config
    generator = torch.Generator().manual_seed(seed)
    return PictureFeatures(
        torch.randn(count, config.patches, config.channels, generator=generator),
        torch.randn(count, config.pooled, generator=generator),
    )
