"""Fresh and kept heads: whether a model continues with the classes that it knows, and what that changes in a run.

A fresh head always trains. A kept one is a gene of its own, the last, which may be frozen; it starts as the checkpoint has it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np
import optax

from gafreeze_jax.data.splits import plain
from gafreeze_jax.engine.network import PyTree, head_as_block
from gafreeze_jax.listing import listed
from gafreeze_jax.masking.genes import ALWAYS_TRAINS
from gafreeze_jax.models.pretrained import Checkpoint, Pretrained
from gafreeze_jax.tasks.base import Setup

HeadOption = Literal["auto", "keep", "fresh"]
GENE = "classifier"  # name of a kept head
Data = TypeVar("Data", bound=Any)


class HeadChoice(NamedTuple):
    """Which head a model gets.

    Attributes:
      kept: whether it is the checkpoint's.
      label_names: of the C classes, in the order of the outputs.
      places: [N], where each of the data's classes stands among these.
      about: in words.
      kind: of `Family.heads`.
    """

    kept: bool
    label_names: tuple[str, ...]
    places: np.ndarray
    about: str
    kind: str = "classify"

    def load(self, checkpoint: Checkpoint, key: jax.Array) -> Pretrained:
        """The model with this head; `key` is for what is fresh."""
        return checkpoint.load(self.kind, num_classes=None if self.kept else len(self.label_names), key=key)

    def relabel(self, data: Data) -> Data:
        """Data whose labels are places among the outputs; it has three splits with `labels`, and `label_names`."""
        splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
        moved = {name: split._replace(labels=self._move(split.labels)) for name, split in splits.items()}
        return data._replace(label_names=self.label_names, **moved)

    def _move(self, labels: Any) -> Any:
        """Labels [N], 0 and 1 [N, C] of several labels, numbers [N], or tags of N texts, for the model's outputs."""
        if isinstance(labels, list):
            return [self._move(of_text) for of_text in labels]
        if labels.ndim == 1:
            return self.places[labels].astype(np.int32) if labels.dtype.kind in "iu" else labels
        moved = np.zeros((len(labels), len(self.label_names)), labels.dtype)
        moved[:, self.places] = labels
        return moved

    def finish(self, setup: Setup) -> Setup:
        """The setup with the head as a gene, if it is kept."""
        return as_gene(setup) if self.kept else setup


def known_classes(asked: HeadOption, checkpoint: Checkpoint, kind: str = "classify") -> tuple[str, ...]:
    """The names of the classes that a model tells apart already, if its head may be kept and names them."""
    names = checkpoint.label_names
    return names if asked != "fresh" and len(names) == checkpoint.num_classes(kind) else ()


def choose(asked: HeadOption, checkpoint: Checkpoint, label_names: Sequence[str], kind: str = "classify") -> HeadChoice:
    """The head for data with some classes: by default the checkpoint's if it has all of them, else a fresh one.

    Classes are matched by their names, without regard to case where no name is the same; `LABEL_3`, the name of a class that
    was given none, is 3. The model may know more classes than the data have. A single name is that of a number: any head with
    one output may be kept, and by default is, unless it gives a number of another name.

    Args:
      kind: of head, as in `Family.heads`.

    Raises:
      ValueError: if the head is to be kept and cannot be.
    """
    names = tuple(label_names)
    num_classes, known = checkpoint.num_classes(kind), known_classes(asked, checkpoint, kind)
    places = _match(known, names)
    fresh = HeadChoice(False, names, np.arange(len(names)), "Head: fresh, always trains", kind)
    if asked == "fresh":
        return fresh
    is_number = len(names) == 1 == num_classes
    if is_number and (asked == "keep" or places[0] is not None or [*map(plain, known)] in ([], ["0"])):
        return fresh._replace(kept=True, about=f"Head: kept from the model, the gene {GENE}; it gives one number")
    if num_classes is None:
        problem = "the model has no classifier"
    elif len(names) == 1 != num_classes:
        problem = f"the model gives {num_classes} outputs, and the data have one number"
    elif is_number:
        problem = f"the model gives the number {listed(known)}, and the data have {listed(names)}"
    elif not known and asked == "keep" and num_classes == len(names):
        order = f"Head: kept, the gene {GENE}; the model does not name its classes, taken as {listed(names)} in this order"
        return fresh._replace(kept=True, about=order)
    elif not known:
        problem = f"the model does not name its {num_classes} classes, and the data have {len(names)}"
    elif missing := [name for name, place in zip(names, places, strict=True) if place is None]:
        problem = f"the model's classes are {listed(known)}, without {listed(missing)}"
    elif len(set(places)) < len(names):
        problem = f"the model's classes are {listed(known)}, of which several of {listed(names)} are the same"
    else:
        return _kept(known, names, places)._replace(kind=kind)
    if asked == "keep":
        raise ValueError(f"--head keep: {checkpoint.path}: {problem}; rename the data's labels, or give --head fresh")
    return fresh._replace(about=f"{fresh.about} ({problem})")


def _match(known: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """The places of names among known ones; None for those that are not there."""
    exact, alike = ({key(name): place for place, name in reversed([*enumerate(known)])} for key in (str, plain))
    return [exact.get(name, alike.get(plain(name))) for name in names]


def _kept(known: Sequence[str], names: Sequence[str], places: Sequence[int | None]) -> HeadChoice:
    """A head that knows all classes of the data, at these places; they are spelt as in the data."""
    spelt = dict(zip(places, names, strict=True))
    more = "" if len(known) == len(names) else f"; the data have {len(names)} of its {len(known)} classes"
    label_names = tuple(spelt.get(place, name) for place, name in enumerate(known))
    return HeadChoice(True, label_names, np.array(places), f"Head: kept from the model, the gene {GENE}{more}")


def as_gene(setup: Setup) -> Setup:
    """A setup whose head is the last gene: it starts from the problem's parameters, and may be frozen."""
    problem = setup.problem
    place, count, num_parameters = len(problem.genes), problem.count_trainable, optax.tree.size(problem.params["head"])

    def count_trainable(frozen: Sequence[int] | np.ndarray) -> int:
        return count(frozen[:-1]) - num_parameters * bool(frozen[-1])

    genes = dataclasses.replace(
        problem.genes,
        names=(*problem.genes.names, GENE),
        owners=tuple(place if owner == ALWAYS_TRAINS else owner for owner in problem.genes.owners),
    )
    moved = problem._replace(
        network=head_as_block(problem.network, GENE),
        params={**problem.params, GENE: problem.params["head"], "head": {}},
        make_head=lambda key: {},
        genes=genes,
        count_trainable=count_trainable,
        head="kept",
    )
    return setup._replace(problem=moved, restore=lambda params: setup.restore(_put_back(params)))


def _put_back(params: PyTree) -> PyTree:
    return {name: params[name] for name in params if name not in (GENE, "head")} | {"head": params[GENE]}
