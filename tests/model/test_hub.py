"""Models of transformers behind the interface: the true classes, tiny, against the library's own passes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fieldguide.answer.choose import choose
from fieldguide.answer.trie import LabelTrie
from fieldguide.errors import DataError, GuideError
from fieldguide.files import sha256_file
from fieldguide.model.families import FAMILIES, family_of, lora_targets, plain_name
from fieldguide.model.hub import HubModel, HubPictures, Prepared, read_pictures
from fieldguide.model.llava import assemble_llava
from fieldguide.model.prompt import Prompt
from fieldguide.model.template import template_from_chat
from fieldguide.records import Turn
from fieldguide.testing.hub import KINDS, MARKS, tiny_hub
from fieldguide.train.batches import collate
from fieldguide.train.pictures import LazyPictures, TowerStore
from fieldguide.train.rows import check_lengths, conversation_row, label_row

QUESTION = "What is it?"
SIZES = ((40, 70), (64, 30), (32, 32), (20, 90))
CACHING = ("llava", "llava_next", "idefics3", "smolvlm")


def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in SIZES]


def wrapped(kind: str) -> HubModel:
    network, processor = tiny_hub(kind)
    tokenizer = getattr(processor, "tokenizer", processor)
    shows = kind in MARKS
    mark = tokenizer.decode([network.config.image_token_id]) if shows else ""
    template = template_from_chat(processor, tokenizer, mark)
    return HubModel(network, tokenizer, Prompt(tokenizer, template), processor if shows else None).eval()


def batch_of(model: HubModel) -> HubPictures:
    return HubPictures(tuple(model.prepare([i] if model.family.vision else []) for i in images()))


@pytest.mark.parametrize("kind", sorted(MARKS))
def test_the_prompt_is_what_the_processor_makes_of_picture_and_words(kind: str) -> None:
    model = wrapped(kind)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = model.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    for image in images():
        theirs = model.processor(text=[text], images=[[image]], return_tensors="pt")
        tokens = model.prepare([image]).tokens
        ours = [*model.prompt.before(QUESTION), *tokens, *model.prompt.after(QUESTION)]
        assert ours == theirs["input_ids"][0].tolist()
        with torch.no_grad():
            logits = model.network(**theirs).logits[0, -1]
        started = model.start(QUESTION, HubPictures((model.prepare([image]),)))
        assert torch.allclose(started.logits[0], logits, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(MARKS))
def test_several_pictures_stand_as_the_processor_puts_them(kind: str) -> None:
    model, shown = wrapped(kind), images()[:3]
    content = [*({"type": "image"} for _ in shown), {"type": "text", "text": QUESTION}]
    text = model.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    theirs = model.processor(text=[text], images=[shown], return_tensors="pt")
    prepared = model.prepare(shown)
    ours = [*model.prompt.before(QUESTION), *prepared.tokens, *model.prompt.after(QUESTION)]
    assert ours == theirs["input_ids"][0].tolist()
    with torch.no_grad():
        logits = model.network(**theirs).logits[0, -1]
    started = model.start(QUESTION, HubPictures((prepared,)))
    assert torch.allclose(started.logits[0], logits, atol=1e-5)


def own_inputs(model: HubModel, item: Prepared, tokens: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    """What the network's own methods take for one row: its prompt, then tokens of an answer."""
    shown = bool(item.tokens)
    ids = [*model.prompt.before(QUESTION, shown), *item.tokens, *model.prompt.after(QUESTION, shown), *tokens]
    read = torch.tensor([ids])
    found = {"input_ids": read, "attention_mask": torch.ones_like(read)}
    if hasattr(model.bare.model, "get_rope_index"):
        found["mm_token_type_ids"] = (read == model.image_token).int()
    return found | (model.joined(item.shown) if shown else {})


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_those_of_the_librarys_own_greedy_search(kind: str) -> None:
    model = wrapped(kind)
    batch = batch_of(model)
    started = model.start(QUESTION, batch)
    end = model.prompt.end_id
    for row, item in enumerate(batch.items):
        inputs = own_inputs(model, item)
        whole = model.network.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=end)
        said = whole[0, inputs["input_ids"].shape[1] :].tolist()
        said = said[: said.index(end)] if end in said else said
        assert said
        assert model.generate(started, row, [], 12) == said


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_labels_have_the_probabilities_of_whole_forward_passes(kind: str) -> None:
    model = wrapped(kind)
    batch = batch_of(model)
    tokens = {label: tuple(model.label_tokens(label)) for label in ("cat", "catfish", "ox", "aardvark")}
    chosen = choose(model, QUESTION, batch, LabelTrie(tokens), top_k=len(tokens))
    for item, scores in zip(batch.items, chosen, strict=True):
        wanted: dict[str, float] = {}
        for label, path in tokens.items():
            wanted[label] = 0.0
            for depth, token in enumerate(path):
                allowed = sorted({t[depth] for t in tokens.values() if t[:depth] == path[:depth]})
                if len(allowed) == 1:
                    continue
                with torch.no_grad():
                    logits = model.network(**own_inputs(model, item, path[:depth])).logits[0, -1, allowed]
                wanted[label] += float(logits.double().log_softmax(0)[allowed.index(token)])
        assert [score.label for score in scores] == sorted(wanted, key=lambda label: -wanted[label])
        for score in scores:
            assert score.log_score == pytest.approx(wanted[score.label], abs=2e-5)
            assert score.probability == pytest.approx(np.exp(wanted[score.label]), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_mixed_sizes_answers_as_each_alone(kind: str) -> None:
    model = wrapped(kind)
    batch, tokens = batch_of(model), [model.prompt.words(word) for word in ("cat", "ox", "zebra", "a")]
    together = model.start(QUESTION, batch, model.read_prefix(QUESTION))
    extended = model.extend(together, range(4), tokens)
    for row in range(4):
        alone = model.start(QUESTION, HubPictures((batch.items[row],)))
        assert torch.allclose(alone.logits[0], together.logits[row], atol=1e-5)
        assert torch.allclose(model.extend(alone, [0], [tokens[row]])[0], extended[row], atol=1e-5)
        assert model.generate(alone, 0, [], 5) == model.generate(together, row, [], 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_logits_in_training_are_those_of_answering(kind: str, training: bool) -> None:
    model = wrapped(kind).train(training)
    shown = bool(model.family.vision)
    rows = [conversation_row(model.prompt, i, (Turn("user", QUESTION), Turn("assistant", word)), word, shown)
            for i, word in enumerate(("cat", "catfish", "ox", "aardvark"))]  # fmt: skip
    pictures, batch = batch_of(model), collate(rows)
    logits = model(QUESTION, pictures, batch.ids, batch.supervised)
    assert logits.shape == (sum(row.targets for row in rows), len(model.tokenizer))
    place = 0
    for number, row in enumerate(rows):
        alone = model.start(QUESTION, HubPictures((pictures.items[number],)))
        learnt = [token for token, wanted in zip(row.ids, row.supervised, strict=True) if wanted]
        assert torch.allclose(logits[place], alone.logits[0], atol=1e-4)
        for depth in range(1, len(learnt)):
            told = model.extend(alone, [0], [learnt[:depth]])[0]
            assert torch.allclose(logits[place + depth], told, atol=1e-4)
        place += len(learnt)


@pytest.mark.parametrize("kind", ["llava", "smolvlm", "qwen2_5_vl"])
def test_rows_without_and_with_two_pictures_stand_in_one_batch(kind: str) -> None:
    model, made = wrapped(kind), images()
    items = (model.prepare([]), model.prepare(made[:2]), model.prepare(made[2:3]))
    batch = HubPictures(items)
    together = model.start(QUESTION, batch, model.read_prefix(QUESTION))
    for row, item in enumerate(items):
        alone = model.start(QUESTION, HubPictures((item,)))
        assert torch.allclose(alone.logits[0], together.logits[row], atol=1e-5)
    assert model.visual_tokens(batch)[0] == 0
    assert model.visual_tokens(batch)[1] > model.visual_tokens(batch)[2]


def test_a_text_model_refuses_pictures() -> None:
    with pytest.raises(DataError, match="text only"):
        wrapped("llama").prepare(images()[:1])


def test_picture_tokens_are_never_cut() -> None:
    """A row that does not fit is refused by name; case: image tokens truncated, and the loss still falls."""
    model = wrapped("llava")
    row = label_row(model.prompt, 0, "cat", "big.jpg", QUESTION)
    visual = len(model.prepare(images()[:1]).tokens)
    before = len(model.prompt.before(QUESTION))
    check_lengths([row], before, visual, before + visual + len(row.ids))
    with pytest.raises(DataError, match=r"big\.jpg"):
        check_lengths([row], before, visual, before + visual + len(row.ids) - 1)


@pytest.mark.parametrize("kind", CACHING)
def test_stored_tower_outputs_change_no_bit(kind: str, tmp_path: Path) -> None:
    model, made = wrapped(kind), images()
    for number, image in enumerate(made):
        image.save(tmp_path / f"{number}.png")
    paths = tuple((tmp_path / f"{number}.png",) for number in range(len(made)))
    keys = tuple((sha256_file(path),) for (path,) in paths)
    lazy = LazyPictures(model, paths, keys, TowerStore(model, "weights", tmp_path / "cache"))
    visual, failed = lazy.look_through(print, "seeing")
    assert (list(visual.values()), failed) == (list(model.visual_tokens(batch_of(model))), {})
    for path in paths:
        path[0].unlink()  # from here on nothing is decoded
    whole = batch_of(model)
    for row in range(4):
        chosen = slice(row, row + 1)
        stored = model.start(QUESTION, lazy.rows(chosen)).logits
        assert torch.equal(stored, model.start(QUESTION, whole.rows(chosen)).logits)
    together = model.start(QUESTION, lazy.rows(slice(0, 4))).logits
    assert torch.allclose(together, model.start(QUESTION, whole).logits, atol=1e-5)


def test_a_damaged_store_file_is_made_again_and_settings_have_their_own_folder(tmp_path: Path) -> None:
    model = wrapped("llava")
    images()[0].save(tmp_path / "a.png")
    store = TowerStore(model, "weights", tmp_path / "cache")
    key = sha256_file(tmp_path / "a.png")
    lazy = LazyPictures(model, ((tmp_path / "a.png",),), ((key,),), store)
    first = lazy.prepare(0).shown[0].states.clone()  # type: ignore[union-attr]
    store.path(key).write_bytes(b"cut short")
    again = lazy.prepare(0)
    assert torch.equal(first, again.shown[0].states)  # type: ignore[arg-type]
    assert TowerStore(model, "others", tmp_path / "cache").folder != store.folder
    model.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert TowerStore(model, "weights", tmp_path / "cache").folder != store.folder


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    images()[0].save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"")
    found, places, errors = read_pictures(
        wrapped("llava"), [tmp_path / "bad.png", tmp_path / "good.png", tmp_path / "none.png"]
    )
    assert (len(found), places, sorted(errors)) == (1, [1], [0, 2])
    assert all(errors.values())


def test_families_know_their_parts() -> None:
    for kind in KINDS:
        network, _ = tiny_hub(kind)
        family = family_of(network.config)
        parts = {family.part_of(name) for name, _ in network.named_parameters()}
        assert parts == ({"language", "vision", "projector"} if kind in MARKS else {"language"})
        assert lora_targets(network, family, ["language"])
    assert (
        plain_name("network.base_model.model.model.layers.0.q.lora_A.default.weight")
        == "model.layers.0.q.weight"
    )
    assert plain_name("base_model.model.model.layers.0.q.base_layer.weight") == "model.layers.0.q.weight"


def linears_reached(network: Any, parts: list[str]) -> tuple[set[str], set[str]]:
    """(linear layers that the expression names, those of the vision tower that run and count)."""
    family = family_of(network.config)
    named = {n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)}
    expression = lora_targets(network, family, parts)
    network.requires_grad_(True)
    outputs = network.model.get_image_features(torch.rand(1, 3, 32, 32), return_dict=True).pooler_output
    torch.cat(list(outputs)).square().mean().backward()
    counts = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    tower = {n for n in named if family.part_of(n) == "vision" and f"{n}.weight" in counts}
    return {n for n in named if re.fullmatch(expression, n)}, tower


