"""Which box is used, and that nothing runs below the site's minimum."""

import os
import subprocess
import threading

import pytest
from fedveil.envoy.config import EnvoyConfig, load_config
from fedveil.envoy.sandbox import box, landlock, probing
from fedveil.envoy.sandbox.box import Box, Program
from fedveil.envoy.sandbox.bubblewrap import Bubblewrap
from fedveil.envoy.sandbox.entry import Confines, Rights
from fedveil.envoy.sandbox.limits import Limits
from fedveil.envoy.sandbox.policy import SandboxPolicy, Tier
from fedveil.envoy.sandbox.probing import TierReport, probe_tiers
from fedveil.envoy.sandbox.sandbox import Sandbox
from fedveil.envoy.sandbox.software import installed, package_files
from fedveil.envoy.sandbox.view import View
from fedveil.envoy.trainer import ChildTrainer
from fedveil.utils.errors import ConfigError, SandboxError
from fedveil.workspace.benchmarks.sandbox import as_markdown, measure_sandbox
from hypothesis import given
from hypothesis import strategies as st

NOTHING = View(frozenset())


def only(*works):
    """A machine on which these tiers work."""

    def report(_, tier):
        is_there = tier in works
        return TierReport(tier, is_there, "" if is_there else "it is not there", "" if is_there else "get it")

    return report


@pytest.mark.parametrize(
    ("works", "minimum", "expected"),
    [
        (tuple(Tier), Tier.LANDLOCK, Tier.BUBBLEWRAP),
        (tuple(Tier), Tier.NONE, Tier.BUBBLEWRAP),
        ((Tier.LANDLOCK, Tier.NONE), Tier.LANDLOCK, Tier.LANDLOCK),
        ((Tier.LANDLOCK, Tier.NONE), Tier.BUBBLEWRAP, None),
        ((Tier.NONE,), Tier.LANDLOCK, None),
        ((Tier.NONE,), Tier.NONE, Tier.NONE),
    ],
)
def test_the_best_tier_that_works_is_used_and_none_below_the_minimum(tmp_path, monkeypatch, works, minimum, expected):
    monkeypatch.setattr("fedveil.envoy.sandbox.sandbox.report", only(*works))
    sandbox = Sandbox(SandboxPolicy(minimum=minimum), tmp_path)
    if expected is not None:
        assert sandbox.tier is expected
        return
    with pytest.raises(SandboxError, match=r"minimum is .* bubblewrap: it is not there \(get it\)"):
        _ = sandbox.tier


def test_without_a_tier_no_order_is_done_and_one_that_comes_later_is_found(hostile_site, tmp_path, monkeypatch, works):
    works(Tier.BUBBLEWRAP)
    site = hostile_site(tmp_path / "site", Tier.BUBBLEWRAP)
    sandbox = Sandbox(SandboxPolicy(processes=64), site.folder)
    trainer = ChildTrainer(site.folder / "state", sandbox, preload_torch=True)
    order = site.order("", "print('IT RAN', flush=True)")
    with monkeypatch.context() as patched:
        patched.setattr("fedveil.envoy.sandbox.sandbox.report", only(Tier.NONE))
        trainer.warm_up()
        assert trainer.pid is None
        with pytest.raises(SandboxError, match="no plan may run here"):
            trainer.run(order, 60, threading.Event())
        log = site.folder / "state" / "worker.log"
        assert "IT RAN" not in (log.read_text() if log.exists() else "")
    try:
        trainer.run(order, 60, threading.Event())
        assert "IT RAN" in log.read_text()
    finally:
        trainer.close()


def test_a_process_that_waited_gives_up_the_other_plans_before_it_runs_one(hostile_site, tmp_path, works):
    works(Tier.BUBBLEWRAP)
    site = hostile_site(tmp_path / "site", Tier.BUBBLEWRAP, SandboxPolicy(processes=256), preload_torch=True)
    other = site.order("", "pass").bundle
    site.trainer.warm_up()
    waiting = site.trainer.pid
    results = site.results(
        """
def try_other_plan(): Path(SITE["other"], "manifest.json").read_bytes()
def try_torch_is_there():
    if "torch" not in sys.modules:
        raise AssertionError("torch is not imported")
def try_all_cores():
    import threadpoolctl
    if {one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"} != {os.cpu_count()}:
        raise AssertionError("numpy has fewer")
""",
        other=str(other),
    )
    assert site.trainer.pid == waiting
    assert results.pop("other_plan").startswith("stopped: PermissionError")
    assert set(results.values()) == {"through"}, results


