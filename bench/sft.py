"""The loop beside trl's SFTTrainer: the same model, data, order, LoRA and arithmetic.

    python bench/sft.py [PICTURES] [--rows 96] [--rounds 3] [--tower base|large]

The model is a `LlavaForConditionalGeneration` with the starter's real language model and a random CLIP tower
(ViT-L/14 as LLaVA has, or ViT-B/32); pictures are of mixed size. Both train the same rows in fp32 without
gradient checkpointing, in batches of the same rows in the same order, with the same LoRA and projector.
`cached` has the tower's outputs stored, `uncached` runs the tower at every step. Rounds take turns in one
process; medians of rows a second.
The peak is that of a process of its own for each.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from fieldguide.files import sha256_file
from fieldguide.model.families import family_of
from fieldguide.model.hub import HubModel, HubPictures
from fieldguide.model.llava import assemble_llava
from fieldguide.model.prompt import Prompt
from fieldguide.model.starter import starter_folder
from fieldguide.model.template import template_from_chat
from fieldguide.model.tuning import prepare_parts
from fieldguide.records import Turn
from fieldguide.settings import TrainSettings
from fieldguide.train.batches import collate
from fieldguide.train.memory import MemoryUse
from fieldguide.train.pictures import LazyPictures, TowerStore
from fieldguide.train.rows import Row, conversation_row

RESULTS = Path(__file__).parent / "results"
BATCH = 8
TOWERS: dict[str, dict[str, Any]] = {
    "base": {},  # ViT-B/32: 49 patches, 86 million weights
    "large": {  # ViT-L/14, LLaVA's: 256 patches, 303 million weights
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "patch_size": 14,
    },
}  # fmt: skip
QUESTION = "What is in this picture?"


def make_model(tower: str, seed: int = 0) -> HubModel:
    """A fresh model with its fresh adapter; equal seeds give equal weights."""
    torch.manual_seed(seed)
    config = transformers.CLIPVisionConfig(**TOWERS[tower])
    vision = transformers.CLIPVisionModel(config).eval()
    pixels = transformers.CLIPImageProcessor(
        size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}
    )
    folder = starter_folder("language")
    language = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # trl also learns what the template writes behind an answer: without that, both learn the same tokens
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|im_end|>' + '\n'", "'<|im_end|>'")
    parts = assemble_llava(vision, language, tokenizer, pixels)
    family = family_of(parts.network.config)
    template = template_from_chat(parts.processor, tokenizer, "<image>", "")
    network = prepare_parts(parts.network, family, TrainSettings(), "bench")
    return HubModel(network, tokenizer, Prompt(tokenizer, template), parts.processor, family)


def rows_of(model: HubModel, files: list[Path]) -> list[Row]:
    """A question and its answer for each picture."""
    told = "It shows a {0}. You can tell it from its shape, its colour and its surroundings."
    return [
        conversation_row(
            model.prompt,
            i,
            (Turn("user", QUESTION), Turn("assistant", told.format(path.parent.name))),
            path.name,
        )
        for i, path in enumerate(files)
    ]


def optimizer_of(model: HubModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)


def ours(model: HubModel, files: list[Path], store: TowerStore | None) -> tuple[float, list[float]]:
    """Seconds of one epoch, and the loss of each step."""
    rows = rows_of(model, files)
    keys = tuple((sha256_file(path),) for path in files)
    pictures = LazyPictures(model, tuple((path,) for path in files), keys, store)
    if store is not None:
        pictures.look_through(lambda line: None, "filling")
    optimizer, losses = optimizer_of(model), []
    model.train()
    began = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        batch = collate(rows[start : start + BATCH])
        shown: HubPictures = pictures.rows(batch.pictures)
        logits = model(QUESTION, shown, batch.ids, batch.supervised)
        loss = torch.nn.functional.cross_entropy(logits, batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return time.perf_counter() - began, losses


def theirs(model: HubModel, files: list[Path]) -> tuple[float, list[float]]:
    """The same by trl, its own collator of pictures and words included."""
    from datasets import Dataset, Features, Sequence, Value
    from datasets import Image as ImageColumn
    from trl import SFTConfig, SFTTrainer

    told = "It shows a {0}. You can tell it from its shape, its colour and its surroundings."
    part = {"type": Value("string"), "text": Value("string")}
    turn = [{"role": Value("string"), "content": [part]}]
    asked = {"type": "text", "text": QUESTION}
    rows = {
        "images": [[str(path)] for path in files],
        "prompt": [[{"role": "user", "content": [{"type": "image", "text": None}, asked]}] for _ in files],
        "completion": [
            [{"role": "assistant", "content": [{"type": "text", "text": told.format(path.parent.name)}]}]
            for path in files
        ],
    }
    features = Features({"images": Sequence(ImageColumn()), "prompt": turn, "completion": turn})
    data = Dataset.from_dict(rows, features=features)
    losses: list[float] = []

    class Remember(transformers.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=1e-4,
            lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, gradient_checkpointing=False,
            bf16=False, fp16=False, logging_steps=1, save_strategy="no", report_to=[], max_length=None,
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model.network, args=settings, train_dataset=data, processing_class=model.processor,
            callbacks=[Remember()],
        )  # fmt: skip
        trainer._get_train_sampler = lambda *a: torch.utils.data.SequentialSampler(data)  # the same order
        model.network.train()
        began = time.perf_counter()
        trainer.train()
        return time.perf_counter() - began, losses


def one(kind: str, tower: str, files: list[Path], cache: Path) -> tuple[float, list[float]]:
    model = make_model(tower)
    if kind == "trl":
        return theirs(model, files)
    return ours(model, files, TowerStore(model, "bench", cache) if kind == "cached" else None)


def peak(kind: str, tower: str, files: list[Path], cache: Path) -> float:
    """GB at most in a process that does nothing else."""
    command = [
        sys.executable,
        __file__,
        "--peak",
        kind,
        "--tower",
        tower,
        "--cache",
        str(cache),
        *map(str, files),
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    return float(told.stdout.strip().splitlines()[-1])


def mixed_pictures(source: Path | None, folder: Path, count: int) -> list[Path]:
    """Real pictures, or noise, of mixed size."""
    if source is not None:
        found = sorted(p for p in source.rglob("*") if p.suffix.lower() in (".jpg", ".png", ".jpeg"))
        return found[:: max(1, len(found) // count)][:count]
    import numpy as np

    made = []
    generator = np.random.default_rng(0)
    for number in range(count):
        size = (int(generator.integers(150, 800)), int(generator.integers(150, 800)))
        path = folder / f"label{number % 5}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        made.append(path)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, nargs="*")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tower", choices=TOWERS, default="large")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path)
    arguments = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        print("left out: it needs trl (pip install trl)")
        return
    transformers.logging.set_verbosity_error()
    if arguments.peak:
        with MemoryUse(torch.device("cpu")) as use:
            one(arguments.peak, arguments.tower, arguments.pictures, arguments.cache)
        print(use.most / 1e9)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = arguments.pictures[0] if arguments.pictures else None
        files = mixed_pictures(source, folder, arguments.rows)
        kinds = ("cached", "uncached", "trl")
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        curves: dict[str, list[float]] = {}
        for number in range(arguments.rounds):
            for kind in kinds:
                seconds, losses = one(kind, arguments.tower, files, folder / "cache")
                rates[kind].append(len(files) / seconds)
                curves[kind] = losses
                print(f"round {number + 1}, {kind}: {rates[kind][-1]:.2f} rows a second", flush=True)
        medians = {kind: statistics.median(values) for kind, values in rates.items()}
        peaks = {kind: peak(kind, arguments.tower, files, folder / "cache") for kind in kinds}
    apart = max(abs(a - b) for a, b in zip(curves["cached"], curves["trl"], strict=True))
    figures = {
        "rows a second": medians,
        "cached / trl": medians["cached"] / medians["trl"],
        "uncached / trl": medians["uncached"] / medians["trl"],
        "pairs cached / trl": [a / b for a, b in zip(rates["cached"], rates["trl"], strict=True)],
        "peak GB": peaks,
        "largest difference of the losses, step by step": apart,
        "losses": curves,
    }
    for name, value in figures.items():
        if name != "losses":
            print(f"{name}: {value}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"sft-{arguments.tower}.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
