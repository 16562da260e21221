"""What the README shows works as it stands there."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import ExifTags, Image

from images import SAMPLE

README = (ROOT / "README.md").read_text()
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("*/README.md")), *sorted(ROOT.glob("docs/*.md")))
TASKS_PAGE = (ROOT / "docs" / "TASKS.md").read_text()


def test_the_fourth_task_is_a_class_in_tasks_and_nothing_else(tiny_settings, tmp_path):
    (code,) = re.findall(r"```python\n(from dataclasses.*?class Edges\(DenseTask\).*?)```", TASKS_PAGE, re.DOTALL)
    assert code.count("\n") < 60
    repository = tmp_path / "repository"
    repository.mkdir()
    for folder in (ROOT, *(init.parent for init in ROOT.glob("*/__init__.py"))):
        (repository / folder.relative_to(ROOT)).mkdir(exist_ok=True)
        for file in folder.glob("*.py"):
            shutil.copy(file, repository / file.relative_to(ROOT))
    (repository / "tasks" / "edges.py").write_text(code)
    with (repository / "tasks" / "__init__.py").open("a") as file:
        file.write('\n\nfrom tasks.edges import Edges\n\nTASKS["edges"] = Edges\n')

    def call(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("train.py", "--config", tiny_settings, "--tasks", "segmentation,depth,edges", "--epochs", 2, "--run", "run")
    assert re.search(r"edges +miou .* dice 0\.\d", call("evaluate.py", "--checkpoint", "run/best.pt", "--workers", 0))
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (67, 91, 3), np.uint8)).save(picture)
    call("inference.py", "--checkpoint", "run/best.pt", "--input", picture, "--output", "out")
    edges = np.array(Image.open(repository / "out/picture_edges.png"))
    assert edges.shape == (67, 91) and set(np.unique(edges)) <= {0, 1}


def test_the_files_that_it_names_exist():
    for name in re.findall(r"\]\(([\w/.-]+)\)", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"configs/\w+\.yaml", README):
        assert (ROOT / name).is_file(), name


WITHOUT_A_COMMAND = {"benchmark.py": ["networks"]}


def shown_commands() -> dict[tuple[str, ...], set[str]]:
    """{(script, its command if it has some): the options that the pages give to it}."""
    shown: dict[tuple[str, ...], set[str]] = {}
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for name, rest in re.findall(r"\b(\w+\.py) ([^`\n#|;&]*)", text):
            options = re.findall(r"(?<!\S)--(?!help)\w+", rest)
            if options and (ROOT / name).is_file():
                command = re.match(r"[a-z]\w*(?= )", rest)
                words = [command[0]] if command else WITHOUT_A_COMMAND.get(name, [])
                shown.setdefault((name, *words), set()).update(options)
    return shown


SHOWN = shown_commands()


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_the_options_in_its_commands_exist(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [*words, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(words[0].removesuffix(".py")).main()
    assert not ended.value.code
    assert SHOWN[words] <= set(re.findall(r"--\w+", capsys.readouterr().out))


def test_each_configuration_says_how_it_was_measured():
    for file in sorted((ROOT / "configs").glob("*.yaml")):
        head = [line for line in file.read_text().splitlines() if line.startswith("#")]
        text = " ".join(head)
        assert f"python train.py --config configs/{file.name}" in text, file
        assert "Not measured here" in text or re.search(r"Measured 20\d\d-\d\d-\d\d", text), file


def test_links_lead_somewhere_and_pictures_are_small():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    pictures = [path for path in (ROOT / "media").iterdir() if path.suffix in (".png", ".jpg", ".gif")]
    text = README + "".join(page.read_text() for page in ROOT.glob("docs/*.md"))
    assert all(f"media/{path.name}" in text or path.name == "sample.jpg" for path in pictures), pictures
    assert sum(path.stat().st_size for path in pictures) < 1_750_000


def test_the_photograph_names_its_author_and_license():
    """Where it goes, they go: in the file, and in the table beside it."""
    (row,) = [line for line in (ROOT / "media" / "README.md").read_text().splitlines() if f"`{SAMPLE.name}`" in line]
    with Image.open(ROOT / SAMPLE) as photo:
        artist, license_of_it = (photo.getexif()[tag] for tag in (ExifTags.Base.Artist, ExifTags.Base.Copyright))
    assert artist in row and license_of_it.split(", ")[1] in row and (ROOT / SAMPLE).stat().st_size < 150_000
