"""Every hostile file of hostile_files.py is read rightly or refused in a line (tests/hostile.py prints the table)."""

from __future__ import annotations

from hostile import through_check, through_inference, through_loading, through_training
from hostile_files import all_cases


def test_there_are_enough_of_them():
    cases = all_cases()
    assert len(cases) >= 200 and len({case.name for case in cases}) == len(cases)


def test_inference(trained, tmp_path):
    assert through_inference(trained / "best.pt", tmp_path / "all", all_cases()) == {}


def test_check(tmp_path):
    assert through_check(tmp_path / "all", all_cases()) == {}


def test_training(tmp_path):
    assert through_training(tmp_path / "all", all_cases()) == {}


def test_checkpoints(trained, tmp_path):
    found = through_loading(trained / "best.pt", tmp_path / "all")
    tried = [name for group, names in found.items() if group.endswith(": tried") for name in names]
    assert len(tried) >= 80
    assert {group: wrong for group, wrong in found.items() if wrong and not group.endswith(": tried")} == {}
