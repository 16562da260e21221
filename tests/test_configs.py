"""The files in configs/ are settings that a newcomer can start from."""

from __future__ import annotations

import re
import shlex

import pytest
from conftest import ROOT

from config import Config, add_settings, config_from, make_config
from user_input.flags import Parser
from user_input.text_files import read_yaml

FILES = sorted((ROOT / "configs").glob("*.yaml"))


def load(name: str) -> Config:
    return make_config(read_yaml(ROOT / "configs" / name), name)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_network_knows_the_size_of_its_images(file):
    assert load(file.name).long_side > 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_weights_come_by_themselves_or_from_a_command_in_the_file(file):
    config, head = load(file.name), file.read_text().partition("\ndata:")[0]
    if config.encoder.startswith("darknet:"):  # files that users of darknet have; the head says which
        given = config.init or config.encoder_weights
        assert given in head or given.replace(".weights", ".cfg") in head
    elif config.encoder_weights not in ("imagenet", "none"):
        assert config.encoder == "mobilenetv2_paper"  # timm has no weights of it
        assert "prepare.py nyudv2 --download" in file.read_text()


def test_variants_are_settings(monkeypatch):
    commands = re.findall(
        r"`(python train\.py --config configs/[^`]+ --[^`]+)`", (ROOT / "configs/README.md").read_text()
    )
    assert len(commands) == 3
    monkeypatch.chdir(ROOT)
    for command in commands:
        parser = Parser()
        add_settings(parser)
        config = config_from(parser.parse_args(shlex.split(command)[2:]))
        assert config.long_side > 0 and (config.tasks, len(config.data)) != (Config().tasks, 1)
