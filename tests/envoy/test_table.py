import numpy as np
import pyarrow as pa
import pytest
from fedveil.envoy.datasets import DataOptions, Split, SplitRule, check, inspect, load
from fedveil.utils.data_spec import DataKind, DataSpec
from fedveil.utils.errors import DatasetError
from pyarrow import parquet

MEASURED = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak")
HEART = (*MEASURED, "slope", "ca", "thal", "num")
ROWS = """patient,age,weight,town,ill
p1,61,70.5,Ghent,yes
p2,?,80,Ghent,no
p3,47,1e300,Lyon,no
p1,62,71,Ghent,yes
,50,60,Lyon,no
p4,51,66,Lyon,
p5,52,64,Lyon,maybe
p6,53,62,Lyon,no
"""


def spec(*columns, classes=("no", "yes")):
    return DataSpec("heart", DataKind.TABLE, (len(columns),), classes, columns)


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "heart.csv"
    path.write_text(ROWS)
    return path


def test_rows_become_float32_in_the_order_of_the_plans_columns(csv):
    added = inspect("heart", csv, DataOptions(label_column="ill", patient="patient", classes=("no", "yes")), 1.0)
    loaded = load(added.record, added.index, spec("weight", "age"))
    assert added.record.columns == ("age", "weight")
    assert loaded.features.dtype == np.float32
    held = {(*map(float, values), int(label)) for values, label in zip(loaded.features, loaded.labels, strict=True)}
    assert held == {(70.5, 61.0, 1), (71.0, 62.0, 1), (62.0, 53.0, 0)}
    assert load(added.record, added.index, spec("age")).features.shape == (3, 1)


def test_rows_that_cannot_be_used_are_quarantined_with_a_reason_that_names_no_value(csv):
    options = DataOptions(label_column="ill", patient="patient", classes=("no", "yes"))
    added = inspect("heart", csv, options, 1.0)
    assert {one.id: one.reason for one in added.report.quarantined} == {
        "row 2": "age: missing",
        "row 3": "weight: not a finite number",
        "row 5": "patient: missing",
        "row 6": "ill: missing",
        "row 7": "label outside the classes",
    }
    assert "not numeric, left out: town" in added.report.warnings


def test_rows_of_one_patient_are_in_one_split(tmp_path):
    path = tmp_path / "visits.tsv"
    lines = [f"p{visit % 9}\t{visit}\t{visit % 2}" for visit in range(90)]
    path.write_text("\n".join(["who\tvalue\tlabel", *lines]))
    options = DataOptions(label_column="label", patient="who", rule=SplitRule(0.5, 0.25, 0.25))
    added = inspect("visits", path, options, 1.0)
    pairs = {((int(example.id.split()[1]) - 1) % 9, example.split) for example in added.index.examples}
    assert len(pairs) == 9
    assert len({split for _, split in pairs}) > 1


def test_rows_inserted_later_move_no_others(tmp_path):
    path = tmp_path / "t.csv"
    lines = [f"{value},{value % 2}" for value in range(50)]
    splits = []
    for rows in (lines, ["900,0", "901,1", *lines]):
        path.write_text("\n".join(["value,label", *rows]))
        added = inspect("t", path, DataOptions(label_column="label"), 1.0)
        splits.append([example.split for example in added.index.examples])
    assert splits[1][2:] == splits[0]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet", "semicolon.csv"])
def test_every_kind_of_table_gives_the_same(tmp_path, name):
    columns = {"a": [1.5, 2.5, 3.5], "b": [1, 2, 3], "part": ["train", "val", "test"], "label": [0, 1, 0]}
    path = tmp_path / name
    if name.endswith("parquet"):
        parquet.write_table(pa.table(columns), path)
    else:
        mark = {"t.csv": ",", "t.tsv": "\t"}.get(name, ";")
        rows = [mark.join(columns), *(mark.join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(rows))
    added = inspect("t", path, DataOptions(label_column="label", split_column="part"), 1.0)
    loaded = load(added.record, added.index, spec("a", "b", classes=("0", "1")))
    assert loaded.features.tolist() == [[1.5, 1], [2.5, 2], [3.5, 3]]
    assert loaded.labels.tolist() == [0, 1, 0]
    assert loaded.split.tolist() == list(Split)


def test_rows_with_too_many_values_are_quarantined(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,label\n1,0\n2,0,9\n3,1\n")
    added = inspect("t", path, DataOptions(label_column="label"), 1.0)
    assert [(one.id, one.reason) for one in added.report.quarantined] == [("torn row 1", "3 values, expected 2")]
    loaded = load(added.record, added.index, spec("a", classes=()))
    assert sorted(loaded.features[:, 0].tolist()) == [1, 3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "which column is the label"),
        ({"label_column": "sick"}, "no column sick; it has patient, age"),
        ({"label_column": "ill", "columns": ("age", "height")}, "no column height"),
        ({"label_column": "ill", "columns": ("age", "ill")}, "ill: a feature cannot be the label"),
        ({"label_column": "ill", "classes": ("a", "b")}, "empty"),
        ({"label_column": "ill", "columns": ("town",)}, "empty.*town: not a finite number"),
        ({"label_column": "ill", "header": ("a", "a", "b", "c", "ill")}, "two columns"),
    ],
)
def test_options_that_do_not_fit_the_table_are_refused(csv, options, words):
    with pytest.raises(DatasetError, match=words):
        inspect("heart", csv, DataOptions(**options), 1.0)


@pytest.mark.parametrize("raw", [b"", b"a,label\n", b"\xff\xfe\x00,label\n1,2"])
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_file_that_is_no_table_or_empty_is_refused(tmp_path, raw, name):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DatasetError):
        inspect("t", tmp_path / name, DataOptions(label_column="label"), 1.0)


def test_a_column_that_the_site_did_not_add_is_refused_by_name(csv):
    added = inspect("heart", csv, DataOptions(label_column="ill", columns=("age",), classes=("no", "yes")), 1.0)
    with pytest.raises(DatasetError, match="no feature weight, which the plan asks for"):
        load(added.record, added.index, spec("age", "weight"))
    with pytest.raises(DatasetError, match="names no columns of dataset heart"):
        load(added.record, added.index, DataSpec("heart", DataKind.TABLE, (3,), ("no", "yes")))


def test_check_finds_changed_and_new_rows(csv):
    added = inspect("heart", csv, DataOptions(label_column="ill", columns=("age",), classes=("no", "yes")), 1.0)
    csv.write_text(ROWS.replace("53,62,Lyon,no", "53,62,Lyon,yes").replace("61,", "60,") + "p7,54,60,Lyon,no\n")
    report = check(added.record, added.index)
    assert (report.missing, report.changed, report.new) == ((), ("row 1", "row 8"), ("row 9",))
    with pytest.raises(DatasetError, match="cannot be read as it was recorded"):
        load(added.record, added.index, spec("age"))


@pytest.mark.parametrize(
    ("centre", "complete", "ill"),
    [("cleveland", 303, 139), ("hungarian", 261, 98), ("switzerland", 46, 45), ("va", 130, 101)],
)
def test_the_four_heart_hospitals_have_the_published_counts(real_set, centre, complete, ill):
    options = DataOptions(classes=("no=0", "yes=1|2|3|4"), label_column="num", columns=MEASURED, header=HEART)
    added = inspect(centre, real_set(f"heart-disease-uci/processed.{centre}.data"), options, 1.0)
    loaded = load(added.record, added.index, spec(*MEASURED))
    assert (len(loaded), int(loaded.labels.sum())) == (complete, ill)
