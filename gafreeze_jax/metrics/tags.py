"""Metrics of a tag for each word, and the entities that tags mean.

Values are the predicted tag, the right one, and the number of the sentence, [3, E] for E words in order. Sentences are what a
sample consists of, so they are the units of intervals.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from gafreeze_jax.metrics.base import Estimate, Metric, cross_entropy, from_estimate, ratio

ENTITY_TAG = re.compile(r"([BIESLU])-(.+)")
PREFIXES = {"L": "E", "U": "S"}  # of BILOU, in IOBES


def tag_entropy(logits: Array, targets: Array) -> Array:
    """Cross-entropy [B] of logits [B, C], and targets [B, 2], tags and numbers of sentences."""
    return cross_entropy(logits, targets[:, 0])


def answers(logits: Array, targets: Array) -> Array:
    """The predicted tag, the right one and the sentence, [3, B], of logits [B, C] and targets [B, 2]."""
    return jnp.stack([logits.argmax(-1), *targets.T]).astype(jnp.float32)


class Entities(NamedTuple):
    """Where entities begin and end.

    Attributes:
      first: [E], whether an entity begins at a word.
      last: [E], the place of its last word; only where one begins.
      kind: [E], which kind of entity a word belongs to; 0 = none.
    """

    first: np.ndarray
    last: np.ndarray
    kind: np.ndarray


@functools.cache
def is_scheme(tags: tuple[str, ...]) -> bool:
    """Whether tags mark entities: O, or B-, I- and so on with a type.

    >>> is_scheme(("O", "B-city", "I-city")), is_scheme(("NOUN", "VERB"))
    (True, False)
    """
    return any(tag != "O" for tag in tags) and all(tag == "O" or ENTITY_TAG.fullmatch(tag) for tag in tags)


class Scheme(NamedTuple):
    """What T tags mean: arrays [T], and the types of entities by their numbers, of which 0 is none."""

    begins: np.ndarray
    ends: np.ndarray
    kind: np.ndarray
    kinds: tuple[str, ...]


@functools.cache
def _scheme(tags: tuple[str, ...]) -> Scheme:
    pairs = [match.groups() if (match := ENTITY_TAG.fullmatch(tag)) else ("O", "") for tag in tags]
    prefixes = [PREFIXES.get(prefix, prefix) for prefix, _ in pairs]
    kinds = tuple(dict.fromkeys(("", *(kind for _, kind in pairs))))
    kind = np.array([kinds.index(kind) for _, kind in pairs])
    return Scheme(np.isin(prefixes, ["B", "S"]), np.isin(prefixes, ["E", "S"]), kind, kinds)


def find(tags: tuple[str, ...], places: np.ndarray, sentences: np.ndarray) -> Entities:
    """The entities of words, as the CoNLL scorer finds them: an I- that follows no entity of its type begins one.

    Args:
      tags: their names, in the scheme IOB1, IOB2, IOBES or BILOU.
      places: [E], the tag of each word among them.
      sentences: [E]; no entity goes on in another sentence.
    """
    scheme = _scheme(tags)
    kind = scheme.kind[places]
    same = np.zeros(len(places), bool)  # whether a word continues the entity of the one before
    same[1:] = (sentences[1:] == sentences[:-1]) & (kind[1:] == kind[:-1])
    same[1:] &= ~scheme.begins[places[1:]] & ~scheme.ends[places[:-1]]
    first = (kind > 0) & ~same
    ends = np.append(~same[1:], True)
    last = np.minimum.accumulate(np.where(ends, np.arange(len(places)), len(places))[::-1])[::-1]
    return Entities(first, last, kind)


def spans(tags: tuple[str, ...], places: np.ndarray) -> list[tuple[int, int, str]]:
    """The entities of one sentence: first word, the word after the last, and type.

    >>> spans(("O", "B-city", "I-city"), np.array([1, 2, 0, 2]))
    [(0, 2, 'city'), (3, 4, 'city')]
    """
    found, names = find(tags, places, np.zeros(len(places))), _scheme(tags).kinds
    return [(int(i), int(found.last[i]) + 1, names[found.kind[i]]) for i in np.flatnonzero(found.first)]


def repaired(tags: Sequence[str]) -> list[str]:
    """The tags of a sentence in IOB2: an I- that begins an entity becomes B-.

    >>> repaired(["I-city", "I-city", "O", "B-city", "I-club"])
    ['B-city', 'I-city', 'O', 'B-city', 'B-club']
    """
    before = ["O", *tags[:-1]]
    return [
        f"B-{tag[2:]}" if tag.startswith("I-") and (last[2:] != tag[2:] or last[:2] in ("E-", "S-", "L-", "U-")) else tag
        for last, tag in zip(before, tags, strict=True)
    ]


def _by_sentence(sentences: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The sum of numbers [E] in each sentence that has a word, [U]."""
    return np.bincount(np.unique(sentences, return_inverse=True)[1], numbers)


def _entity_f1(tags: tuple[str, ...], predicted: np.ndarray, truth: np.ndarray, sentences: np.ndarray) -> Estimate:
    """F1 of entities whose words and type are right, as by `conlleval` and seqeval; 0 without entities."""
    ours, theirs = (find(tags, places.astype(int), sentences) for places in (predicted, truth))
    hits = ours.first & theirs.first & (ours.kind == theirs.kind) & (ours.last == theirs.last)
    return ratio(2 * _by_sentence(sentences, hits), _by_sentence(sentences, 1.0 * ours.first + theirs.first))


def _token_accuracy(predicted: np.ndarray, truth: np.ndarray, sentences: np.ndarray) -> Estimate:
    """The share of words whose tag is right."""
    return ratio(_by_sentence(sentences, predicted == truth), _by_sentence(sentences, np.ones(len(truth))))


@functools.cache
def entity_f1(tags: tuple[str, ...]) -> Metric:
    """The F1 of whole entities, for the tags' names."""
    return from_estimate("entity F1", answers, functools.partial(_entity_f1, tags), is_share=True)


TOKEN_ACCURACY = from_estimate("token accuracy", answers, _token_accuracy, is_share=True)
