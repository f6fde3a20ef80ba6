"""The command group, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from vitdeploy.cli.encoding import any_encoding
from vitdeploy.cli.exits import DONE, ERROR, EXIT_CODES, INTERRUPTED
from vitdeploy.core import interrupts
from vitdeploy.core.errors import VitdeployError, interrupted
from vitdeploy.core.text import visible

# name: (module, one line for --help). Modules are imported only when their command is used.
COMMANDS = {
    "demo": ("vitdeploy.cli.demo", "Run the whole pipeline on this machine, offline, in minutes."),
    "finetune": ("vitdeploy.cli.finetune", "Fine-tune a ViT checkpoint on a dataset."),
    "export": ("vitdeploy.cli.export", "Export a checkpoint to a bundle, with preprocessing in the graph."),
    "build-engine": ("vitdeploy.cli.build_engine", "Add FP16 and INT8 forms and TensorRT engines to a bundle."),
    "analyze": ("vitdeploy.cli.analyze", "Rank INT8 layers by the accuracy they cost."),
    "bench": ("vitdeploy.cli.bench", "Compare every form's latency and accuracy with PyTorch."),
    "compare": ("vitdeploy.cli.compare", "Compare two benchmarks, and fail a build on a regression."),
    "verify": ("vitdeploy.cli.verify", "Run a bundle's self-test on every backend that is here."),
    "predict": ("vitdeploy.cli.predict", "Classify images with a bundle."),
    "embed": ("vitdeploy.cli.embed", "Write the embeddings of images with a bundle."),
    "explain": ("vitdeploy.cli.explain", "Draw a model's attention, positions and patches for an image."),
    "inspect": ("vitdeploy.cli.inspect", "Show what is in a bundle, graph or engine."),
    "lint": ("vitdeploy.cli.lint", "Say what will go wrong with any ONNX graph on TensorRT."),
    "deploy": ("vitdeploy.cli.deploy", "Write what a server or a browser runs a bundle from."),
    "push": ("vitdeploy.cli.push", "Upload a bundle to the Hugging Face Hub."),
    "report": ("vitdeploy.cli.report", "Open the page of a bundle's last benchmark."),
    "doctor": ("vitdeploy.cli.doctor", "Show what this machine can build and run."),
    "completion": ("vitdeploy.cli.completion", "Let the Tab key complete commands in your shell."),
}

_FLAGS = {"--debug", "--quiet", "--verbose"}


class Commands(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        command.epilog = "Every command also takes --quiet, --verbose and --debug (see vitdeploy --help)."
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As Click's, which looks for similar names only among commands that are imported."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            close = get_close_matches(name, COMMANDS, n=1)
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning.replace("`", "")) for code, meaning in EXIT_CODES.items()])


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from vitdeploy.core.version import full_version

        click.echo(f"vitdeploy, version {full_version()}")
        context.exit()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", is_flag=True, help="No progress bars and no notes on standard error.")
@click.option("--verbose", is_flag=True, help="More notes: what a pass over the graph left alone, and why.")
@click.pass_context
def app(context: click.Context, /, **flags: bool) -> None:
    """Take a Vision Transformer from a checkpoint to a device.

    Without a command it says what to do next in this folder.

    The flags below may stand before or behind the command.

    \b
    vitdeploy finetune google/vit-base-patch16-224-in21k --dataset cifar10 \\
        --output runs/vit
    vitdeploy export runs/vit --output bundles/vit
    vitdeploy build-engine bundles/vit --fp16 --int8 --calibration-data cifar10
    vitdeploy bench bundles/vit --dataset cifar10 --baseline runs/vit
    """
    if context.invoked_subcommand is None:
        from vitdeploy.cli.here import show_next_steps

        show_next_steps()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with one of `EXIT_CODES`."""
    argv = sys.argv[1:] if arguments is None else arguments
    sys.exit(run(argv))


def run(argv: list[str]) -> int:
    """Run the command line and return its exit code."""
    argv, flags = _without_flags(argv)
    any_encoding()
    with interrupts.remembered():
        return _run(argv, flags)


def _without_flags(argv: list[str]) -> tuple[list[str], set[str]]:
    """The command line without the flags that every command takes, wherever they stand, and these: they are read before
    parsing, since parsing can fail too. What follows -- is left alone, but for `compare`, where it parts two sides."""
    end = argv.index("--") if "--" in argv and "compare" not in argv else len(argv)
    return [a for a in argv[:end] if a not in _FLAGS] + argv[end:], _FLAGS & set(argv[:end])


def _run(argv: list[str], flags: set[str]) -> int:
    try:
        result: Any = _invoke(argv, flags)
        if interrupts.pending():
            return _say_interrupted("Interrupted too late: the work was already done.")
        return result if isinstance(result, int) else DONE
    except click.ClickException as error:
        vars(error)["message"] = visible(error.message)  # it may name a file
        error.show()
        return error.exit_code
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _say_interrupted()
    except BrokenPipeError:
        sys.stderr.close()
        return ERROR
    except Exception as error:
        if interrupts.pending() or interrupted(error):
            return _say_interrupted()
        if "--debug" in flags:
            raise
        _explain(error)
        return ERROR


def _say_interrupted(message: str = "Interrupted: nothing was left half-written.") -> int:
    click.echo(f"\n{message}", err=True)
    return INTERRUPTED


def _invoke(argv: list[str], flags: set[str]) -> Any:
    if "--quiet" in flags or not _names_command(argv):
        return app.main(args=argv, prog_name="vitdeploy", standalone_mode=False)
    from vitdeploy.cli.terminal import RichReporter
    from vitdeploy.core import progress

    with RichReporter() as reporter, progress.use(reporter, verbose="--verbose" in flags):
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
        hint = "this is a bug in vitdeploy: run it again as `vitdeploy --debug ...` and report the traceback"
    from vitdeploy.cli.terminal import echo_problem

    echo_problem("Error", message, hint)
