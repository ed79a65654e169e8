"""Chat templates of real models taken apart, and what of their conversations is learnt."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from chat_templates import CHATML, CHATS, LLAVA, MISTRAL, PHI_3, SMOLVLM, Chat

from fieldguide.errors import DataError, GuideError
from fieldguide.model.prompt import Prompt, PromptTemplate
from fieldguide.model.template import template_from_chat
from fieldguide.records import Turn

TURNS = (
    Turn("user", "What is it?"),
    Turn("assistant", "cat"),
    Turn("user", "Why?"),
    Turn("assistant", "A tail."),
)
GOLDEN = {
    "Llama 3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is it?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦cat<|eot_id|>⟧<|start_header_id|>user<|end_header_id|>"
    "\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦A tail.<|eot_id|>⟧",
    "Mistral": "<s>[INST] What is it? [/INST]⟦ cat</s>⟧[INST] Why? [/INST]⟦ A tail.</s>⟧",
    "Llama 2": "<s>[INST] What is it? [/INST]⟦ cat </s>⟧<s>[INST] Why? [/INST]⟦ A tail. </s>⟧",
    "ChatML": "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n⟦cat<|im_end|>⟧\n"
    "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n⟦A tail.<|im_end|>⟧",
    "SmolLM 2": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n"
    "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n⟦cat<|im_end|>⟧\n"
    "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n⟦A tail.<|im_end|>⟧",
    "Phi 3": "<|user|>\nWhat is it?<|end|>\n<|assistant|>\n⟦cat<|end|>⟧\n"
    "<|user|>\nWhy?<|end|>\n<|assistant|>\n⟦A tail.<|end|>⟧",
    "LLaVA 1.5": "USER: <image>\nWhat is it? ASSISTANT:⟦ cat</s>⟧USER: Why? ASSISTANT:⟦ A tail.</s>⟧",
    "LLaVA 1.5, closed": "USER: <image>\nWhat is it? ASSISTANT:⟦ cat</s>⟧USER: Why? ASSISTANT:⟦ A tail.</s>⟧",
    "LLaVA-NeXT": "[INST] <image>\nWhat is it? [/INST]⟦ cat</s>⟧ [INST] Why? [/INST]⟦ A tail.</s>⟧",
    "SmolVLM": "<|im_start|>User:<image>What is it?<end_of_utterance>\nAssistant:⟦ cat<end_of_utterance>⟧\n"
    "User: Why?<end_of_utterance>\nAssistant:⟦ A tail.<end_of_utterance>⟧",
    "Qwen-VL": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n"
    "<|im_start|>assistant\n⟦cat<|im_end|>⟧\n"
    "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n⟦A tail.<|im_end|>⟧",
}  # fmt: skip


@cache
def prompt(name: str) -> Prompt:
    chat = CHATS[name]
    tokenizer = chat.tokenizer()
    return Prompt(tokenizer, template_from_chat(tokenizer, tokenizer, chat.picture))


def written(tokenizer: Any, ids: list[int]) -> str:
    """The text of tokens, with every blank that they stand for."""
    if not any(token.startswith("<0x") for token in tokenizer.get_vocab()):
        return str(tokenizer.decode(ids))
    tokens = [re.sub(r"^<0x0A>$", "\n", token) for token in tokenizer.convert_ids_to_tokens(ids)]
    return "".join(tokens).replace("▁", " ")


def pieces(name: str, turns: tuple[Turn, ...] = TURNS) -> list[tuple[list[int], bool]]:
    """A whole row: what stands before the picture, its mark, and all that follows."""
    one, mark = prompt(name), CHATS[name].picture
    shown = [one.tokenizer.convert_tokens_to_ids(mark)] if mark else []
    opened = [(one.before("", bool(mark)), False), (shown, False)]
    return [*opened, *one.turns(turns, bool(mark))]


def rendered(name: str, turns: tuple[Turn, ...]) -> str:
    """The conversation by the library, from the model's own template."""
    chat = CHATS[name]
    messages: list[Any] = [{"role": turn.role, "content": turn.text} for turn in turns]
    if chat.picture:
        for place, message in enumerate(messages):
            text = {"type": "text", "text": message["content"]}
            message["content"] = [{"type": "image"}, text] if place == 0 else [text]
    return str(prompt(name).tokenizer.apply_chat_template(messages, tokenize=False))


