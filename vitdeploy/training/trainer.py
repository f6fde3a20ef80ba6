"""The Hugging Face Trainer with this package's loss, learning rates, order of images, and checkpoints.

Two parts of the Trainer are replaced since, up to transformers 5.24 at least, they read the saved names of weights
without the renaming that from_pretrained does, and silently leave most of a ViT as it was: loading the best model, and
loading the weights of a run that is taken up again.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.core.errors import InputError, require
from vitdeploy.training.config import FinetuneConfig
from vitdeploy.training.data import EpochSampler
from vitdeploy.training.objective import Objective
from vitdeploy.training.parameters import parameter_groups
from vitdeploy.training.processes import Processes
from vitdeploy.training.regularise import MovingAverage
from vitdeploy.training.scoring import CROSS_ENTROPY
from vitdeploy.training.workspace import Workspace

__all__ = ["evaluations_since_best", "load_weights", "run_callback", "trainer_class"]

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object  # `trainer_class` adds the true one

_STATE = "trainer_state.json"


def load_weights(module: Any, folder: Path) -> None:
    """Load what `save_pretrained` (or, for a plain module, safetensors) wrote: bit for bit what was saved."""
    if hasattr(module, "save_pretrained"):
        state = type(module).from_pretrained(folder, local_files_only=True).state_dict()
    else:
        state = require("safetensors.torch", extra="build").load_file(folder / "model.safetensors")
    module.load_state_dict(state)


class _Own(_Trainer):  # type: ignore[misc]
    """What is this package's own in the Trainer, which stands behind it in the order of classes."""

    def __init__(
        self,
        *,
        config: FinetuneConfig,
        objective: Objective,
        sampler: EpochSampler,
        average: MovingAverage | None,
        work: Workspace,
        processes: Processes,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.config, self.objective, self.sampler = config, objective, sampler
        self.average, self.work, self.processes = average, work, processes
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the batch: the Trainer averages batches

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, output = self.objective(model, inputs)
        return (loss, output) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:  # type: ignore[has-type]
            module = self.model if model is None else model
            groups = parameter_groups(
                module,
                learning_rate=self.args.learning_rate,
                layer_decay=1.0 if self.config.linear_probe else self.config.layer_decay,
                weight_decay=self.config.weight_decay,
            )
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, module)
            for group in groups:
                del group["names"]
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.sampler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        with self.work.new_checkpoint(step, self.processes) as folder:
            self.save_model(str(folder), _internal_call=True)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            if self.processes.is_main:
                self.state.save_to_json(str(folder / _STATE))
                if self.average is not None:
                    self.average.save(folder)
        if self.processes.is_main:
            self.work.keep_only({step, self.state.best_global_step or step})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.model, Path(resume_from_checkpoint))
        if self.average is not None:
            self.average.load(Path(resume_from_checkpoint))

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """The Trainer's own loss is a mean of batches' means, wrong where the last ones are smaller or padded."""
        output = super().evaluation_loop(*arguments, **options)
        for key in [key for key in output.metrics if key.endswith(f"_{CROSS_ENTROPY}")]:
            output.metrics[key.replace(CROSS_ENTROPY, "loss")] = output.metrics.pop(key)
        return output

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        if self.average is None:
            return super().evaluate(*arguments, **options)
        with self.average.applied():
            return super().evaluate(*arguments, **options)


def trainer_class() -> Any:
    """The Trainer; a function, since transformers is imported where it is needed only."""
    transformers = require("transformers", extra="build")

    class VitTrainer(_Own, transformers.Trainer):  # type: ignore[misc, name-defined]
        pass

    return VitTrainer


def evaluations_since_best(history: list[dict[str, Any]], metric: str) -> int:
    """How many evaluations have passed since the best one."""
    values = [entry[metric] for entry in history if metric in entry]
    return len(values) - 1 - values.index(max(values)) if values else 0


def run_callback(trainer: Any, patience: int | None, metric: str, save_every: int) -> Any:
    """What happens beside the steps: epochs, the moving average, checkpoints, the end, and a loss that explodes."""
    transformers = require("transformers", extra="build")

    class Run(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.sampler.epoch = int((state.epoch or 0) + 1e-6)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if trainer.average is not None:
                trainer.average.update(state.global_step)
            last = state.global_step >= state.max_steps
            if last:
                control.should_log = True
                control.should_evaluate = trainer.eval_dataset is not None
            if last or control.should_evaluate or state.global_step % save_every == 0:
                control.should_save = True

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if patience is not None and evaluations_since_best(state.log_history, metric) >= patience:
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            loss = (logs or {}).get("loss")
            if loss is not None and not math.isfinite(float(loss)):
                raise InputError(
                    f"the training loss became {loss} after {state.global_step} steps",
                    hint="use a smaller --learning-rate or a longer --warmup-ratio",
                )

    return Run()
