"""XLA:TPU compiles the engine's training steps, where libtpu is installed (`pip install -e ".[tpu]"`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = """
import sys
import tpu_compile
from gafreeze_jax.models.bert import BertConfig

tpu_compile.SHAPES["small"] = BertConfig(2000, 256, 2, 4, 1024), 8, 128
tpu_compile.main(tpu_compile.Options(("v5e-8",), ("small",), 2, ("v5e-8",), tpu_compile.Path(sys.argv[1])))
"""


def test_steps_for_a_tpu_have_no_collectives_and_take_what_the_planner_expects(tmp_path):
    pytest.importorskip("libtpu")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent)])}
    out = tmp_path / "out.json"
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(out)], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    pieces, whole = rows["small, v5e-8, in pieces"], rows["small, v5e-8, in one"]
    assert pieces["collectives"] == whole["collectives"] == 0
    assert pieces["planner"] == pytest.approx(1, abs=0.15)
    assert pieces["gflop_of_member"] == pytest.approx(whole["gflop_of_member"], rel=0.1)  # which XLA:TPU counts in two ways
    assert 0 < pieces["of_hbm"] < 0.1
    assert pieces["fit"] == 8 * pieces["fit_on_device"]
