"""The generator, the metrics and a forward pass give what they gave when golden.json was written."""

from __future__ import annotations

import json

import pytest
from golden import FILE, forward, metrics, room

GOLDEN = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", GOLDEN["rooms"])
def test_rooms(name):
    found = room(*map(int, name.split("/")))
    for part, values in GOLDEN["rooms"][name].items():
        # Some rays at edges may hit the other side on another processor.
        assert found[part] == pytest.approx(values, rel=1e-3, abs=2e-3), part


@pytest.mark.parametrize("name", GOLDEN["metrics"])
def test_metrics(name):
    assert metrics()[name] == pytest.approx(GOLDEN["metrics"][name], rel=1e-9)


@pytest.mark.parametrize("encoder", GOLDEN["forward"])
def test_forward_pass(encoder):
    found = forward(encoder)
    for task, values in GOLDEN["forward"][encoder].items():
        assert found[task] == pytest.approx(values, rel=1e-6, abs=1e-8), task
