"""What a plan writes comes back through files that the envoy opened: nothing in their place is followed."""

import os
import socket
import stat

import pytest
from fedveil.envoy.order_files import open_files
from fedveil.envoy.sandbox.policy import Tier
from fedveil.envoy.site_state import pending_path, state_before
from fedveil.utils.errors import FederationError


@pytest.fixture
def order(tmp_path, hostile_site):
    return hostile_site(tmp_path / "site", Tier.NONE).order()


def put(kind, path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        place = os.open(path.parent, os.O_PATH)
        socket.socket(socket.AF_UNIX).bind(f"/proc/self/fd/{place}/{path.name}")
        os.close(place)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "socket"])
@pytest.mark.parametrize("which", ["update", "state", "model"])
def test_what_is_no_file_is_an_error_at_once(order, tmp_path, kind, which):
    keys = tmp_path / "site" / "envoy" / "credentials.json"
    before = keys.read_bytes()
    if which == "update":
        path = order.update_path
    elif which == "state":
        path = order.state_folder / order.ref.run / "state-0.safetensors"
    else:
        path = order.model_path
        path.unlink()
    put(kind, path, keys)
    with pytest.raises(FederationError, match="cannot be read"), open_files(order):
        pass
    assert keys.read_bytes() == before


def test_a_state_is_kept_once_the_work_is_done_and_goes_where_it_is_not(order):
    with open_files(order) as opened:
        os.write(opened.files.after, b"half")
    assert list(order.state_folder.glob("sandbox-*")) == []
    assert not pending_path(order.state_folder, order.ref).exists()
    with open_files(order) as opened:
        os.write(opened.files.after, b"whole")
        opened.keep_state()
    path = pending_path(order.state_folder, order.ref)
    assert path.read_bytes() == b"whole"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert state_before(order.state_folder, order.ref) is None


def test_a_model_can_only_be_read_by_the_descriptor_that_a_plan_gets(order):
    with open_files(order) as opened, pytest.raises(OSError, match="Bad file descriptor"):
        os.write(opened.files.model, b"x")