@pytest.mark.parametrize("layer", [-1, -2, 1, [0, 2], [-3, 1]])
def test_adapters_stand_on_the_layers_of_a_tower_that_are_read(layer: int | list[int]) -> None:
    """One on a layer that nobody reads would never learn, and could not be told from one that was lost."""
    network, _ = tiny_hub("llava")
    network.config.vision_feature_layer = layer
    if isinstance(layer, list):  # states of several layers stand side by side
        tuned = network.model.multi_modal_projector
        tuned.linear_1 = torch.nn.Linear(2 * tuned.linear_1.in_features, tuned.linear_1.out_features)
    named, reached = linears_reached(network, ["vision"])
    assert named == reached
    assert named


@pytest.mark.parametrize(
    ("vision", "projector"), [("siglip", "mlp"), ("siglip", "pooled"), ("dinov2", "mlp")]
)
def test_adapters_leave_out_the_pooling_head_of_a_tower(vision: str, projector: str) -> None:
    tower, pixels = tiny_hub(vision)
    language, tokenizer = tiny_hub("llama")
    network = assemble_llava(tower, language, tokenizer, pixels, projector=projector).network
    named, reached = linears_reached(network, ["vision"])
    assert named == reached
    both, _ = linears_reached(network, ["language", "vision"])
    assert both > named
    assert not any(family_of(network.config).part_of(name) == "projector" for name in both)


def test_an_unknown_kind_of_vision_model_is_refused() -> None:
    class Other:
        model_type = "somethingelse"
        vision_config: Any = None

    with pytest.raises(GuideError, match="somethingelse"):
        family_of(Other())
    assert all(family.vision and family.projector for family in FAMILIES)
