"""Images from every kind of source, the form they come out in, and every kind of bad one."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from gafreeze_jax.data import images
from gafreeze_jax.data.images import Frame, load_images, load_unlabelled

SHARED = Path(__file__).parents[2] / "../shared/data/images"
SPLITS = ("train", "validation", "test")
FRAME = Frame(8)


def pictures(num, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), np.uint8)


def write_npz(path, num=20, shape=(8, 8, 3), **arrays):
    arrays = {"images": pictures(num, *shape), "labels": np.arange(num) % 2} | arrays
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def write_folders(folder, num=10, classes=("ant", "bee"), suffix=".png", size=(9, 8)):
    for seed, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i, pixels in enumerate(pictures(num, *size, 3, seed=seed)):
            Image.fromarray(pixels).save(folder / name / f"{i}{suffix}")
    return folder


def sizes(data):
    return [len(getattr(data, split).labels) for split in SPLITS]


# Sources


def test_digits():
    data = load_images("digits", Frame(8, 1))
    assert data.label_names == tuple("0123456789")
    assert sizes(data) == [1079, 359, 359]
    assert data.train.images.shape == (1079, 8, 8, 1)
    assert data.train.images.dtype == np.uint8
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    high = load_images("digits:5-9", FRAME, max_train=50, max_validation=20)
    assert high.label_names == tuple("56789")
    assert sizes(high)[:2] == [50, 20]
    assert np.bincount(high.train.labels).tolist() == [10] * 5
    assert (high.train.images == high.train.images[..., :1]).all()  # gray
    assert high.train.images.shape[-1] == 3
    assert "Uses 50 of 538 training examples (--train-examples)." in high.notes


def test_shifted_digits_are_the_other_half_and_mostly_to_validate_and_test_on():
    clean, inverted = (load_images(f"digits:{kind}", Frame(8, 1)) for kind in ("clean", "inverted"))
    assert sum(sizes(clean)) == 898
    assert sizes(inverted) == [149, 250, 500]
    everything = load_images("digits", Frame(8, 1))
    as_bytes = lambda data, shift=lambda pixels: pixels: [shift(image).tobytes() for part in data[:3] for image in part.images]  # noqa: E731
    upright = as_bytes(inverted, lambda pixels: 255 - pixels)
    assert sorted(upright + as_bytes(clean)) == sorted(as_bytes(everything))
    for split in inverted[:2]:
        counts = np.bincount(split.labels)
        assert counts.max() - counts.min() <= 1
    few = load_images("digits:noisy", Frame(8, 1), max_train=40)
    assert np.bincount(few.train.labels).tolist() == [4] * 10


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3)])
def test_arrays(tmp_path, shape):
    path = write_npz(tmp_path / "set.npz", shape=shape)
    data = load_images(str(path), FRAME)
    assert data.label_names == ("0", "1")
    assert sizes(data) == [12, 4, 4]
    with np.load(path) as file:
        everything = file["images"].reshape(20, 8, 8, -1) + np.zeros(3, np.uint8)
        labels = file["labels"]
    number = {image.tobytes(): i for i, image in enumerate(everything)}
    found = [number[image.tobytes()] for split in data[:3] for image in split.images]
    assert sorted(found) == list(range(20))
    np.testing.assert_array_equal(np.concatenate([split.labels for split in data[:3]]), labels[found])
    again = load_images(str(path), FRAME)
    for one, other in zip(data[:3], again[:3], strict=True):
        np.testing.assert_array_equal(one.images, other.images)


def test_labels_of_arrays_may_be_words(tmp_path):
    data = load_images(str(write_npz(tmp_path / "a.npz", labels=np.array(["dog", "cat"] * 10))), FRAME)
    assert data.label_names == ("cat", "dog")


@pytest.mark.parametrize(
    "labels", [np.arange(20.0) % 2, np.arange(20) % 2 == 1, np.eye(2)[np.arange(20) % 2], np.arange(20)[:, None] % 2]
)
def test_classes_of_arrays_may_be_floats_flags_one_hot_and_a_column(labels, tmp_path):
    data = load_images(str(write_npz(tmp_path / "a.npz", labels=labels)), FRAME)
    assert (data.kind, data.label_names) == ("label", ("0", "1"))


def test_arrays_of_numbers_and_of_several_labels(tmp_path):
    numbers = np.linspace(-1, 1, 20)
    data = load_images(str(write_npz(tmp_path / "a.npz", labels=numbers)), FRAME)
    assert data.kind == "number"
    every = np.concatenate([data.train.labels, data.validation.labels, data.test.labels])
    np.testing.assert_allclose(np.sort(every), numbers, rtol=1e-6)
    data = load_images(str(write_npz(tmp_path / "b.npz", labels=np.arange(20) - 9)), FRAME, kind="number")
    assert sorted(np.concatenate([split.labels for split in data[:3]])) == list(range(-9, 11))

    flags = np.random.default_rng(0).integers(0, 2, (20, 3))
    data = load_images(str(write_npz(tmp_path / "c.npz", labels=flags)), FRAME)
    assert (data.kind, data.label_names) == ("labels", ("0", "1", "2"))
    assert sum(split.labels.sum(0) for split in data[:3]).tolist() == flags.sum(0).tolist()


def test_several_labels_of_arrays_are_so_in_every_split(tmp_path):
    """Even where those of one split happen to be one label each."""
    train, validation = np.random.default_rng(0).integers(0, 2, (30, 3)), np.eye(3, dtype=int)[np.arange(6) % 3]
    write_npz(tmp_path / "train.npz", 30, labels=train)
    write_npz(tmp_path / "val.npz", 6, labels=validation)
    data = load_images(str(tmp_path), FRAME)
    assert (data.kind, data.label_names) == ("labels", ("0", "1", "2"))
    np.testing.assert_array_equal(data.validation.labels, validation)


def test_folder_of_arrays(tmp_path):
    for name, num in (("train", 20), ("val", 6), ("test", 4)):
        write_npz(tmp_path / f"{name}.npz", num)
    (tmp_path / "classes.txt").write_text("no image")
    assert sizes(load_images(str(tmp_path), FRAME)) == [20, 6, 4]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_class_folders(tmp_path, suffix):
    write_folders(tmp_path, suffix=suffix)
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "ant" / ".hidden").touch()
    data = load_images(str(tmp_path), FRAME)
    assert data.label_names == ("ant", "bee")
    assert sizes(data) == [12, 4, 4]
    assert data.train.images.shape == (12, 8, 8, 3)


def test_class_folders_by_split(tmp_path):
    for split, num in (("Train", 10), ("val", 3)):
        write_folders(tmp_path / split, num)
    data = load_images(str(tmp_path), FRAME)
    assert sizes(data) == [16, 6, 4]
    assert data.notes[0].startswith("No test split: 4 of the 20 training images were cut for it")


def test_photos():
    folder = SHARED / "ants_bees"
    if not folder.exists():
        pytest.skip(f"no {folder}")
    data = load_images(str(folder), Frame(64, crop=0.875), max_train=20, max_validation=10)
    assert data.label_names == ("ants", "bees")
    assert sizes(data) == [20, 10, 48]
    assert 60 < data.train.images.mean() < 190


class GafreezeJaxImages(tfds.core.GeneratorBasedBuilder):
    """An image set as TFDS has them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["ugly", "good"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(20), "test": self._generate_examples(4)}

    def _generate_examples(self, num):
        for i, image in enumerate(pictures(num, 8, 8, 3)):
            yield i, {"image": Image.fromarray(image), "label": i % 2}  # TFDS encodes arrays with TensorFlow


