"""Where things stand: few files on top, and imports that go one way."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from tasks import TASKS

# From the ground up. A module imports only what stands on an earlier line, or in its own folder.
LAYERS = (
    ("distributed", "loss", "metrics", "startup", "user_input"),
    ("config", "utils"),
    ("geometry", "images"),
    ("drawing",),
    ("networks",),
    ("tasks",),
    ("model", "folders"),
    ("dataset", "rooms"),
    ("deploy",),
    ("training", "scene3d", "sources"),
    ("benchmarks", "webpage"),
    ("train", "evaluate", "inference", "prepare", "teach", "export", "benchmark", "reconstruct", "app"),
    ("plot", "tools"),
)
FLOOR = {name: floor for floor, names in enumerate(LAYERS) for name in names}
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
MODULES = [*sorted(ROOT.glob("*.py")), *(file for name in FOLDERS for file in sorted((ROOT / name).glob("*.py")))]


def imported(source: str) -> list[str]:
    """The first parts of all modules that a text imports, also inside functions."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name.partition(".")[0] for name in names]


@pytest.mark.parametrize("file", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(file):
    place = file.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imported(file.read_text()):
        inside = name == place and len(file.relative_to(ROOT).parts) > 1
        assert name not in FLOOR or inside or FLOOR[name] < FLOOR[place], f"{place} imports {name}"


SCRIPTS = [file for file in sorted(ROOT.glob("*.py")) if '__name__ == "__main__"' in file.read_text()]


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda path: path.name)
def test_startup_is_imported_first(file):
    assert imported(file.read_text())[:2] == ["__future__", "startup"]


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_openmp_of_a_script_waits_without_spinning_unless_the_user_wants_it(given, expected):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "TRUE", **({"OMP_WAIT_POLICY": given} if given else {})}
    words = [sys.executable, str(ROOT / "evaluate.py"), "--help"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and f"OMP_WAIT_POLICY = '{expected}'" in done.stderr, done.stderr


def test_ctrl_c_ends_a_script_in_silence_while_it_imports(tmp_path):
    for name in ("numpy", "torch"):  # in place of what takes seconds, and comes first in one script or the other
        (tmp_path / f"{name}.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    started = [
        subprocess.Popen(
            [sys.executable, str(file)], env=os.environ | {"PYTHONPATH": str(tmp_path)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for file in SCRIPTS
    ]  # fmt: skip
    try:
        for file, script in zip(SCRIPTS, started, strict=True):
            line = script.stdout.readline()
            script.send_signal(signal.SIGINT)
            rest = script.communicate(timeout=60)
            assert (line, *rest, script.returncode) == ("importing\n", "", "", 130), file.name
    finally:
        for script in started:
            script.kill()
            script.communicate()


def test_an_import_inside_a_function_counts():
    assert imported("def f():\n    import train\n    from deploy.video import VIEWS\n") == ["train", "deploy"]


def test_few_files_stand_on_top():
    assert len(list(ROOT.glob("*.py"))) <= 22
    # Without __init__.py these folders of weights and data leave their names to model.py and dataset.py.
    assert not any((ROOT / folder / "__init__.py").exists() for folder in ("model", "dataset", "media"))
    assert set(FLOOR) == {*FOLDERS, *(path.stem for path in ROOT.glob("*.py"))}


# ---------------------------------------------------------------------------------------------- tasks


# What knows tasks by name: the tasks, a published format, and what writes data sets of given labels.
KNOW_TASKS = ("tasks/", "sources/", "rooms/", "networks/paper_checkpoints.py")


def questions(source: str) -> list[int]:
    """Lines that compare something with a task's name, or that look it up in a dictionary."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript):
            asked = [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop"):
            asked = node.args
        elif isinstance(node, ast.MatchValue):
            asked = [node.value]
        names = {item.value for part in asked for item in ast.walk(part) if isinstance(item, ast.Constant)}
        if names & set(TASKS):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("file", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_asks_which_task_it_is(file):
    if not str(file.relative_to(ROOT)).startswith(KNOW_TASKS):
        assert questions(file.read_text()) == []


def test_questions_are_found():
    asked = ['x == "depth"', 'x["segmentation"]', 'x.get("depth")', '"normals" in x', 'x in ("depth", "y")']
    assert all(questions(line) == [1] for line in asked)
    assert questions('x = {"depth": 1}\nx["other"] = f("depth")') == []
