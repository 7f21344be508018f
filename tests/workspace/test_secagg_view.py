"""What a real director has of real secure sums: nothing of it tells of an update, and the test of that has teeth."""

import json

import numpy as np
import pytest
from fedveil.gradient_leakage.attacks.defended_matching import DefendedMatching
from fedveil.utils.secure_sum.fixed_point import LEVELS
from fedveil.workspace import secagg_view
from fedveil.workspace.__main__ import app
from fedveil.workspace.secagg_page import page_of
from fedveil.workspace.secagg_run import SITES, read_sums, run_federation
from fedveil.workspace.secagg_view import planted_reuse, scalar_masked, view_of_own, view_of_sums
from typer.testing import CliRunner

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Four real sites, two rounds, real processes; the director keeps its sums."""
    return run_federation(tmp_path_factory.mktemp("secagg"))


@pytest.fixture(scope="module")
def view(own):
    """With attacks that are long enough for the easy ones."""
    patch = pytest.MonkeyPatch()
    patch.setattr(secagg_view, "_ATTACK", DefendedMatching(iterations=120, polish=150))
    patch.setattr(secagg_view, "_ATTACK_ON_SUM", DefendedMatching(iterations=30, polish=0))
    try:
        return view_of_own(own)
    finally:
        patch.undo()


def scheme(view, name):
    return next(one for one in view.schemes if one.name.startswith(name))


def attack(view, name):
    return next(one for one in view.attacks if one.name == name)


def test_the_director_kept_every_statement_and_vector_of_all_sums(own):
    assert [(kept.told["kind"], kept.told["outcome"]) for kept in own.sums] == [
        *[("train", "opened")] * 2,
        ("evaluate", "opened"),
    ]
    for kept in own.sums:
        assert set(kept.vectors) == set(kept.without_own) == set(SITES)
        stages = {(one.way, one.stage) for one in kept.said if one.way == "up"}
        assert {("up", stage) for stage in ("advert", "shares", "masked", "consent", "unmasking")} <= stages


def test_the_sum_of_all_sites_is_the_truth_and_nothing_less_is(own):
    """That what is compared below is in fact what was masked; and that all masks but the pairs' were taken away."""
    for kept, truth in zip(own.training_sums, own.truths, strict=True):
        bounds = np.repeat(
            kept.told["terms"]["bounds"] * (len(kept.told["sizes"]) // len(kept.told["terms"]["bounds"])),
            kept.told["sizes"],
        )
        steps = {
            name: words.view(np.int32) * (bounds / LEVELS * len(SITES)) for name, words in kept.without_own.items()
        }
        total = sum(words.astype(np.uint32) for words in kept.without_own.values()).astype(np.uint32)
        found = total.view(np.int32) * (bounds / LEVELS * len(SITES))
        error = np.abs(found - sum(truth.values()))
        in_float32 = 1e-7  # the truth is trained once more here, with sums in another order
        assert (error <= len(SITES) * len(SITES) * bounds / LEVELS + in_float32).all()
        for name in SITES:
            assert np.abs(steps[name] - truth[name]).max() > 0.1 * bounds.max()


def test_what_arrived_passes_the_smoke_test_with_and_without_the_sites_own_masks(view):
    for name in ("as it arrived", "without the masks"):
        found = scheme(view, name)
        assert found.is_real
        assert found.passes, found.test.findings
        assert len(found.test.looks) > 300
        assert max(abs(value) for value in found.correlations.values()) < 0.04


def test_the_same_test_catches_one_number_as_a_mask_and_masks_that_are_used_again(view):
    scalar, again = scheme(view, "broken: one number"), scheme(view, "broken: the masks")
    assert min(scalar.correlations.values()) > 0.999
    assert "correlation, each vector" in {look.kind for look in scalar.test.findings}
    assert {"correlation, over rounds", "bytes, over rounds"} <= {look.kind for look in again.test.findings}
    assert not any("each vector" in look.kind for look in again.test.findings)  # one round alone does not show it


def test_attacks_on_masked_vectors_find_what_they_find_in_anybodys_and_open_the_scalar_mask(view):
    assert attack(view, "undefended").psnr > 30
    assert attack(view, "scalar mask").psnr > 30  # the attacker knows the scheme
    for name in ("masked, as it arrived", "masked, less the sites' own masks"):
        found = attack(view, name)
        assert abs(found.psnr - found.null_psnr) < 1
        assert abs(found.ssim - found.null_ssim) < 0.1
        assert found.psnr < 10


def test_the_page_needs_nothing_else_and_says_that_it_is_no_proof(view):
    page = page_of(view)
    assert page.count('<img src="data:image/png;base64,') == 4 * 7 + 4 * 4
    assert "://" not in page  # pictures in base64 hold any four letters by chance
    assert "no proof" in page
    assert "nobody outside has reviewed it" in page
    assert "caught, as it must be" in page
    assert "NOT independent" not in page
    json.dumps(view.as_json(), allow_nan=False)


def test_a_directors_own_folder_is_looked_at_without_the_truth(own, tmp_path):
    kept = own.folder / "director" / "sums" / own.run
    done = CliRunner().invoke(app, ["secagg", "view", "--run", str(kept), "--out", str(tmp_path / "page")])
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "page" / "secagg.json").read_text())
    assert [one["findings"] for one in figures["smoke_test"]] == [0, 0]
    assert figures["attacks"] == []
    assert figures["sums"][0]["vector_bytes"].keys() == set(SITES)
    assert "the truth is not known here" in (tmp_path / "page" / "secagg.html").read_text().replace("\n", " ")


