"""Plans that try to get out, each through the real training process; the same attempts get through without a box."""

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedveil.envoy.orders import order_to_json
from fedveil.envoy.sandbox import landlock
from fedveil.envoy.sandbox.cgroup import make_group
from fedveil.envoy.sandbox.limits import threads_of
from fedveil.envoy.sandbox.policy import SandboxPolicy, Tier
from fedveil.utils.errors import TrainingError

BOXES = [Tier.BUBBLEWRAP, Tier.LANDLOCK]
ATTEMPTS = {
    "network": """
def try_tcp(): socket.create_connection(("127.0.0.1", SITE["tcp"]), 2)
def try_udp(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"out", ("127.0.0.1", SITE["udp"]))
def try_abstract_socket(): socket.socket(socket.AF_UNIX).connect("\\0" + SITE["abstract"])
def try_envoys_socket(): socket.socket(socket.AF_UNIX).connect(SITE["folder"] + "/envoy.sock")
def try_listen(): socket.create_server(("127.0.0.1", 0))
def try_raw(): socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
def try_netlink(): socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
def try_io_uring(): call(425, 8, ctypes.byref(ctypes.create_string_buffer(120)))
""",
    "files": """
def try_keys(): found(SITE["secret"], Path(SITE["folder"], "credentials.json").read_text())
def try_shadow(): Path("/etc/shadow").read_bytes()
def try_passwd(): Path("/etc/passwd").read_bytes()
def try_home(): os.listdir(SITE["home"])
def try_envoys_folder(): os.listdir(SITE["folder"])
def try_payload(): Path(SITE["folder"], "work", "payload.f32").read_bytes()
def try_own_log(): Path(SITE["folder"], "state", "worker.log").read_bytes()
def try_leak_test_log(): Path(SITE["folder"], "state", "leak-test.log").read_bytes()
def try_own_data_by_name(): Path(SITE["root"], "data", "rows", "rows.csv").read_bytes()
def try_other_data(): Path(SITE["root"], "data", "others", "others.csv").read_bytes()
def try_records(): os.listdir(SITE["folder"] + "/datasets")
def try_other_plan(): Path(SITE["other_plan"], "manifest.json").read_bytes()
def try_list_plans(): os.listdir(SITE["folder"] + "/plans")
def try_a_link_to_the_keys():
    os.symlink(SITE["folder"] + "/credentials.json", SCRATCH + "/link")
    Path(SCRATCH, "link").read_bytes()
def try_disk(): open("/dev/vda", "rb").read(1)
def try_memory_of_the_machine(): open("/dev/mem", "rb").read(1)
def try_kernel_log(): open("/dev/kmsg").read(1)
""",
    "writes": """
DATA = Path(SITE["root"], "data", "rows", "rows.csv")
def try_write(): DATA.open("r+b")
def try_truncate(): os.truncate(DATA, 0)
def try_truncate_by_reading(): os.open(DATA, os.O_RDONLY | os.O_TRUNC)
def try_remove(): DATA.unlink()
def try_rename(): DATA.rename(DATA.with_name("gone.csv"))
def try_add(): DATA.with_name("new.csv").write_text("x")
def try_mode(): DATA.chmod(0o777)
def try_owner(): os.chown(DATA, os.getuid(), os.getgid())
def try_attribute(): os.setxattr(DATA, "user.mark", b"1")
def try_mode_of_the_keys(): Path(SITE["folder"], "credentials.json").chmod(0o644)
def try_a_hard_link(): os.link(DATA, SCRATCH + "/kept")
def try_settings(): Path(SITE["folder"], "envoy.toml").write_text("")
def try_own_plan(): Path(SITE["own_plan"], "manifest.json").open("r+b")
def try_the_package(): Path(sys.modules["fedveil"].__file__).open("r+b")
def try_the_interpreter(): open(sys.executable, "r+b")
def try_the_root(): Path("/fedveil-was-here").write_text("")
def try_open_files_again():
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink("/proc/self/fd/" + name)
        except OSError:
            continue
        if path.startswith(SITE["folder"]) and not path.endswith("update.f32"):
            open("/proc/self/fd/" + name, "r+b")
            return
    raise AssertionError("there is none")
""",
    "processes": """
def try_kill_the_envoy(): os.kill(SITE["envoy"], 0)
def try_environment_of_the_envoy(): Path("/proc", str(SITE["envoy"]), "environ").read_bytes()
def try_memory_of_the_envoy(): open("/proc/%d/mem" % SITE["envoy"], "rb")
def try_command_of_the_envoy(): found("python", Path("/proc", str(SITE["envoy"]), "cmdline").read_text())
def try_find_the_envoy():
    if str(SITE["envoy"]) not in os.listdir("/proc"):
        raise AssertionError("it is not there")
def try_trace():
    call(101, 16, SITE["envoy"], 0, 0)
def try_read_its_memory(): call(310, SITE["envoy"], 0, 0, 0, 0, 0)
def try_its_limits():
    resource.prlimit(SITE["envoy"], resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE))
def try_environment(): found("secret", json.dumps(dict(os.environ)))
def try_shell(): subprocess.run(["/bin/sh", "-c", "true"], check=True)
def try_session_of_its_own():
    child = os.fork()
    if not child:
        try:
            os.setsid()
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise AssertionError("not allowed")
def try_outlive_the_parent():
    if LIBC.prctl(1, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
""",
    "kernel": """
def try_device():
    os.mknod(SCRATCH + "/mem", 0o020666, os.makedev(1, 1))
def try_block_device(): os.mknod(SCRATCH + "/disk", 0o060666, os.makedev(254, 0))
def try_mount():
    if LIBC.mount(b"none", SCRATCH.encode(), b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
def try_namespace():
    if LIBC.unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "unshare")
def try_namespace_by_clone():
    child = call(56, 0x10000000 | 17, 0, 0, 0, 0)
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
def try_enter_a_namespace(): call(308, os.open("/proc/self/ns/net", os.O_RDONLY), 0)
def try_other_root(): os.chroot(SCRATCH)
def try_other_user():
    os.setresuid(12345, 12345, 12345)
def try_bpf(): call(321, 0, ctypes.byref(ctypes.create_string_buffer(120)), 120)
def try_keys_of_the_kernel(): call(250, 0, -3, 1)
def try_watch_performance(): call(298, ctypes.byref(ctypes.create_string_buffer(120)), 0, -1, -1, 0)
def try_memory_faults(): call(323, 0)
def try_more_memory(): resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40))
def try_old_calls():
    raise OSError("not here") if ctypes.sizeof(ctypes.c_void_p) == 4 else OSError(1, "same program")
""",
}
THROUGH_WITHOUT_A_BOX = {
    "tcp", "udp", "abstract_socket", "envoys_socket", "keys", "home", "payload", "other_data", "a_link_to_the_keys",
    "write", "add", "mode_of_the_keys", "kill_the_envoy", "environment_of_the_envoy", "command_of_the_envoy",
    "find_the_envoy", "its_limits", "environment", "shell", "session_of_its_own", "outlive_the_parent",
    "open_files_again",
}  # fmt: skip
NOT_BLOCKED_BY_LANDLOCK = """
def try_size_of_the_keys(): os.stat(SITE["folder"] + "/credentials.json")
def try_existence_of_other_data():
    if not Path(SITE["root"], "data", "others", "others.csv").exists():
        raise AssertionError("it is not there")
def try_times_of_data(): os.utime(Path(SITE["root"], "data", "rows", "rows.csv"), (0, 0))
def try_names_of_the_machine(): found(SITE["machine"], os.uname().nodename)
def try_mounts(): found("/proc", Path("/proc/self/mounts").read_text())
"""


