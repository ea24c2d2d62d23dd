"""Folders of images as people have them: names of splits, folders too many, images without labels, what systems leave there."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from gafreeze_jax.data import splits
from gafreeze_jax.data.images import Frame, load_images, load_unlabelled
from gafreeze_jax.data.layout import find_splits

FRAME = Frame(8)
KINDS = ("cats", "dogs")


def write(folder, num, suffix=".png"):
    """Images in a folder, all different from those of other folders."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(folder).encode()))
    for i in range(num):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i}{suffix}")


def tree(top, **nums):
    """Folders of images {path: number}, with __ for /."""
    for path, num in nums.items():
        write(top / path.replace("__", "/"), num)
    return top


def classes(top, *paths, names=KINDS, num=10):
    """Class folders in some folders."""
    for path in paths:
        for name in names:
            write(top / path / name, num)
    return top


def load(path, **options):
    return load_images(str(path), FRAME, **options)


def sizes(data):
    return [len(split.labels) for split in data[:3]]


# Names of splits


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("training_set", "validation_set", "test_set"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "DEV", "TEST"),
        ("train_images", "val_images", "test_images"),
        ("images-train", "images-valid", "images-test"),
        ("seg_train", "seg_val", "seg_test"),
        ("asl_alphabet_train", "asl_alphabet_dev", "asl_alphabet_test"),
        ("train2017", "val2017", "test2017"),
        ("TrainSet", "ValidSet", "TestSet"),
        ("trainData", "valData", "testData"),
        ("1. train", "2. valid", "3. test"),
    ],
    ids=lambda names: names[0],
)
def test_usual_names(names, tmp_path):
    for name, num in zip(names, (10, 4, 3), strict=True):
        classes(tmp_path, name, num=num)
    data = load(tmp_path)
    assert data.label_names == KINDS
    assert sizes(data) == [20, 8, 6]
    assert not data.notes


def test_the_files_of_test_images_are_known(tmp_path):
    classes(tmp_path, "train", "test", num=5)
    (tmp_path / "test" / "cats" / "1.png").write_bytes(b"damaged")
    data = load(tmp_path, skip_broken=True)
    files = [f"test/{name}/{i}.png" for name in KINDS for i in range(5)]
    assert list(data.test_files) == [file for file in files if file != "test/cats/1.png"]
    assert [KINDS[label] for label in data.test.labels] == [file.split("/")[1] for file in data.test_files]


@pytest.mark.parametrize(
    "name", ["toy_train", "test_tube", "trainer", "contest", "latest", "valley", "device", "train_test", "protest"]
)
def test_names_that_are_none(name):
    assert not splits.named([name, "other"])


def test_the_names_are_those_of_files_too(tmp_path):
    for name in ("sms_training.csv", "sms_testing.csv", "notes.txt"):
        (tmp_path / name).touch()
    assert find_splits(tmp_path, (".csv",)) == {
        "train": [tmp_path / "sms_training.csv"],
        "test": [tmp_path / "sms_testing.csv"],
    }
    for name, num in (("training_set", 20), ("test_set", 6)):
        np.savez(tmp_path / f"{name}.NPZ", images=np.zeros((num, 8, 8), np.uint8), labels=np.arange(num) % 2)
        (tmp_path / f"{name}.NPZ.npz").rename(tmp_path / f"{name}.NPZ")
    assert sizes(load(tmp_path)) == [16, 4, 6]


def test_two_names_of_one_split(tmp_path):
    classes(tmp_path, "train", "Training", "test")
    with pytest.raises(ValueError, match="Training, train are names of the same split; keep one"):
        load(tmp_path)


def test_no_train(tmp_path):
    classes(tmp_path / "archive", "val", "extra")
    with pytest.raises(ValueError, match="no train split; it has extra, val"):
        load(tmp_path)


def test_other_folders_beside_splits_are_named(tmp_path):
    classes(tmp_path, "train", "test", "evaluation")
    data = load(tmp_path)
    assert sizes(data) == [16, 4, 20]
    assert f"Not used: evaluation in {tmp_path}, as the names are not those of splits." in data.notes


# Folders too many