def test_tfds(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    GafreezeJaxImages(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    data = load_images("tfds:gafreeze_jax_images", FRAME)
    assert data.label_names == ("good", "ugly")
    assert sizes(data) == [16, 4, 4]
    assert sorted(image.tobytes() for image in data.test.images) == sorted(x.tobytes() for x in pictures(4, 8, 8, 3))
    with pytest.raises(ValueError, match="TFDS has no such data set"):
        load_images("tfds:no_such_set", FRAME)


# Form


@pytest.mark.parametrize(("crop", "kept"), [(1.0, slice(4, 12)), (0.5, slice(6, 10))])
def test_the_middle_is_kept(crop, kept):
    wide = np.repeat(np.arange(16, dtype=np.uint8)[None] * 16, 8, 0)  # 8 high, 16 wide
    fitted = images._fit(Image.fromarray(wide), Frame(32, 1, crop, Image.Resampling.NEAREST))[..., 0]
    np.testing.assert_array_equal(fitted, np.repeat(wide[:1, kept], 32 // len(range(16)[kept]), 1).repeat(32, 0))


def test_images_are_squashed_and_everything_is_kept():
    wide = pictures(1, 8, 16, 3)[0]
    fitted = images._fit(Image.fromarray(wide), Frame(8, resample=Image.Resampling.BOX, squashes=True))
    np.testing.assert_allclose(fitted, wide.reshape(8, 8, 2, 3).astype(float).mean(2), atol=0.51)


def test_an_image_of_the_right_size_is_left_as_it_is():
    image = pictures(1, 8, 8, 3)[0]
    np.testing.assert_array_equal(images._fit(Image.fromarray(image), Frame(8, crop=0.5)), image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_kinds_of_pixels(tmp_path, mode):
    write_folders(tmp_path)
    Image.fromarray(pictures(1, 9, 9, 3)[0]).convert(mode).save(tmp_path / "ant" / f"x.{'jpg' if mode == 'CMYK' else 'png'}")
    assert sum(sizes(load_images(str(tmp_path), FRAME))) == 21


def test_augmentation():
    batch = pictures(64, 16, 16, 3)
    moved = np.asarray(jax.jit(images.augment)(jax.random.key(0), batch))
    assert moved.dtype == np.uint8
    padded = np.pad(batch, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, wide in zip(moved, padded, strict=True):
        places = {
            (i, j, flip)
            for i in range(5)
            for j in range(5)
            for flip in (1, -1)
            if np.array_equal(image[:, ::flip], wide[i : i + 16, j : j + 16])
        }
        assert len(places) == 1
        seen |= places
    assert [{place[axis] for place in seen} for axis in range(3)] == [set(range(5)), set(range(5)), {1, -1}]
    np.testing.assert_array_equal(moved, images.augment(jax.random.key(0), batch))
    assert not np.array_equal(moved, images.augment(jax.random.key(1), batch))


# Bad input

BAD_ARRAYS = {
    "no labels": ({"labels": None}, "no array 'labels'; expected images and labels, it has images"),
    "floats": ({"images": np.zeros((20, 8, 8))}, "images must be uint8, from 0 to 255, got float64"),
    "flat": ({"images": pictures(20, 64)}, "images must be [N, H, W] or [N, H, W, C], got [20, 64]"),
    "none": ({"images": pictures(0, 8, 8), "labels": np.zeros(0, int)}, "got [0, 8, 8]"),
    "two channels": ({"images": pictures(20, 8, 8, 2)}, "images must have 1 or 3 channels, as the last axis, got shape"),
    "channels first": ({"images": pictures(20, 3, 8, 8)}, "images must have 1 or 3 channels, as the last axis, got shape"),
    "fewer labels": ({"labels": np.arange(19) % 2}, "labels must be [20], one for each image, or [20, C] of 0 and 1, got [19]"),
    "labels of pixels": ({"labels": np.zeros((20, 8, 8), int)}, "or [20, C] of 0 and 1, got [20, 8, 8]"),
    "columns of numbers": ({"labels": np.full((20, 2), 3)}, "labels [N, C] must be 0 or 1 for each of C classes, got 3"),
    "no number": (
        {"labels": np.append(np.nan, np.linspace(0.1, 1, 19))}, "row 0: column 'labels' must hold finite numbers, got nan",
    ),
    "dates as labels": ({"labels": np.zeros(20, "datetime64[s]")}, "labels must be numbers or strings, got datetime64[s]"),
    "labels out of range": ({"labels": np.arange(20) % 2 - 1}, "labels must not be negative, got -1 in row 0"),
    "one class": ({"labels": np.zeros(20, int)}, "the training images have only one class, '0'"),
    "pickle": ({"labels": np.array([{}] * 20)}, "not a whole .npz file of plain arrays"),
}  # fmt: skip


def fails(source, message, frame=FRAME, **options):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as error:
        load_images(str(source), frame, **options)
    assert "\n" not in str(error.value)
    assert str(source).split(":")[0] in str(error.value)


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays(name, tmp_path):
    arrays, message = BAD_ARRAYS[name]
    fails(write_npz(tmp_path / "set.npz", **arrays), message)


def test_all_problems_of_arrays_are_named_at_once(tmp_path):
    path = write_npz(tmp_path / "set.npz", images=np.zeros((20, 8, 8, 2)), labels=np.zeros(3))
    with pytest.raises(ValueError, match=r"uint8.*channels.*\[20\]"):
        load_images(str(path), FRAME)


def test_damaged_arrays(tmp_path):
    path = write_npz(tmp_path / "set.npz")
    path.write_bytes(path.read_bytes()[:300])
    fails(path, "not a whole .npz file")
    path.write_text("hello")
    fails(path, "not a whole .npz file")


def test_a_label_that_train_does_not_have(tmp_path):
    write_npz(tmp_path / "train.npz")
    write_npz(tmp_path / "test.npz", 3, labels=np.array([0, 1, 7]))
    fails(tmp_path, "the test split has labels that are not in train: 7; train has 0, 1")


def test_colours_for_a_model_that_takes_gray(tmp_path):
    fails(write_npz(tmp_path / "a.npz"), "has colours (3 channels), the model takes gray images (1 channel)", Frame(8, 1))
    fails(write_folders(tmp_path / "folders"), "has colours (3 channels)", Frame(8, 1))
    fails("digits", "images have 1 or 3 channels, the model takes 4", Frame(8, 4))


def test_palettes_of_grays_are_gray(tmp_path):
    gray = np.arange(81, dtype=np.uint8).reshape(9, 9)
    image = Image.fromarray(gray // 9).convert("P")
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(10):
            image.putpalette([value for level in range(9) for value in [20 * level + i] * 3] + [255, 0, 0])  # red is not used
            image.save(tmp_path / name / f"{i}.png")
    assert Image.open(tmp_path / "ant" / "3.png").mode == "P"
    data = load_images(str(tmp_path), Frame(9, 1))
    assert sorted({int(image.min()) for split in data[:3] for image in split.images}) == list(range(10))
    image.putpalette([value for level in range(9) for value in (level, 0, 0)])
    image.save(tmp_path / "ant" / "3.png")
    fails(tmp_path, "ant/3.png has colours (3 channels)", Frame(9, 1))


def break_off(folder):
    path = folder / "ant" / "3.jpg"
    path.write_bytes(path.read_bytes()[:-100])


def write_text(folder):
    (folder / "bee" / "3.jpg").write_text("no image at all")


def write_16_bits(folder):
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(folder / "bee" / "3.png")


BROKEN = {
    "broken off": (break_off, "ant/3.jpg ("),
    "text": (write_text, "bee/3.jpg (cannot identify image file)"),
    "16 bits": (write_16_bits, "bee/3.png (pixels of kind I;16"),
    "other file": (lambda folder: (folder / "ant" / "notes.txt").touch(), "ant/notes.txt (unknown suffix)"),
    "folder": (lambda folder: (folder / "ant" / "more").mkdir(), "ant/more (a folder)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_no_images(name, tmp_path):
    damage, message = BROKEN[name]
    damage(write_folders(tmp_path, suffix=".jpg", size=(40, 40)))
    fails(tmp_path, message)
    fails(tmp_path, "--skip-broken leaves such files out")
    data = load_images(str(tmp_path), FRAME, skip_broken=True)
    assert sum(sizes(data)) == {"broken off": 19, "text": 19, "16 bits": 20, "other file": 20, "folder": 20}[name]
    assert any("skipped 1 unreadable image: " in note and message[:5] in note for note in data.notes)


def test_a_class_of_which_nothing_can_be_read(tmp_path):
    write_folders(tmp_path)
    for file in (tmp_path / "ant").iterdir():
        file.write_bytes(b"")
    fails(tmp_path, "no training image of class 'ant' can be read", skip_broken=True)


@pytest.mark.parametrize(("folder", "split"), [("val", "validation"), ("test", "test")])
def test_a_split_of_which_nothing_can_be_read(folder, split, tmp_path):
    write_folders(tmp_path / "train")
    for file in sorted(write_folders(tmp_path / folder, num=2).rglob("*.png")):
        file.write_bytes(b"")
    fails(tmp_path, f"no {split} image can be read; repair them, or remove that split", skip_broken=True)


def test_empty_class_folder(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "cat").mkdir()
    fails(tmp_path, "no images in cat; remove empty class folders")


def test_one_class_folder(tmp_path):
    fails(write_folders(tmp_path, classes=("ant",)), "the training images have only one class, 'ant'")


def test_no_class_folders(tmp_path):
    Image.fromarray(pictures(1, 8, 8, 3)[0]).save(tmp_path / "a.png")
    fails(tmp_path, "no class folders in it, and images lie there without any (1); expected class folders with images")


def test_no_train_folder(tmp_path):
    write_folders(tmp_path / "test")
    fails(tmp_path, "no train split; it has test")


def test_missing_and_other_files(tmp_path):
    fails(tmp_path / "nothing", "no such file or folder; expected a .npz file")
    (tmp_path / "a.json").write_text(json.dumps([]))
    fails(tmp_path / "a.json", "unknown kind of file; expected .npz")
    fails("digits:7-5", "no digits from 7 to 5")


def test_images_without_labels(tmp_path):
    folder = write_folders(tmp_path / "photos", num=2)
    (folder / "ant" / "1.png").write_bytes(b"no image")
    (folder / ".hidden.png").touch()
    with pytest.raises(ValueError, match=r"cannot be read as images: ant/1\.png"):
        load_unlabelled(folder, FRAME)
    found, columns, (note,) = load_unlabelled(folder, FRAME, skip_broken=True)
    assert columns == {"file": ["ant/0.png", "bee/0.png", "bee/1.png"]}
    assert "skipped 1 unreadable image: ant/1.png (" in note
    one, columns, _ = load_unlabelled(folder / "bee" / "1.png", FRAME)
    assert columns == {"file": ["1.png"]}
    np.testing.assert_array_equal(one, found[2:])
    array, columns, _ = load_unlabelled(write_npz(tmp_path / "a.npz", num=3, labels=None), FRAME)
    assert (array.shape, columns) == ((3, 8, 8, 3), {"row": [1, 2, 3]})