@pytest.fixture
def sockets(tmp_path):
    """What a plan would like to talk to: the numbers of open ports, and the envoy's own socket."""
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    abstract, named = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    name = f"fedveil-{os.getpid()}-{time.monotonic_ns()}"
    abstract.bind("\0" + name)
    abstract.listen()
    held = {"tcp": tcp.getsockname()[1], "udp": udp.getsockname()[1], "abstract": name, "named": named}
    yield held
    for each in (tcp, udp, abstract, named):
        each.close()


def attempt(site, attempts: str, sockets=None) -> dict[str, str]:
    held = dict(sockets or {})
    named = held.pop("named", None)
    if named is not None:
        place = os.open(site.folder, os.O_PATH)
        named.bind(f"/proc/self/fd/{place}/envoy.sock")  # a path may be longer than a socket's name
        named.listen()
        os.close(place)
    other = site.order("", "pass").bundle
    own = site.folder / "plans" / f"plan{site.number}"
    told = {"secret": "the-key-of-this-site", "other_plan": str(other), "own_plan": str(own), "home": str(Path.home())}
    return site.results(attempts, machine=os.uname().nodename, **told, **held)


@pytest.fixture
def site(tmp_path, request, works, monkeypatch, hostile_site):
    """A hostile plan's site; the tier comes with the test."""
    tier = request.param
    works(tier)
    monkeypatch.setenv("A_SECRET_OF_THE_ENVOY", "secret")
    monkeypatch.delenv("TMPDIR", raising=False)  # a plan without a box then leaves its files in the site's folder
    return hostile_site(tmp_path / "site", tier)


