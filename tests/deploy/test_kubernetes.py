"""What is written for Kubernetes, against the schemas of its objects; the Dockerfile, by hadolint."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.tools.kubernetes_schemas import core_faults, keda_faults, kserve_faults
from vitdeploy import InputError, OutputExistsError
from vitdeploy.deploy.kubernetes.folder import kubernetes
from vitdeploy.deploy.kubernetes.settings import KubernetesSettings
from vitdeploy.deploy.triton.alive import is_alive

pytest.importorskip("tritonclient", reason="tritonclient is not installed")
yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
IMAGE = "registry.example.com/team/vit:1"


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def folder(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("kubernetes") / request.param
    settings = KubernetesSettings(image=IMAGE, name="Vit_B", device=request.param, namespace="models", queue_ms=25)
    kubernetes(tiny_bundle, output, settings)
    return output


def objects(folder: Path, file: str) -> dict[str, dict[str, Any]]:
    """{kind: object} of a file."""
    return {item["kind"]: item for item in yaml.safe_load_all((folder / file).read_text())}


def test_the_core_takes_the_deployment(folder: Path) -> None:
    pytest.importorskip("kubernetes_validate", reason="not installed: make test-kubernetes")
    found = objects(folder, "deployment.yaml")
    assert sorted(found) == ["Deployment", "PodDisruptionBudget", "Service"]
    assert {kind: core_faults(item) for kind, item in found.items()} == {kind: [] for kind in found}
    wrong = deepcopy(found["Deployment"])
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    assert "livenesProbe" in core_faults(wrong)[0]


def test_keda_takes_the_autoscaler(folder: Path) -> None:
    pytest.importorskip("cloudcoil.models.keda", reason="not installed: make test-kubernetes")
    pytest.importorskip("kubernetes_validate")
    (item,) = objects(folder, "autoscaler.yaml").values()
    assert keda_faults(item) == []
    wrong = deepcopy(item)
    wrong["spec"]["maxReplicaCount"] = "many"
    assert keda_faults(wrong)
    behavior = item["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "vit"}
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "made-by-keda"},
        "spec": {"scaleTargetRef": target, "maxReplicas": 2, "behavior": behavior},
    }
    assert core_faults(scaler) == []


def test_kserve_takes_its_runtime_and_service(folder: Path) -> None:
    if find_spec("kserve") is None:
        pytest.skip("kserve is not installed: make test-kubernetes")
    found = objects(folder, "kserve.yaml")
    assert sorted(found) == ["InferenceService", "ServingRuntime"]
    assert {kind: kserve_faults(item) for kind, item in found.items()} == {kind: [] for kind in found}
    wrong = deepcopy(found["InferenceService"])
    wrong["spec"]["predictor"]["minReplica"] = 1
    wrong["spec"]["predictor"]["model"]["runtime"] = 3
    assert kserve_faults(wrong) == [
        "InferenceService.spec.predictor.model.runtime is 3, not str",
        "InferenceService.spec.predictor has no field minReplica",
    ]
    formats = found["ServingRuntime"]["spec"]["supportedModelFormats"]
    model = found["InferenceService"]["spec"]["predictor"]["model"]
    assert model["modelFormat"]["name"] in [one["name"] for one in formats]
    assert model["runtime"] == found["ServingRuntime"]["metadata"]["name"]


def test_nothing_runs_as_root_or_writes_to_its_own_files(folder: Path) -> None:
    deployment = objects(folder, "deployment.yaml")["Deployment"]["spec"]["template"]["spec"]
    runtime = objects(folder, "kserve.yaml")["ServingRuntime"]["spec"]
    for pod in (deployment, runtime):
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/dev/shm"}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        assert limits.get("nvidia.com/gpu") == ("1" if folder.name == "gpu" else None)
    assert deployment["securityContext"]["runAsUser"] == 1000 and not deployment["automountServiceAccountToken"]
    assert "USER 1000:1000" in (folder / "Dockerfile").read_text()


def test_every_probe_asks_this_model_at_its_port(folder: Path) -> None:
    deployment = objects(folder, "deployment.yaml")["Deployment"]["spec"]["template"]["spec"]
    runtime = objects(folder, "kserve.yaml")["ServingRuntime"]["spec"]
    for pod, port in ((deployment, 8000), (runtime, 8080)):
        (container,) = pod["containers"]
        assert f"--http-port={port}" in container["args"]
        named = {one["name"]: one["containerPort"] for one in container["ports"]}
        for probe in ("startupProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["path"] == "/v2/models/Vit_B/ready"
            assert named[container[probe]["httpGet"]["port"]] == port
        assert container["livenessProbe"]["exec"]["command"][1:] == [
            "-m", "vitdeploy.deploy.triton.alive", "Vit_B", str(port),
        ]  # fmt: skip
    assert (folder / "model_repository" / "Vit_B" / "config.pbtxt").is_file()


def test_the_autoscaler_asks_for_the_mean_wait_of_this_model(folder: Path) -> None:
    (item,) = objects(folder, "autoscaler.yaml").values()
    (trigger,) = item["spec"]["triggers"]
    where = '{model="Vit_B",namespace="models"}[1m]'
    assert trigger["metadata"]["query"] == (
        f"sum(rate(nv_inference_queue_duration_us{where})) / "
        f"clamp_min(sum(rate(nv_inference_request_success{where})), 0.001) / 1000"
    )
    assert (trigger["metricType"], trigger["metadata"]["threshold"]) == ("Value", "25"), "a mean is no sum over pods"
    metric = objects(folder, "kserve.yaml")["InferenceService"]["spec"]["predictor"]["autoScaling"]["metrics"][0]
    assert metric["external"]["metric"]["query"] == trigger["metadata"]["query"]
    assert metric["external"]["target"] == {"type": "Value", "value": "25"}
    scaled = item["spec"]["scaleTargetRef"]["name"]
    deployment = objects(folder, "deployment.yaml")["Deployment"]
    assert scaled == deployment["metadata"]["name"] == "vit-b" and "replicas" not in deployment["spec"]


def test_the_dockerfile_is_without_faults(folder: Path, tmp_path: Path) -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is not installed: make test-kubernetes")
    done = subprocess.run([program, folder / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text((folder / "Dockerfile").read_text().replace("--no-cache-dir ", ""))
    assert "DL3042" in subprocess.run([program, tmp_path / "Dockerfile"], capture_output=True, text=True).stdout


def test_the_image_gets_the_backend_that_its_device_needs(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    wanted = re.search(r'"(.*)==\$\{VITDEPLOY}"', (folder / "Dockerfile").read_text())
    assert wanted and wanted[1] == {"cpu": "vitdeploy[cpu]", "gpu": "vitdeploy"}[folder.name]
    kubernetes(tiny_bundle, tmp_path / "k8s", KubernetesSettings(image=IMAGE, device="gpu", via="load"))
    assert '"vitdeploy[gpu-cu13]==$' in (tmp_path / "k8s" / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image": "no image"}, "image is"),
        ({"cpus": "four"}, "cpus is"),
        ({"memory": "4 GB"}, "memory is"),
        ({"replicas": (3, 2)}, "replicas are 3 to 2"),
        ({"queue_ms": 0.0}, "queue_ms must be more than 0"),
        ({"queue_ms": float("nan")}, "queue_ms must be more than 0"),
        ({"prometheus": "somewhere"}, "prometheus is"),
        ({"namespace": "A"}, "namespace is"),
        ({"name": "1"}, "name is"),
        ({"device": "tpu"}, "no device 'tpu'"),
    ],
)
def test_what_can_not_be_is_refused(wrong: dict[str, Any], message: str, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        kubernetes(tiny_bundle, tmp_path / "k8s", KubernetesSettings(**{"image": IMAGE, "name": "vit", **wrong}))
    assert not (tmp_path / "k8s").exists()


def test_the_command_replaces_only_its_own_folder(tiny_bundle: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    output = tmp_path / "k8s"
    arguments = ("deploy", "kubernetes", tiny_bundle, "--output", output, "--image", IMAGE, "--name", "vit")
    shown = cli(*arguments, "--json")
    assert shown.exit_code == 0, shown.stderr
    assert "deployment.yaml" in json.loads(shown.stdout)["files"]
    assert cli(*arguments).exit_code == 1
    written = cli(*arguments, "--overwrite")  # this copy is from no index, so the image needs its wheel
    assert f"Next: pip wheel --no-deps --wheel-dir {output}/wheels " in written.stdout, written.stdout
    assert f" && docker build -t {IMAGE} {output}" in written.stdout
    (output / "wheels" / "vitdeploy.whl").write_bytes(b"")
    assert cli(*arguments, "--overwrite").exit_code == 0
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="holds other files too"):
        kubernetes(tiny_bundle, output, KubernetesSettings(image=IMAGE), overwrite=True)


def test_a_server_that_is_not_there_is_not_alive() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not is_alive("vit", silent.getsockname()[1], timeout_s=0.2)
    assert not is_alive("vit", 9, timeout_s=1)
