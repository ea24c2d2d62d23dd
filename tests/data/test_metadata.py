"""Images with a table of labels beside them."""

import csv
import json
import shutil

import numpy as np
import pytest
import run_resnet
from PIL import Image

from gafreeze_jax.data.images import Frame, load_images
from gafreeze_jax.runs import reuse

FRAME = Frame(8)


def write_images(folder, num=30):
    (folder / "pictures").mkdir(parents=True)
    for i in range(num):
        Image.fromarray(np.full((8, 8, 3), 8 * i, np.uint8)).save(folder / "pictures" / f"{i}.png")
    return folder


def write_table(path, *columns, header=("file_name", "label")):
    """Rows of files pictures/0.png, pictures/1.png ... and other columns."""
    files = [f"pictures/{i}.png" for i in range(len(columns[0]))]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *zip(files, *columns, strict=True)])


def test_classes_numbers_and_several_labels(tmp_path):
    folder = write_images(tmp_path / "a")
    write_table(folder / "metadata.csv", ["ant", "bee"] * 15)
    data = load_images(str(folder), FRAME)
    assert (data.kind, data.label_names, data.train.images.shape) == ("label", ("ant", "bee"), (18, 8, 8, 3))

    write_table(folder / "metadata.csv", [i / 4 for i in range(30)], header=("File", "Age"))
    data = load_images(str(folder), FRAME, label_column="age", max_train=10)
    assert (data.kind, data.label_names, len(data.train.labels)) == ("number", ("Age",), 10)
    for split in data[:3]:
        np.testing.assert_array_equal(split.labels, split.images[:, 0, 0, 0] / 32)
    assert len(load_images(str(folder), FRAME, label_column="Age", kind="number").test.labels) == len(data.test_files) == 6

    write_table(folder / "metadata.csv", ["red;tall" if i % 3 else "tall" for i in range(30)], header=("file_name", "tags"))
    data = load_images(str(folder), FRAME)
    assert (data.kind, data.label_names) == ("labels", ("red", "tall"))
    np.testing.assert_array_equal(data.train.labels[:, 0], data.train.images[:, 0, 0, 0] // 8 % 3 > 0)

    write_table(folder / "metadata.csv", [0, 1] * 15, [1, 1, 0] * 10, header=("file_name", "red", "tall"))
    data = load_images(str(folder), FRAME)
    assert (data.kind, data.label_names) == ("labels", ("red", "tall"))
    np.testing.assert_array_equal(data.test.labels[:, 0], data.test.images[:, 0, 0, 0] // 8 % 2)


def test_a_table_for_each_split(tmp_path):
    for name, num in (("train", 20), ("validation", 6), ("test", 4)):
        folder = write_images(tmp_path / "a" / name, num)
        rows = [json.dumps({"file_name": f"pictures/{i}.png", "label": i % 2}) for i in range(num)]
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    data = load_images(str(tmp_path / "a"), FRAME)
    assert [len(split.labels) for split in data[:3]] == [20, 6, 4]
    assert data.test_files[0] == "test/pictures/0.png"
    (tmp_path / "a/test/metadata.jsonl").write_text('{"file_name": "pictures/0.png"}')
    data = load_images(str(tmp_path / "a"), FRAME)
    assert "test/metadata.jsonl has no labels and is not used" in " ".join(data.notes)


def test_a_file_of_labels_beside_folders_of_classes_is_no_table(tmp_path):
    for name in ("ant", "bee"):
        write_images(tmp_path / "a" / name, 10)
        shutil.copytree(tmp_path / "a" / name / "pictures", tmp_path / "a" / name, dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "a" / name / "pictures")
    (tmp_path / "a" / "labels.csv").write_text("number,name\n0,ant\n1,bee\n")
    assert load_images(str(tmp_path / "a"), FRAME).label_names == ("ant", "bee")


@pytest.mark.parametrize(
    ("header", "rows", "given", "message"),
    [
        (
            ("name", "label"),
            [("pictures/0.png", 1)],
            {},
            "no column of image files, such as file_name; the columns",
        ),
        (
            ("file_name", "colour"),
            [("pictures/0.png", 1)],
            {},
            "no label column found; name it with --label-column",
        ),
        (
            ("file_name", "label"),
            [("pictures/0.png", 1)],
            {"label_column": "x"},
            "no column 'x'; the columns are label",
        ),
        (("file_name", "label"), [("pictures/99.png", 1)], {}, "line 2: column 'file_name' must name a file in the table's"),
        (
            ("file_name", "label"),
            [("../secret.png", 1)],
            {},
            "line 2: column 'file_name' must name a file in",
        ),
        (("file_name", "label"), [("pictures/0.png", "")], {}, "no rows with a label in column 'label'"),
        (
            ("file_name", "y"),
            [("pictures/0.png", 1.5), ("pictures/1.png", "nan?")],
            {"kind": "number"},
            "line 3: column 'y'",
        ),
    ],
)
def test_tables_that_cannot_be_used(header, rows, given, message, tmp_path):
    folder = write_images(tmp_path / "a", 2)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    with pytest.raises(ValueError, match=r"metadata\.csv") as error:
        load_images(str(folder), FRAME, **given)
    assert message in str(error.value)
    assert len(str(error.value)) < 600 + len(str(folder))


@pytest.mark.parametrize("given", [{"kind": "number"}, {"label_column": "y"}])
def test_what_needs_a_table_says_so(given, tmp_path):
    with pytest.raises(ValueError, match=r"(or|for) a folder with a table"):
        load_images("digits", Frame(8, 1), **given)


TINY = {"gens": 1, "population": 2, "epochs": 1, "batch_size": 8, "finalist_seeds": 1}
RUNS = {
    "score": ([100 + i + 0.5 for i in range(30)], "a number for each image", "Predicted and true numbers"),
    "tags": (
        ["red,tall" if i % 3 else "tall" for i in range(30)],
        "several labels for each image",
        "What is found of each kind",
    ),
}


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("column", RUNS)
def test_a_run(column, small_resnet, tmp_path, capsys):
    """The saved model gives what the run has written, in the units of the table."""
    values, task, title = RUNS[column]
    folder, out = write_images(tmp_path / "a"), tmp_path / "run"
    write_table(folder / "metadata.csv", values, header=("file_name", column))
    plan = "members=8,steps=2,freezing=traced"
    run_resnet.main(run_resnet.Options(data=str(folder), model=str(small_resnet), out=out, rates=(1.0,), plan=plan, **TINY))
    assert f"Task: {task}" in capsys.readouterr().out
    with open(out / "test_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    predicted = reuse.predict(out, folder)
    titles = ("score", "predicted") if column == "score" else ("labels", "labels")
    by_file = dict(zip(predicted["file"], predicted[titles[0]], strict=True))
    for row in rows:
        written, expected = row[titles[1]], by_file[row["file"]]
        assert float(written) == pytest.approx(expected, rel=1e-3) if column == "score" else written == expected
    assert title in (out / "report.html").read_text()
