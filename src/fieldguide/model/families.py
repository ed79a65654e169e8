"""What differs between the model families of transformers: where their parts lie and what may be cached.

A vision-language model has three parts: the vision tower, the projector behind it, and the language model.
Everything else here speaks of these parts, and never of a model's own module names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fieldguide.errors import GuideError

PARTS = ("language", "vision", "projector")
_WRAPPED = re.compile(r"(^|\.)(base_layer|lora_\w+\.\w+|lora_\w+)(?=\.|$)")  # what PEFT puts between names


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: as messages say it.
        model_types: `model_type` of the configurations that belong to it.
        language, vision, projector: modules below the network, as dotted paths; empty where there is none.
        caches: whether stored outputs of a frozen vision tower can stand in for it.
        tiles: how tiles of several pictures are handed over: "flat" (tiles, …), "in one row" (1, tiles, …).
        chat_template: of models that come without one.
    """

    name: str
    model_types: tuple[str, ...]
    language: str
    vision: tuple[str, ...] = ()
    projector: tuple[str, ...] = ()
    caches: bool = False
    tiles: str = "flat"
    chat_template: str = ""

    def part_of(self, name: str) -> str:
        """`language`, `vision` or `projector`: the part that a parameter belongs to, by its name."""
        plain = plain_name(name)
        for part, paths in (("projector", self.projector), ("vision", self.vision)):
            if any(plain == path or plain.startswith(f"{path}.") for path in paths):
                return part
        return "language"


_LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %} {% else %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)

FAMILIES = (
    Family(
        name="LLaVA",
        model_types=("llava", "llava_next", "fieldguide_llava"),
        language="model.language_model",
        vision=("model.vision_tower",),
        projector=("model.multi_modal_projector", "model.image_newline"),
        caches=True,
        chat_template=_LLAVA_TEMPLATE,
    ),
    Family(
        name="Idefics3",
        model_types=("idefics3", "smolvlm"),
        language="model.text_model",
        vision=("model.vision_model",),
        projector=("model.connector",),
        caches=True,
        tiles="in one row",
    ),
    Family(
        name="Qwen-VL",
        model_types=("qwen2_5_vl", "qwen3_vl"),
        language="model.language_model",
        vision=("model.visual",),
        projector=("model.visual.merger", "model.visual.deepstack_merger_list"),
    ),
)


def family_of(config: Any) -> Family:
    """The family of a model by its configuration.

    Raises:
        GuideError: when it reads pictures in a way that is not known here.
    """
    kind = str(config.model_type)
    for family in FAMILIES:
        if kind in family.model_types:
            return family
    if hasattr(config, "vision_config"):
        known = ", ".join(kind for family in FAMILIES for kind in family.model_types)
        raise GuideError(f"models of type {kind!r} are not known here", f"known: {known}, and text models")
    return Family("text", (kind,), "model")


def plain_name(name: str) -> str:
    """A parameter's name in the bare network, whatever PEFT and `HubModel` put around it."""
    name = name.removeprefix("network.").removeprefix("base_model.model.")
    return _WRAPPED.sub("", name)


def module_at(network: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, or None."""
    found: Any = network
    for step in path.split("."):
        found = getattr(found, step, None)
        if found is None:
            return None
    return found if isinstance(found, nn.Module) else None


def unread_modules(network: Any, family: Family) -> list[str]:
    """Dotted paths in the vision tower whose output nobody reads.

    LLaVA's projector reads the hidden states of given layers, usually the last but one: what comes after them
    in the tower, further layers and a pooling head, gets no gradient.
    """
    wanted = getattr(network.config, "vision_feature_layer", None)
    if wanted is None or not family.vision:
        return []
    [path] = family.vision
    tower = module_at(network, path)
    assert tower is not None
    count = int(getattr(network.config.vision_config, "num_hidden_layers", 0))
    modules = [(name, module) for name, module in tower.named_modules() if name]
    stacks = [i for i, (_, m) in enumerate(modules) if isinstance(m, nn.ModuleList) and len(m) == count]
    if not count or not stacks:  # a tower of another build: nothing is known to be unread
        return []
    layers, later = modules[stacks[0]][0], modules[stacks[0] + 1 :]
    numbers = [wanted] if isinstance(wanted, int) else list(wanted)
    last = max(number if number >= 0 else count + 1 + number for number in numbers)
    unread = [f"{layers}.{number}" for number in range(last, count)]  # state 0 is the embeddings
    for name, _ in later:
        if not name.startswith((f"{layers}.", *(f"{found}." for found in unread))):
            unread.append(name)
    return [f"{path}.{name}" for name in unread]


def lora_targets(network: Any, family: Family, parts: Sequence[str]) -> str:
    """A regular expression over the names of the linear layers of some parts, for PEFT.

    The vocabulary head and embeddings are left out: an adapter on them is large and hardly helps. So is what
    nobody reads: an adapter there would never learn. The expression lists only what the network has, so a
    part without linear layers is an error and not a no-op.

    Raises:
        GuideError: naming a part that has no linear layer.
    """
    unread = unread_modules(network, family)
    patterns = []
    for part in parts:
        names = [
            name
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear) and family.part_of(name) == part and not name.endswith("lm_head")
        ]
        names = [name for name in names if not any(name == u or name.startswith(f"{u}.") for u in unread)]
        if not names:
            raise GuideError(f"the {part} part of this model ({family.name}) has no linear layer to adapt")
        generic = sorted({re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name)) for name in names})
        patterns += generic
    found = "|".join(patterns)
    if not unread or "vision" not in parts:
        return found
    never = "|".join(re.escape(path) for path in unread)  # the numbers of layers are open in `found`
    return rf"(?!(?:{never})(?:\.|$))(?:{found})"
