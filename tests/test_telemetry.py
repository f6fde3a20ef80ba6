"""Nothing leaves the machine, and nothing is written unasked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.backends import CPU_BACKENDS
from vitdeploy.core.telemetry import SWITCH

STRACE = shutil.which("strace") is not None and subprocess.run(["strace", "-o", os.devnull, "true"]).returncode == 0
PREDICT = """
import sys
asked = []
sys.addaudithook(lambda event, _: event.startswith("socket.") and asked.append(event))
import numpy
import vitdeploy
with vitdeploy.load(sys.argv[1], sys.argv[2], "int8") as classifier:
    print(classifier.predict(numpy.zeros((32, 32, 3), numpy.uint8)).label)
    assert sys.modules.get("openvino_telemetry", 0) != None  # hidden while OpenVINO is imported, and not longer
assert asked == []
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    """Ours with an empty home, and without what may have turned telemetry off already."""
    kept = {name: value for name, value in os.environ.items() if name not in (SWITCH, "ORT_DISABLE_TELEMETRY", "CI")}
    outside = {name for name in kept if name.startswith("XDG_")}
    home.mkdir()
    return {**{name: kept[name] for name in kept.keys() - outside}, "HOME": str(home), "USERPROFILE": str(home), **more}


def run(command: list[str], folder: Path, **more: str) -> str:
    """Standard output of a command with an empty home, which stays empty; strace, where it is, says if sockets are."""
    home, log = folder / "home", folder / "calls"
    traced = ["strace", "-f", "-qq", "-e", "trace=socket,connect", "-o", str(log)] if STRACE else []
    done = subprocess.run(
        [*traced, *command], capture_output=True, text=True, timeout=300, env=environment(home, **more)
    )
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []
    if traced:
        # strace also writes a line of each signal: a command may start another, as git for the version
        assert [line for line in log.read_text().splitlines() if " --- " not in line and " +++ " not in line] == []
    return done.stdout


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_load_and_predict_touch_neither_home_nor_a_socket(tiny_bundle: Path, tmp_path: Path, backend: str) -> None:
    assert run([sys.executable, "-c", PREDICT, str(tiny_bundle), backend], tmp_path)


def test_nor_do_commands(tiny_bundle: Path, tiny_images: Path, tmp_path: Path) -> None:
    image = next(path for path in sorted(tiny_images.rglob("*")) if path.is_file())
    for number, arguments in enumerate((["predict", tiny_bundle, image], ["inspect", tiny_bundle], ["doctor"])):
        (tmp_path / str(number)).mkdir()
        assert run([sys.executable, "-m", "vitdeploy", *map(str, arguments)], tmp_path / str(number))


@pytest.mark.parametrize("switch", ["", "0", "1"])
def test_the_switch_leaves_telemetry_to_the_packages(tmp_path: Path, switch: str) -> None:
    code = (
        "import os, sys\n"
        "from vitdeploy.core.telemetry import silenced\n"
        "with silenced():\n"
        "    print(os.environ.get('ORT_DISABLE_TELEMETRY'), 'openvino_telemetry' in sys.modules)\n"
        "print('openvino_telemetry' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment(tmp_path / "home", **{SWITCH: switch}),
    )
    assert done.stdout.split() == (["None", "False", "False"] if switch == "1" else ["1", "True", "False"])


@pytest.mark.skipif(not STRACE, reason="strace is not installed, or may not trace")
def test_the_trace_sees_a_socket(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="AF_INET"):
        run([sys.executable, "-c", "import socket; socket.socket().close()"], tmp_path)