@pytest.mark.parametrize("kind", ATTEMPTS)
@pytest.mark.parametrize("site", BOXES, indirect=True, ids=lambda tier: tier.value)
def test_nothing_that_a_plan_tries_gets_through(site, kind, sockets):
    site.folder.joinpath("work").chmod(0o700)
    before = (site.root / "data" / "rows" / "rows.csv").read_bytes()
    results = attempt(site, ATTEMPTS[kind], sockets)
    expected = set()
    if site.tier is Tier.LANDLOCK and landlock.abi() < 6:
        expected = {"kill_the_envoy"}
    assert {name: found for name, found in results.items() if found == "through"} == dict.fromkeys(expected, "through")
    assert len(results) == ATTEMPTS[kind].count("def try_")
    assert (site.root / "data" / "rows" / "rows.csv").read_bytes() == before
    assert not Path("/fedveil-was-here").exists()


@pytest.mark.parametrize("site", [Tier.NONE], indirect=True)
def test_without_a_box_the_same_attempts_get_through(site, sockets):
    # But for those that would change this machine.
    attempts = "\n".join(text for kind, text in ATTEMPTS.items() if kind != "kernel")
    for name in ("the_root", "trace"):
        attempts = attempts.replace(f"def try_{name}(", f"def leave_{name}(")
    results = attempt(site, attempts, sockets)
    assert {name for name in THROUGH_WITHOUT_A_BOX if results[name] != "through"} == set()


@pytest.mark.parametrize("site", BOXES, indirect=True, ids=lambda tier: tier.value)
def test_what_the_fallback_does_not_block_is_what_the_page_says(site):
    results = attempt(site, NOT_BLOCKED_BY_LANDLOCK)
    passed = {name for name, found in results.items() if found == "through"}
    # In bubblewrap a plan sees mounts of its own.
    assert passed == (set(results) if site.tier is Tier.LANDLOCK else {"mounts"})


@pytest.mark.parametrize("site", BOXES, indirect=True, ids=lambda tier: tier.value)
def test_a_plan_reads_what_it_is_given_and_writes_to_its_scratch(site):
    results = attempt(
        site,
        """
def try_own_plan(): found("schema", Path(SITE["own_plan"], "manifest.json").read_text())
def try_scratch():
    place = Path(SCRATCH, "a", "b")
    place.parent.mkdir()
    place.write_text("kept")
    place.rename(place.with_name("c"))
    found("kept", place.with_name("c").read_text())
def try_a_child():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
def try_threads():
    import concurrent.futures
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(str, range(100)))
def try_pairs_of_sockets(): socket.socketpair()
def try_randomness(): os.urandom(4); open("/dev/urandom", "rb").read(4); open("/dev/null", "w").write("x")
def try_another_interpreter(): subprocess.run([sys.executable, "-S", "-c", "print(1)"], check=True)
""",
    )
    assert set(results.values()) == {"through"}, results


