"""Any JAX function as a chain of blocks, one per gene, found in its jaxpr.

- `program`: the function as one flat list of equations, with a variable for every leaf of every gene.
- `levels`: how far up the chain each equation belongs, and what has to stay in the head.
- `batch`: where the values have the examples of a batch.
- `mixing`: equations that make the examples of a batch depend on each other.
- `boundaries`: the values that go from block to block, with the fewest bytes.
- `pieces`: the functions of blocks and head, shared by equal blocks.
- `chain`: all of these together, in inference and training mode.
- `explain`: the chain as a table.

`models.from_function.cut` puts them together.
"""
