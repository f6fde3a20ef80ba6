"""The command group, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from vitdeploy import __version__, interrupts
from vitdeploy.errors import VitdeployError, interrupted

# name: (module, one line for --help). Modules are imported only when their command is used.
COMMANDS = {
    "demo": ("vitdeploy.cli.demo", "The whole story on this machine, offline, in minutes."),
    "finetune": ("vitdeploy.cli.finetune", "Fine-tune a ViT checkpoint on a dataset."),
    "export": ("vitdeploy.cli.export", "Export a checkpoint to a bundle, with preprocessing in the graph."),
    "build-engine": ("vitdeploy.cli.build_engine", "Add FP16 and INT8 forms and TensorRT engines to a bundle."),
    "analyze": ("vitdeploy.cli.analyze", "Say what each INT8 layer costs in accuracy."),
    "bench": ("vitdeploy.cli.bench", "Compare every form's latency and accuracy with PyTorch."),
    "compare": ("vitdeploy.cli.compare", "Say what changed between two benchmarks; fail a build on it."),
    "predict": ("vitdeploy.cli.predict", "Classify images with a bundle."),
    "explain": ("vitdeploy.cli.explain", "Draw attention, positions and patches of a model for an image."),
    "inspect": ("vitdeploy.cli.inspect", "Say what is in a bundle, graph or engine."),
    "doctor": ("vitdeploy.cli.doctor", "Say what this machine can build and run."),
}


class Commands(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="vitdeploy")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", is_flag=True, help="No progress bars and no notes on standard error.")
def app(debug: bool, quiet: bool) -> None:
    """Take a Vision Transformer from a checkpoint to a device.

    \b
    vitdeploy finetune google/vit-base-patch16-224-in21k --dataset cifar10 --output runs/vit
    vitdeploy export runs/vit --output bundles/vit
    vitdeploy build-engine bundles/vit --fp16 --int8 --calibration-data cifar10
    vitdeploy bench bundles/vit --dataset cifar10 --baseline runs/vit
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 an error, 2 wrong usage, 3 `compare --fail-if`, 130 interrupted."""
    argv = sys.argv[1:] if arguments is None else arguments
    sys.exit(run(argv))


def run(argv: list[str]) -> int:
    """Run the command line and return its exit code."""
    # Both are read before parsing, since parsing can fail too.
    head = argv[: next((i for i, a in enumerate(argv) if not a.startswith("-")), len(argv))]
    with interrupts.remembered():
        return _run(argv, debug="--debug" in head, quiet="--quiet" in head)


def _run(argv: list[str], *, debug: bool, quiet: bool) -> int:
    try:
        result: Any = _invoke(argv, quiet)
        if interrupts.pending():
            return _say_interrupted("Interrupted too late: the work was done already.")
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _say_interrupted()
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        if interrupts.pending() or interrupted(error):
            return _say_interrupted()
        if debug:
            raise
        _explain(error)
        return 1


def _say_interrupted(message: str = "Interrupted: nothing was left half-written.") -> int:
    click.echo(f"\n{message}", err=True)
    return 130


def _invoke(argv: list[str], quiet: bool) -> Any:
    if quiet or not _names_command(argv):
        return app.main(args=argv, prog_name="vitdeploy", standalone_mode=False)
    from vitdeploy import progress
    from vitdeploy.cli.terminal import RichReporter

    with RichReporter() as reporter, progress.use(reporter):
        return app.main(args=argv, prog_name="vitdeploy", standalone_mode=False)


def _names_command(argv: list[str]) -> bool:
    return any(argument in COMMANDS for argument in argv) and not {"-h", "--help"} & set(argv)


def _explain(error: Exception) -> None:
    if isinstance(error, VitdeployError):
        message, hint = error.message, error.hint
    elif isinstance(error, MemoryError):
        message, hint = "out of memory", "use smaller images or batches, or close other programs"
    else:
        message = f"{type(error).__name__}: {error}"
        hint = "this was not foreseen; run `vitdeploy --debug ...` again and report the traceback"
    click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(message, err=True)
    if hint:
        click.secho("Hint: ", fg="yellow", bold=True, nl=False, err=True)
        click.echo(hint, err=True)
