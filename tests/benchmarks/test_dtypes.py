"""The benchmark of dtypes times both and says what it found."""

import json
import re

import dtypes


def test_it_measures_and_tells(tmp_path, monkeypatch, capsys):
    for name, value in {"SECONDS": 0.0, "NUM_TOKENS": 8, "WIDTH": 4, "HIDDEN": 6}.items():
        monkeypatch.setattr(dtypes, name, value)
    times = iter([9.0, 9.0, 2.0, 1.0, 3.0, 4.0])  # the first two compile
    real = dtypes.time_step
    monkeypatch.setattr(dtypes, "time_step", lambda *given: real(*given) and next(times))
    dtypes.main(dtypes.Options(decisions=2, out=tmp_path / "dtypes.json"))
    assert json.loads((tmp_path / "dtypes.json").read_text())["seconds"] == [[2, 1], [3, 4]]
    printed = capsys.readouterr().out
    assert "takes 1/1.38 of float32's time; single measurements say 1/0.75 to 1/2.00" in printed
    assert "bfloat16 was faster in 50% of 2 measurements" in printed
    assert re.search(r"bfloat16 units: \w+", printed)
