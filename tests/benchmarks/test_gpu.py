"""The prepared script for accelerators measures each part, keeps to its time, and keeps what it has measured."""

import json
from dataclasses import replace

import gpu
import pytest
import steps

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(steps, "NOISE_SECONDS", 0)
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0)
    monkeypatch.setitem(gpu.NETWORKS, "tiny", replace(gpu.NETWORKS["tiny"], num_hidden_layers=1))


def run(tmp_path, *parts, **given):
    out = tmp_path / "gpu.json"
    shapes = {"network": "tiny", "texts": 2, "length": 8, "dtype": "float32", "members": (1, 2), "stacked": 2}
    gpu.main(gpu.Options(**shapes | given, parts=parts, out=out))
    return json.loads(out.read_text())["parts"], out.with_suffix(".md").read_text()


def test_members_programs_attention_and_optimizer(tmp_path):
    parts, markdown = run(tmp_path, "members", "programs", "attention", "optimizer")
    assert [row["name"] for row in parts["members"]] == ["1 members", "2 members"]
    one, two = parts["members"]
    assert two["estimated_gib"] == pytest.approx(2 * one["estimated_gib"], rel=0.1)
    assert two["member_steps_per_second"] == pytest.approx(2e3 / two["milliseconds"])
    assert len({row["name"] for row in parts["programs"]}) == 4
    left_out = {row["name"] for row in parts["attention"] if "left_out" in row}
    assert left_out == {"cuDNN", "cuDNN, no mask", "cuDNN, no mask, dropout"}
    assert [row["name"] for row in parts["optimizer"]] == ["block by block", "one program", "one vector"]
    assert all(row["gb_per_second"] > 0 for row in parts["optimizer"])
    for name, rows in parts.items():
        assert f"## {name}\n" in markdown
        assert all(f"| {row['name']} |" in markdown for row in rows)


def test_pytorch_and_a_whole_search(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("pygad")
    monkeypatch.setattr(gpu, "time_pytorch", lambda work, device, compiled: 1 / (2 if compiled else 1))
    monkeypatch.setattr(gpu, "members", lambda options: iter([{"name": "8 members", "member_steps_per_second": 5.0}]))
    monkeypatch.setitem(gpu.PARTS, "members", gpu.Part(gpu.members, 1))
    parts, markdown = run(tmp_path, "PyTorch", "members", "search")
    assert "- 8 members: 2.50 times the member-steps a second of PyTorch, torch.compile" in markdown
    assert [row["member_steps_per_second"] for row in parts["PyTorch"]] == [1, 2]
    every, first, ours = parts["search"]
    assert every["seconds"] > first["seconds"] > 0
    assert first["evaluations"] == ours["evaluations"]


def test_a_part_that_fails_does_not_cost_the_others_and_time_is_kept(tmp_path, monkeypatch):
    def fail(options):
        yield {"name": "first"}
        raise RuntimeError("out of\nmemory")

    def count(options):
        yield from ({"name": str(number)} for number in range(3))

    monkeypatch.setattr(gpu, "PARTS", {"bad": gpu.Part(fail, 1), "good": gpu.Part(count, 1)})
    parts, _ = run(tmp_path)
    assert parts["bad"] == [{"name": "first"}, {"name": "failed", "left_out": "RuntimeError: out of memory"}]
    assert [row["name"] for row in parts["good"]] == ["0", "1", "2"]
    parts, _ = run(tmp_path, minutes=0)
    assert parts == {"bad": [], "good": []}
    with pytest.raises(SystemExit, match="no part other; there are bad, good"):
        run(tmp_path, "other")
