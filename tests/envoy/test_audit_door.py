"""A command logs beside a running envoy, into the same chain."""

import getpass

import pytest
from fedveil.envoy.audit_door import logging_to, this_user
from fedveil.utils.errors import IdentityError


def test_a_folder_that_joined_nothing_logs_nothing(tmp_path):
    with pytest.raises(IdentityError, match="has not joined"), logging_to(tmp_path):
        pytest.fail("there is no log")
    assert list(tmp_path.iterdir()) == []


def test_who_types_a_command_is_named_even_where_the_machine_knows_no_name(monkeypatch):
    assert this_user() == getpass.getuser()

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert this_user() == "unknown"
