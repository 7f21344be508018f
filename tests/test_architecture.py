"""The map of imports, drawn from the source text; nothing is imported for it but in fresh processes of their own."""

import ast
import graphlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
BELOW = {  # a room may import itself and these
    "protos": set(),
    "utils": {"protos"},
    "gradient_leakage": {"utils"},
    "director": {"gradient_leakage", "utils"},
    "envoy": {"gradient_leakage", "utils"},
    "workspace": {"director", "envoy", "gradient_leakage", "utils"},
    "federated": {"envoy", "utils"},  # no room: the federated API's name, one file at the root
}
GRPC_DOORS = {
    "utils.transport",
    "director.doors",
    "director.service",
    "director.control",
    "director.server",
    "director.operator_client",
    "envoy.client",
}
WITH_TORCH = {"utils.vision", "envoy", "workspace", "gradient_leakage"}  # a module, or a room
SEEING_THE_TRUTH = {
    "victim",
    "metrics",
    "verification",
    "cases",
    "benchmark",
    "report",
    "rows",
    "tabulation",
    "claims",
}  # of gradient_leakage
CODE_FROM_DATA = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_TEXT = {
    "pickled arrays": r"allow_pickle\s*=\s*True",
    "pickled weights": r"weights_only\s*=\s*False|\btorch\.(load|save)\(",
    "plaintext transport": r"insecure_channel|insecure_server_credentials|add_insecure_port",
}


@cache
def modules() -> dict[str, Path]:
    """All hand-written modules by name without ``fedveil.``; the root is ``""``."""
    found = {"": CHECKOUT / "__init__.py", "federated": CHECKOUT / "federated.py"}
    for room in BELOW:
        for path in sorted((CHECKOUT / room).rglob("*.py")):
            if not re.search(r"_pb2(_grpc)?\.py$", path.name) and "notebooks" not in path.parts:
                name = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)
                found[name.removesuffix(".__init__")] = path
    return found


@cache
def imports_of(name: str) -> frozenset[str]:
    """What a module imports anywhere in its text: ``fedveil.…`` for our own, the full dotted name for others."""
    path = modules()[name]
    full = f"fedveil.{name}".rstrip(".")
    package = full if path.name == "__init__.py" else full.rpartition(".")[0]
    return frozenset(_imports(ast.parse(path.read_bytes()), full, package))


