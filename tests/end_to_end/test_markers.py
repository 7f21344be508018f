"""No patient's data and no secret gets where it does not belong: marked, then looked for in every file and answer.

Whose is which, as ``KEPT`` states it: a site's records of its data sets, its keys, its proxy's password and what a plan
prints or raises lie in that site's own files made for them, and nowhere else; not in any audit log, database, other
log, report or status, nor anywhere at the director or at another site.
"""

from __future__ import annotations

import base64
import json
import re
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from fedveil.director.__main__ import app as director
from fedveil.director.founding import init_federation
from fedveil.envoy.__main__ import app as envoy
from fedveil.envoy.datasets import DatasetRegistry
from fedveil.envoy.inspection import inspect
from fedveil.envoy.records import DataOptions
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace import local_federation
from fedveil.workspace.plan_builder import build_plan
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

PLAN = """
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, mean_of

class Toy(ArrayPlan):
    data = DataSpec("scans", DataKind.IMAGES, (1, 4, 12), ("ill", "well"))

    def initial(self):
        return {"image": np.zeros((1, 4, 12), np.float32)}

    def train(self, weights, data, rng):
        seen = bytes((data.features[0, 0, 0] * 255).round().astype(np.uint8)).decode()
        print("MARK" + "PRINTED", seen, flush=True)
        BODY
        return {"image": weights["image"] + data.features.mean(0)}, len(data)

    def evaluate(self, weights, data):
        yield mean_of("brightness", float(data.features.sum()), len(data))
"""
RAISES = 'raise ValueError("MARK" + "RAISED " + seen)'
ROW = b"MARKPIXELROW"  # twelve gray values: the first row of every image
PASSPHRASE, PASSWORD = b"MARKPASSPHRASE", b"MARKPROXYPASSWORD"
KEPT = {
    b"MARKPATH": r"(?P<site>site-.)/datasets/.*",
    b"MARKPATIENT": r"(?P<site>site-.)/datasets/.*",
    b"MARKPIXELTEXT": None,
    ROW: r"(?P<site>site-.)/state/worker\.log",
    b"MARKPRINTED": r"(?P<site>site-.)/state/worker\.log",
    b"MARKRAISED": r"(?P<site>site-.)/state/worker\.log",
    PASSPHRASE: None,
    PASSWORD: r"site-a/proxy\.password",
    base64.b64encode(b"hospital:" + PASSWORD): None,  # as a proxy gets it
}
"""Each marker, and the files where alone it may lie, by a pattern on their paths."""


class Proxy:
    """Carries CONNECT, for who knows the password."""

    def __init__(self) -> None:
        self.carried = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._carry, args=(self._server.accept()[0],), daemon=True).start()

    def _carry(self, caller: socket.socket) -> None:
        with caller, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += caller.recv(4096)
            if base64.b64encode(b"hospital:" + PASSWORD) not in head:
                caller.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            host, port = head.split()[1].decode().rsplit(":", 1)
            with socket.create_connection((host, int(port))) as callee:
                self.carried += 1
                caller.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                ends = {caller: callee, callee: caller}
                while True:
                    for end in select.select(list(ends), [], [])[0]:
                        piece = end.recv(1 << 16)
                        if not piece:
                            return
                        ends[end].sendall(piece)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with closing(Proxy()) as made:
        yield made


def give_images(site: Path, name: str) -> None:
    """Marked in their path, their names, their text and their pixels."""
    home = site.parent / "hospital" / f"MARKPATH-{name}"
    rng = np.random.default_rng(len(name) + ord(name[-1]))
    text = PngInfo()
    text.add_text("PatientName", f"MARKPIXELTEXT-{name}")
    for label in ("ill", "well"):
        (home / label).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (4, 12), np.uint8)
            pixels[0] = np.frombuffer(ROW, np.uint8)
            file = home / label / f"MARKPATIENT{name[-1]}{number:02}_{label}.png"
            Image.fromarray(pixels).save(file, pnginfo=text)
    options = DataOptions(classes=("ill", "well"), patient=r"(MARKPATIENT.\d+)")
    found = inspect("scans", home, options, 1.0)
    DatasetRegistry(site / "datasets").add(found.record, found.index)


def private_lines(pem: str) -> list[bytes]:
    """What is secret of the private keys in a text: their lines of base64."""
    keys = re.findall(r"-----BEGIN (?:EC |ENCRYPTED )?PRIVATE KEY-----\n(.*?)-----END", pem, re.DOTALL)
    return [line.encode() for key in keys for line in key.split() if len(line) > 30]


