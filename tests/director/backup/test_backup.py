"""A director's folder in one file, and back."""

from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from fedveil.director.audit import LOG_FILE, DirectorAudit
from fedveil.director.backup import archive, backing_up
from fedveil.director.backup.archive import About, ArchiveWriter
from fedveil.director.backup.backing_up import back_up
from fedveil.director.backup.restoring import restore
from fedveil.director.backup.sealing import sink_to, source_of
from fedveil.director.config import load_config
from fedveil.director.database import DirectorLock, open_database
from fedveil.director.founding import init_federation
from fedveil.utils.artifacts import ArtifactStore
from fedveil.utils.audit_chain import read_entries
from fedveil.utils.errors import FederationError, PassphraseError, StorageError, SuspectLogError
from fedveil.utils.tensors import digest_of

PASSPHRASE = b"correct horse battery staple"
NOT_IN_IT = {"director.sqlite", LOG_FILE}  # compared apart


def backed_up(folder: Path, out: Path, passphrase: bytes | None = PASSPHRASE, now: float = 1e9):
    return back_up(folder, load_config(folder), "anna", now, out, passphrase, cost=10)


def restored(file: Path, folder: Path, passphrase: bytes | None = PASSPHRASE, **more):
    return restore(file, folder, "bert", 2e9, passphrase, **more)


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    shown = {name: path for name, path in found.items() if not Path(name).name.startswith(".")}
    left_out = {"director.sqlite-wal", "director.sqlite-shm", "director.sqlite.lock"}
    return {name: path.read_bytes() for name, path in shown.items() if name not in left_out}


def tables(folder: Path, rows) -> dict[str, list[object]]:
    engine = open_database(load_config(folder).database_url(folder), durable=False)
    try:
        return rows(engine)
    finally:
        engine.dispose()


@pytest.mark.parametrize("passphrase", [PASSPHRASE, None])
def test_everything_comes_back_and_both_logs_say_so(passphrase, folder, rows, tmp_path):
    (folder / "notes").mkdir()
    (folder / "notes" / "who to call.txt").write_text("IT")
    before, held = files(folder), tables(folder, rows)
    made = backed_up(folder, tmp_path / "b", passphrase)
    found = restored(tmp_path / "b", tmp_path / "new", passphrase)
    after = files(tmp_path / "new")
    assert {k: v for k, v in after.items() if k not in NOT_IN_IT} == {
        k: v for k, v in before.items() if k not in NOT_IN_IT
    }
    assert tables(tmp_path / "new", rows) == held
    assert found.about == made.about
    *_, said, last = [entry.event for entry in read_entries(tmp_path / "new" / LOG_FILE)]
    assert (said["action"], said["backup"], said["by"]) == ("backed up", made.about.backup, "anna")
    assert last == {"what": "restored from a backup", "backup": made.about.backup, "made_at": 1e9, "by": "bert"}
    assert after[LOG_FILE].startswith(files(folder)[LOG_FILE])


