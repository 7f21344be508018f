"""Three hospitals, two of which publish by subgroups: real processes, a secure sum, and the report that comes of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from fedveil.director.__main__ import app as director
from fedveil.director.fairness_report import of_history
from fedveil.envoy.datasets import DataOptions, DatasetRegistry, inspect
from fedveil.envoy.journal import read_outbox
from fedveil.utils.evidence import read_evidence
from fedveil.utils.fairness import read
from fedveil.utils.plan_bundle import open_bundle
from fedveil.workspace.__main__ import app as fedveil
from fedveil.workspace.plan_builder import build_plan
from typer.testing import CliRunner

PLAN = '''
import numpy as np
from fedveil import ArrayPlan, DataKind, DataSpec, auc_of, mean_of


class Line(ArrayPlan):
    """A logistic regression on two columns; the subgroup is none of them."""

    data = DataSpec("people", DataKind.TABLE, (2,), ("well", "ill"), ("marker", "age"))

    def initial(self):
        return {"w": np.array([2.0, 0.0, -1.0], np.float32)}

    def train(self, weights, data, rng):
        x = np.c_[data.features, np.ones(len(data))]
        w = weights["w"].astype(np.float64)
        for _ in range(20):
            w -= 0.5 * x.T @ (1 / (1 + np.exp(-x @ w)) - data.labels) / len(data)
        return {"w": w.astype(np.float32)}, len(data)

    def evaluate(self, weights, data):
        print("evaluates", len(data), flush=True)
        score = 1 / (1 + np.exp(-np.c_[data.features, np.ones(len(data))] @ weights["w"].astype(np.float64)))
        yield mean_of("accuracy", float(((score > 0.5) == data.labels).sum()), len(data))
        yield auc_of("auc", score, data.labels)
'''
PUBLISH = '\n[fairness]\npublish = true\nsubgroups = ["sex"]\n'
SECURE = "[secure_sum]\nclip = 4.0\nmax_examples = 1000\nstage_timeout_seconds = 30\n"


def people(path: Path, seed: int, women: int, men: int, others: int) -> None:
    """Half of each sex are ill; the marker says less of men. One in two is in the test part."""
    rng = np.random.default_rng(seed)
    rows = ["marker,age,sex,ill,part,patient"]
    for sex, count in (("F", women), ("M", men), ("X", others)):
        for n in range(count):
            ill = n // 2 % 2
            marker = ill + rng.normal(0, 0.3 if sex == "F" else 0.9)
            rows.append(f"{marker:.4f},{rng.random():.3f},{sex},{ill},{('test', 'train')[n % 2]},{sex}{n}-of-{seed}")
    path.write_text("\n".join(rows) + "\n")


def typed(app, *words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


def ran(federation, settings, tmp_path):
    """A run of one round and a final evaluation, in secure sums of three; site-c publishes nothing."""
    for seed, (site, sizes) in enumerate(
        {"site-a": (240, 120, 12), "site-b": (160, 160, 60), "site-c": (100, 100, 40)}.items()
    ):
        people(tmp_path / f"{site}.csv", seed, *sizes)
        options = DataOptions(("well=0", "ill=1"), "patient", "ill", ("marker", "age"), split_column="part")
        found = inspect("people", tmp_path / f"{site}.csv", options, time.time())
        DatasetRegistry(federation.folder / site / "datasets").add(found.record, found.index)
        if site != "site-c":
            federation.kill_envoy(site)
            file = federation.folder / site / "envoy.toml"
            file.write_text(file.read_text("utf-8").replace('"allowed"', '"required"') + PUBLISH, "utf-8")
            federation.start_envoy(site)
    federation.wait_for_all()
    (tmp_path / "line.py").write_text(PLAN)
    build_plan(tmp_path / "line.py", tmp_path / "bundle")
    text = settings("line", rounds=1, secure="required").replace("min_approvals = 4", "min_approvals = 3") + SECURE
    return federation.finish(federation.submit(text, open_bundle(tmp_path / "bundle")))


def test_two_of_three_sites_publish_in_a_secure_sum_and_page_evidence_and_logs_show_it(federation, settings, tmp_path):
    view = ran(federation, settings, tmp_path)
    check_report(federation, view.run)
    check_pages(federation, view.run, tmp_path)
    check_logs(federation)


def check_report(federation, run):
    """Two of three, and who is silent."""
    report = of_history(run, federation.history.rounds(run), federation.history.fairness(run))
    (last,) = report.rounds
    assert (last.kind, last.answered, last.silent) == ("evaluate", 3, ("site-c",))
    assert set(last.sites) == {"site-a", "site-b"}
    told = {site: [(c.value, c.least, c.most) for c in table.cells] for site, table in last.sites.items()}
    # site-a has 6 of sex X in its test part: hidden, and the 60 men with them. site-b has 80, 80 and 30.
    assert told == {
        "site-a": [("", 100, 199), ("F", 100, 199)],
        "site-b": [("", 100, 199), ("F", 50, 99), ("M", 50, 99), ("X", 20, 49)],
    }
    assert last.sites["site-a"].suppressed == {"sex": 2}
    assert {one.unit for one in last.sites.values()} == {"patients"}
    pooled = {(one.value, one.metric): one for one in last.pooled}
    assert pooled.keys() == {("", "accuracy"), ("", "auc"), ("F", "accuracy"), ("F", "auc")}
    assert pooled["F", "auc"].mean > 0.9
    of_b = {c.value: {m.name: m for m in c.measured} for c in last.sites["site-b"].cells}
    assert of_b["F"]["auc"].value > of_b["M"]["auc"].value
    documents = federation.history.fairness(run)
    assert all(read(document.content).site == site for told in documents.values() for site, document in told.items())


def check_pages(federation, run, tmp_path):
    """The command, in its forms, and the evidence bundle, checked offline."""
    page = typed(fedveil, "report", "fairness", run, "--folder", federation.director_folder)
    assert "2 of 3 sites publish" in page
    assert "site\\-c" in page
    as_json = typed(fedveil, "report", "fairness", run, "--form", "json", "--folder", federation.director_folder)
    figures = [
        str(metric[2])
        for site in json.loads(as_json)["rounds"][0]["sites"]
        for c in site["cells"]
        for metric in c["metrics"]
    ]
    rows = typed(fedveil, "report", "fairness", run, "--form", "csv", "--folder", federation.director_folder)
    assert all(figure in rows for figure in figures)
    out = tmp_path / "evidence.zip"
    typed(director, "audit", "export", out, "--folder", federation.director_folder)
    statements = json.loads(read_evidence(out).members["fairness.json"])
    assert [one["site"] for one in statements] == ["site-a", "site-b"]
    assert all(len(bytes.fromhex(one["signature"])) == 64 for one in statements)
    said = typed(fedveil, "audit", "verify", out).replace("\n", " ")
    assert "2 fairness reports, each signed by the site whose it is" in said


def check_logs(federation):
    """That it was published, and no figure."""
    for site in ("site-a", "site-b"):
        log = (federation.folder / site / "audit.jsonl").read_text()
        assert log.count('"fairness published"') == 1
        assert [row.metrics[-1:] for row in read_outbox(federation.folder / site)] == [("auc",), ("fairness",)]
        for text in (log, (federation.folder / site / "log.txt").read_text()):
            assert '"accuracy",' not in text
            assert "sex" not in text
        # the plan's process was never told to evaluate a cell that is not told of: 60 men, 6 others
        said = (federation.folder / site / "state" / "worker.log").read_text()
        assert ("evaluates 6\n" in said, "evaluates 60\n" in said) == (False, False)
    assert "fairness" not in (federation.folder / "site-c" / "audit.jsonl").read_text()
    director_log = (federation.director_folder / "log.txt").read_text()
    assert "accuracy" not in director_log
