"""ResNets on labelled images: options, model and data, for a search and for labelling."""

import dataclasses
import functools
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import jax

from gafreeze_jax import user_cache
from gafreeze_jax.data import images
from gafreeze_jax.engine.network import Dataset
from gafreeze_jax.models import base, checkpoints, preprocessing, pretrained, resnet
from gafreeze_jax.runs import experiment
from gafreeze_jax.tasks import pretraining


@dataclass(frozen=True, kw_only=True)
class Options(experiment.Options):
    """Search which blocks of a pretrained ResNet to freeze when fine-tuning it to classify images."""

    model: str = "digits"
    """digits (a small one, pretrained here on the digits 0 to 4), a folder in the Hugging Face layout, a .safetensors file with
    PyTorch's names, or a hub name such as microsoft/resnet-18."""
    data: str = "digits:5-9"
    """digits (embedded; digits:5-9 are some of them), a .npz file of images and labels or a folder of train.npz and so on, a
    folder with a folder of JPEG or PNG files for every class, or with such folders under train, val and test, or tfds:NAME such
    as tfds:cifar10."""
    image_size: int | None = None
    """Height and width that images are resized to. Default: what the model's preprocessor config says, or its family."""
    augment: bool = False
    """Move training images by up to an eighth of their size at random, and mirror half of them. Nothing that frozen blocks
    compute can be kept then."""
    skip_broken: bool = False
    """Leave out files that cannot be read as images, in place of stopping."""
    train_examples: int = 20
    """Train members on at most so many examples, drawn stratified by label."""
    epochs: int = 20
    """Passes through the training examples."""
    learning_rate: float = 3e-3
    """Highest learning rate of the pretrained layers (AdamW, linear warm-up and decay)."""
    head_learning_rate: float = 1e-2
    """Highest learning rate of the head."""


SMALL = resnet.cifar_config(14, num_channels=1)
SMALL_FRAME = images.Frame(8, 1)
SMALL_PIXELS = resnet.default_preprocessing(SMALL)._replace(size=SMALL_FRAME.size)
SMALL_MODEL = base.Model(resnet.CIFAR_FAMILY, SMALL, num_classes=5)
PRETRAINING = experiment.Options(epochs=12, batch_size=32, learning_rate=3e-3, head_learning_rate=3e-3)


def find_model(name: str, quiet: bool = False) -> Path:
    if name == "digits":
        data = images.load_images("digits:0-4", SMALL_FRAME)
        digest = hashlib.sha256(data.train.images.tobytes() + data.train.labels.tobytes()).hexdigest()
        facts = {"config": dataclasses.asdict(SMALL), "options": pretraining.facts_of(PRETRAINING), "data": digest}
        return user_cache.keep(
            "resnet-digits", facts, functools.partial(pretrain, data, dataclasses.replace(PRETRAINING, quiet=quiet))
        )
    path = Path(os.path.expanduser(name))
    if path.is_file() and path.suffix != ".safetensors":
        hint = f"; {checkpoints.refusal(path)}" if path.suffix in checkpoints.PICKLES else ""
        raise ValueError(f"{path}: expected a .safetensors file or a folder with one{hint}")
    return path if path.is_file() else checkpoints.find_model(name, embedded="digits")


def pretrain(data: images.ImageData, options: experiment.Options, folder: Path) -> None:
    """Pretrains the small ResNet and writes it to a folder."""
    params = SMALL_MODEL.init_params(jax.random.key(0))
    train, validation = (Dataset(*split) for split in (data.train, data.validation))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    say = (lambda text: None) if options.quiet else functools.partial(print, flush=True)
    say(f"Pretraining a ResNet of {num_params:,} parameters on {len(train.targets):,} digits 0 to 4, once, as it is kept ...")
    start = time.perf_counter()
    task = experiment.make_task(SMALL_MODEL.make_network(), params, train, validation, options)
    member = pretraining.pretrain(task, options)
    say(f"It took {time.perf_counter() - start:.0f} s, and tells {member.score:.1%} of the validation digits")
    preprocessing.write(folder, SMALL_PIXELS)
    SMALL_MODEL.save(folder, dict(member.params), source=folder)


def prepare(options: Options) -> experiment.Prepared:
    """Loads model and data."""
    if options.image_size is not None and options.image_size < 1:
        raise ValueError(f"--image-size must be at least 1, got {options.image_size}")
    checkpoint = pretrained.read(find_model(options.model, options.quiet), [resnet.FAMILY])
    frame = make_frame(options, checkpoint.model)
    data = images.load_images(
        options.data,
        frame,
        max_train=options.train_examples,
        max_validation=options.validation_examples,
        skip_broken=options.skip_broken,
    )
    loaded = checkpoint.load(num_classes=len(data.label_names), key=experiment.Keys.of(options.seed).head)
    network = loaded.model.make_network(dtype=experiment.compute_dtype(options.dtype))
    train, validation, test = (Dataset(*split) for split in data[:3])
    task = experiment.make_task(network, loaded.params, train, validation, options, make_head=loaded.make_head)
    task = task._replace(tensors=loaded.model.tensor_names(loaded.params))
    if options.augment:
        task = task._replace(train=task.train._replace(augment=images.augment))
    return experiment.Prepared(
        task,
        [
            f"Model: {options.model}, genes {', '.join(network.names)}; the classifier always trains",
            *images.describe(options.data, data),
            f"Images are {frame.size} x {frame.size} pixels, {'gray' if frame.channels == 1 else 'in colours'}",
        ],
        network,
        experiment.Locked(experiment.make_source(test)),
        len(test.targets),
        lambda params: params,
        lambda to, params: loaded.save(to, params, label_names=data.label_names),
        {"label_names": data.label_names},
    )


def make_frame(options: Options, model: base.Model) -> images.Frame:
    """The form that images are brought into."""
    wanted = model.pixels
    assert wanted  # a network for images has it
    return images.Frame(options.image_size or wanted.size, len(wanted.mean), wanted.crop, wanted.resample)


def load_unlabelled(options: Options, folder: Path, data: Path) -> experiment.Unlabelled:
    """Loads a saved model and images."""
    loaded = pretrained.load(folder, families=[resnet.FAMILY])
    pictures, columns, notes = images.load_unlabelled(data, make_frame(options, loaded.model), skip_broken=options.skip_broken)
    network = loaded.model.make_network(dtype=experiment.compute_dtype(options.dtype))
    source = experiment.make_source(Dataset(pictures))
    return experiment.Unlabelled(network, loaded.params, source, columns, notes)
