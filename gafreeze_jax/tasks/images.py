"""Labelled images: options of ResNets, and their model and data."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import jax

from gafreeze_jax import options, user_cache
from gafreeze_jax.data import digits, images, targets
from gafreeze_jax.engine.cohort import Member
from gafreeze_jax.engine.network import Dataset
from gafreeze_jax.models import base, checkpoints, formats, preprocessing, pretrained, resnet
from gafreeze_jax.tasks import heads, kinds, pretraining
from gafreeze_jax.tasks.base import Keys, Setup, Unlabelled, block_genes, make_problem, make_source
from gafreeze_jax.tasks.class_weights import ClassWeights, weigh


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    """Search which blocks of a pretrained ResNet to freeze when fine-tuning it to classify images."""

    places: ClassVar = {"model": ("digits",), "data": ("digits", "tfds")}

    model: str = "digits"
    """digits (a small one, pretrained here: on clean digits, or if the data are not shifted digits, on the digits 0 to 4), a
    folder in the Hugging Face layout, a .safetensors file with PyTorch's names, or a hub name such as microsoft/resnet-18.
    Networks may also be ViT, DeiT, DINOv2 or ConvNeXt."""
    data: str = "digits:inverted"
    """digits:inverted, digits:faint or digits:noisy (embedded: handwritten digits to adapt a model to), digits:5-9 (classes to
    learn), a .npz file of images and labels or a folder of train.npz and so on, a folder with a folder of JPEG, PNG, WebP, GIF
    or BMP files for every class, or with such folders under train, val and test (or names such as training_set), or tfds:NAME
    such as tfds:cifar10. A folder of images may have a table of their labels instead, metadata.csv or labels.csv (or .jsonl,
    .parquet) with columns file_name and label, or one in each of its folders train, val and test."""
    task: Literal["auto", "label", "labels", "number"] = "auto"
    """What an image is given: one label of a few, several labels, or a number. auto: recognised from the labels in a table
    or a .npz file; elsewhere one label."""
    label_column: str | None = None
    """Name of the label column in a table, or of columns of 0 and 1 that are a label each, with commas between. Default: found
    by convention."""
    metric: kinds.MetricName = "auto"
    """What the search maximizes, and reports compare. auto: accuracy for one label, macro-f1 for several, spearman for
    numbers."""
    image_size: int | None = None
    """Height and width that images are resized to. Default: what the model's preprocessor config says, or its family."""
    granularity: base.Granularity = "layer"
    """layer: a gene for every layer; sublayer: in vision transformers, one for its attention and one for its MLP."""
    head: heads.HeadOption = "auto"
    """keep: continue with the model's own classifier, which is a gene of its own; classes are matched by name. fresh: train a
    new one. auto: keep it if the model knows all classes of the data."""
    class_weights: ClassWeights = "none"
    """balanced: weights each example by N / (C n), where its class has n of the N training examples and there are C classes."""
    augment: bool = False
    """Move training images by up to an eighth of their size at random, and mirror half of them. The outputs of frozen blocks
    can then not be cached."""
    skip_broken: bool = False
    """Leave out files that cannot be read as images, instead of stopping."""
    train_examples: int = 40
    """Train members on at most this many examples, drawn stratified by label."""
    epochs: int = 20
    """Passes through the training examples."""
    learning_rate: float = 3e-3
    """Highest learning rate of the pretrained layers (AdamW, linear warm-up and decay)."""
    head_learning_rate: float = 1e-2
    """Highest learning rate of the head."""


SMALL = resnet.cifar_config(14, num_channels=1)
SMALL_FRAME = images.Frame(8, 1)
SMALL_PIXELS = resnet.default_preprocessing(SMALL)._replace(size=SMALL_FRAME.size)
SMALL_MODEL = base.Model(resnet.CIFAR_FAMILY, SMALL)
PRETRAINING = options.Options(epochs=12, batch_size=32, learning_rate=3e-3, head_learning_rate=3e-3)
FAMILIES = pretrained.families_of("images")


def find_model(name: str, data: str = "", quiet: bool = False) -> Path:
    """The folder or file of a model; the embedded one depends on the data that it is for."""
    if name == "digits":
        source = "digits:clean" if digits.is_shifted(data) else "digits:0-4"
        split = images.load_images(source, SMALL_FRAME)
        digest = hashlib.sha256(split.train.images.tobytes() + split.train.labels.tobytes()).hexdigest()
        facts = {"config": dataclasses.asdict(SMALL), "options": pretraining.facts_of(PRETRAINING), "data": digest}
        make = functools.partial(pretrain, source, split, dataclasses.replace(PRETRAINING, quiet=quiet))
        return user_cache.keep("resnet-digits", facts, make)
    path = Path(os.path.expanduser(name))
    if path.is_file() and path.suffix != ".safetensors":
        hint = f"; {formats.refusal(path, f'{path.stem}.safetensors')}" if path.suffix in formats.PICKLES else ""
        raise ValueError(f"{path}: expected a .safetensors file or a folder with one{hint}")
    return path if path.is_file() else checkpoints.find_model(name, embedded="digits")