def test_a_backup_and_what_comes_of_it_are_the_owners_alone(folder, tmp_path):
    backed_up(folder, tmp_path / "b")
    restored(tmp_path / "b", tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600
    for path in (tmp_path / "new").rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert not stat.S_IMODE((tmp_path / "new").stat().st_mode) & 0o077


def test_an_encrypted_backup_shows_no_key_and_one_in_the_clear_is_a_tar(folder, tmp_path):
    backed_up(folder, tmp_path / "sealed")
    backed_up(folder, tmp_path / "clear", None)
    assert b"PRIVATE KEY" not in (tmp_path / "sealed").read_bytes()
    with tarfile.open(tmp_path / "clear") as tar:
        assert b"PRIVATE KEY" in tar.extractfile("folder/director.key.pem").read()


@pytest.mark.parametrize("passphrase", [PASSPHRASE, None])
def test_damage_anywhere_is_found_and_nothing_is_left(passphrase, folder, tmp_path):
    """Every byte: see test_sealing. Here some, through the whole way."""
    backed_up(folder, tmp_path / "b", passphrase)
    raw = (tmp_path / "b").read_bytes()
    there = sorted(tmp_path.iterdir())
    places = [0, 20, 120, len(raw) // 3, len(raw) // 2, len(raw) - 30, len(raw) - 1]
    damaged = [raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :] for place in places]
    for content in [*damaged, b"", raw[:100], raw[: len(raw) // 2], raw[:-1], raw + b"x"]:
        (tmp_path / "b").write_bytes(content)
        with pytest.raises((StorageError, PassphraseError)):
            restored(tmp_path / "b", tmp_path / "new", passphrase)
        assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("wrong", [b"another passphrase", b"", None])
def test_another_passphrase_restores_nothing(wrong, folder, tmp_path):
    backed_up(folder, tmp_path / "b")
    with pytest.raises(PassphraseError):
        restored(tmp_path / "b", tmp_path / "new", wrong)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_anything_is_not_restored_to(folder, tmp_path):
    backed_up(folder, tmp_path / "b")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("mine")
    with pytest.raises(StorageError, match="is not empty"):
        restored(tmp_path / "b", tmp_path / "new")
    assert files(tmp_path / "new") == {"mine": b"mine"}
    (tmp_path / "new" / "mine").unlink()
    restored(tmp_path / "b", tmp_path / "new")


def test_a_federation_whose_director_never_started_is_backed_up_too(tmp_path):
    init_federation(tmp_path / "director", "toys", ["127.0.0.1"], b"the root's", 1.6e9)
    backed_up(tmp_path / "director", tmp_path / "b")
    restored(tmp_path / "b", tmp_path / "new")
    assert (tmp_path / "new" / "ca" / "root.key.pem").exists()


def test_a_backup_is_never_written_over_anything_nor_into_the_folder(folder, tmp_path):
    (tmp_path / "b").write_text("an older one")
    for out in (tmp_path / "b", folder / "b", folder / "artifacts" / "b", tmp_path / "none" / "b"):
        with pytest.raises(StorageError):
            backed_up(folder, out)
    assert (tmp_path / "b").read_text() == "an older one"


def test_a_link_to_a_folder_is_named_instead_of_left_out(folder, tmp_path):
    (tmp_path / "far").mkdir()
    (folder / "sums").symlink_to(tmp_path / "far")
    with pytest.raises(StorageError, match="link to a folder"):
        backed_up(folder, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_backup_of_a_newer_version_is_refused_before_anything_is_unpacked(tmp_path):
    with (tmp_path / "b").open("wb") as file:
        ArchiveWriter(sink_to(file, None), About("b", "toys", "fedveil 99", "0999", 1.0, "sqlite")).finish()
    with pytest.raises(StorageError, match="newer version"):
        restored(tmp_path / "b", tmp_path / "new", None)


def test_a_database_with_which_a_director_runs_is_not_restored_to(folder, make_url, database_url, tmp_path):
    backed_up(folder, tmp_path / "b")
    open_database(database_url, durable=False).dispose()
    with DirectorLock(database_url), pytest.raises(StorageError, match="another director is running"):
        restored(tmp_path / "b", tmp_path / "new", database_url=database_url)
    assert not (tmp_path / "new").exists()
    restored(tmp_path / "b", tmp_path / "new", database_url=database_url)
    assert load_config(tmp_path / "new").database.url == database_url


@pytest.mark.parametrize(
    "table",
    [
        '[database]\nurl = ""  # mine\n\n[uploads]\nslots = 4\n',
        '[uploads]\nslots = 4\n[database]\n# none\nurl="postgresql://gone"\n',
        "[database]\n",
        "",
    ],
)
def test_the_database_can_be_another_and_all_else_in_director_toml_stays(table, folder, tmp_path):
    lines = (folder / "director.toml").read_text().partition("[database]")[0]
    (folder / "director.toml").write_text(lines + table.replace("postgresql://gone", ""))
    backed_up(folder, tmp_path / "b")
    url = f"sqlite:///{tmp_path / 'else.sqlite'}"
    restored(tmp_path / "b", tmp_path / "new", database_url=url)
    text = (tmp_path / "new" / "director.toml").read_text()
    assert load_config(tmp_path / "new").database_url(tmp_path) == url
    assert text.startswith(lines.rstrip())
    assert ("# mine" in text) == ("# mine" in table)


def test_names_that_lead_out_links_and_devices_are_refused(tmp_path):
    about = About("b", "toys", "fedveil", "0001", 1.0, "sqlite")
    for member in ("../out", "/out", "folder/../../out", "folder//x", "folder", "folder/.", "else"):
        with pytest.raises(StorageError, match="no name"):
            ArchiveWriter(sink_to(io.BytesIO(), None), about).add(member, b"x")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        file = io.BytesIO()
        sink = sink_to(file, None)
        writer = ArchiveWriter(sink, about)
        special = tarfile.TarInfo("folder/x")
        special.type, special.linkname = kind, "/etc/passwd"
        writer._tar.addfile(special)
        writer.finish()
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(StorageError, match="no plain file"):
            archive.unpack(source_of(file, None), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_artifacts_are_not_discarded_while_a_backup_copies_them(folder, tmp_path, monkeypatch):
    """A director that closes a round just then would discard an old model, and write over its file."""
    digest, store = digest_of(b"a model"), ArtifactStore(folder / "artifacts", durable=False)
    real, seen = backing_up._write_all, []

    def while_it_copies(*given):
        store.discard(digest)
        seen.append(store.discard_except([]))
        return real(*given)

    monkeypatch.setattr(backing_up, "_write_all", while_it_copies)
    backed_up(folder, tmp_path / "b")
    assert seen == [0]
    assert store.has(digest)
    restored(tmp_path / "b", tmp_path / "new")
    assert ArtifactStore(tmp_path / "new" / "artifacts", durable=False).read(digest) == b"a model"
    store.discard(digest)
    assert not store.has(digest)


def test_a_damaged_artifact_is_named(folder, tmp_path):
    digest = digest_of(b"a model")
    (folder / "artifacts" / digest).write_bytes(b"a modem")
    assert backed_up(folder, tmp_path / "b").damaged == (digest,)


def test_keys_that_are_renewed_meanwhile_come_in_pairs(folder, tmp_path, monkeypatch):
    """Certificate and key are two files: both are of the new pair."""
    real, times = backing_up.take_snapshot, []

    def renewing(*given):
        times.append(1)
        schema = real(*given)
        if len(times) == 1:
            for name in ("director.pem", "director.key.pem"):
                (folder / name).with_suffix(".new").write_text("renewed")
                (folder / name).with_suffix(".new").replace(folder / name)
        return schema

    monkeypatch.setattr(backing_up, "take_snapshot", renewing)
    backed_up(folder, tmp_path / "b")
    restored(tmp_path / "b", tmp_path / "new")
    assert len(times) == 2
    assert {(tmp_path / "new" / name).read_text() for name in ("director.pem", "director.key.pem")} == {"renewed"}


# ------------------------------------------------------------ the audit log


def test_a_log_that_was_saved_later_takes_the_place_of_the_backups(folder, tmp_path):
    backed_up(folder, tmp_path / "b")
    log = DirectorAudit.open(folder, "toys")
    log.revoked("site-b", "left", "anna")
    head = log.head
    log.close()
    (folder / LOG_FILE).rename(tmp_path / "saved")
    found = restored(tmp_path / "b", tmp_path / "new", newer_log=tmp_path / "saved")
    assert found.revoked_since == ("site-b",)
    *_, entry, last = read_entries(tmp_path / "new" / LOG_FILE)
    assert (entry.number, entry.hash) == (head.number, head.hash)  # no site sees it go back
    assert last.event["what"] == "restored from a backup"


def test_a_log_of_another_director_an_older_one_and_a_changed_one_are_refused(folder, tmp_path):
    older = (folder / LOG_FILE).read_bytes()
    backed_up(folder, tmp_path / "b")
    whole = (folder / LOG_FILE).read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    DirectorAudit.open(other, "toys").close()
    log = DirectorAudit.open(folder, "toys")
    log.revoked("site-b", "left", "anna")
    log.close()
    changed = (folder / LOG_FILE).read_bytes().replace(b"site-b", b"site-c")
    for content in (older, (other / LOG_FILE).read_bytes(), changed, whole[:-2] + b"x\n"):
        (tmp_path / "saved").write_bytes(content)
        with pytest.raises(SuspectLogError):
            restored(tmp_path / "b", tmp_path / "new", newer_log=tmp_path / "saved")
        assert not (tmp_path / "new").exists()


# ------------------------------------------------------------ killed, and beside another

_KILLED = """
import os, signal, sys, time
from pathlib import Path
from fedveil.director.backup.{module} import {name}
from fedveil.director.config import load_config
left = int(sys.argv[1])
def hook(event, args):
    global left
    if event in ("os.rename", "os.mkdir", "open", "os.remove", "sqlite3.connect") and {root!r} in str(args[:1]):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
{call}
print(left)
"""


def killed(module: str, name: str, call: str, after: int, root: Path) -> int | None:
    """Run a call that kills itself at one of its steps on disk; how many steps were left, or None if it was."""
    text = _KILLED.format(module=module, name=name, call=call, root=str(root))
    done = subprocess.run(
        [sys.executable, "-c", text, str(after)], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode == -signal.SIGKILL:
        return None
    assert not done.returncode, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("kind", ["folder", "sqlite", "postgresql"])
def test_a_restore_that_is_killed_anywhere_leaves_no_folder_and_goes_through_when_called_again(
    kind, folder, make_url, rows, tmp_path
):
    held, root = tables(folder, rows), tmp_path / "there"
    backed_up(folder, tmp_path / "b")
    root.mkdir()
    url = "sqlite" if kind == "folder" else make_url(kind)
    call = (
        f"restore(Path({str(tmp_path / 'b')!r}), Path({str(root / 'new')!r}), 'b', 1.0, {PASSPHRASE!r},"
        f" database_url={url!r})"
    )
    total = 10_000 - killed("restoring", "restore", call.replace("/new", "/dry").replace(url, "sqlite"), 10_000, root)
    assert total > 20
    for after in (0, total // 3, total - 6, total - 2, total - 1):
        was_killed = killed("restoring", "restore", call, after, root) is None
        assert (root / "new").exists() != was_killed or list((root / "new").glob("director.toml"))
        if (root / "new").exists():
            break
    else:
        restored(tmp_path / "b", root / "new", database_url=url)
    assert tables(root / "new", rows) == held
    assert not list((root / ".new.restoring").rglob("*"))  # at most an empty folder


def test_a_backup_that_is_killed_leaves_no_file_of_its_name_and_the_next_one_tidies_the_folder(folder, tmp_path):
    call = f"{{}}(Path({str(folder)!r}), load_config(Path({str(folder)!r})), 'a', 1.0, Path({{!r}}), b'secret', 10)"
    total = 10_000 - killed("backing_up", "back_up", call.format("back_up", str(tmp_path / "dry")), 10_000, tmp_path)
    out = tmp_path / "b"
    for after in (total // 4, total // 2, total - 3):
        assert killed("backing_up", "back_up", call.format("back_up", str(out)), after, tmp_path) is None
        assert not out.exists()
    backed_up(folder, out)
    assert not (folder / backing_up.SCRATCH).exists()
    restored(out, tmp_path / "new")


def test_two_backups_at_once_do_not_meet(folder, tmp_path, monkeypatch):
    real = backing_up._write_all

    def beside(*given):
        with pytest.raises(StorageError, match="another backup"):
            backed_up(folder, tmp_path / "second")
        return real(*given)

    monkeypatch.setattr(backing_up, "_write_all", beside)
    backed_up(folder, tmp_path / "first")
    monkeypatch.undo()
    restored(tmp_path / "first", tmp_path / "new")
    assert not (tmp_path / "second").exists()


def test_a_full_disk_leaves_no_backup(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(ArchiveWriter, "finish", full)
    there = sorted(tmp_path.iterdir())
    with pytest.raises(FederationError, match="No space left"):
        backed_up(folder, tmp_path / "b")
    assert sorted(tmp_path.iterdir()) == there
