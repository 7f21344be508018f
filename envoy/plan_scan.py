"""What a plan's text imports and reaches for, read without running it: a help for whoever approves it; a first gate.

A scan proves nothing: Python can build any name while it runs. What confines a plan is the sandbox; that nobody is
surprised by a plan is what this is for. Imports that the tier forbids are refused all the same, so that a plan says
what it needs instead of finding it there, and so is any file that cannot be read as plain UTF-8 Python.

| found | what follows |
|---|---|
| import of anything but ``fedveil``, torch, numpy and some pure modules of Python's own | forbidden |
| ``fedveil``'s inner modules; parts of torch and numpy that compile, fetch or start something | forbidden |
| a .py file that is no UTF-8, holds null bytes, is too large or too deep, is no Python | forbidden |
| ``open``, ``exec``, ``eval``, ``__import__``, ``torch.load``, ``.tofile`` and their like | shown |
| ``__subclasses__`` and other inner names; texts that look encoded; files that are no Python | shown |
"""

from __future__ import annotations

import ast
import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..utils.errors import PlanError
from ..utils.plan_bundle import INITIAL_FILE, LAYOUT_FILE, Bundle

MAX_SOURCE_BYTES = 128 << 10  # nobody reads more of a plan; and Python parses long f-strings in quadratic time
_PURE_MODULES = """__future__ abc array bisect cmath collections contextlib copy dataclasses decimal enum fractions
functools heapq itertools math numbers operator random statistics string struct textwrap time typing warnings"""
_ROOM_NAMES = "director envoy gradient_leakage protos utils workspace"
_FUNCTIONS = "__import__ breakpoint compile delattr eval exec getattr globals input locals open setattr vars"
_METHOD_NAMES = """ctypes_load_library export fromfile genfromtxt import_module load load_library loadtxt memmap open
open_memmap popen read_bytes read_text run save savetxt savez savez_compressed sleep system tofile write_bytes
write_text"""
_PLAIN_NAMES = """__init__ __post_init__ __call__ __len__ __iter__ __getitem__ __name__ __class__ __doc__ __repr__
__str__ __eq__ __hash__ __enter__ __exit__ __setitem__ __contains__ __next__ __slots__ __version__"""

