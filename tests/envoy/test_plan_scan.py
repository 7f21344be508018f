"""What a look at a plan's text finds, and that no text makes it fall over."""

import ast
import gc
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fedveil
import pytest
from fedveil.envoy.config import EnvoyConfig
from fedveil.envoy.plan_scan import PURE, require_allowed, scan, scan_texts
from fedveil.utils.config import parse_toml
from fedveil.utils.errors import ConfigError, PlanError
from fedveil.utils.plan_bundle import PlanKind, open_bundle
from fedveil.workspace.__main__ import app
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

PLANS = sorted((Path(fedveil.__file__).parent / "workspace" / "pneumonia").glob("[a-z]*.py"))


def found(text, *allowed):
    return scan_texts({"plan.py": text.encode() if isinstance(text, str) else text}, allowed)


@pytest.mark.parametrize("path", PLANS, ids=[path.name for path in PLANS])
def test_the_plans_that_are_shipped_import_nothing_forbidden_and_reach_for_nothing(path):
    report = found(path.read_bytes())
    assert (report.forbidden, report.calls, report.hints) == ((), (), ())
    require_allowed(report, path.name)


def test_imports_are_told_by_their_whole_names_and_forbidden_ones_with_file_and_line():
    report = found("import torch.nn.functional as F\nfrom math import pi\n\ndef f():\n    import socket, os.path\n")
    assert report.imports == ("math", "os.path", "socket", "torch.nn.functional")
    assert [str(one) for one in report.forbidden] == ["plan.py:5: import of os.path", "plan.py:5: import of socket"]
    with pytest.raises(PlanError, match=r"plan P: plan.py:5: import of os.path is not allowed, and 1 more"):
        require_allowed(report, "P")


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess",
        "from os import system",
        "import torchvision",
        "from fedveil.envoy import session",
        "from fedveil import envoy",
        "import fedveil.utils.vision",
        "from torch import hub",
        "import torch.utils.cpp_extension as c",
        "from torch.utils import cpp_extension",
        "import numpy.ctypeslib",
        "from importlib import import_module",
        "import ctypes",
        "from . import other",
        "from .other import x",
        "from ...above import x",
    ],
)
def test_each_of_these_imports_is_forbidden(text):
    assert found(text).forbidden


def test_a_plans_own_files_are_imported_with_a_dot_and_no_other_way():
    texts = {
        "plan.py": b"from .parts.net import Net\nfrom .parts import net\n",
        "parts/net.py": b"from . import blocks\nfrom .blocks import x\n",
        "parts/blocks.py": b"",
        "os.py": b"",
    }
    assert scan_texts(texts).forbidden == ()
    assert [str(one) for one in scan_texts(texts | {"plan.py": b"import os\n"}).forbidden] == [
        "plan.py:1: import of os"
    ]


def test_a_site_may_allow_further_modules_and_never_our_own_inner_ones():
    assert found("import scipy.stats").forbidden
    assert found("import scipy.stats", "scipy").forbidden == ()
    assert found("import fedveil.envoy", "fedveil.envoy", "fedveil").forbidden


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x = open('/etc/passwd')", "open()"),
        ("__import__('so' + 'cket')", "__import__()"),
        ("eval('1')\n", "eval()"),
        ("getattr(x, 'y')", "getattr()"),
        ("import torch\ntorch.load('x')", "torch.load()"),
        ("import numpy as np\nnp.fromfile('x')", "np.fromfile()"),
        ("model.weight.numpy().tofile('x')", "tofile()"),
    ],
)
def test_what_reaches_out_is_shown_with_its_line(text, what):
    assert any(what in one.what and one.line == len(text.splitlines()) for one in found(text).calls)


@pytest.mark.parametrize(
    "text",
    [
        "().__class__.__base__.__subclasses__()",
        "f.__globals__['x']",
        "__builtins__",
        "x = 'socket'",
        "x = '__import__'",
        "torch.utils.cpp_extension.load",
        f"x = '{'QUJD' * 100}'",
        "import typing\ntyping.sys.modules",
    ],
)
def test_inner_names_and_encoded_texts_are_hints(text):
    assert found(text).hints


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"\xef\xbb\xbfx = 1", "byte order mark"),
        (b"# -*- coding: latin-1 -*-\nx = 1", "another encoding"),
        (b"#!/usr/bin/python\n# vim: set fileencoding=utf-7 :\n", "another encoding"),
        ("x = 'é'".encode("latin-1"), "is not UTF-8"),
        (b"x = 1\0", "null byte"),
        (b"def (", "is not Python"),
        ("x = 1 # \u202e".encode(), "changes how text is shown"),
        (b"(" * 60_000 + b")" * 60_000, "is not Python"),
        (b"-" * 120_000 + b"1", "nested too deeply"),
        (b"a" + b".b" * 60_000, "nested too deeply"),
        (b"1" + b"+1" * 60_000, "nested too deeply"),
        (b"9" * 5_000, "is not Python"),
        (b"x" * ((128 << 10) + 1), "larger than"),
    ],
)
def test_a_file_that_is_no_plain_python_is_forbidden_without_a_crash(raw, what):
    report = found(raw)
    assert [what in one.what for one in report.forbidden] == [True]


