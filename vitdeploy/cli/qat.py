"""`vitdeploy finetune --qat`: which of fine-tuning's options hold for it, and what it prints."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vitdeploy.cli.terminal import echo, echo_json, program
from vitdeploy.core.text import quoted

if TYPE_CHECKING:
    from vitdeploy.qat import QatResult

__all__ = ["show_result", "tune_bundle"]


def tune_bundle(bundle: str, options: dict[str, Any], as_json: bool) -> None:
    """Run the tune with the options that were given; those that were not keep the tune's own defaults."""
    from vitdeploy.qat import QatConfig, tune

    context = click.get_current_context()
    unset = (ParameterSource.DEFAULT, None)
    given = {name: value for name, value in options.items() if context.get_parameter_source(name) not in unset}
    unknown = sorted(set(given) - {field.name for field in fields(QatConfig)})
    if unknown:
        raise click.UsageError(f"--{unknown[0].replace('_', '-')} has no effect with --qat: leave it out.")
    result = tune(QatConfig(bundle=bundle, **given))
    if as_json:
        echo_json(result.to_json())
    else:
        show_result(result)


def show_result(result: QatResult) -> None:
    """Print what the tune brought, what it wrote, and what to try next."""
    _line("FP32 before", result.fp32_before, f" of {result.test_images} test images")
    _line("INT8 before", result.int8_before, "")
    recovered = "" if result.recovered is None else f", {result.recovered:.0%} of the loss recovered"
    _line("INT8 after", result.int8_after, recovered)
    _line("FP32 after", result.fp32_after, "")
    echo(f"tune         {result.steps} steps, best at {result.best_step}, {result.seconds:.0f} s in all")
    echo(f"checkpoint   {result.output}")
    echo(f"bundle       {result.bundle}")
    echo(f"next         {program()} bench {quoted(result.bundle)} --dataset DATASET --baseline {quoted(result.output)}")


def _line(name: str, accuracy: float, rest: str) -> None:
    echo(f"{name:<12} {accuracy:.2%}{rest}")