def test_without_the_truth_bytes_still_show_masks_that_are_used_again(own):
    from fedveil.gradient_leakage.server_view import smoke_test

    assert {look.kind for look in smoke_test(planted_reuse(own)).findings} == {"bytes, over rounds"}
    assert smoke_test(scalar_masked(own)).findings
    assert len(view_of_sums(own.sums).schemes) == 2


def test_what_is_no_kept_sum_is_refused(own, tmp_path):
    empty = CliRunner().invoke(app, ["secagg", "view", "--run", str(tmp_path), "--out", str(tmp_path / "page")])
    assert empty.exit_code == 1
    assert "keep_sums = true" in " ".join(empty.output.split())
    (tmp_path / "1-1").mkdir()
    (tmp_path / "1-1" / "sum.json").write_text("{}")
    broken = CliRunner().invoke(app, ["secagg", "view", "--run", str(tmp_path), "--out", str(tmp_path / "page")])
    assert broken.exit_code == 1
    assert "is no kept sum" in " ".join(broken.output.split())


def test_attack_run_says_what_a_kept_vector_is(own, tmp_path):
    kept = own.sum_folder(own.training_sums[0]) / "site-a.masked"
    words = ["--update", kept, "--plan", own.folder / "plan", "--examples", 1, "--attack", "idlg-label"]
    done = CliRunner().invoke(app, ["attack", "run", *map(str, words)])
    assert done.exit_code == 0, done.output
    assert "site-a.masked is no update: it is a masked vector of a secure sum" in " ".join(done.output.split())
    assert read_sums(kept.parent.parent)[0].told["run"] == own.run


def test_a_sum_that_another_organization_made_is_shown_as_boxes(own, tmp_path):
    """The director then holds no vector; nor does it fail on shares that are sealed to somebody else."""
    kept = own.sum_folder(own.training_sums[0])
    (tmp_path / "1-1").mkdir()
    told = json.loads((kept / "sum.json").read_text())
    told["terms"]["aggregator"] = "site-a"
    (tmp_path / "1-1" / "sum.json").write_text(json.dumps(told))
    sealed = [json.loads(line) | {"content": "AAAA"} for line in (kept / "events.jsonl").read_text().splitlines()]
    (tmp_path / "1-1" / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sealed))
    page = page_of(view_of_sums(read_sums(tmp_path)))
    assert "site-a sums: the director relays sealed boxes" in page
    assert "No masked vector was kept" in page
