"""What TensorRT's Python classes have and how it is called: read from a module, from a typed stub, written as one.

    python -m tests.tools.signatures BINDINGS.so [BASE.pyi] > tests/stubs/tensorrt_10_3.pyi

10.13 is the base, written whole; of other releases a stub has what differs from it.

BINDINGS.so is `tensorrt_bindings/tensorrt.so` out of a wheel of the package tensorrt-cu12-bindings (or -cu13-). Its
docstrings hold every signature. It is linked to TensorRT's own libraries, of which it calls nothing when it is
imported, so empty ones with their names in LD_LIBRARY_PATH do (libnvinfer, libnvinfer_plugin, libnvonnxparser).
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CLASSES", "Api", "Member", "Parameter", "as_stub", "of_module", "of_stub"]

CLASSES = frozenset(
    (
        *("Builder", "BuilderFlag", "ComputeCapability", "CudaGraphStrategy", "DataType"),
        *("DynamicShapesKernelSpecializationStrategy", "EngineInspector"),
        *("ExecutionContextAllocationStrategy", "HardwareCompatibilityLevel", "IBuilderConfig", "ICudaEngine"),
        *("IExecutionContext", "IHostMemory", "ILayer", "ILogger", "INetworkDefinition", "IOptimizationProfile"),
        *("IOutputAllocator", "IProgressMonitor", "IRuntimeCache", "IRuntimeConfig", "ITensor", "ITimingCache"),
        *("LayerInformationFormat", "LayerType", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser"),
        *("OnnxParserRefitter", "ParserError", "ProfilingVerbosity", "Refitter", "Runtime", "TensorIOMode"),
    )
)
_KNOWN = {*CLASSES, "int", "float", "bool", "str", "bytes", "None"}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method; `type` is a name of `CLASSES`, a plain type, or Any."""

    name: str
    type: str
    optional: bool


Parameters = tuple[Parameter, ...]  # without self


@dataclass(frozen=True)
class Member:
    """An attribute, or a method where there are `calls`: the parameters of each overload. `type` is what it gives."""

    type: str
    calls: tuple[Parameters, ...] = ()

    def takes(self, positional: Sequence[str | None], named: Mapping[str, str | None]) -> bool:
        """Whether a call with arguments of these types fits (None: any type)."""
        return any(_fits(parameters, positional, named) for parameters in self.calls)


Api = dict[str, dict[str, Member]]


def _fits(parameters: Parameters, positional: Sequence[str | None], named: Mapping[str, str | None]) -> bool:
    given = dict(zip((parameter.name for parameter in parameters), positional, strict=False)) | named
    known = {parameter.name: parameter for parameter in parameters}
    return (
        len(given) == len(positional) + len(named)  # not too many, and none twice
        and given.keys() <= known.keys()
        and all(parameter.optional or parameter.name in given for parameter in parameters)
        and all(kind in (None, known[name].type) or known[name].type == "Any" for name, kind in given.items())
    )


def of_module(module: Any) -> Api:
    """The classes of an imported TensorRT."""
    return {kind: dict(_members(getattr(module, kind))) for kind in sorted(CLASSES) if hasattr(module, kind)}


def _members(kind: Any) -> Iterator[tuple[str, Member]]:
    if hasattr(kind, "__members__"):  # an enumeration
        for name in kind.__members__:
            yield name, Member(kind.__name__)
        return
    for base in reversed(kind.__mro__):
        for name, value in vars(base).items():
            if base is object or (name.startswith("_") and name != "__init__"):
                continue
            if name.startswith("add_") and kind.__name__ == "INetworkDefinition":  # the parser makes networks
                continue
            if isinstance(value, property):
                yield name, Member(_returned(value.fget.__doc__ or ""))
            elif callable(value) and not isinstance(value, type):
                yield name, _method(name, value.__doc__ or "")
            else:
                yield name, Member(_type(type(value).__name__))


