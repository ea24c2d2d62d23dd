"""Fingerprints of arrays: an interrupted run resumes only with the model and data it began with."""

import zlib

import jax
import numpy as np

from gafreeze_jax.engine.network import PyTree
from gafreeze_jax.models.checkpoints import NARROW
from gafreeze_jax.tasks.base import Setup


def fingerprint(*trees: PyTree) -> str:
    """CRC-32 of all arrays in some trees; of narrow floats as float32, as which earlier versions read them."""
    crc = 0
    for leaf in jax.tree.leaves(trees):
        array = np.ascontiguousarray(leaf)
        array = array.astype(np.float32) if array.dtype in NARROW else array
        crc = zlib.crc32(f"{array.dtype}{np.shape(leaf)}".encode(), crc)
        crc = zlib.crc32(array.reshape(-1).view(np.uint8).data, crc)
    return f"{crc:08x}"


def fingerprint_of_model(setup: Setup) -> str:
    """Of a model as it was read, whatever data it is trained on."""
    return fingerprint(setup.problem.params if setup.pretrained is None else setup.pretrained)
