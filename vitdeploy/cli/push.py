"""`vitdeploy push`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vitdeploy.bundle import Bundle
from vitdeploy.cli.terminal import echo, echo_json
from vitdeploy.models.tasks import TASKS

if TYPE_CHECKING:
    from vitdeploy.deploy.hub import Pushed
    from vitdeploy.models.tasks import Kind

__all__ = ["command"]


@click.command("push")
@click.argument("bundle", type=click.Path(file_okay=False))
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--revision", metavar="BRANCH", help="A branch that is there. Default: the repository's default one.")
@click.option("--private", is_flag=True, help="Make a new repository a private one.")
@click.option("--message", help="Of the commit. Default: that a bundle is uploaded.")
@click.option("--dry-run", is_flag=True, help="Say what would be uploaded, and upload nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def command(
    bundle: str, repository: str, revision: str | None, private: bool, message: str | None, dry_run: bool, as_json: bool
) -> None:
    """Upload BUNDLE to the Hugging Face Hub, where `load("OWNER/NAME")` and `vitdeploy predict OWNER/NAME` find it.

    Every file is compared with its hash first, and all go up in one commit, with a card that has the measured table and
    the hashes. Log in with `hf auth login`. A repository that holds something else than a bundle is left alone.

    \b
    Example:
      vitdeploy push bundles/vit someone/vit-cifar10 --private
      vitdeploy predict someone/vit-cifar10 cat.png
    """
    from vitdeploy.deploy.hub import push

    result = push(bundle, repository, revision=revision, private=private, message=message, dry_run=dry_run)
    if as_json:
        echo_json(result.to_json())
    else:
        _show(result, TASKS[Bundle.open(bundle).manifest.task].kind)


def _show(result: Pushed, kind: Kind) -> None:
    for name, size in result.files.items():
        echo(f"{size:>13,}  {name}")
    for name in result.removed:
        echo(f"{'removed':>13}  {name}")
    total = sum(result.files.values())
    if result.url is None:
        echo(f"{total:>13,}  bytes would be uploaded to {result.repository}")
    else:
        echo(f"{total:>13,}  bytes: {result.url}")
        echo(f"Next: {kind.line(result.repository)}")
