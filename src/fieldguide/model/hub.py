"""Any vision-language or text model of transformers behind the interface of `LocalModel`.

Pictures and words are joined by the library's own code: the network's `get_image_features` makes the visual
tokens, its `forward` puts them where the prompt has their places. What is done here is the order of work:
each example's pictures are prepared apart from all others, so that no answer depends on its batch mates; what
stands before the picture is read once for the batch; the vocabulary head runs only where its result is used;
rows are padded on the right, where no real token looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import DynamicCache

from fieldguide.errors import DataError, PictureError
from fieldguide.images import load_picture
from fieldguide.model.families import Family, family_of, module_at
from fieldguide.model.local import LocalModel, Started, layers_of, repeated
from fieldguide.model.prompt import Prompt
from fieldguide.model.towers import standing_in

WORTH_SHARING = 8  # tokens before the picture: fewer are read with each row
NOT_FEATURES = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class Shown:
    """One picture, as the processor sees it without any other."""

    tokens: tuple[int, ...]  # its places in the prompt
    inputs: dict[str, Tensor]  # arguments of the network's `get_image_features`
    states: Tensor | None = None  # the frozen tower's output, where it is stored


@dataclass(frozen=True)
class Prepared:
    """The pictures of one example: none, one or several."""

    tokens: tuple[int, ...] = ()  # their places in the prompt
    shown: tuple[Shown, ...] = ()


@dataclass(frozen=True)
class HubPictures:
    """A batch of prepared pictures, one entry a row."""

    items: tuple[Prepared, ...]

    def __len__(self) -> int:
        return len(self.items)

    def rows(self, chosen: Tensor | slice) -> HubPictures:
        """Some of the rows."""
        if isinstance(chosen, slice):
            return HubPictures(self.items[chosen])
        return HubPictures(tuple(self.items[i] for i in chosen.tolist()))

    def to(self, device: torch.device) -> HubPictures:
        """The same: pictures go to the device when they are read, a batch at a time."""
        return self


class HubModel(LocalModel):
    """A network of transformers, its tokenizer, and for pictures its processor.

    Attributes:
        network: the network, wrapped by PEFT or not.
        family: where its parts lie.
        processor: of pictures; None for a text model.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        prompt: Prompt,
        processor: Any = None,
        family: Family | None = None,
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.processor = processor
        self.family = family or family_of(self.bare.config)
        self.image_token = int(getattr(self.bare.config, "image_token_id", None) or -1)
        self.every_pass_alike = False  # whether each pass must call every layer as often as any other pass

    @property
    def mark(self) -> str:
        """What stands for a picture in a prompt's text."""
        return str(self.tokenizer.decode([self.image_token]))

    @property
    def bare(self) -> Any:
        """The network without PEFT's wrapper; adapters stay inside its layers."""
        return self.network.get_base_model() if hasattr(self.network, "peft_config") else self.network

    @property
    def language_model(self) -> Any:  # type: ignore[override]
        """The whole network: its embeddings, vocabulary head and text configuration."""
        return self.bare

    @property
    def decoder(self) -> nn.Module:
        found = module_at(self.bare, self.family.language)
        assert found is not None, self.family
        return found

    def part_of(self, name: str) -> str:
        """The part of the model that a parameter belongs to, in the words of the report."""
        part = {"language": "language model", "vision": "vision tower"}.get(
            self.family.part_of(name), "projector"
        )
        return f"{part}: LoRA adapter" if "lora_" in name else part

    # ---- pictures

    def prepare(self, images: Sequence[Image.Image]) -> Prepared:
        """The pictures of one example.

        Raises:
            DataError: when there are pictures and the model reads none.
        """
        return self.side_by_side([self.show(image) for image in images])

    def show(self, image: Image.Image, processor: Any = None) -> Shown:
        """One picture, by the model's processor or another equal one; raises as `prepare` does."""
        processor = processor or self.processor
        if self.processor is None:
            raise DataError(
                "this model reads text only, and the example has a picture", "choose another model"
            )
        made = processor(text=[self.mark], images=[[image]], return_tensors="pt")
        tokens = self._places(made["input_ids"][0].tolist())
        return Shown(tuple(tokens), {name: made[name] for name in made if name not in NOT_FEATURES})

    def side_by_side(self, shown: Sequence[Shown]) -> Prepared:
        """Pictures of one example, with what the prompt has between them."""
        tokens: list[int] = []
        for place, picture in enumerate(shown):
            tokens += self.prompt.between_pictures() if place else []
            tokens += picture.tokens
        return Prepared(tuple(tokens), tuple(shown))

    def _places(self, ids: list[int]) -> list[int]:
        """The tokens of the pictures without the marks that the tokenizer puts around any text."""
        plain = self.tokenizer("", add_special_tokens=True)["input_ids"]
        start = 0
        while start < len(plain) and ids[start] == plain[start] and ids[start] != self.image_token:
            start += 1
        return ids[start : len(ids) - (len(plain) - start)] if len(plain) > start else ids[start:]

    def visual_tokens(self, pictures: HubPictures) -> tuple[int, ...]:
        """Prompt positions that each row's pictures take."""
        return tuple(len(item.tokens) for item in pictures.items)

    def _image_outputs(self, pictures: HubPictures) -> Any:
        """What `get_image_features` gives for all pictures of the batch; None when there is none."""
        shown = [picture for item in pictures.items for picture in item.shown]
        if not shown:
            return None
        joined = self.joined(shown)
        states = None
        if all(picture.states is not None for picture in shown):
            states = torch.cat([picture.states for picture in shown if picture.states is not None], dim=1)
            states = states.to(self.device)
        with standing_in(self.bare, self.family, states):
            return self.bare.model.get_image_features(**joined, return_dict=True)

    def joined(self, shown: Sequence[Shown], device: torch.device | None = None) -> dict[str, Tensor]:
        """The arguments of `get_image_features` for several pictures, their tiles one after the other.

        Args:
            device: where they are wanted; None for the model's own.
        """
        found = {}
        for name in shown[0].inputs:
            values = [picture.inputs[name] for picture in shown]
            if self.family.tiles == "flat" and values[0].dim() == 5:  # (1, tiles, C, H, W)
                values = [value[0] for value in values]
            whole = torch.cat(values, dim=1 if self.family.tiles == "in one row" else 0)
            found[name] = whole.to(device or self.device)
        return found

    @torch.no_grad()
    def mean_inputs(self, layer: nn.Module, pictures: HubPictures) -> Tensor:
        """(B, C): what a layer of the projector reads of each picture, mean over its tokens.

        Args:
            pictures: one a row, each without tiles.
        """
        caught: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
        try:
            self._image_outputs(pictures)
        finally:
            hook.remove()
        [read] = caught
        return read.float().flatten(1, -2).mean(1) if read.dim() > 2 else read.float()

    # ---- reading

    def read_prefix(self, question: str) -> DynamicCache | None:
        """What stands before the picture, for all rows; None where it is short or cannot be shared."""
        tokens = self.prompt.before(question, True)
        if len(tokens) < WORTH_SHARING or not self._shares():
            return None
        cache = DynamicCache()
        self.read(cache, self.embed(self.token_ids(tokens)))
        return cache

    def _shares(self) -> bool:
        """Whether rows may go on from keys and values that were read before."""
        numbered = hasattr(self.bare.model, "get_rope_index")  # positions follow from the whole row
        checkpointing = self.training and bool(getattr(self.bare, "is_activation_checkpointing", False))
        alike = self.training and self.every_pass_alike
        return bool(self.family.vision) and not numbered and not checkpointing and not alike

    def _run(self, rows: Sequence[Sequence[int]], pictures: HubPictures, cache: DynamicCache | None) -> Any:
        """Read rows, behind the cache if there is one; hidden states (B, longest, H), position offsets."""
        longest = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long, device=self.device)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(list(row), dtype=torch.long)
        more: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            more["cache"] = cache
        offsets = [0] * len(rows)
        images = self._image_outputs(pictures)
        if images is not None:
            more["mm_encoder_outputs"] = {"image": images}
        if hasattr(self.bare.model, "get_rope_index"):
            positions, offsets = self._grid_positions(ids, [len(row) for row in rows], pictures)
            more["position_ids"] = positions
        hidden = self.bare.model(input_ids=ids, **more).last_hidden_state
        return hidden, offsets

    def _grid_positions(
        self, ids: Tensor, lengths: list[int], pictures: HubPictures
    ) -> tuple[Tensor, list[int]]:
        """Qwen's position ids (3, B, S), and how far the next one lies from the row's length."""
        grids = [picture.inputs["image_grid_thw"] for item in pictures.items for picture in item.shown]
        kinds = (ids == self.image_token).int()
        if not grids:
            plain = torch.arange(ids.shape[1], device=ids.device).expand(3, len(lengths), -1)
            return plain, [0] * len(lengths)
        positions, _ = self.bare.model.get_rope_index(
            ids, kinds, image_grid_thw=torch.cat(grids).to(ids.device)
        )
        offsets = [int(positions[:, row, :length].max()) + 1 - length for row, length in enumerate(lengths)]
        return positions, offsets

    def _openings(
        self, question: str, pictures: HubPictures, prefix: DynamicCache | None
    ) -> tuple[DynamicCache | None, list[list[int]]]:
        """The prefix for every row, where all begin with it, and what each row has still to read before its
        answer: the rest of the opening, and its pictures."""
        shown = [bool(item.tokens) for item in pictures.items]
        cache = repeated(prefix, len(shown)) if prefix is not None and all(shown) else None
        opened = [[] if cache is not None else self.prompt.before(question, one) for one in shown]
        return cache, [[*o, *item.tokens] for o, item in zip(opened, pictures.items, strict=True)]

    def forward(self, question: str, pictures: HubPictures, ids: Tensor, supervised: Tensor) -> Tensor:
        """Logits at the supervised positions only; see `LocalModel.forward`."""
        shown = all(item.tokens for item in pictures.items)
        cache, opened = self._openings(question, pictures, self.read_prefix(question) if shown else None)
        rows = [[*begun, *row.tolist()] for begun, row in zip(opened, ids, strict=True)]
        hidden, _ = self._run(rows, pictures, cache)
        places = [len(row) - ids.shape[1] - 1 for row in rows]  # this position predicts the row's first token
        row, column = supervised.nonzero(as_tuple=True)
        return self.head(hidden[row, torch.tensor(places, device=row.device)[row] + column])

    @torch.no_grad()
    def start(self, question: str, pictures: HubPictures, prefix: DynamicCache | None = None) -> Started:
        """Read the prompt of B rows once; see `LocalModel.start`."""
        cache, opened = self._openings(question, pictures, prefix)
        past = cache.get_seq_length() if cache is not None else 0
        rows = [
            [*begun, *self.prompt.after(question, bool(item.tokens))]
            for begun, item in zip(opened, pictures.items, strict=True)
        ]
        cache = cache if cache is not None else DynamicCache()
        hidden, offsets = self._run(rows, pictures, cache)
        lengths = torch.tensor([len(row) for row in rows], device=hidden.device)
        last = hidden[torch.arange(len(rows), device=hidden.device), lengths - 1]
        whole = tuple((lengths + past).tolist())
        return Started(layers_of(cache), whole, tuple(offsets), self.head(last))


def read_pictures(model: HubModel, paths: Sequence[Path]) -> tuple[HubPictures, list[int], dict[int, str]]:
    """The readable pictures, their places in `paths`, and the reasons for the others."""
    found: list[Prepared] = []
    places: list[int] = []
    errors: dict[int, str] = {}
    for number, path in enumerate(paths):
        try:
            found.append(model.prepare([load_picture(path).image]))
            places.append(number)
        except PictureError as error:
            errors[number] = error.reason
        except OSError as error:
            errors[number] = error.strerror or str(error)
    return HubPictures(tuple(found)), places, errors
