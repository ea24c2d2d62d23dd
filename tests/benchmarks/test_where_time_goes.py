import jax
import jax.numpy as jnp
import pytest
import where_time_goes


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("ynn_fusion", "products"),
        ("dot.3", "products"),
        ("tanh_multiply_fusion", "elementwise"),
        ("copy.1", "copies"),
        ("while", "other operations"),
        ("ThreadpoolListener::Record", None),
        ("end: ynn_fusion", None),
    ],
)
def test_the_kind_of_an_operation(operation, kind):
    assert where_time_goes.kind_of(operation) == kind


def test_the_profile_of_a_product(tmp_path):
    multiply, matrix = jax.jit(lambda a: a @ a), jnp.ones((256, 256))
    multiply(matrix).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        multiply(matrix).block_until_ready()
    seconds = where_time_goes.kinds_of_work(str(tmp_path))
    assert max(seconds, key=seconds.__getitem__) == "products"
    assert 0 < seconds["products"] < 1


def test_the_tables_add_up():
    text = where_time_goes.report({"seconds": 10.0, "seconds_of_phases": {"searching": 8.0}}, {"products": 0.75}, 3.0)
    assert "| writing files | 2 |" in text
    assert "| products | 75% |" in text
    assert "| waiting | 25% |" in text