@pytest.mark.parametrize("name", CHATS)
def test_answers_are_learnt_with_their_end_and_nothing_else(name: str) -> None:
    """Case 14: never what the user says, nor the template's own words."""
    one, text = prompt(name), ""
    for ids, learnt in pieces(name):
        words = written(one.tokenizer, ids)
        text += f"⟦{words}⟧" if learnt else words
        assert not learnt or ids[-1] == one.end_id
    golden = GOLDEN[name]
    if CHATS[name].pieces == "legacy":  # its beginnings, and what follows a mark, open with a blank
        text = re.sub(r"(^|>|⟦|⟧) ", r"\1", text)
        golden = re.sub(r"(^|>|⟦|⟧) ", r"\1", golden)
    if CHATS[name].pieces == "first":
        text = text.removeprefix(" ")
    if CHATS[name].swallows:
        golden = re.sub(r"(\|>⟧?)\n", r"\1", golden)
    assert text == golden


@pytest.mark.parametrize("name", [name for name in CHATS if name != "LLaVA 1.5"])
def test_tokens_are_those_of_the_models_own_template(name: str) -> None:
    """Case 17: what the model learnt to read, to the last token: no blank too many or few."""
    ids = [token for tokens, _ in pieces(name) for token in tokens]
    wanted = prompt(name).tokenizer.encode(rendered(name, TURNS), add_special_tokens=False)
    assert wanted[: len(ids)] == ids
    last = written(prompt(name).tokenizer, wanted[len(ids) :])
    assert last.strip() in ("", CHATS[name].eos)


def test_llava_15_ends_its_answers_though_its_template_does_not() -> None:
    """Without an end the model would never learn to stop: it was trained with </s> there."""
    own = rendered("LLaVA 1.5", TURNS)
    assert own == "USER: <image>\nWhat is it? ASSISTANT: cat USER: Why? ASSISTANT: A tail. "
    closed = own.replace("cat ", "cat</s>").replace("tail. ", "tail.</s>")
    ids = [token for tokens, _ in pieces("LLaVA 1.5") for token in tokens]
    assert ids == prompt("LLaVA 1.5").tokenizer.encode(closed, add_special_tokens=False)


@pytest.mark.parametrize("name", CHATS)
def test_training_reads_the_tokens_that_answering_reads(name: str) -> None:
    """Case 17: of a label, a reason after it, and a conversation."""
    one, shown = prompt(name), bool(CHATS[name].picture)
    asked, why = TURNS[0].text, TURNS[2].text
    answering = one.after(asked, shown) + one.answer("cat") + one.follow_up(why) + one.reply("A tail.")
    assert [token for ids, _ in one.turns(TURNS, shown) for token in ids] == answering


@pytest.mark.parametrize("name", CHATS)
def test_marks_in_words_of_people_stay_text(name: str) -> None:
    one, chat = prompt(name), CHATS[name]
    evil = f"a{chat.eos}{chat.bos}" + "".join(chat.marks) + "b"
    turns = (Turn("user", evil), Turn("assistant", evil))
    plain = (Turn("user", "a"), Turn("assistant", "b"))
    controls = set(one.tokenizer.all_special_ids)

    def found(some: tuple[Turn, ...]) -> list[int]:
        return [token for ids, _ in one.turns(some, bool(chat.picture)) for token in ids if token in controls]

    assert found(turns) == found(plain)


@pytest.mark.parametrize("name", [name for name, chat in CHATS.items() if chat.picture])
def test_rows_without_a_picture_and_with_several(name: str) -> None:
    one, chat = prompt(name), CHATS[name]
    tokenizer = one.tokenizer
    text = [{"type": "text", "text": "Why?"}]
    for count in (0, 1, 3):
        message = {"role": "user", "content": [*([{"type": "image"}] * count), *text]}
        own = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        marks = tokenizer.encode(
            one.template.picture_between.join([chat.picture] * count), add_special_tokens=False
        )
        if count > 1 and chat.pieces != "bytes":
            continue  # the blanks between several pictures are the processor's
        ids = one.before("", bool(count)) + marks + one.after("Why?", bool(count))
        wanted = tokenizer.encode(own, add_special_tokens=False)
        assert wanted == ids


def test_labels_carry_the_blank_that_opens_an_answer() -> None:
    one = prompt("Mistral")
    assert one.tokenizer.convert_ids_to_tokens(one.answer("cat")) == ["▁cat", "</s>"]
    assert one.tokenizer.convert_ids_to_tokens(prompt("LLaVA 1.5").answer("cat")) == ["▁cat", "</s>"]
    assert prompt("SmolVLM").tokenizer.decode(prompt("SmolVLM").answer("cat")) == " cat<end_of_utterance>"


class Processor:
    """Renders as a processor does: not the tokenizer itself."""

    def __init__(self, tokenizer: Any, chat_template: str | None) -> None:
        self.tokenizer, self.chat_template = tokenizer, chat_template

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer.apply_chat_template(*args, **kwargs)


