"""Versions as semver.org says, and what a next one must be."""

import pytest
from fedveil.director.hub.model_versions import Kept, Version, check_grows
from fedveil.utils.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st

PIECES = st.one_of(st.integers(0, 99), st.from_regex(r"[0-9]{0,2}[a-zA-Z-][0-9A-Za-z-]{0,3}", fullmatch=True))
NUMBERS = st.integers(0, 999)
VERSIONS = st.builds(Version, NUMBERS, NUMBERS, NUMBERS, st.lists(PIECES, max_size=3).map(tuple))


@given(VERSIONS)
def test_what_is_written_is_read_again(version):
    assert Version.parse(str(version)) == version


@given(VERSIONS, VERSIONS, VERSIONS)
def test_versions_have_one_order(one, two, three):
    assert (one < two) + (one == two) + (one > two) == 1
    assert sorted([one, two, three]) == sorted([three, one, two])


@given(VERSIONS)
def test_a_pre_release_comes_before_its_release_and_whatever_goes_on_after_what_it_begins_with(version):
    release = Version(version.major, version.minor, version.patch)
    assert version <= release
    longer = Version(version.major, version.minor, version.patch, (*version.pre_release, 0))
    assert longer > version if version.pre_release else longer < version


def test_the_order_of_the_standard_s_own_example():
    pre = ["alpha", "alpha.1", "alpha.beta", "beta", "beta.2", "beta.11", "rc.1"]
    written = [*(f"1.0.0-{one}" for one in pre), "1.0.0"]
    assert [str(one) for one in sorted(map(Version.parse, reversed(written)))] == written


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "1",
        "1.0",
        "1.0.0.0",
        "01.0.0",
        "1.0.0-01",
        "1.0.0-",
        "1.0.0-a..b",
        "1.0.0+build",
        "v1.0.0",
        " 1.0.0",
        "1.0.0\n",
        "1.0.\u0661",
        "-1.0.0",
        "1.0.0-" + "a" * 40,
        "1.0.0-ä",
    ],
)
def test_what_is_no_version_is_refused(wrong):
    with pytest.raises(ConfigError, match="is no version"):
        Version.parse(wrong)


def kept(text: str, plan: str = "p", layout: str = "l") -> Kept:
    return Kept(Version.parse(text), plan, layout)


@pytest.mark.parametrize(
    ("before", "new", "least"),
    [
        ([], kept("0.0.1"), None),
        (["1.0.0"], kept("1.0.1"), None),
        (["1.0.0"], kept("1.0.1", plan="other"), "1.1.0"),
        (["1.0.0"], kept("1.1.0", plan="other"), None),
        (["1.4.0"], kept("1.5.0", layout="other"), "2.0.0"),
        (["1.4.0"], kept("2.0.0-rc.1", layout="other"), None),
        (["1.4.0", "2.0.0-rc.1"], kept("2.0.0-rc.2", layout="other"), None),
        (["1.4.0", "2.0.0-rc.1"], kept("2.0.0"), None),
        (["0.4.0"], kept("0.4.1", plan="other"), None),
        (["0.4.0"], kept("0.4.1", layout="other"), "0.5.0"),
        (["0.4.0"], kept("0.5.0", layout="other"), None),
        (["1.0.0-rc.1"], kept("1.0.0", "other", "other"), None),
    ],
)
def test_a_version_grows_as_far_as_what_changed_asks_for(before, new, least):
    there = [kept(one) for one in before]
    if least is None:
        check_grows(there, new)
    else:
        with pytest.raises(ConfigError, match=f"{least} or later"):
            check_grows(there, new)


@given(st.lists(VERSIONS, min_size=1, max_size=4), VERSIONS)
def test_no_version_is_taken_that_does_not_grow(before, new):
    there = [Kept(one, "p", "l") for one in before]
    if new > max(before):
        check_grows(there, Kept(new, "p", "l"))
    else:
        with pytest.raises(ConfigError, match="does not grow"):
            check_grows(there, Kept(new, "p", "l"))