def test_a_file_that_says_utf8_is_taken_and_one_that_is_no_python_is_a_hint():
    report = scan_texts({"plan.py": "# -*- coding: utf_8 -*-\nx = 'é'\n".encode(), "notes.txt": b"\xff"})
    assert report.forbidden == ()
    assert [str(one) for one in report.hints] == ["notes.txt: no Python: nothing of it was looked at"]


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_a_report(raw):
    report = found(raw)
    assert report.lines()
    try:
        ast.parse(raw.decode())
    except (SyntaxError, ValueError):
        assert report.forbidden or not raw


@given(st.sampled_from(sorted(PURE | {"torch", "numpy", "fedveil", "os", "sys", "socket", "pickle", "io"})))
def test_a_module_is_allowed_by_its_name_alone(name):
    is_allowed = name in PURE | {"torch", "numpy", "fedveil"}
    for text in (f"import {name}", f"from {name} import *", f"import {name} as x"):
        assert bool(found(text).forbidden) is not is_allowed


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "plan.py"
    path.write_text(
        "import numpy as np\n"
        "from fedveil import ArrayPlan, DataKind, DataSpec, mean_of\n\n\n"
        "class Plan(ArrayPlan):\n"
        '    data = DataSpec("none", DataKind.NONE)\n\n'
        "    def initial(self):\n"
        '        return {"w": np.zeros(3, np.float32)}\n\n'
        "    def train(self, weights, data, rng):\n"
        '        return {"w": weights["w"] + 1}, 1\n\n'
        "    def evaluate(self, weights, data):\n"
        "        return []\n"
    )
    return path


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, " ".join(result.output.split())


def test_many_threads_that_look_at_once_find_the_same():
    text = PLANS[0].read_bytes()
    seldom = gc.get_threshold()

    def let_others_in(phase, info):
        time.sleep(0)

    gc.callbacks.append(let_others_in)
    gc.set_threshold(10)  # while a tree is built
    try:
        with ThreadPoolExecutor(8) as pool:
            reports = set(pool.map(lambda _: found(text), range(16)))
    finally:
        gc.set_threshold(*seldom)
        gc.callbacks.remove(let_others_in)
    assert reports == {found(text)}


def test_plan_build_shows_what_a_site_will_see(source, tmp_path):
    code, output = run("plan", "build", source, "--out", tmp_path / "out")
    assert code == 0
    assert "imports: fedveil, numpy" in output
    assert scan(open_bundle(tmp_path / "out")).imports == ("fedveil", "numpy")


def test_plan_build_refuses_what_a_site_will_refuse_before_any_of_it_runs(source, tmp_path):
    mark = tmp_path / "it-ran"
    source.write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n" + source.read_text())
    code, output = run("plan", "build", source, "--out", tmp_path / "out")
    assert code == 1
    assert "plan.py:1: import of pathlib is not allowed" in output
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
    code, output = run("plan", "build", source, "--out", tmp_path / "out", "--allow-import", "pathlib")
    assert code == 0


def test_plan_build_of_a_recipe_holds_no_code(tmp_path):
    recipe = PLANS[0].parent / "recipe.toml"
    code, output = run("plan", "build", recipe, "--out", tmp_path / "out")
    assert code == 0
    assert "imports" not in output
    assert open_bundle(tmp_path / "out").manifest.kind is PlanKind.DECLARATIVE


def test_what_runs_unasked_is_named_with_its_limits_or_nothing_is(tmp_path):
    text = '[approval]\ndeclarative = "allow"\nrecipes = ["Pneumonia"]\ndatasets = ["chest-xray"]\nmax_rounds = 10\n'
    approval = parse_toml(text, EnvoyConfig, "envoy.toml").approval
    run("plan", "build", PLANS[0].parent / "recipe.toml", "--out", tmp_path / "recipe")
    run("plan", "build", PLANS[0].parent / "plan.py", "--out", tmp_path / "code")
    recipe, code = open_bundle(tmp_path / "recipe").manifest, open_bundle(tmp_path / "code").manifest
    assert approval.allows_unasked(recipe, 10)
    assert not approval.allows_unasked(recipe, 11)
    assert not approval.allows_unasked(code, 1)
    assert not EnvoyConfig().approval.allows_unasked(recipe, 1)
    for changed in ('recipes = ["Other"]', 'datasets = ["other"]'):
        key = changed.partition(" ")[0]
        other = "\n".join(changed if line.startswith(key) else line for line in text.splitlines())
        assert not parse_toml(other, EnvoyConfig, "envoy.toml").approval.allows_unasked(recipe, 1)


@pytest.mark.parametrize(
    "text",
    [
        'declarative = "allow"',
        'declarative = "allow"\nrecipes = ["A"]\nmax_rounds = 3',
        'recipes = ["A"]',
        "max_rounds = 3",
        'imports = ["../os"]',
        'imports = ["fedveil.envoy"]',
        'declarative = "yes"',
        'python = "allow"',
    ],
)
def test_an_approval_table_that_says_too_little_or_too_much_is_refused(text):
    with pytest.raises(ConfigError):
        parse_toml(f"[approval]\n{text}\n", EnvoyConfig, "envoy.toml")