def _imports(tree: ast.Module, full: str, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and len(node.args) == 2:
            named = node.args[0]  # import_module("..training", __name__)
            yield from [importlib.util.resolve_name(named.value, full)] if isinstance(named, ast.Constant) else []


def own_imports(name: str) -> set[str]:
    """The modules of ours that a module imports; ``from .rooms import Name`` counts for ``rooms``."""
    found = set()
    for imported in imports_of(name):
        if imported.partition(".")[0] == "fedveil":
            inner = imported.removeprefix("fedveil").removeprefix(".")
            while inner and inner not in modules() and not inner.startswith("protos.federation_pb2"):
                inner = inner.rpartition(".")[0]
            found.add(inner)
    return found


def room_of(name: str) -> str:
    return name.partition(".")[0]


def test_every_room_of_the_design_is_there_and_has_modules():
    assert {room_of(name) for name in modules()} == {"", *BELOW}
    assert len(modules()) > 60
    assert "director.coordinator" in own_imports("director.envoy_calls")
    assert "envoy.training" in own_imports("envoy.workbench")


def test_imports_only_look_down():
    upward = {
        f"{name} imports {imported}"
        for name in modules()
        for imported in own_imports(name)
        if name and imported and room_of(imported) not in {room_of(name), *BELOW[room_of(name)]}
    }
    assert not upward


def test_no_module_imports_itself_by_a_detour():
    graph = {name: {m for m in own_imports(name) if m and m != name} for name in modules() if name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_rooms_take_nothing_but_the_version_from_the_root():
    # Plans and notebooks in the workspace use the public names, as a researcher's own do.
    taken = {
        f"{name} imports {imported}"
        for name in modules()
        for imported in imports_of(name)
        if room_of(name) not in {"", "workspace"} and room_of(imported) == "fedveil"
        if imported.split(".")[1] not in {"__version__", *BELOW}
    }
    assert not taken


def test_the_generated_stubs_are_seen_by_wire_alone():
    seeing = {n for n in modules() if any(re.search(r"federation_pb2|google\.protobuf", i) for i in imports_of(n))}
    assert seeing == {"utils.wire", "utils.wire_control", "utils.wire_fields", "utils.wire_sums"}


def test_the_stubs_of_the_secure_sum_are_seen_by_its_encoding_alone():
    seeing = {n for n in modules() if any("secure_sum_pb2" in i for i in imports_of(n))}
    assert seeing == {"utils.secure_sum.encoding"}


def test_grpc_is_seen_by_the_doors_alone():
    seeing = {n for n in modules() if any(room_of(imported) == "grpc" for imported in imports_of(n))}
    assert seeing == GRPC_DOORS


def test_torch_is_named_only_where_something_is_trained_or_composed():
    naming = {n for n in modules() if any(room_of(i) in {"torch", "torchvision"} for i in imports_of(n))}
    assert {n for n in naming if n not in WITH_TORCH and room_of(n) not in WITH_TORCH} == set()
    torchvision = {n for n in modules() if any(room_of(i) in {"torchvision", "torchmetrics"} for i in imports_of(n))}
    assert torchvision <= {"utils.vision"}


def test_no_attack_can_reach_what_sees_the_truth():
    attacks = [n for n in modules() if n.startswith("gradient_leakage.attacks.")]
    guilty = {f"{n} imports {m}" for n in attacks for m in own_imports(n) if m.rpartition(".")[2] in SEEING_THE_TRUTH}
    assert "gradient_leakage.attacks.catalogue" in attacks
    assert not guilty
    reached = {m for n in ("threat_model", "gradients", "models") for m in own_imports(f"gradient_leakage.{n}")}
    assert not {m for m in reached if m.rpartition(".")[2] in SEEING_THE_TRUTH}


def test_nothing_is_read_that_could_be_code():
    guilty = {f"{n}: {i}" for n in modules() for i in imports_of(n) if room_of(i) in CODE_FROM_DATA}
    assert not guilty


@pytest.mark.parametrize("what", FORBIDDEN_TEXT)
def test_no_module_uses(what):
    pattern = re.compile(FORBIDDEN_TEXT[what])
    assert not {name for name, path in modules().items() if pattern.search(path.read_text("utf-8"))}


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("fedveil", ["torch", "numpy", "grpc", "sqlalchemy", "fedveil.utils"]),
        ("fedveil.director.server", ["torch", "torchvision", "fedveil.envoy", "fedveil.workspace", "pyarrow"]),
        ("fedveil.director.__main__", ["torch", "sqlalchemy", "grpc", "fedveil.envoy", "fedveil.workspace"]),
        ("fedveil.director.operator_client", ["torch", "fedveil.envoy"]),
        ("fedveil.envoy.__main__", ["torch", "grpc", "fedveil.director", "fedveil.workspace"]),
        ("fedveil.envoy.session", ["torch", "torchvision", "fedveil.director", "sqlalchemy"]),
        ("fedveil.envoy.worker", ["torch", "grpc", "fedveil.director"]),
        ("fedveil.federated", ["torch", "torchvision", "sqlalchemy", "fedveil.director", "fedveil.workspace"]),
    ],
)
def test_importing_one_module_leaves_others_unloaded(imported, absent):
    script = f"import sys, json, importlib; importlib.import_module({imported!r}); print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    loaded = json.loads(done.stdout)
    assert imported in loaded
    assert not {m for m in loaded for name in absent if m == name or m.startswith(f"{name}.")}
