"""``envoy.toml``: read whole, and refused by name where it cannot mean what it says (its policy: ``test_policy``)."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedveil.envoy.config import Device, EnvoyConfig, Work, load_config
from fedveil.utils.errors import ConfigError
from fedveil.utils.logs import LogLevel


def test_without_a_settings_file_there_is_no_policy(tmp_path: Path) -> None:
    config = load_config(tmp_path)
    assert config == EnvoyConfig()
    assert config.protection is None
    assert (config.work, config.training.device, config.training.preload_torch) == (Work.STREAM, Device.AUTO, True)
    assert config.dialled(("a:1",)) == ("a:1",)


def test_every_setting_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "envoy.toml").write_text(
        'addresses = ["b:2"]\nwork = "poll"\nlog_level = "warning"\n'
        '[training]\ndevice = "cpu"\nthreads = 2\npreload_torch = false\nmax_train_seconds = 60\n'
    )
    config = load_config(tmp_path)
    assert config.dialled(("a:1",)) == ("b:2",)
    assert (config.work, config.log_level, config.training.device) == (Work.POLL, LogLevel.WARNING, Device.CPU)
    assert (config.training.threads, config.training.preload_torch) == (2, False)
    assert config.training.max_train_seconds == 60.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('addresses = ["b"]', "addresses.*port"),
        ('work = "push"', "work.*stream, poll"),
        ("[training]\nthreads = -1", r"training.*threads"),
        ("[training]\nmax_train_seconds = 0", "max_train_seconds"),
        ('[training]\ndevice = "tpu"', r"training\.device"),
        ("[training]\nthread = 1", r"training\.thread"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "envoy.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path)
