"""Images per second of `vitdeploy finetune`'s loop against a bare PyTorch loop with the same settings.

Both train the same model on the same images with the same optimizer (AdamW in the same groups), schedule, gradient
clipping, loss and batches, decoded and processed the same way; they take turns, a few steps each, in one process. The
bare loop is what one would write: a DataLoader, forward, backward, clip, step.

    python benchmarks/training.py --model vit-small-patch14-224-backbone --dataset ./cifar10 --image-size 56
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from vitdeploy.core.machine import machine
from vitdeploy.data import ImageDataset, load_dataset
from vitdeploy.models.checkpoints import open_folder
from vitdeploy.training import FinetuneConfig
from vitdeploy.training.augment import Augmenter
from vitdeploy.training.data import Batcher
from vitdeploy.training.loop import build_trainer, make_plan
from vitdeploy.training.models import load_trainable
from vitdeploy.training.objective import CrossEntropy
from vitdeploy.training.parameters import parameter_groups
from vitdeploy.training.processes import Processes
from vitdeploy.training.workspace import workspace


class Turns(transformers.TrainerCallback):
    """Stops our loop every few steps, to let the other one run."""

    def __init__(self, steps: int, other: Iterator[float]) -> None:
        self.steps, self.other = steps, other
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self.ours.append(time.perf_counter() - self.start)
            self.theirs.append(next(self.other))
            self.start = time.perf_counter()


class Images(torch.utils.data.Dataset):
    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.dataset.image(index), int(self.dataset.label_ids[index])


def bare_loop(config: FinetuneConfig, dataset: ImageDataset, steps: int, rounds: int) -> Iterator[float]:
    """Seconds of each round of `steps`."""
    model = load_trainable(open_folder(config.model), dataset.labels, image_size=config.image_size, seed=0)
    module, processor = model.module.train(), model.processor

    def collate(rows: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        images = [image for image, _ in rows]
        pixels = processor(images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        return pixels, torch.tensor([label for _, label in rows])

    groups = parameter_groups(
        module, learning_rate=config.learning_rate, layer_decay=config.layer_decay, weight_decay=config.weight_decay
    )
    for group in groups:
        del group["names"]
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 1, steps * rounds)
    loader = torch.utils.data.DataLoader(
        Images(dataset), batch_size=config.batch_size, shuffle=True, drop_last=True, collate_fn=collate
    )

    def forever() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from loader

    batches = forever()
    while True:
        start = time.perf_counter()
        for _ in range(steps):
            pixels, labels = next(batches)
            loss = torch.nn.functional.cross_entropy(module(pixel_values=pixels).logits, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        loss.item()
        yield time.perf_counter() - start


def measure(config: FinetuneConfig, steps: int, rounds: int, folder: Path) -> dict[str, Any]:
    train = load_dataset(config.dataset, "train", limit=config.limit_train)
    model = load_trainable(open_folder(config.model), train.labels, image_size=config.image_size, seed=0)
    # keep=False: both loops decode and process every image in every epoch
    batcher = Batcher(model.processor, train, Augmenter("none", 0), keep=False)
    plan = make_plan(config, len(train))
    alone = Processes(0, 1)
    turns = Turns(steps, bare_loop(config, train, steps, rounds))
    with workspace(folder / "run", {}, alone, overwrite=False, resume=False) as work:
        trainer = build_trainer(config, plan, model.module, batcher, train, None, work, alone, CrossEntropy())
        trainer.add_callback(turns)
        trainer.train()
    ours, theirs = turns.ours[1:], turns.theirs[1:]  # the first round warms up
    images = steps * config.batch_size
    ratios = [bare / our for our, bare in zip(ours, theirs, strict=True)]
    low, high = np.percentile([statistics.median(pick) for pick in resamples(ratios)], [2.5, 97.5])
    return {
        "images_per_second": round(images / statistics.median(ours), 2),
        "images_per_second_bare": round(images / statistics.median(theirs), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_95_percent": [round(float(low), 4), round(float(high), 4)],
        "rounds": len(ratios),
        "steps_a_round": steps,
        "batch_size": config.batch_size,
        "image_size": config.image_size,
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def resamples(values: list[float]) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    return (generator.choice(values, len(values)) for _ in range(2000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="a round")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = options.steps * options.rounds
    with tempfile.TemporaryDirectory() as folder:
        config = FinetuneConfig(
            options.model,
            options.dataset,
            folder,
            max_steps=steps,
            save_every=steps,
            batch_size=options.batch_size,
            image_size=options.image_size,
            limit_train=2000,
            validation=0,
        ).resolved()
        result = measure(config, options.steps, options.rounds, Path(folder))
    result["model"], result["dataset"] = Path(options.model).name, Path(options.dataset).name
    result["threads"], result["machine"] = options.threads, machine()
    result["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({key: value for key, value in result.items() if key not in ("ratios", "machine")}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