ALLOWED = frozenset({"fedveil", "torch", "numpy"})
PURE = frozenset(_PURE_MODULES.split())
_INNER = (  # of the allowed ones: they compile, fetch, start processes or read code from files
    "numpy.ctypeslib",
    "numpy.distutils",
    "numpy.f2py",
    "numpy.testing",
    "torch.distributed",
    "torch.hub",
    "torch.multiprocessing",
    "torch.package",
    "torch.testing",
    "torch.utils.bundled_inputs",
    "torch.utils.collect_env",
    "torch.utils.cpp_extension",
    "torch.utils.model_zoo",
    "torch.utils.tensorboard",
)
_ROOMS = frozenset(f"fedveil.{room}" for room in _ROOM_NAMES.split())
_CALLS = frozenset(_FUNCTIONS.split())
_METHODS = frozenset(_METHOD_NAMES.split())
_PLAIN_DUNDERS = frozenset(_PLAIN_NAMES.split())
_ENCODED = re.compile(r"[A-Za-z0-9+/=_-]{200,}|(?:\\x[0-9a-f]{2}){50,}")
_CODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_MAX_FINDINGS = 500
_PARSING = threading.Lock()
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks of writing direction: with them a text is shown in another order than it is run (CVE-2021-42574)."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something at a place; ``what`` may quote a name of the plan, never more than a short one."""

    path: str
    line: int  # from 1; 0: the file as a whole
    what: str

    def __str__(self) -> str:
        """As a compiler says it."""
        return f"{self.path}:{self.line}: {self.what}" if self.line else f"{self.path}: {self.what}"


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What a look at all files of a plan found."""

    imports: tuple[str, ...]  # modules, by their whole names
    forbidden: tuple[Finding, ...]  # such a plan is not run
    calls: tuple[Finding, ...]  # that reach out of the plan
    hints: tuple[Finding, ...]  # to look at

    def lines(self) -> list[str]:
        """For a terminal."""
        lines = [f"imports: {', '.join(self.imports) or 'nothing'}"]
        for word, found in (("forbidden", self.forbidden), ("call", self.calls), ("look at", self.hints)):
            lines += [f"{word}: {one}" for one in found]
        return lines


def scan(bundle: Bundle, also_allowed: Iterable[str] = ()) -> ScanReport:
    """Look at every file of a plan. Nothing of it is run, and no text of it makes this raise.

    Args:
        bundle: whose bytes were checked.
        also_allowed: further modules that the site lets plans import.

    Raises:
        PlanError: a file was changed since the bundle was opened.
    """
    paths = [file.path for file in bundle.manifest.files if file.path not in (LAYOUT_FILE, INITIAL_FILE)]
    too_large = {file.path for file in bundle.manifest.files if file.size > MAX_SOURCE_BYTES}
    texts = {path: None if path in too_large else bundle.blob(path) for path in paths}
    return scan_texts(texts, also_allowed)


def scan_texts(texts: Mapping[str, bytes | None], also_allowed: Iterable[str] = ()) -> ScanReport:
    """As ``scan``, of files by their paths; None stands for one that is too large to be read.

    >>> scan_texts({"plan.py": b"import torch, socket"}).lines()
    ['imports: socket, torch', 'forbidden: plan.py:1: import of socket']
    """
    modules = {"." + ".".join(PurePosixPath(path).with_suffix("").parts) for path in texts if path.endswith(".py")}
    allowed = ALLOWED | PURE | frozenset(also_allowed)
    imports: set[str] = set()
    forbidden: set[Finding] = set()
    calls: set[Finding] = set()
    hints: set[Finding] = set()
    for path, raw in texts.items():
        if not path.endswith(".py"):
            hints.add(Finding(path, 0, "no Python: nothing of it was looked at"))
            continue
        tree = _parsed(path, raw)
        if isinstance(tree, Finding):
            forbidden.add(tree)
            continue
        for node in ast.walk(tree):
            for name, line in _imported(node, path):
                imports.add(name)
                if _is_forbidden(name, allowed, modules):
                    forbidden.add(Finding(path, line, f"import of {name[:100]}"))
            calls |= {Finding(path, line, what) for line, what in _reached(node)}
            hints |= {Finding(path, line, what) for line, what in _suspect(node)}
    return ScanReport(tuple(sorted(imports)), _first(forbidden), _first(calls), _first(hints))


def require_allowed(report: ScanReport, name: str) -> None:
    """Refuse a plan that imports what it may not.

    Raises:
        PlanError: names the file and line, and what to do.
    """
    if report.forbidden:
        more = f", and {len(report.forbidden) - 1} more" if len(report.forbidden) > 1 else ""
        raise PlanError(
            f"plan {name}: {report.forbidden[0]} is not allowed{more}: plans import fedveil, torch, numpy and"
            " pure modules of the standard library; a site may allow others by approval.imports of its envoy.toml"
        )


class _UnreadableError(Exception):
    """Why a text is not looked at: at which line, and what."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line, self.what = line, what


def _parsed(path: str, raw: bytes | None) -> ast.Module | Finding:
    if raw is None or len(raw) > MAX_SOURCE_BYTES:
        return Finding(path, 0, f"larger than {MAX_SOURCE_BYTES} bytes")
    try:
        text = _text_of(raw)
        return _tree_of(text)
    except _UnreadableError as error:
        return Finding(path, error.line, error.what)
    except (RecursionError, MemoryError):
        return Finding(path, 0, "is nested too deeply to be read")
    except (SyntaxError, ValueError, OverflowError) as error:
        return Finding(path, getattr(error, "lineno", 0) or 0, "is not Python")


