from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from config import Config, add_settings, config_from, make_config, plain
from user_input.flags import Parser
from user_input.text_files import read_yaml

ROOT = Path(__file__).resolve().parents[1]


def parse(*flags: str) -> Config:
    parser = Parser()
    add_settings(parser)
    return config_from(parser.parse_args(flags))


def test_flags_override_the_file_which_overrides_the_defaults(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("epochs: 7\nlr_encoder: 1e-4\ncrop: [100, 120]\n")
    config = parse("--config", str(file), "--epochs", "9", "--tasks", "depth", "--loss_weights", "depth=0.5,normals=2")
    assert (config.epochs, config.lr_encoder, config.crop) == (9, 1e-4, (100, 120))
    assert config.tasks == ("depth",) and config.loss_weights == {"depth": 0.5, "normals": 2.0}
    assert config.batch_size == Config.batch_size


def test_settings_survive_being_written_and_read():
    config = make_config({"crop": "33,47", "zoom": "0.5,2", "mirror": "off", "ema": "0"}, "test")
    assert make_config(plain(config), "test") == config


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), (".5", 0.5), ("3", 3.0)])
def test_yaml_numbers_are_what_they_look_like(tmp_path, text, value):
    (tmp_path / "c.yaml").write_text(f"lr_encoder: {text}\n")
    assert make_config(read_yaml(tmp_path / "c.yaml"), "c").lr_encoder == value


def test_yaml_does_not_guess_types(tmp_path):
    (tmp_path / "c.yaml").write_text("epochs: 010\nmirror: off\nencoder: no\n")
    config = make_config(read_yaml(tmp_path / "c.yaml"), "c")
    assert config.epochs == 10 and config.mirror is False and config.encoder == "no"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epoch", "3"], "unknown argument '--epoch' (did you mean '--epochs'?)"),
        (["--epochs", "many"], "epochs is 'many'; it takes a whole number"),
        (["--epochs", "1.5"], "epochs is '1.5'; it takes a whole number"),
        (["--lr_encoder", "nan"], "it takes a finite number"),
        (["--mirror", "maybe"], "mirror is 'maybe'; it takes true or false"),
        (["--crop", "200"], "it takes 2 values"),
        (["--crop", "16,200"], "at least 32"),
        (["--zoom", "2,1"], "least,most"),
        (["--zoom", "1,1e9"], "0.0625 <= least <= most <= 16"),
        (["--zoom", "1e-9,1"], "0.0625 <= least <= most <= 16"),
        (["--crop", "64,100000"], "at most 8192"),
        (["--long_side", "100000"], "long_side is 100000; it must be at most 8192"),
        (["--workers", "5000"], "workers is 5000; it must be at most 256"),
        (["--threads", "1000000"], "at most 1024"),
        (["--epochs", "10000000"], "at most 1000000"),
        (["--batch_size", "1000000"], "at most 65536"),
        (["--seed", "4294967296"], "at most 4294967295"),
        (["--momentum", "2"], "at most 1"),
        (["--loss_weights", "depth=-1"], "loss_weights: depth is -1; it must be at least 0"),
        (["--precision", "fp61"], "allowed: auto, fp32, bf16, fp16 (did you mean 'fp16'?)"),
        (["--batch_size", "0"], "it must be at least 1"),
        (["--loss_weights", "depth"], "it takes name=value"),
        (["--ema", "1"], "below 1"),
        (["--tasks", ""], "tasks is empty"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_mistakes_are_named(flags, message):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        parse(*flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# Ten levels of nine aliases each: three billion words, where they are followed.
EXPLODES = "a0: &a0 [x]\n" + "\n".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 11)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown setting 'epoch' (did you mean 'epochs'?)"),
        ("epochs: [1, 2]", "epochs is ['1', '2']; it takes one int"),
        ("tasks: {a: 1}", "it takes a list"),
        ("crop: [1, [2]]", "it takes one int"),
        ("epochs: 3\nepochs: 4", "stands twice"),
        ("a: &x 1\nb: *x", "aliases"),
        (EXPLODES, "aliases"),
        (f"a: {'[' * 100_000}", "not readable as YAML"),
        ("epochs: !!python/name:os.system", "tag"),
        ("a: !!binary aGk=", "tag"),
        ("epochs: !!python/object/apply:os.system ['true']", "tag"),
        ("epochs: [", "not readable as YAML"),
        ("just words", "expected 'name: value' lines"),
        ("- 1", "expected 'name: value' lines"),
    ],
    ids=lambda value: value[:30],
)
def test_mistakes_in_a_file_are_named(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"c\.yaml") as caught:
        make_config(read_yaml(file), str(file))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_in_the_repository_is_valid(file):
    make_config(read_yaml(file), str(file))
    assert file.read_text().startswith("#"), "its first lines say how to run it and what it reaches"


def test_the_settings_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("folder", ["model", "dataset"])
def test_the_folders_do_not_hide_the_modules(folder):
    assert (ROOT / folder).is_dir() and not (ROOT / folder / "__init__.py").exists()
