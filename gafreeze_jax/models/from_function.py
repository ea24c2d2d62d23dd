"""Any model as a network: a function of all its parameters, with rules that name the genes.

Nothing is known of the inside of such a model, so nothing can be skipped below the lowest trainable layer and kept
between members, as in a chain of blocks; weight gradients of frozen parameters are left out all the same.
"""

from collections.abc import Callable

from jax import Array

from gafreeze_jax import masking
from gafreeze_jax.engine.network import Block, Network, PyTree
from gafreeze_jax.masking import Genes

ALWAYS = "always"  # the key, among the head's parameters, of those without a gene


def make_network(
    apply: Callable[[PyTree, PyTree, Array | None], Array],
    genes: Genes,
) -> Network:
    """The network of a function `apply(params, inputs, key) -> output`; its parameters go through `split`.

    Args:
      apply: takes the user's own parameter tree, a batch of inputs [B, ...] and a key for dropout, None when scoring.
      genes: of that tree.
    """

    def head(params, x, context, *, frozen, key):
        return apply(masking.join_genes(params, params[ALWAYS], genes), x, key)

    return Network(tuple(Block(name, None) for name in genes.names), head, shared=genes.names)


def split(params: PyTree, genes: Genes) -> dict[str, PyTree]:
    """The user's parameters as those of the network: {gene: ..., "head": ...}.

    Raises:
      ValueError: if a gene is called "head" or "always", which are taken.
    """
    if taken := sorted({"head", ALWAYS} & set(genes.names)):
        raise ValueError(f"a gene cannot be called {' or '.join(taken)}; give it another name, or None for what always trains")
    parts, always = masking.split_genes(params, genes)
    return {**parts, "head": {ALWAYS: always}}


def join(params: PyTree, genes: Genes) -> PyTree:
    """The reverse of `split`."""
    return masking.join_genes(params, params["head"][ALWAYS], genes)
