"""How FreezeBench's genomes become members: groups of blocks, rates and kept heads."""

import dataclasses

import freezebench
import jax
import numpy as np
import pytest
from freezebench import Bench, Grouping

from gafreeze_jax.engine.cohort import Plan
from gafreeze_jax.engine.network import Dataset
from gafreeze_jax.models import checkpoints, plain
from gafreeze_jax.options import Options
from gafreeze_jax.space import Space
from gafreeze_jax.tasks import heads
from gafreeze_jax.tasks.base import Setup, make_problem, make_source

pytestmark = pytest.mark.usefixtures("quick_compilation")

SETTINGS = Options(train_examples=16, validation_examples=16, epochs=4, batch_size=8, learning_rate=1e-2)
STOPS = (4, 8)


def make_data(num, seed):
    inputs = np.random.default_rng(seed).normal(size=(num, 6)).astype(np.float32)
    return Dataset(inputs, (inputs[:, 0] > 0).astype(np.int32))


def make_setup(head="kept", seed=0):
    """Three hidden layers and a head."""
    network, shapes = plain.make_dense([6, 8, 8, 8, 2])
    params = plain.init_params(jax.random.key(seed), shapes)
    train, validation, test = (make_data(16, seed) for seed in range(3))
    setup = Setup(
        problem=make_problem(network, params, train, validation, SETTINGS),
        about=[],
        network=network,
        test=make_source(test),
        num_test=16,
        restore=lambda params: params,
        save=checkpoints.write_tree,
    )
    return heads.as_gene(setup) if head == "kept" else setup


def make_bench(**given):
    return Bench(lambda options, settings: make_setup(), SETTINGS, STOPS, **given)


@pytest.mark.parametrize(
    ("head", "num", "names"),
    [
        ("kept", 1, ("dense_0", "dense_1", "dense_2", "classifier")),
        ("kept", 2, ("dense_0+dense_1", "dense_2", "classifier")),
        ("kept", 5, ("dense_0+dense_1+dense_2", "classifier")),
        ("fresh", 2, ("dense_0+dense_1", "dense_2")),
        ("fresh", 3, ("dense_0+dense_1+dense_2",)),
    ],
)
def test_neighbours_share_a_gene_and_a_kept_head_has_its_own(head, num, names):
    genes = Grouping.of(make_setup(head), make_bench(blocks_of_gene=num))
    assert (genes.space.names, genes.space.head) == (names, head)
    assert genes.sizes == tuple(len(name.split("+")) for name in names)


def test_members_have_a_rate_for_each_block():
    bench = make_bench(levels=(1, 0, 1 / 2), rates=(1 / 4, 1), blocks_of_gene=2)
    genes = Grouping.of(make_setup(), bench)
    genomes = np.array([genes.space.parse(text) for text in ("012@1", "201@0.25")])
    members = genes.members(genomes)
    assert [member.rates for member in members] == [(1, 1, 0, 0.5), (0.125, 0.125, 0.25, 0)]
    assert [genes.space.text(member.genome) for member in members] == ["012@1", "201@0.25"]


def test_a_group_trains_as_its_blocks_at_that_rate():
    setup, bench = make_setup(), make_bench(rates=(1 / 4, 1), blocks_of_gene=2)
    genes = Grouping.of(setup, bench)
    population = freezebench.make_population(setup, SETTINGS, Plan())
    run = setup.problem.replicate(0)
    genomes = genes.space.all_genomes()
    curves = list(freezebench.train(population, genes.members(genomes), run, stops=STOPS, test=setup.test))
    assert sorted(curve.genome for curve in curves) == list(map(tuple, genomes.tolist()))

    space = Space(setup.problem.network.names, rates=(1 / 4, 1), head="kept")
    alone = freezebench.make_population(setup, SETTINGS, Plan())
    alone.space = space
    members = {member.genome: member for member in alone.evaluate(space.all_genomes(), run)}
    for curve in curves:
        *levels, rate = curve.genome
        member = members[*np.repeat(levels, genes.sizes).tolist(), rate]
        np.testing.assert_allclose(curve.validation[-1], (member.score, member.loss), rtol=1e-5)
    everything = {curve.validation[-1, 1].item() for curve in curves}
    assert len(everything) == len(curves) - 1  # where all is frozen no rate counts


def test_it_goes_on_where_it_was_stopped_and_with_more_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(freezebench.BENCHES, "resnet14-digits_noise", make_bench(blocks_of_gene=2))
    monkeypatch.setattr(freezebench, "GENOMES_OF_A_PART", 3)
    options = freezebench.Options("resnet14-digits_noise", seeds=1, plan="members=1", tables=tmp_path)
    freezebench.main(options)
    path = tmp_path / "resnet14-digits_noise.npz"
    first = freezebench.load_table(path)
    assert first.done.all()
    assert first.test.shape == (8, 1, 2)
    assert np.isfinite(first.flops).all()
    stopped = first._replace(test=first.test.copy())
    stopped.test[[2, 5]] = np.nan
    freezebench.save_table(path, stopped)
    capsys.readouterr()
    freezebench.main(dataclasses.replace(options, seeds=2))
    printed = capsys.readouterr().out
    assert "seed 0: 2 genomes in" in printed
    assert printed.count("seed 1: ") == 3
    again = freezebench.load_table(path)
    assert again.done.all()
    np.testing.assert_allclose(again.test[:, 0], first.test[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(again.flops, first.flops)


def test_it_does_not_go_on_from_other_pretrained_weights(tmp_path, monkeypatch, capsys):
    setups = [make_setup(), make_setup(seed=1)]
    bench = Bench(lambda options, settings: setups[options.seeds - 1], SETTINGS, STOPS, blocks_of_gene=3)
    monkeypatch.setitem(freezebench.BENCHES, "resnet14-digits_noise", bench)
    options = freezebench.Options("resnet14-digits_noise", seeds=1, plan="members=1", tables=tmp_path)
    freezebench.main(options)
    path = tmp_path / "resnet14-digits_noise.npz"
    before = path.read_bytes()
    with pytest.raises(SystemExit) as stop:
        freezebench.main(dataclasses.replace(options, seeds=2))
    assert "begun with other pretrained weights" in capsys.readouterr().err + str(stop.value)
    assert path.read_bytes() == before
