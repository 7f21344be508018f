"""``director.toml``: what it says is used, and what it cannot mean is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedveil.director.config import MAX_MODEL_BYTES, DirectorConfig, Durability, load_config
from fedveil.utils.errors import ConfigError
from fedveil.utils.logs import LogLevel

LEAST = 'federation = "lungs"\naddresses = ["director.example.org"]\n'


def _load(folder: Path, text: str) -> DirectorConfig:
    (folder / "director.toml").write_text(text)
    return load_config(folder)


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    config = _load(tmp_path, LEAST)
    assert config.listen == "0.0.0.0:9443"
    assert (config.durability, config.is_durable) == (Durability.PAGE_CACHE, False)
    assert (config.leaf_days, config.log_level) == (7, LogLevel.INFO)
    assert (config.uploads.slots, config.uploads.max_model_bytes) == (4, MAX_MODEL_BYTES)
    assert config.announced(9443) == ("director.example.org:9443",)
    assert config.database_url(tmp_path) == f"sqlite:///{tmp_path}/director.sqlite"


def test_every_setting_can_be_set(tmp_path: Path) -> None:
    text = LEAST + (
        'listen = "[::1]:0"\ndurability = "fsync"\nleaf_days = 0.5\nlog_level = "debug"\n'
        '[database]\nurl = "postgresql://me:secret@db/fedveil"\n[uploads]\nslots = 2\nmax_model_bytes = 1000\n'
    )
    config = _load(tmp_path, text)
    assert config.is_durable
    assert config.listen_address.port == 0
    assert config.leaf_days == 0.5
    assert config.log_level is LogLevel.DEBUG
    assert config.database_url(tmp_path) == "postgresql://me:secret@db/fedveil"
    assert (config.uploads.slots, config.uploads.max_model_bytes) == (2, 1000)
    assert "me:secret" not in repr(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('listen = "0.0.0.0"', "listen"),
        ('listen = "somewhere:x"', "address"),
        ("leaf_days = 0", "leaf_days"),
        ("leaf_days = 31", "leaf_days"),
        ('durability = "none"', "durability.*page-cache, fsync"),
        ('log_level = "loud"', "log_level"),
        ('colour = "red"', "colour"),
        ("[uploads]\nslots = 0", r"uploads.*slots"),
        ("[uploads]\nslots = 257", r"uploads.*slots"),
        ("[uploads]\nslot = 3", r"uploads\.slot"),
        ("[uploads]\nmax_model_bytes = 0", "max_model_bytes"),
        ("[database]\nurl = 3", r"database\.url"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, LEAST + text + "\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('federation = "Lungs"\naddresses = ["a"]', "federation"),
        ('federation = "lungs"\naddresses = []', "addresses is empty"),
        ('federation = "lungs"\naddresses = ["a", "a"]', "twice"),
        ('federation = "lungs"\naddresses = ["a:0"]', "port 0"),
        ('federation = "lungs"\naddresses = ["http://a"]', "address"),
        ('addresses = ["a"]', "federation"),
        ('federation = "lungs"', "addresses"),
    ],
)
def test_a_director_without_a_name_or_an_address_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, text)


def test_an_announced_address_needs_a_port_at_last(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="port"):
        _load(tmp_path, LEAST).announced(0)


def test_a_folder_without_a_director_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="director init"):
        load_config(tmp_path)