def pretrain(source: str, data: images.ImageData, given: options.Options, folder: Path) -> None:
    """Pretrains the small ResNet and writes it to a folder."""
    train, validation = (Dataset(*split) for split in (data.train, data.validation))
    model = dataclasses.replace(SMALL_MODEL, num_classes=len(data.label_names))
    initial = model.init_params(jax.random.key(0))
    params = pretraining.pretrain_aloud(
        "a ResNet",
        f"{len(train.targets):,} images of {source}",
        make_problem(model.make_network(), initial, train, validation, given),
        given,
        describe=_describe,
    )
    preprocessing.write(folder, SMALL_PIXELS)
    model.save(folder, params, source=folder, label_names=data.label_names)


def _describe(member: Member) -> str:
    return f"recognises {member.score:.1%} of the validation digits"


def prepare(given: Options) -> Setup:
    """Loads model and data."""
    if given.image_size is not None and given.image_size < 1:
        raise ValueError(f"--image-size must be at least 1, got {given.image_size}")
    checkpoint = pretrained.read(find_model(given.model, given.data, given.quiet), FAMILIES, image_size=given.image_size)
    frame = make_frame(checkpoint.model)
    data = images.load_images(
        given.data,
        frame,
        label_column=given.label_column,
        kind=None if given.task == "auto" else given.task,
        max_train=given.train_examples,
        max_validation=given.validation_examples,
        known=lambda: heads.known_classes(given.head, checkpoint),
        skip_broken=given.skip_broken,
    )
    head = heads.choose(given.head, checkpoint, data.label_names)
    about = [head.about, *targets.describe_splits(given.data, data)]
    loaded, data = head.load(checkpoint, Keys.of(given.seed).head), head.relabel(data)
    dtype = options.compute_dtype(given.dtype, loaded.params)
    network = loaded.model.make_network(dtype=dtype, granularity=given.granularity)
    scale = kinds.make_scale(data.kind, data.train.labels, head_is_kept=head.kept, has_bias=loaded.has_bias)
    labels = (scale.apply(split.labels) if data.kind == "number" else split.labels for split in data[:3])
    train, validation, test = (Dataset(split.images, of_split) for split, of_split in zip(data[:3], labels, strict=True))
    task = kinds.make_task(data.kind, data.label_names, metric=given.metric, scale=scale)
    task, weighing = weigh(task, data.train.labels, given.class_weights)
    params, genes = base.split_layers(loaded.params, network.names), block_genes(network, loaded.params)
    problem = make_problem(network, params, train, validation, given, task=task, genes=genes, make_head=loaded.make_head)
    problem = problem._replace(tensors=loaded.torch_names)
    if given.augment:
        problem = problem._replace(train=problem.train._replace(augment=images.augment))
    setup = Setup(
        problem=problem,
        about=[
            f"Model: {given.model}, genes {', '.join([*network.names, *[heads.GENE] * head.kept])}",
            *about,
            f"Task: {targets.IN_WORDS[data.kind].replace('text', 'image')}; the metric is {task.metric.name}",
            *weighing,
            f"Images are {frame.size} x {frame.size} pixels, {'gray' if frame.channels == 1 else 'in colours'}",
        ],
        network=loaded.model.make_network(dtype=dtype),
        test=make_source(test),
        num_test=len(test.targets),
        restore=base.join_layers,
        save=lambda to, params: loaded.save(
            to,
            scale.put_into(params, loaded.output),
            label_names=data.label_names,
            problem_type=kinds.PROBLEM_TYPES[data.kind],
        ),
        facts={"label_names": data.label_names, "learned": {"task": data.kind}},
        pretrained=loaded.read_leaves,
        test_columns={"file": data.test_files} if data.test_files else {},
    )
    return head.finish(setup)


def make_frame(model: base.Model) -> images.Frame:
    """The form that images are brought into."""
    wanted = model.pixels
    assert wanted  # a network for images has it
    return images.Frame(wanted.size, len(wanted.mean), wanted.crop, wanted.resample, wanted.squashes)


def load_unlabelled(
    given: Options,
    folder: Path,
    data: Path,
    label_names: Sequence[str],
    *,
    task: targets.Kind = "label",
    threshold: float | None = None,
) -> Unlabelled:
    """Loads a saved model and images.

    Args:
      task: what it has learned.
      threshold: at which it gives one of several labels.
    """
    loaded = pretrained.read(folder, FAMILIES, image_size=given.image_size).load()
    pictures, columns, notes = images.load_unlabelled(data, make_frame(loaded.model), skip_broken=given.skip_broken)
    return Unlabelled(
        network=loaded.model.make_network(dtype=options.compute_dtype(given.dtype, loaded.params)),
        params=loaded.params,
        source=make_source(Dataset(pictures)),
        task=kinds.make_task(task, label_names, threshold=threshold),
        columns=columns,
        notes=notes,
    )