def _tree_of(text: str) -> ast.Module:
    # CPython counts the depth of a tree in one place for all threads before 3.11.8 (python/cpython#106905): two that
    # parse at once raise SystemError. One at a time here; once more where another library parsed meanwhile.
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the plan's text: not ours to show
        try:
            return ast.parse(text)
        except SystemError:
            return ast.parse(text)


def _text_of(raw: bytes) -> str:
    """UTF-8 that is shown as it is run."""
    if raw.startswith(b"\xef\xbb\xbf"):
        raise _UnreadableError(1, "begins with a byte order mark")
    for number, line in enumerate(raw.splitlines()[:2], 1):
        said = _CODING.match(line)
        if said and said[1].lower().replace(b"_", b"-") not in (b"utf-8", b"utf8"):
            raise _UnreadableError(number, "says that it is in another encoding than UTF-8")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise _UnreadableError(raw.count(b"\n", 0, error.start) + 1, "is not UTF-8") from error
    for at, one in enumerate(text):
        if one == "\0" or one in _TURNING:
            what = "a character that changes how text is shown" if one in _TURNING else "a null byte"
            raise _UnreadableError(text.count("\n", 0, at) + 1, f"holds {what}")
    return text


def _imported(node: ast.AST, path: str) -> Iterator[tuple[str, int]]:
    """Whole names of what a node imports; relative ones with a dot, from the bundle's root on."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        if node.level:
            folder = PurePosixPath(path).parent.parts
            above = folder[: len(folder) - (node.level - 1)] if node.level - 1 <= len(folder) else ("",)
            named = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (("." + ".".join((*above, name)), node.lineno) for name in named)
        else:
            module = node.module or ""
            inner = [f"{module}.{alias.name}" for alias in node.names]
            # "from torch import hub" imports torch.hub; "from torch import Tensor" no module
            yield from ((name, node.lineno) for name in inner if name in _INNER or name in _ROOMS)
            yield module, node.lineno


def _is_forbidden(name: str, allowed: frozenset[str], own: set[str]) -> bool:
    if name.startswith("."):
        return name not in own and not any(module.startswith(f"{name}.") for module in own)
    root = name.partition(".")[0]
    if root == "fedveil":
        return name != "fedveil"  # what plans may use is at the root
    if any(name == inner or name.startswith(f"{inner}.") for inner in _INNER) and name not in allowed:
        return True
    return root not in allowed and name not in allowed


def _reached(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Name) and function.id in _CALLS:
            yield node.lineno, f"{function.id}()"
        elif isinstance(function, ast.Attribute) and function.attr in _METHODS:
            yield node.lineno, f"{_dotted(function)}()"


def _suspect(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Attribute):
        if _is_inner(node.attr):
            yield node.lineno, f".{node.attr[:60]}"
        if node.attr in ("modules", "environ", "builtins"):
            yield node.lineno, _dotted(node)
        if _dotted(node) in _INNER:
            yield node.lineno, _dotted(node)
    elif isinstance(node, ast.Name) and node.id in ("__builtins__", "__loader__", "__spec__", "__file__"):
        yield node.lineno, node.id
    elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
        if _is_inner(text) or text in sys.stdlib_module_names - PURE - {"test", "this", "site", "code", "types"}:
            yield node.lineno, f"the text {text[:60]!r}"
        elif len(text) > 200 and _ENCODED.search(text):
            yield node.lineno, "a long text that looks encoded"


def _is_inner(name: str) -> bool:
    return len(name) > 4 and name.startswith("__") and name.endswith("__") and name not in _PLAIN_DUNDERS


def _dotted(node: ast.Attribute) -> str:
    """``torch.load`` of its node; only so many parts as a name has."""
    parts: list[str] = []
    held: ast.expr = node
    while isinstance(held, ast.Attribute) and len(parts) < 4:
        parts.append(held.attr[:60])
        held = held.value
    parts.append(held.id[:60] if isinstance(held, ast.Name) else "")
    return ".".join(reversed(parts))


def _first(findings: set[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings)[:_MAX_FINDINGS])
