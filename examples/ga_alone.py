"""The genetic algorithm by itself, on a function of your own: ask for genomes, tell it how good they are.

    python examples/ga_alone.py

It ends in seconds. Here a genome says which measurements of a tumour a classifier may see. Put your own function in the place
of `accuracy`.
"""

import jax
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.neighbors import NearestCentroid

from gafreeze_jax import Space, make_ga

data = load_breast_cancer()
train, validation = slice(0, 300), slice(300, None)


def accuracy(genome):
    """Of a genome [30], 1 = seen; higher is better."""
    seen = data.data[:, genome == 1]
    return NearestCentroid().fit(seen[train], data.target[train]).score(seen[validation], data.target[validation])


space = Space(data.feature_names.tolist())
init, ask, tell = make_ga(space, population_size=12)
ask, tell = jax.jit(ask), jax.jit(tell)
key, key_init = jax.random.split(jax.random.key(0))
state = init(key_init)
for _ in range(20):
    key, key_ask = jax.random.split(key)
    genomes = ask(key_ask, state)  # [12, 30]
    state, info = tell(state, genomes, np.array([accuracy(genome) for genome in np.asarray(genomes)]))
best = np.asarray(state.population[0])

print(f"all measurements: accuracy {accuracy(np.ones(30)):.3f}")
print(f"{', '.join(data.feature_names[best == 1])}: accuracy {accuracy(best):.3f}")