def secrets_of(folder: Path) -> dict[bytes, str]:
    """Every private key that lies in a federation's folder, with the file in which alone it may lie."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".pem", ".json", ".join"):
            text = path.read_text("utf-8", "replace")
            whole = "\n".join(map(str, json.loads(text).values())) if path.name == "credentials.json" else text
            for line in private_lines(whole):
                found[line] = re.escape(path.relative_to(folder).as_posix())
    return found


def misplaced(folder: Path, kept: dict[bytes, str | None]) -> list[str]:
    """Where a marker lies that has no business there."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.startswith(("hospital/", "bundle", "plan")):
            continue  # the hospital's own images; the researcher's own sources
        content = path.read_bytes().replace(rb"\n", b"\n")
        for marker, where in kept.items():
            if marker in content and not (where and re.fullmatch(where, name)):
                found.append(f"{marker[:24]!r} in {name}")
    return found


def answers(folder: Path, run: str) -> dict[str, str]:
    """What is told to whoever asks director and sites."""
    at_director = ["--folder", str(folder / "director")]
    asked = [
        (director, ["status", *at_director]),
        (director, ["experiment", "list", *at_director]),
        (director, ["experiment", "show", run, *at_director]),
        (director, ["members", *at_director]),
        (director, ["audit", "verify", *at_director]),
        (director, ["audit", "export", str(folder / "evidence.zip"), *at_director]),
    ]
    for site in ("site-a", "site-b"):
        at_site = ["--folder", str(folder / site)]
        asked += [(envoy, [*words, *at_site]) for words in (["status"], ["outbox", "--json"], ["plan", "list"])]
        asked += [(envoy, ["audit", "verify", *at_site]), (envoy, ["privacy", "report", "--json", *at_site])]
    told = {}
    for app, words in asked:
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, (words, done.output)
        told[" ".join(words[:3])] = done.output
    return told


@pytest.mark.slow
def test_no_patient_and_no_secret_is_in_a_log_a_database_an_answer_or_anybody_elses_file(
    tmp_path, toy_federation, settings, wait_until, monkeypatch, proxy
):
    def founded(folder: Path, name: str, addresses: list[str], _: bytes, *more: object, **most: object) -> str:
        return init_federation(folder, name, addresses, PASSPHRASE, *more, **most)

    monkeypatch.setattr(local_federation, "init_federation", founded)
    bundles = {}
    for name, body in (("good", "pass"), ("bad", RAISES)):
        (tmp_path / f"plan-{name}.py").write_text(PLAN.replace("BODY", body))
        build_plan(tmp_path / f"plan-{name}.py", tmp_path / f"bundle-{name}")
        bundles[name] = open_bundle(tmp_path / f"bundle-{name}")

    with toy_federation(tmp_path, "") as federation:
        federation.set_up()
        for name in federation.sites:
            give_images(tmp_path / name, name)
        site = tmp_path / "site-a"
        federation.envoys["site-a"].terminate()
        federation.envoys["site-a"].wait()
        (site / "proxy.password").write_bytes(PASSWORD + b"\n")
        (site / "proxy.password").chmod(0o600)
        table = f'[proxy]\nurl = "{proxy.url}"\nuser = "hospital"\npassword_file = "proxy.password"\nno_proxy = []\n'
        (site / "envoy.toml").write_text((site / "envoy.toml").read_text("utf-8") + table, "utf-8")
        federation.start_envoy("site-a")
        federation.wait_for_all(90.0)
        assert proxy.carried

        run = federation.submit(settings(rounds=2, quorum=4, secure="required"), bundles["good"])
        view = federation.finish(run)
        assert [one.received for one in view.rounds] == [4] * 3, view
        failed = federation.submit(settings("bad", rounds=1, quorum=4, secure="required"), bundles["bad"])
        view = federation.wait_for(failed, timeout_seconds=60.0)
        assert view.state == "failed"
        assert "the plan raised ValueError in train" in view.reason
        said = [federation.says(site, "MARKPRINTED MARKPIXELROW") for site in federation.sites]
        assert min(said) >= 2  # the markers do get into the plan's process
        assert sum(federation.says(site, "MARKRAISED MARKPIXELROW") for site in federation.sites) >= 1

        secrets = secrets_of(tmp_path)
        assert len(set(secrets.values())) >= len(federation.sites) + 2
        told = answers(tmp_path, run)
        running = misplaced(tmp_path, KEPT | secrets)
        federation.history._engine.dispose()
    assert running == []
    assert misplaced(tmp_path, KEPT | secrets) == []
    for marker in (*KEPT, *secrets):
        for asked, answer in told.items():
            assert marker.decode() not in answer.replace("\n", ""), asked
    assert (tmp_path / "evidence.zip").stat().st_size > 1000


def test_a_marker_in_the_wrong_place_is_found(tmp_path):
    (tmp_path / "site-a" / "datasets").mkdir(parents=True)
    (tmp_path / "site-a" / "datasets" / "scans.json").write_bytes(b"MARKPATH MARKPATIENT")
    assert misplaced(tmp_path, KEPT) == []
    (tmp_path / "site-a" / "audit.jsonl").write_bytes(b"... MARKPATIENT007 ...")
    (tmp_path / "director").mkdir()
    (tmp_path / "director" / "log.txt").write_bytes(PASSWORD)
    assert len(misplaced(tmp_path, KEPT)) == 2