def test_what_a_box_shows_holds_neither_the_checkout_nor_the_envoys_folder():
    shown = installed().all_paths
    root = package_files()[0].parent
    assert root not in shown
    assert not any(root.is_relative_to(path) for path in shown if path not in installed().interpreter)
    assert {path.name for path in package_files()} >= {"__init__.py", "envoy", "utils"}
    assert "tests" not in {path.name for path in package_files()}


def test_a_view_that_holds_the_envoys_folder_starts_nothing(tmp_path):
    folder = tmp_path / "data" / "envoy"
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for path in (tmp_path / "data", folder, tmp_path / "link"):
        program = Program("fedveil.envoy.sandbox.trial", (), View.of([path]), (), 2, {})
        with pytest.raises(SandboxError, match="holds the envoy's own folder"):
            Box(SandboxPolicy(), folder).start(Tier.LANDLOCK, program)


def test_confines_that_cannot_be_taken_on_end_the_process_before_anything_is_loaded(tmp_path):
    threads = "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start();"
    confines = Confines(Limits(1 << 34, 4096, 1024, 1 << 30), Rights((), (), (), ()), filters_calls=True, is_alone=True)
    code = f"{threads} from fedveil.envoy.sandbox.entry import main; main([{confines.to_json()!r}, 'fedveil', 'x'])"
    found = subprocess.run([os.sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "2 threads run already" in found.stderr
    assert Confines.from_json(confines.to_json()) == confines


def test_every_tier_is_told_with_its_reason_and_what_to_do(monkeypatch):
    assert [one.tier for one in probe_tiers()] == list(Tier)
    box.bubblewrap.cache_clear()
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(landlock, "abi", lambda: 2)
    bubblewrap, fallback, _ = probe_tiers()
    box.bubblewrap.cache_clear()
    assert (bubblewrap.works, bubblewrap.fix) == (False, "apt install bubblewrap")
    assert not fallback.works
    assert fallback.reason == "the kernel has Landlock 2, expected 3 or later (Linux 6.2)"


def test_root_without_a_limit_on_processes_has_no_box(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(probing, "is_bounded_outside", lambda: False)
    monkeypatch.setattr(probing, "make_group", lambda _: None)
    for found in probe_tiers()[:2]:
        assert not found.works or found.tier is Tier.NONE
        assert "root" in found.reason or "not installed" in found.reason or "Landlock" in found.reason


def test_a_box_that_bubblewrap_cannot_make_is_no_tier(tmp_path, monkeypatch):
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(box, "bubblewrap", lambda: Bubblewrap(str(program), True, True))
    monkeypatch.setattr(probing, "_unbounded", lambda *_: None)
    found = probe_tiers()[0]
    assert not found.works
    assert found.reason == "bwrap: No permissions to create new namespace"
    assert "AppArmor" in found.fix


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join)), st.data())
def test_a_view_covers_its_parts_and_what_lies_below_them(names, data):
    from pathlib import Path

    whole = View.of(Path("/", name) for name in names)
    assert whole.covers(whole)
    assert whole.covers(NOTHING)
    if names:
        part = Path("/", data.draw(st.sampled_from(names)))
        assert whole.covers(View.of([part, part / "below"]))
    assert not whole.covers(View.of([Path("/c")]))


def test_settings_are_checked(tmp_path):
    assert EnvoyConfig().sandbox == SandboxPolicy()
    for line, words in (
        ('minimum = "docker"', "bubblewrap, landlock, none"),
        ("memory_gb = 0", "memory_gb is 0"),
        ("processes = 3", "expected 16"),
        ("scratch = 1", "not a setting"),
    ):
        (tmp_path / "envoy.toml").write_text(f"[sandbox]\n{line}\n")
        with pytest.raises(ConfigError, match=words):
            load_config(tmp_path)


@pytest.mark.slow
def test_the_benchmark_measures_every_tier_that_works():
    costs = measure_sandbox(1)
    assert {one.tier for one in costs} == {one.tier.value for one in probe_tiers() if one.works}
    assert len(as_markdown(costs)) == len(costs) + 2
    assert all(one.start > 0 and one.withdrawn > 0 for one in costs)