@pytest.mark.parametrize("site", BOXES, indirect=True, ids=lambda tier: tier.value)
def test_a_fork_bomb_ends_at_the_limit_and_nothing_of_it_is_left(site):
    results = attempt(
        site,
        """
def try_bomb():
    made = 0
    try:
        for _ in range(5000):
            if not os.fork():
                time.sleep(600)
                os._exit(0)
            made += 1
    except OSError as error:
        print("MADE", made, flush=True)
        raise
""",
    )
    assert "BlockingIOError" in results["bomb"]
    line = next(x for x in (site.folder / "state" / "worker.log").read_text().splitlines() if x.startswith("MADE "))
    # Another user than root is counted with what it runs already, where the box has no namespace of its own.
    beside = threads_of(os.getuid()) if os.getuid() and site.tier is Tier.LANDLOCK else 0
    assert int(line.split()[1]) <= site.policy.processes + beside
    site.trainer.close()
    assert site.left_running() == []


@pytest.mark.parametrize("site", BOXES, indirect=True, ids=lambda tier: tier.value)
def test_a_withdrawal_is_followed_by_silence(site):
    body = """
def loop():
    for _ in range(20):
        if not os.fork():
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))
            while True:
                pass
    print("IT LOOPS", flush=True)
    while True:
        pass
"""
    order, cancelled = site.order(body, "loop()"), threading.Event()
    log = site.folder / "state" / "worker.log"

    def withdraw():
        while not log.exists() or "IT LOOPS" not in log.read_text():
            cancelled.wait(0.01)
        cancelled.set()

    thread = threading.Thread(target=withdraw)
    thread.start()
    with pytest.raises(TrainingError, match="withdrawn"):
        site.trainer.run(order, 60, cancelled)
    assert site.left_running() == []
    thread.join()
    assert [path.name for path in (site.folder / "state").iterdir() if path.name.startswith("sandbox-")] == []


@pytest.mark.parametrize("site", BOXES, indirect=True, ids=lambda tier: tier.value)
def test_memory_and_large_files_end_at_their_limits(site):
    results = attempt(
        site,
        """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def try_memory(): len(bytearray(3 << 30))
def try_memory_that_is_mapped():
    import mmap
    mmap.mmap(-1, 3 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def try_large_file():
    with open(SCRATCH + "/large", "wb", buffering=0) as file:
        for _ in range(1000):
            if file.write(bytes(1 << 20)) < 1 << 20:
                raise OSError("no more")
def try_growing_the_update():
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink("/proc/self/fd/" + name).endswith("update.f32"):
                os.truncate(int(name), 1 << 40)
                return
        except FileNotFoundError:
            pass
    raise OSError("it is not there")
def try_shared_memory():
    for number in range(1000):
        with open("/dev/shm/%d" % number, "wb") as file:
            file.write(bytes(1 << 20))
def try_open_files(): [os.dup(0) for _ in range(100000)]
""",
    )
    assert [name for name, found in results.items() if found == "through"] == []


@pytest.mark.parametrize("site", [Tier.BUBBLEWRAP], indirect=True)
def test_many_small_files_end_at_the_size_of_the_scratch_folder(site):
    results = attempt(
        site,
        """
def try_fill():
    for number in range(1000):
        Path(SCRATCH, str(number)).write_bytes(bytes(1 << 20))
""",
    )
    assert "No space left" in results["fill"]


