"""Text files, YAML and JSON. Sizes are limited, and nothing from a file is executed or multiplied."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

MOST_YAML_BYTES = 2**20


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """A whole file. Raises FileNotFoundError for what is no regular file, such as a pipe or a device, which may have
    no end, and ValueError for more than `most_bytes`; both name the file."""
    if not path.is_file():
        what = "not a regular file" if path.exists() else "no such file"
        raise FileNotFoundError(f"{path}: {what}")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path}: more than {most_bytes:,} bytes, the most that is read of such a file")
    return content


def read_text(path: Path, most_bytes: int) -> str:
    """`read_bytes` of a UTF-8 text file. Raises ValueError that names the file for another encoding, too."""
    content = read_bytes(path, most_bytes)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not a UTF-8 text file ({problem.reason} at byte {problem.start:,})") from None


def read_yaml(path: Path) -> dict[str, object]:
    """A YAML file as nested dicts and lists whose leaves are all strings.

    The reader of a value converts it by the type that it wants, so that `1e-4` is a number, `off` a word where
    a word is wanted, and `010` ten. Tags and aliases are refused: nothing from a file is executed or multiplied.
    Raises FileNotFoundError, or ValueError with file and line.
    """
    return parse_yaml(read_text(path, MOST_YAML_BYTES), path)


def parse_yaml(text: str, path: Path) -> dict[str, object]:
    """`read_yaml` of text that stands in the file, or shall stand there."""
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as problem:
        raise ValueError(f"{path}: not readable as YAML: {' '.join(str(problem).split())}") from None
    seen: set[int] = set()

    def build(node: yaml.Node) -> object:
        line = f"{path}:{node.start_mark.line + 1}"
        if id(node) in seen:
            raise ValueError(f"{line}: YAML aliases (*name) are not accepted")
        seen.add(id(node))
        if node.tag.rpartition(":")[2] not in ("str", "seq", "map"):
            raise ValueError(f"{line}: YAML tag {node.tag!r} is not accepted")
        if isinstance(node, yaml.ScalarNode):
            return node.value
        if isinstance(node, yaml.SequenceNode):
            return [build(item) for item in node.value]
        result: dict[str, object] = {}
        for key, item in node.value:
            name = build(key)
            if not isinstance(name, str) or name in result:
                raise ValueError(f"{line}: {name!r} is not a name, or stands twice")
            result[name] = build(item)
        return result

    values = {} if node is None else build(node)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected 'name: value' lines")
    return values


def read_json(text: str) -> dict[str, object]:
    """What json.dumps made of plain values, with tuples for the lists. Raises ValueError."""

    def tuples(value: object) -> object:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    try:
        content = json.loads(text, object_hook=lambda entry: {key: tuples(value) for key, value in entry.items()})
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it is no table of names and values")
    return content
