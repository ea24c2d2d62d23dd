"""Values of all kinds in the configs of all families: each is accepted, or refused in a line that names it."""

import json

import pytest
import test_every_family

from gafreeze_jax.models import configs, pretrained, rotary

WRONG = (None, True, -1, 0, 0.5, 3, 10**12, "x", [], ["x"], {}, {"x": [1]})
ROPE = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}
OTHERS = (  # that are no fields
    "position_embedding_type", "is_decoder", "add_cross_attention", "rope_scaling", "conv_kernel_size", "z_steps",
    "attention_head_size", "pooler_hidden_size", "num_stages", "quantization_config", "architectures",
)  # fmt: skip


def changes_of(family):
    """Entries of a config, with one value after another, also within objects for rotary positions."""
    for name in (*configs.rules(family.config), *OTHERS):
        yield from ({name: value} for value in WRONG)
    for name in {"rope_scaling", "rope_parameters"} & configs.rules(family.config).keys():
        for kind in rotary.TYPES:
            entries = {"rope_type": kind, "partial_rotary_factor": 1.0, "rope_theta": 10.0, **ROPE}
            yield from ({name: entries | {entry: value}} for entry in entries for value in WRONG)
        yield from ({name: {layer_type: value}} for layer_type in (configs.FULL, configs.SLIDING) for value in WRONG)


@pytest.mark.parametrize("name", test_every_family.FAMILIES)
def test_values_are_accepted_or_named(name, tmp_path):
    path, num_refused = tmp_path / "config.json", 0
    for changes in changes_of(test_every_family.FAMILIES[name]):
        path.write_text(json.dumps({"model_type": name, **test_every_family.RAW[name], **changes}))
        try:
            pretrained.read_config(tmp_path)
        except ValueError as error:
            message, num_refused = str(error), num_refused + 1
            assert message.startswith(f"{path}: "), (changes, message)
            assert "\n" not in message
        except Exception as error:
            raise AssertionError(f"{changes}: {error!r}") from error
    assert num_refused > 50
