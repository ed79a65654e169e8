"""Warm start of an assembled model's projector: patches begin as words of the labels they speak for.

Ridge regression from a picture's mean token, as the projector's first layer reads it, to its label, then to
the label's word embedding, is one linear map of rank R, the number of labels. It is written exactly into the
one or two layers of any projector: since
GELU(z) − GELU(−z) = z, 2R units of the first layer, [V; −V], and [U, −U] in the second carry it; the other
units begin at random and add nothing yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fieldguide.errors import GuideError
from fieldguide.model.families import module_at
from fieldguide.model.hub import HubModel
from fieldguide.records import Example
from fieldguide.train.pictures import LazyPictures
from fieldguide.train.warmstart import solve


@dataclass(frozen=True)
class LinearMap:
    """x → (x @ first + shift) @ second; x of C numbers, rank R, H numbers out."""

    first: np.ndarray  # (C, R)
    shift: np.ndarray  # (R,)
    second: np.ndarray  # (R, H)
    left_out_accuracy: float  # share of training pictures named rightly, each left out in turn
    kept: float = 1.0  # share of the map's energy that survived a cut of its rank

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x @ self.first + self.shift) @ self.second

    def cut(self, rank: int, patches: np.ndarray) -> LinearMap:
        """The nearest map of a smaller rank, on the patches (n, C)."""
        if rank >= self.first.shape[1]:
            return self
        out = self(patches)
        mean = out.mean(0)
        _, sizes, right = np.linalg.svd(out - mean, full_matrices=False)
        basis = right[: rank - 1]  # one dimension is for the mean
        second = np.concatenate([basis, mean[None]])
        first = np.concatenate([self.first @ self.second @ basis.T, np.zeros((len(self.first), 1))], axis=1)
        shift = np.append((self.shift @ self.second - mean) @ basis.T, 1.0)
        energy = sizes**2
        kept = float(energy[: rank - 1].sum() / max(energy.sum(), 1e-12))
        return LinearMap(first, shift, second, self.left_out_accuracy, kept)


def ridge_map(
    means: np.ndarray, targets: np.ndarray, words: np.ndarray, groups: np.ndarray | None
) -> LinearMap:
    """Solve the map.

    Args:
        means: (n, C) mean patch of each training picture, as the projector reads it.
        targets: (n,) label numbers.
        words: (R, H) mean input embedding of each label's words.
        groups: (n,) group numbers: near-duplicates are left out together.
    """
    found = solve(means[:, None, :], np.zeros((len(means), 1)), targets, len(words), groups)
    channels = means.shape[1]
    first = found.weights[:channels] / found.scale[:channels, None]
    shift = found.bias - found.mean[:channels] @ first
    return LinearMap(first, shift, np.asarray(words, np.float64), found.left_out_accuracy)


def linear_layers(projector: nn.Module) -> list[nn.Linear]:
    """The one or two linear layers of a projector, in the order they are applied.

    Raises:
        GuideError: for a projector of another build.
    """
    found = [module for module in projector.modules() if isinstance(module, nn.Linear)]
    if len(found) not in (1, 2) or any(layer.bias is None for layer in found):
        raise GuideError(f"a projector of type {type(projector).__name__} has no place for the warm start")
    return found


@torch.no_grad()
def write_map(projector: nn.Module, solved: LinearMap, patches: np.ndarray) -> LinearMap:
    """Put a map into a linear or two-layer GELU projector, exactly; what was written.

    Args:
        patches: (n, C) examples, by which a map of too high a rank is cut.

    Raises:
        GuideError: for another kind of projector.
    """

    def tensor(values: np.ndarray, like: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(like)

    layers = linear_layers(projector)
    if len(layers) == 1:
        [linear] = layers
        linear.weight.copy_(tensor((solved.first @ solved.second).T, linear.weight))
        linear.bias.copy_(tensor(solved.shift @ solved.second, linear.bias))
        return solved
    one, two = layers
    written = solved.cut(one.out_features // 2, patches)
    rank = written.first.shape[1]
    one.weight[: 2 * rank] = tensor(np.concatenate([written.first.T, -written.first.T]), one.weight)
    one.bias[: 2 * rank] = tensor(np.concatenate([written.shift, -written.shift]), one.bias)
    two.weight.zero_()
    two.weight[:, : 2 * rank] = tensor(np.concatenate([written.second, -written.second]).T, two.weight)
    two.bias.zero_()
    return written


def start_projector(
    model: HubModel,
    pictures: LazyPictures,
    examples: Sequence[Example],
    labels: Sequence[str],
    batch_size: int,
    announce: Callable[[str], None],
) -> None:
    """Begin a model's projector with the ridge solution on labelled pictures.

    The map is from one picture to one label: examples of several pictures, or of none, say nothing of it.

    Args:
        pictures: in step with `examples`.
        labels: all that the guide will know.
        batch_size: pictures read at a time.
    """
    alone = [i for i, shown in enumerate(pictures.paths) if len(shown) == 1]
    if not alone:
        announce("the projector begins at random: no labelled example has exactly one picture")
        return
    projector = module_at(model.bare, model.family.projector[0])
    assert projector is not None
    first, chosen = linear_layers(projector)[0], pictures.only(alone)
    means = torch.cat(
        [
            model.mean_inputs(first, chosen.rows(slice(start, start + batch_size)))
            for start in range(0, len(alone), batch_size)
        ]
    )
    numbers = {label: number for number, label in enumerate(labels)}
    with torch.no_grad():
        words = [model.embed(model.token_ids(model.label_tokens(label)[:-1]))[0].mean(0) for label in labels]
    warm_start_projector(
        projector,
        means.double().cpu().numpy(),
        np.array([numbers[examples[i].label] for i in alone]),
        torch.stack(words),
        [examples[i].group or examples[i].id for i in alone],
        announce,
    )


def warm_start_projector(
    projector: nn.Module,
    means: np.ndarray,
    targets: np.ndarray,
    words: Tensor,
    groups: Sequence[str],
    announce: Callable[[str], None],
) -> None:
    """Solve and write; says how well the map alone names the training pictures."""
    numbers = np.unique(list(groups), return_inverse=True)[1]
    solved = ridge_map(means, targets, words.float().cpu().numpy(), numbers)
    written = write_map(projector, solved, means)
    right = f"{solved.left_out_accuracy:.1%} of the training pictures named rightly, each left out in turn"
    cut = "" if written.kept == 1 else f"; the projector is narrow and keeps {written.kept:.1%} of the map"
    announce(f"warm start: {right}{cut}")