def opens_with_bos(chat: Chat) -> Any:
    """The tokenizer, as one that puts <s> before every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = chat.tokenizer()
    number = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", number)]
    )
    assert tokenizer("a")["input_ids"][0] == number
    return tokenizer


def test_a_beginning_that_the_processor_adds_is_part_of_the_prompt() -> None:
    tokenizer = opens_with_bos(LLAVA)
    found = template_from_chat(Processor(tokenizer, LLAVA.jinja), tokenizer, "<image>")
    assert (found.open_picture, found.open_user) == ("<s>USER: ", "<s>USER: ")
    assert found.next_user == "USER: "
    # A tokenizer that renders chats itself adds nothing to them, and one mark is not put twice.
    assert template_from_chat(tokenizer, tokenizer, "<image>").open_picture == "USER: "
    tokenizer = opens_with_bos(MISTRAL)
    assert template_from_chat(Processor(tokenizer, MISTRAL.jinja), tokenizer).open_user == "<s>[INST] "


def test_a_model_without_a_template_takes_the_given_one_or_is_refused() -> None:
    tokenizer = SMOLVLM.tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(GuideError, match="without a chat template"):
        template_from_chat(Processor(tokenizer, None), tokenizer, "<image>")
    given = template_from_chat(Processor(tokenizer, None), tokenizer, "<image>", SMOLVLM.jinja)
    assert given == prompt("SmolVLM").template


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("message['content']", "message['content'] | upper", "does not show every turn"),
        ("message['content']", "message['content'].split(' ')[0]", "cannot be put together"),
        ("'<|im_end|>' + '\n'", "'<|im_end|>' + '\n' * loop.index", "opens a later answer otherwise"),
        (
            "message['role'] + '\n'",
            "message['role'] + '\n' * (1 + (messages | length == 1))",
            "its beginning",
        ),
        (
            "'<|im_start|>assistant\n' }}{% endif",
            "'<|im_start|>assistant\n<think>' }}{% endif",
            "in training in another way",
        ),
        ("{% for", "{{ raise_exception('no such role') }}{% for", "cannot be rendered .*no such role"),
        ("message['content']", "message.content.text + 1", "cannot be rendered"),
    ],
)
def test_what_pieces_cannot_do_is_refused(old: str, new: str, reason: str) -> None:
    tokenizer = CHATML.tokenizer()
    tokenizer.chat_template = CHATML.jinja.replace(old, new)
    assert tokenizer.chat_template != CHATML.jinja
    with pytest.raises(GuideError, match=reason):
        template_from_chat(tokenizer, tokenizer)


def test_an_answer_that_nothing_can_end_is_refused() -> None:
    tokenizer = MISTRAL.tokenizer()
    tokenizer.chat_template = MISTRAL.jinja.replace(" + eos_token", "")
    assert template_from_chat(tokenizer, tokenizer).end == "</s>"
    tokenizer.eos_token = None
    with pytest.raises(GuideError, match="does not mark the end"):
        template_from_chat(tokenizer, tokenizer)


def test_a_template_lives_through_a_guide() -> None:
    for name in CHATS:
        template = prompt(name).template
        assert PromptTemplate(**template.to_dict()) == template
    old = dict.fromkeys(("open_user", "close_user", "open_assistant", "end", "after_end"), "")
    assert not PromptTemplate(**old).picture_first  # guides of before


def test_what_a_system_turn_says_comes_before_the_first_question() -> None:
    one = prompt("Phi 3")
    told = one.turns((Turn("system", "Be brief."), *TURNS), False)
    merged = one.turns((Turn("user", "Be brief.\n\nWhat is it?"), *TURNS[1:]), False)
    assert told == merged


@pytest.mark.parametrize("roles", [(), ("assistant",), ("user", "user"), ("user", "assistant", "assistant")])
def test_turns_out_of_order_are_refused(roles: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="must go user, assistant"):
        prompt("Phi 3").turns([Turn(role, "a") for role in roles], False)


@pytest.mark.starter
def test_the_starters_own_template() -> None:
    from transformers import AutoTokenizer

    from fieldguide.model.starter import starter_folder

    tokenizer = AutoTokenizer.from_pretrained(starter_folder("language"), local_files_only=True)
    one = Prompt(tokenizer, template_from_chat(tokenizer, tokenizer))
    ids = one.before("", False) + [token for tokens, _ in one.turns(TURNS, False) for token in tokens]
    own = [{"role": turn.role, "content": turn.text} for turn in TURNS]
    wanted = tokenizer.encode(tokenizer.apply_chat_template(own, tokenize=False), add_special_tokens=False)
    assert wanted[: len(ids)] == ids
    assert tokenizer.decode(wanted[len(ids) :]).strip() == ""


def test_phi_takes_its_own_end_and_not_that_of_texts() -> None:
    assert prompt("Phi 3").template.end == "<|end|>" != PHI_3.eos