def _method(name: str, text: str) -> Member:
    lines = [line for line in text.splitlines() if re.match(rf"(\d+\. )?{name}\(self", line)]
    return Member(_returned(lines[0]) if lines else "Any", tuple(_parameters(line) for line in lines))


def _parameters(line: str) -> Parameters:
    inside, depth, parts = line[line.index("(") + 1 : line.rindex(") ->")], 0, [""]
    for letter in inside:
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    found = [re.match(r"\s*(\w+)(?:: ([^=]+?))?( = .*)?$", part, re.DOTALL) for part in parts[1:]]
    return tuple(Parameter(match[1], _type(match[2]), match[3] is not None) for match in found if match)


def _returned(line: str) -> str:
    found = re.search(r"\) -> ([\w.]+)\s*$", line.strip())
    return _type(found[1] if found else None)


def _type(text: str | None) -> str:
    name = (text or "Any").strip().rpartition(".")[2]
    return {"SupportsInt": "int", "SupportsFloat": "float"}.get(name, name if name in _KNOWN else "Any")


def of_stub(path: Path) -> Api:
    """The classes of a typed stub that `as_stub` wrote, on those of the stub that it names as its BASE."""
    api: Api = {}
    for item in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(item, ast.Assign):
            api = of_stub(path.with_name(ast.literal_eval(item.value)))
        elif isinstance(item, ast.Delete):
            for kind in item.targets:
                del api[ast.unparse(kind)]
        elif isinstance(item, ast.ClassDef):
            _read_class(item, api.setdefault(item.name, {}))
    return api


def _read_class(kind: ast.ClassDef, members: dict[str, Member]) -> None:
    overloads: dict[str, tuple[Parameters, ...]] = {}
    for item in kind.body:
        if isinstance(item, ast.AnnAssign):
            members[ast.unparse(item.target)] = Member(ast.unparse(item.annotation))
        elif isinstance(item, ast.Delete):
            for name in item.targets:
                del members[ast.unparse(name)]
        elif isinstance(item, ast.FunctionDef):
            overloads[item.name] = (*overloads.get(item.name, ()), _arguments(item))
            members[item.name] = Member(ast.unparse(item.returns or ast.Constant("Any")), overloads[item.name])


def _arguments(function: ast.FunctionDef) -> Parameters:
    arguments = function.args.args[1:]
    without = len(arguments) - len(function.args.defaults)
    return tuple(
        Parameter(argument.arg, ast.unparse(argument.annotation or ast.Constant("Any")), index >= without)
        for index, argument in enumerate(arguments)
    )


def as_stub(api: Api, base: Path | None = None) -> str:
    """A typed stub of these classes; with a base: of what differs from it, and `del` of what is no longer there."""
    known = of_stub(base) if base else {}
    lines = ["from __future__ import annotations", "", "from typing import Any, overload"]
    lines += ["", f'BASE = "{base.name}"'] if base else []
    lines += [f"del {kind}" for kind in known if kind not in api]
    for kind, members in api.items():
        before = known.get(kind, {})
        changed = {name: member for name, member in members.items() if before.get(name) != member}
        removed = [name for name in before if name not in members]
        if kind in known and not changed and not removed:
            continue
        lines += ["", f"class {kind}:", *(f"    del {name}" for name in removed)]
        for name, member in changed.items():
            if not member.calls:
                lines.append(f"    {name}: {member.type}")
            for parameters in member.calls:
                shown = ", ".join(["self", *(f"{p.name}: {p.type}{' = ...' * p.optional}" for p in parameters)])
                lines += ["    @overload"] * (len(member.calls) > 1)
                lines.append(f"    def {name}({shown}) -> {member.type}: ...")
        if not members:
            lines.append("    ...")
    return "\n".join(lines) + "\n"


def main(path: str, base: str | None = None) -> None:
    spec = importlib.util.spec_from_file_location("tensorrt", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    print(as_stub(of_module(module), Path(base) if base else None), end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
