"""The pip lines that hints print: for vitdeploy's extras from where this copy came from, and for single packages.

pip records where it installed a distribution from (direct_url.json, PEP 610): a folder, a file, a repository, or,
where there is no record, an index.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["extras_line", "package_line", "ranges", "update_words", "wheel_line"]

_NAME = "vitdeploy"
_ROOT = Path(__file__).parents[2]
_PACKAGES = {  # a module: the package that has it, where that goes by another name
    "cuda": "cuda-python",
    "cv2": "opencv-python-headless",
    "google": "protobuf",
    "onnx_ir": "onnx-ir",
    "sklearn": "scikit-learn",
    "tensorrt_rtx": "tensorrt-rtx",
    "yaml": "pyyaml",
}


def extras_line(*extras: str, upgrade: bool = False) -> str:
    """The line that installs the packages of vitdeploy's extras beside this copy of it.

    Example:
        extras_line("cpu")  # "pip install -e '.[cpu]'" in a checkout that is installed or run in place
    """
    chosen = f"[{','.join(extras)}]" if extras else ""
    flags = "--upgrade " if upgrade else ""
    if _in_place():
        return f"pip install {flags}-e {_quoted(_place(_ROOT) + chosen)}"
    url, record = _origin()
    if url.startswith("file:"):
        path = Path(unquote(urlsplit(url).path))
        if path.exists():
            return f"pip install {flags}{_quoted(_place(path) + chosen)}"
        return f"pip install {flags}" + " ".join(_quoted(each) for each in _requirements(extras))
    return f"pip install {flags}" + _quoted(_fetched(_NAME + chosen, url, record) if url else _NAME + chosen)


def wheel_line(folder: str) -> str | None:
    """The line that puts a wheel of this copy into a folder; None where it came from an index, which pip finds alone.

    Example:
        wheel_line("k8s/wheels")  # "pip wheel --no-deps --wheel-dir k8s/wheels ." in a checkout
    """
    url, record = _origin()
    if _in_place():
        source = _place(_ROOT)
    elif url.startswith("file:"):
        source = _place(Path(unquote(urlsplit(url).path)))
    elif url:
        source = _fetched(_NAME, url, record)
    else:
        return None
    return f"pip wheel --no-deps --wheel-dir {_quoted(folder)} {_quoted(source)}"


def update_words() -> str:
    """What brings a newer vitdeploy here."""
    url, record = ("", {}) if _in_place() else _origin()
    if _in_place() or (url and "vcs_info" not in record):
        return "install a newer version of vitdeploy from where this one came from"
    return extras_line(upgrade=True)


def package_line(module: str) -> str:
    """The line that installs the one package that has a top-level module, in the versions that vitdeploy takes."""
    package = _PACKAGES.get(module, module)
    return f"pip install {_quoted(package + ranges().get(package, ''))}"


def ranges() -> dict[str, str]:
    """{package: its version range} as vitdeploy's metadata says it; empty where vitdeploy itself is not installed."""
    found: dict[str, str] = {}
    for requirement in _metadata():
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*\(?([<>=!~][^;)]*)?", requirement)
        if match and match[2]:
            name, wanted = match[1].lower(), match[2].strip()
            found[name] = wanted if name not in found else _either(found[name], wanted)
    return found


def _either(one: str, other: str) -> str:
    """What two extras ask of a package, for CUDA 12 and for CUDA 13: all from the older one's first version on."""
    lowest = [match[1] for wanted in (one, other) if (match := re.search(r">=\s*([\d.]+)", wanted))]
    return one if one == other or len(lowest) < 2 else ">=" + min(lowest, key=lambda text: [*map(int, text.split("."))])


def _in_place() -> bool:
    """Whether this copy runs from its source, installed with -e or not installed."""
    return (_ROOT / "pyproject.toml").is_file()


def _metadata() -> list[str]:
    from importlib import metadata

    try:
        return metadata.requires(_NAME) or []
    except metadata.PackageNotFoundError:
        return []


def _origin() -> tuple[str, dict[str, dict[str, str]]]:
    """Where pip got this copy from, "" for an index, and all that it recorded of that."""
    from importlib import metadata

    try:
        text = metadata.distribution(_NAME).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        text = None
    record = json.loads(text) if text else {}
    return str(record.get("url", "")), record


def _fetched(name: str, url: str, record: dict[str, dict[str, str]]) -> str:
    """How pip is told to fetch this copy again from where it came: by the version control system, if one had it."""
    return f"{name} @ {record['vcs_info']['vcs']}+{url}" if "vcs_info" in record else f"{name} @ {url}"


def _requirements(extras: tuple[str, ...]) -> list[str]:
    """What the extras bring, by name: for a copy whose source is gone."""
    marked = [requirement.partition(";") for requirement in _metadata()]
    wanted = [f"extra == {quote}{extra}{quote}" for extra in extras for quote in ("'", '"')]
    found = [name.strip() for name, _, marker in marked if any(each in marker for each in wanted)]
    own = [match[1].split(",") if (match := re.fullmatch(rf"{_NAME}\[(.*)\]", name)) else None for name in found]
    named = [[name] if inner is None else _requirements(tuple(inner)) for name, inner in zip(found, own, strict=True)]
    return [name for names in named for name in names]


def _place(path: Path) -> str:
    """A path as it is shortest from here; `./` before what pip would take for a name."""
    relative = os.path.relpath(path)
    if relative.startswith(os.pardir):
        return str(path)
    return relative if relative == os.curdir or os.sep in relative else os.path.join(os.curdir, relative)


def _quoted(word: str) -> str:
    return f"'{word}'" if re.search(r"[\[<>=]", word) and "'" not in word else shlex.quote(word)
