"""`vitdeploy verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from vitdeploy.cli.parameters import backend_option, precision_option
from vitdeploy.cli.terminal import echo, echo_json, new_console
from vitdeploy.models.tasks import TASKS

if TYPE_CHECKING:
    from vitdeploy.runtime.verification import Certificate

__all__ = ["command"]

_STYLES = {"passed": "green", "failed": "red", "skipped": "yellow"}


@click.command("verify")
@click.argument("bundle", type=click.Path())
@backend_option("Only this: auto (all), {names}.")
@precision_option("Only this form; auto: all.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Only there. Default: wherever it can run.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one call. Default: the backend's choice.")
@click.option("--json", "as_json", is_flag=True, help="Print the certificate as JSON.")
def command(bundle: str, as_json: bool, **options: Any) -> None:
    """Run the self-test of BUNDLE on every backend that is here, and print a certificate.

    The bundle holds small images, what the model answered to them in PyTorch when it was exported, and how far from
    that each form may be. A form that is further off computes wrongly here, or is of another model. The exit code is 1
    if a form fails, or if none can be run.

    The JSON has schema_version, type ("certificate"), vitdeploy, bundle, model (name, architecture, weights_sha256),
    selftest_sha256, reference, machine, created, rows (form, backend, device, file, sha256, status: passed, failed or
    skipped, reason, images, same_class, largest_difference, bound, versions) and passed.

    \b
    Examples:
      vitdeploy verify bundles/vit
      vitdeploy verify bundles/vit --backend tensorrt --json
    """
    from vitdeploy.runtime.verification import verify

    certificate = verify(bundle, **options)
    if as_json:
        echo_json(certificate.to_json())
    else:
        _show(certificate)
    certificate.require_passed()


def _show(certificate: Certificate) -> None:
    console = new_console()
    table = Table(box=None, pad_edge=False)
    for name in ("form", "backend"):
        table.add_column(name, no_wrap=True)
    for name in ("difference", "bound", TASKS[certificate.task].kind.same_title):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in certificate.rows:
        ran = row.images > 0
        table.add_row(
            row.form,
            row.backend if row.device == "cpu" else f"{row.backend} ({row.device})",
            "" if row.largest_difference is None else f"{row.largest_difference:.2g}",
            "" if row.bound is None or not ran else f"{row.bound:.2g}",
            f"{row.same_class} of {row.images}" if ran else "",
            Text(row.status, style=_STYLES[row.status]),
        )
    console.print(table)
    for row in certificate.rows:
        if row.reason is not None:
            echo(f"{row.form} on {row.backend} {row.status}: {row.reason}")
    machine = certificate.machine
    known: dict[str, str] = {}
    for row in certificate.rows:
        known |= row.versions or {}
    echo()
    echo(f"Model      {certificate.model['name']}, its answers by {certificate.reference}")
    echo(f"Self-test  {certificate.selftest_sha256[:12]}, {certificate.created}")
    echo(f"Machine    {', '.join([str(machine['cpu']), *machine['gpu'], str(machine['system'])])}")
    echo(f"Versions   {', '.join(f'{name} {number}' for name, number in known.items())}")
