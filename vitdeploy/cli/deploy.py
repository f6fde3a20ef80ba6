"""`vitdeploy deploy`: a bundle for a server of others, or for a browser."""

from __future__ import annotations

from typing import Any

import click

from vitdeploy.cli.parameters import defaults_of, precision_option
from vitdeploy.cli.terminal import echo, echo_json
from vitdeploy.core.installing import wheel_line
from vitdeploy.core.text import quoted
from vitdeploy.deploy.kubernetes.folder import kubernetes
from vitdeploy.deploy.kubernetes.settings import KubernetesSettings
from vitdeploy.deploy.triton.repository import triton
from vitdeploy.deploy.triton.settings import DEVICES, ROUTES, TritonSettings
from vitdeploy.deploy.web.site import PRECISIONS, web

__all__ = ["command"]


@click.group("deploy")
def command() -> None:
    """Write what a server of others starts from, or a browser opens."""


@command.command("triton")
@defaults_of(TritonSettings)
@click.argument("bundle")
@click.option("--output", required=True, type=click.Path(file_okay=False), help="Folder of the model repository.")
@click.option("--name", help="Name of the model. Default: the bundle's folder.")
@click.option("--max-batch", type=click.IntRange(min=1), help="Most images of one call.")
@click.option("--instances", type=click.IntRange(min=1), help="Of each model, side by side.")
@precision_option("Precision of the form to run.")
@click.option("--device", type=click.Choice(DEVICES), help="What the models run on.")
@click.option(
    "--via",
    type=click.Choice(ROUTES),
    help="NAME runs the bundle in its own process, or decodes and asks NAME_pixels.",
)
@click.option("-k", "--top-k", type=click.IntRange(min=1), help="Classes of an answer.")
@click.option("--overwrite", is_flag=True, help="Replace a repository that this wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def triton_command(bundle: str, output: str, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Write a model repository for NVIDIA Triton, which starts as it is.

    It has two models. NAME takes encoded images (BYTES) of any size and answers with labels, scores and indices, or
    with embeddings; its python backend needs vitdeploy installed. NAME_pixels takes raw uint8 pixels and answers with
    what the graph gives: it is the engine, or the ONNX form.

    \b
    Example:
      vitdeploy deploy triton bundles/vit --output model_repository --device gpu
      tritonserver --model-repository=$PWD/model_repository
    """
    written = triton(bundle, output, TritonSettings(**options), overwrite=overwrite)
    if as_json:
        echo_json(written.to_json())
        return
    for file in written.files:
        if "/bundle/" not in file:
            echo(f"  {output}/{file}")
    echo(f"{written.name}: encoded images; {written.pixels}: pixels, by {written.artifact.path}")
    echo(f"Next: tritonserver --model-repository={written.path.resolve()}")


@command.command("web")
@defaults_of(web)
@click.argument("bundle")
@click.option("--output", required=True, type=click.Path(file_okay=False), help="Folder of the site.")
@click.option(
    "--onnxruntime-web",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="The npm package, or a folder with node_modules. Default: node_modules here or above.",
)
@click.option(
    "--precision",
    type=click.Choice(("auto", *PRECISIONS)),
    help="Form to take along; auto: each that there is.",
)
@click.option("--overwrite", is_flag=True, help="Replace a site that this wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def web_command(bundle: str, output: str, as_json: bool, **options: Any) -> None:
    """Write a page that runs the model in the browser, and the ES module that it is made with.

    The images stay on the device: the site holds the model, its labels, its self-test and ONNX Runtime for WebAssembly
    and WebGPU, which comes from npm. The module runs in Node, too.

    \b
    Example:
      npm install onnxruntime-web
      vitdeploy deploy web bundles/vit --output site
      python site/serve.py
    """
    written = web(bundle, output, **options)
    if as_json:
        echo_json(written.to_json())
        return
    for file in written.files:
        if not file.startswith("ort/"):
            echo(f"  {output}/{file}")
    selftest = "with its self-test" if written.selftest else "without a self-test: the bundle has none"
    echo(f"{', '.join(written.forms)} in onnxruntime-web {written.onnxruntime_web}, {selftest}")
    echo(f"Next: python {written.path / 'serve.py'}")


@command.command("kubernetes")
@defaults_of(KubernetesSettings)
@click.argument("bundle")
@click.option("--output", required=True, type=click.Path(file_okay=False), help="Folder to write.")
@click.option("--image", required=True, metavar="REGISTRY/NAME:TAG", help="What the image will be called.")
@click.option("--name", help="Name of the model. Default: the bundle's folder.")
@click.option("--device", type=click.Choice(DEVICES), help="What a pod runs on.")
@precision_option("Precision of the form to run.")
@click.option("--cpus", help="Of a pod.")
@click.option("--memory", help="Of a pod.")
@click.option("--replicas", type=(int, int), help="Fewest and most pods.")
@click.option("--queue-ms", type=float, help="Mean wait in the queue that asks for more pods.")
@click.option(
    "--prometheus",
    help="What scrapes the pods.",
)
@click.option("--namespace", help="Of the objects. Default: kubectl's.")
@click.option("--overwrite", is_flag=True, help="Replace a folder that this wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def kubernetes_command(bundle: str, output: str, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Write a Dockerfile with the model in it, and manifests that serve it on Kubernetes with Triton.

    There is a plain Deployment with an autoscaler of KEDA's, and the same for KServe. Neither is applied, and no image
    is built.

    \b
    Example:
      vitdeploy deploy kubernetes bundles/vit --output k8s --image r.io/vit:1
      docker build -t r.io/vit:1 k8s
      kubectl apply -f k8s/deployment.yaml -f k8s/autoscaler.yaml
    """
    written = kubernetes(bundle, output, KubernetesSettings(**options), overwrite=overwrite)
    if as_json:
        echo_json(written.to_json())
        return
    for file in written.files:
        if not file.startswith(("model_repository/", "wheels/")):
            echo(f"  {output}/{file}")
    echo(f"{written.name}: {written.repository.artifact.path}, in {output}/model_repository")
    build = f"docker build -t {quoted(options['image'])} {quoted(output)}"
    echo(f"Next: {' && '.join(filter(None, (wheel_line(f'{output}/wheels'), build)))}")