@pytest.mark.parametrize("site", [Tier.BUBBLEWRAP, Tier.NONE], indirect=True, ids=lambda tier: tier.value)
def test_a_plan_finds_nothing_of_the_update_that_another_plan_made_before_it(site):
    site.run(site.order())
    first = np.fromfile(site.folder / "work" / "update.f32", np.float32)
    assert (first == 1).all()
    assert first.size == 4
    body = """
LEFT = []
def look():
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink("/proc/self/fd/" + name).endswith("update.f32"):
                LEFT.append(os.pread(int(name), 100, 0).hex())
        except FileNotFoundError:
            pass
    print("LEFT", sorted(set(LEFT)), flush=True)
"""
    second = site.order(body, "look()", has_data=False)
    site.run(second)
    lines = (site.folder / "state" / "worker.log").read_text().splitlines()
    assert [line for line in lines if line.startswith("LEFT")] in (["LEFT ['']"], [f"LEFT ['{bytes(16).hex()}']"])
    kept = (site.folder / "work" / "update.f32").stat().st_ino
    site.run(replace(second, ref=replace(second.ref, round=2)))
    assert (site.folder / "work" / "update.f32").stat().st_ino == kept  # the same plan's pages stay warm


def test_processes_that_fill_the_memory_together_end_at_the_limit(tmp_path, works, hostile_site):
    works(Tier.BUBBLEWRAP)
    group = make_group(SandboxPolicy(processes=64, memory_gb=0.5))
    if group is None or not group.limits_memory:
        pytest.skip("no memory control group can be made here: each process is limited by itself")
    group.remove()
    site = hostile_site(tmp_path / "site", Tier.BUBBLEWRAP, SandboxPolicy(processes=64, memory_gb=0.5))
    body = """
def fill():
    kept = []
    for _ in range(8):
        if not os.fork():
            try:
                kept.append(b"x" * (300 << 20))
                time.sleep(600)
            finally:
                os._exit(0)
    while True:
        kept.append(b"y" * (1 << 20))
        time.sleep(0.001)
"""
    with pytest.raises(TrainingError):
        site.run(site.order(body, "fill()"))


HOLDING_ON = """
import stat
def hold_on():
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))
    LIBC.prctl(1, 0, 0, 0, 0)
    for number in range(3, 64):
        try:
            if stat.S_ISFIFO(os.fstat(number).st_mode):  # the line that ends it when the envoy is gone
                os.close(number)
        except OSError:
            pass
    print("IT LOOPS", flush=True)
    while True:
        pass
"""
ENVOY = """
import json, os, sys, threading
from pathlib import Path
from fedveil.envoy.orders import order_from_json
from fedveil.envoy.sandbox.policy import SandboxPolicy, Tier
from fedveil.envoy.sandbox.sandbox import Sandbox
from fedveil.envoy.trainer import ChildTrainer
folder = Path(sys.argv[2])
trainer = ChildTrainer(folder / "state", Sandbox.of_tier(Tier(sys.argv[3]), SandboxPolicy(processes=64), folder))
trainer.run(order_from_json(json.loads(sys.argv[1])), 600, threading.Event())
"""


@pytest.mark.parametrize("site", BOXES, indirect=True, ids=lambda tier: tier.value)
def test_a_plan_ends_with_an_envoy_that_is_killed_whatever_it_does_about_it(site):
    order = site.order(HOLDING_ON, "hold_on()", has_data=False)
    arguments = [json.dumps(order_to_json(order)), str(site.folder), site.tier.value]
    log = site.folder / "state" / "worker.log"
    with subprocess.Popen([sys.executable, "-c", ENVOY, *arguments]) as envoy:
        pause = threading.Event()
        while not log.exists() or "IT LOOPS" not in log.read_text():
            assert envoy.poll() is None
            pause.wait(0.01)
        inside = [os.pidfd_open(pid) for pid in site.left_running() if pid != envoy.pid]
        envoy.kill()
    assert inside
    for descriptor in inside:
        assert select.select([descriptor], [], [], 5)[0], "the plan outlived its envoy"
        os.close(descriptor)
    # What it left in the fallback's folder goes when the next envoy starts.
    subprocess.run([sys.executable, "-c", SWEEP, str(site.folder / "state")], check=True)
    assert [path.name for path in (site.folder / "state").iterdir() if path.name.startswith("sandbox-")] == []


SWEEP = (
    "import sys; from pathlib import Path; from fedveil.envoy.sandbox.scratch import sweep; sweep(Path(sys.argv[1]))"
)