@pytest.mark.parametrize("around", ["archive", "data/photos", "train", "training_set/training_set"])
def test_a_folder_too_many_around_classes(around, tmp_path):
    data = load(classes(tmp_path, around))
    assert data.label_names == KINDS
    assert sizes(data) == [12, 4, 4]
    assert f"Reads {tmp_path / around}, which is all that {tmp_path} has." in data.notes


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("archive/training_set", "archive/test_set"),
        ("training_set/training_set", "test_set/test_set"),  # as cat-and-dog has it
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("photos/train/images", "photos/test/images"),
    ],
)
def test_a_folder_too_many_around_splits(train, test, tmp_path):
    classes(tmp_path, train)
    data = load(classes(tmp_path, test, num=3))
    assert data.label_names == KINDS
    assert sizes(data) == [16, 4, 6]


def test_a_folder_too_many_in_classes(tmp_path):
    """As in Tiny ImageNet."""
    data = load(tree(tmp_path, n01__images=10, n02__images=10))
    assert data.label_names == ("n01", "n02")
    assert sizes(data) == [12, 4, 4]


def test_a_test_folder_alone_does_not_train(tmp_path):
    classes(tmp_path, "archive/test")
    with pytest.raises(ValueError, match="no train split; it has test"):
        load(tmp_path)


def test_folders_in_all_classes_are_named(tmp_path):
    """Nothing says whether years or animals are the classes."""
    classes(tmp_path, "2023", "2024")
    for options in ({}, {"skip_broken": True}):
        with pytest.raises(ValueError, match=r"no images in 2023, but folders \(cats, dogs\); expected class folders") as error:
            load(tmp_path, **options)
        assert "\n" not in str(error.value)


def test_a_folder_in_a_class(tmp_path):
    classes(tmp_path, "")
    write(tmp_path / "cats" / "more", 3)
    with pytest.raises(ValueError, match=r"cannot be read as images: cats/more \(a folder\); --skip-broken leaves"):
        load(tmp_path)
    assert sum(sizes(load(tmp_path, skip_broken=True))) == 20


@pytest.mark.parametrize(("suffix", "files"), [(".heic", "0.heic, 1.heic"), ("", "0, 1")])
def test_files_of_other_kinds_in_a_class(suffix, files, tmp_path):
    classes(tmp_path, "", names=("dogs",))
    (tmp_path / "cats").mkdir()
    for i in range(2):
        (tmp_path / "cats" / f"{i}{suffix}").write_bytes(b"...")
    message = rf"no images in cats, but other files \({files}\); convert them to \.jpg, "
    with pytest.raises(ValueError, match=message):
        load(tmp_path, skip_broken=True)


