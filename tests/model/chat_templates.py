"""Chat templates as real models carry them, and tokenizers of both kinds for their marks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fieldguide.testing import tiny_tokenizer


@dataclass(frozen=True)
class Chat:
    """A template, the marks it needs, and how its words are cut."""

    jinja: str
    marks: tuple[str, ...]  # control tokens besides <s> and </s>
    pieces: str = "bytes"  # or how a SentencePiece tokenizer puts blanks: "legacy", "first"
    picture: str = ""  # the mark of a picture
    bos: str = "<s>"
    eos: str = "</s>"
    swallows: bool = False  # the marks take the blanks behind them

    def tokenizer(self) -> Any:
        if self.pieces == "bytes":
            made: Any = tiny_tokenizer(["cat"])
            made.add_special_tokens({"bos_token": self.bos, "eos_token": self.eos})
        else:
            made = sentence_pieces(self.pieces)
            made.add_special_tokens({"bos_token": self.bos, "eos_token": self.eos})
        made.add_tokens([AddedToken(mark, special=True, rstrip=self.swallows) for mark in self.marks])
        made.chat_template = self.jinja
        return made


def sentence_pieces(blanks: str) -> PreTrainedTokenizerFast:
    """A byte-fallback tokenizer whose words begin with ▁, as those of Llama 2, Mistral and Phi.

    Args:
        blanks: "legacy": one is put before a text and before what follows a control token; "first": before a
            text alone.
    """
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": 3 + i for i in range(256)}
    for letter in "▁" + "".join(map(chr, range(33, 127))):
        vocabulary[letter] = len(vocabulary)
    merges = []
    for one, other in [("a", "t"), ("c", "at"), ("▁", "cat"), ("▁", "▁"), ("▁", "A"), ("▁", "["), ("▁", "W")]:
        vocabulary[one + other] = len(vocabulary)
        merges.append((one, other))
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if blanks == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=blanks, split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(mark, special=True) for mark in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


LLAMA_3 = Chat(
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
)
MISTRAL = Chat(
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    (),
    pieces="first",
)
LLAMA_2 = Chat(
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + message['content'].strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}",
    (),
    pieces="legacy",
)
CHATML = Chat(
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    (),
    bos="<|im_start|>",
    eos="<|im_end|>",
)
SMOLLM_2 = Chat(
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    (),
    bos="<|im_start|>",
    eos="<|im_end|>",
)
PHI_3 = Chat(
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
    "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    pieces="legacy",
    eos="<|endoftext|>",
    swallows=True,
)
_PARTS = (
    "{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}"
)
LLAVA = Chat(
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}" + _PARTS +
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    ("<image>",),
    pieces="legacy",
    picture="<image>",
)  # fmt: skip
LLAVA_CLOSED = Chat(
    LLAVA.jinja.replace(
        "{{ content['text'] + ' '}}{% endgeneration %}",
        "{{ content['text'] + eos_token }}{% endgeneration %}",
    ),
    ("<image>",),
    pieces="first",
    picture="<image>",
)
LLAVA_NEXT = Chat(
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' }}" + _PARTS +
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}"
    "{% endfor %}{{' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'][0]['text'] + '</s> '}}{% endif %}{% endfor %}",
    ("<image>",),
    pieces="first",
    picture="<image>",
)  # fmt: skip
SMOLVLM = Chat(
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
    ("<image>", "<end_of_utterance>"),
    picture="<image>",
    bos="<|im_start|>",
    eos="<end_of_utterance>",
)
QWEN = Chat(
    "{% set image_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
    picture="<|image_pad|>",
    bos="<|im_start|>",
    eos="<|im_end|>",
)
CHATS = {
    "Llama 3": LLAMA_3, "Mistral": MISTRAL, "Llama 2": LLAMA_2, "ChatML": CHATML, "SmolLM 2": SMOLLM_2,
    "Phi 3": PHI_3, "LLaVA 1.5": LLAVA, "LLaVA 1.5, closed": LLAVA_CLOSED, "LLaVA-NeXT": LLAVA_NEXT,
    "SmolVLM": SMOLVLM, "Qwen-VL": QWEN,
}  # fmt: skip
