"""Nothing runs unaudited: without room for its log a site declines, a director's rounds wait; with room both go on."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fedveil.director.audit import DirectorAudit
from fedveil.director.rounds import RoundState
from fedveil.envoy.audit_door import logging_to
from fedveil.utils.audit_chain import read_entries, verify
from fedveil.utils.errors import StorageError

PAGE = 4096
LOG = "audit.jsonl"


class SmallDisk:
    """A file system of its own, of 256 kB; fixture of one log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, log: Path) -> None:
        """Move a log here; nobody may have it open."""
        shutil.move(log, self.folder / LOG)
        log.symlink_to(self.folder / LOG)

    def fill(self, append: Callable[[str], None]) -> None:
        """Leave no room for another entry, not even in the last page of the log."""
        size = self._size
        append("")
        line = self._size - size  # without words
        append("x" * ((-self._size - line) % PAGE))
        with contextlib.suppress(OSError), (self.folder / "filling").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(PAGE))

        def until_it_is_full() -> None:  # whoever else logs meanwhile may have begun another page
            for _ in range(PAGE):
                append("")

        with pytest.raises(StorageError, match="No space left on device"):
            until_it_is_full()

    def free(self) -> None:
        """Somebody tidies up."""
        (self.folder / "filling").unlink()

    @property
    def _size(self) -> int:
        return (self.folder / LOG).stat().st_size


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here; tests/utils/test_audit_chain.py fills one log by a limit")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def filling_site(folder: Path) -> Callable[[str], None]:
    def append(words: str) -> None:
        with logging_to(folder) as log:
            log.append("filling", {"words": words})

    return append


def filling_director(folder: Path) -> Callable[[str], None]:
    def append(words: str) -> None:
        log = DirectorAudit.open(folder, "toys")
        try:
            log.operator("a test", "filling", {"words": words})
        finally:
            log.close()

    return append


def events(log: Path, what: str) -> int:
    return sum(entry.event["what"] == what for entry in read_entries(log))


@pytest.mark.slow
def test_a_site_without_room_for_its_log_trains_nothing_and_goes_on_once_there_is_room(
    federation, settings, wait_until, small_disk
):
    federation.wait_for_all()
    site, log = federation.folder / "site-a", federation.folder / "site-a" / LOG
    federation.envoys["site-a"].terminate()
    federation.envoys["site-a"].wait()
    small_disk.take(log)
    federation.start_envoy("site-a")
    federation.wait_for_all()

    run = federation.submit(settings(rounds=100), federation.plan(seconds=0.3))
    federation.wait_for_round(run, 1, RoundState.CLOSED)
    small_disk.fill(filling_site(site))
    view = federation.wait_for(run, timeout_seconds=100.0)
    assert view.state == "failed"
    assert "site-a: StorageError: the site cannot read or keep what the task needs" in view.reason
    assert "cannot be written: No space left on device" in (site / "log.txt").read_text("utf-8")
    before = federation.says("site-a", "training begins")
    assert before >= 1
    assert before == events(log, "data accessed")
    failed = [one for one in view.rounds if one.state == "failed"]
    assert [one.attempt for one in failed][-3:] == [1, 2, 3]  # they went on asking
    assert len({one.round for one in failed[-3:]}) == 1

    small_disk.free()
    again = federation.submit(settings("again", rounds=1), federation.plan(seconds=0.3))
    assert [one.received for one in federation.finish(again).rounds] == [3, 3]
    assert federation.says("site-a", "training begins") == before + 1
    assert verify(log).about["name"] == "site-a"


@pytest.mark.slow
def test_a_director_without_room_for_its_log_opens_no_round_and_goes_on_once_there_is_room(
    federation, settings, wait_until, small_disk
):
    federation.wait_for_all()
    folder, log = federation.director_folder, federation.director_folder / LOG
    federation.director.terminate()
    federation.director.wait()
    small_disk.take(log)
    federation.start_director()
    federation.wait_for_director()
    federation.wait_for_all()

    run = federation.submit(settings(rounds=4), federation.plan(seconds=0.3))
    federation.wait_for_round(run, 1, RoundState.CLOSED)
    small_disk.fill(filling_director(folder))
    wait_until(lambda: "the rounds wait" in (folder / "log.txt").read_text("utf-8"), "the director complains")
    stood = (len(federation.rounds(run)), sum(federation.trainings().values()))
    with pytest.raises(StorageError, match="audit log cannot be written"):
        federation.submit(settings("another"), federation.plan(seconds=0.3))
    assert federation.record("another") is None
    assert len(federation.rounds(run)) == stood[0]
    assert events(log, "round opened") <= stood[0]

    small_disk.free()
    view = federation.finish(run)
    assert [one.received for one in view.rounds] == [3] * 5
    assert sum(federation.trainings().values()) == 3 * 4
    assert events(log, "round closed") == 5
    assert verify(log).about["party"] == "director"