def test_what_a_browser_calls_a_jpeg(tmp_path):
    classes(tmp_path, "")
    for path in sorted(tmp_path.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.with_suffix(".jpg").rename(path.with_suffix(".jfif"))
        path.unlink()
    assert sum(sizes(load(tmp_path))) == 20


def test_a_link_whose_end_is_gone(tmp_path):
    """As of git-annex."""
    classes(tmp_path, "")
    (tmp_path / "cats" / "a.png").symlink_to("nowhere")
    for read in (load, lambda path: load_unlabelled(path, FRAME)):
        with pytest.raises(ValueError, match=r"cats/a\.png \(No such file or directory\); --skip-broken"):
            read(tmp_path)


# Classes called like splits


@pytest.mark.parametrize("names", [("bus", "car", "train"), ("car", "test", "train"), ("dev", "ops", "val")])
def test_classes_called_like_splits(names, tmp_path):
    data = load(classes(tmp_path, "", names=names))
    assert data.label_names == names
    assert sizes(data) == [18, 6, 6]


@pytest.mark.parametrize("around", ["", "data"])
def test_classes_called_like_splits_in_splits(around, tmp_path):
    names = ("bus", "car", "train")
    classes(tmp_path / around, "train", names=names)
    data = load(classes(tmp_path / around, "test", names=names, num=2))
    assert data.label_names == names
    assert sizes(data) == [24, 6, 6]


def test_images_without_classes_in_all_splits(tmp_path):
    with pytest.raises(ValueError, match=r"train: no class folders in it, and images lie there without any \(9\); expected"):
        load(tree(tmp_path, train=9, test=4))


# Images without labels


@pytest.mark.parametrize("inner", ["", "images", "test", "unknown"])
def test_a_test_folder_without_labels(inner, tmp_path):
    classes(tmp_path, "train")
    write(tmp_path / "test" / inner, 7)
    data = load(tmp_path)
    assert sizes(data) == [12, 4, 4]
    (note,) = (note for note in data.notes if "no labels" in note)
    assert note.startswith("The test split has no labels and is not used: 7 images in ")
    assert note.endswith("gafreeze predict labels them.")
    assert len(load_unlabelled(tmp_path / "test", FRAME).images) == 7


def test_a_validation_folder_without_images(tmp_path):
    classes(tmp_path, "train", "test")
    (tmp_path / "val").mkdir()
    data = load(tmp_path)
    assert sizes(data) == [16, 4, 20]
    assert any(note.startswith("The validation split has no labels and is not used: 0 images") for note in data.notes)


def test_images_beside_class_folders_are_counted(tmp_path):
    classes(tmp_path, "train", "test")
    write(tmp_path / "train", 3)
    assert f"Not used: 3 images beside the class folders of {tmp_path / 'train'}." in load(tmp_path).notes


def test_a_class_that_train_does_not_have(tmp_path):
    classes(tmp_path, "train")
    classes(tmp_path, "test", names=("cats", "cows"))
    with pytest.raises(ValueError, match="the test split has labels that are not in train: cows; train has cats, dogs"):
        load(tmp_path)


# What systems leave


def litter(top):
    """What does not count, everywhere."""
    for folder in [top, *(path for path in top.rglob("*") if path.is_dir())]:
        write(folder / ".ipynb_checkpoints", 1)
        write(folder / "@eaDir" / "0.png", 1)
        for name in (".DS_Store", "_DS_Store", "._0.png", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"\0")
    write(top / "__MACOSX" / "cats", 1)
    write(top / ".git" / "deep" / "down", 1)


def test_what_systems_leave_is_no_image_in_training_and_in_predict(tmp_path):
    classes(tmp_path, "archive/train")
    classes(tmp_path, "archive/test", num=3)
    litter(tmp_path)
    data = load(tmp_path)
    assert data.label_names == KINDS
    assert sizes(data) == [16, 4, 6]
    names = load_unlabelled(tmp_path, FRAME).columns["file"]
    assert len(names) == 26
    assert not any(part[0] == "." or "__MACOSX" in part or "@eaDir" in part for name in names for part in name.split("/"))


def test_a_hidden_folder_that_the_user_names_is_read(tmp_path):
    classes(tmp_path / ".cache" / "photos", "")
    assert sum(sizes(load(tmp_path / ".cache" / "photos"))) == 20
    assert len(load_unlabelled(tmp_path / ".cache", FRAME).images) == 20


def test_links(tmp_path):
    """Class folders may be links; a link to a folder above does not end in a loop."""
    classes(tmp_path / "elsewhere", "")
    (tmp_path / "photos").mkdir()
    for name in KINDS:
        (tmp_path / "photos" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert sum(sizes(load(tmp_path / "photos"))) == 20
    os.symlink("..", tmp_path / "elsewhere" / "cats" / "up")
    assert len(load_unlabelled(tmp_path / "elsewhere", FRAME).images) == 20


def test_names_that_are_not_utf_8(tmp_path):
    """As old archives leave them; what is written of them is text."""
    classes(tmp_path / "train", "")
    os.rename(tmp_path / "train" / "cats", tmp_path / "train" / "b\udce4r")
    data = load(tmp_path)
    assert data.label_names == ("b\\xe4r", "dogs")
    assert data.test_files[0].startswith("train/b\\xe4r/")
    assert load_unlabelled(tmp_path, FRAME).columns["file"][0] == "train/b\\xe4r/0.png"


def test_names_in_other_scripts(tmp_path):
    names = ("犬", "猫", unicodedata.normalize("NFD", "Bär"))
    assert set(load(classes(tmp_path, "train", names=names)).label_names) == {"犬", "猫", "B\u00e4r"}
