"""The words of a command line, `with named_config key=value file.yaml`, read as data alone.

By itself sacred hands config files, and the values of keys, to jsonpickle or pickle, which make any object and call any
function that they name. Here a file is JSON or YAML of plain values. `null`, `true` and `false` mean what they mean in
configs/*.yaml. A named config that is overruled by a `key=value` before it is refused, because the reader of the line
would think it wins.
"""

from __future__ import annotations

import ast
import difflib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml
from sacred.arg_parser import get_config_updates
from sacred.config.config_files import HANDLER_BY_EXT

from lexlip.errors import ConfigError
from lexlip_data.errors import one_line

MOST_VALUES = 100_000  # of a config file; an alias in YAML counts each time, so a few lines can mean billions
_TAGS = ("py/", "json://")  # what jsonpickle takes for more than data


def _read_only_data() -> None:
    """Let sacred read config files by this module, wherever it meets them."""
    HANDLER_BY_EXT.pop(".pickle", None)
    HANDLER_BY_EXT[".json"].load = lambda file: _read(file, json.load)
    for suffix in (".yaml", ".yml"):
        HANDLER_BY_EXT[suffix].load = lambda file: _read(file, yaml.safe_load)


def read_words(words: list[str], named: Mapping[str, Mapping]) -> tuple[dict, list[str]]:
    """What the words after `with` say: keys with their values, and named configs and files in order.

    Args:
        named: the named configs, by name.

    Raises:
        ConfigError: an unknown name, a file that is no config, a value that is more than data, a space after a
            `key=`, or a named config that a `key=value` before it overrules.
    """
    given: dict[str, tuple[int, object, str]] = {}  # key in dots -> where its last value stands, the value, the word
    configs, plain = [], []
    for place, word in enumerate(words):
        key, equals, text = word.partition("=")
        if equals:
            value = _value(key.strip(), text.strip())
            plain.append(f"{key.strip()}={value!r}")
            given |= {name: (place, one, word) for name, one in _flat({key.strip(): value})}
        elif place and words[place - 1].endswith("=") and word not in named:
            before = one_line(words[place - 1])
            raise ConfigError(f"there is a space after {before}; write {before}{one_line(word)} in one piece")
        else:
            plain.append(word)
            configs.append((place, word, _named(word, named)))
    for place, config, content in configs:
        _refuse_overruled(config, content, {name: one for name, one in given.items() if one[0] < place})
    try:
        return get_config_updates(plain)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{one_line(' '.join(plain))} cannot be read ({error})") from error


def _refuse_overruled(config: str, content: Mapping, before: dict[str, tuple[int, object, str]]) -> None:
    for name, value in _flat(content):
        for key, (_, given, word) in before.items():
            same = key == name and given == value
            if not same and f"{name}.".startswith(f"{key}.") | f"{key}.".startswith(f"{name}."):
                raise ConfigError(
                    f"{config} comes after {word} and says {name}={value!r}, but key=value always wins over a named "
                    f"config; repeat the value that you want after {config}"
                )


def _value(key: str, text: str) -> object:
    """A Python literal, else null, true, false or other JSON, else the text itself."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        try:
            value = json.loads(text, parse_constant=str)
        except (ValueError, RecursionError):
            value = text
    _refuse_tags(value, f"{key}={one_line(text, 60)}")
    return value


def _named(word: str, named: Mapping[str, Mapping]) -> Mapping:
    if word in named:
        if os.path.isfile(word):
            raise ConfigError(f"{word} is a named config and a file in this folder, too; rename the file")
        return named[word]
    if not os.path.exists(word):
        near = difflib.get_close_matches(word, named, 1)
        meant = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(named)}"
        raise ConfigError(f"{one_line(word)} is no named config, and no such file{meant}")
    suffix = Path(word).suffix
    if not os.path.isfile(word) or suffix not in HANDLER_BY_EXT:
        raise ConfigError(
            f"{one_line(word)} is no config: a file of plain values is read, NAME.yaml or NAME.json. Pickles run code "
            "when they are read and are refused"
        )
    with open(word, encoding="utf-8") as file:
        return HANDLER_BY_EXT[suffix].load(file)


def _read(file: TextIO, load: Any) -> dict:
    try:
        value = load(file)
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: JSON, and bytes that are no text
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file.name} cannot be read as plain values: {one_line(reason)}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{file.name} holds no keys with values, but a {type(value).__name__}")
    _refuse_tags(value, file.name)
    return value


def _refuse_tags(value: object, where: str) -> None:
    """Refuse entries that sacred would take for objects to be made, and more of them than any config has."""
    left, waiting = MOST_VALUES, [value]
    while waiting:
        item = waiting.pop()
        left -= 1
        if left < 0:
            raise ConfigError(f"{where} holds more than {MOST_VALUES:,} values; no config does")
        if isinstance(item, dict):
            tag = next((name for name in item if isinstance(name, str) and name.startswith(_TAGS)), None)
            if tag is not None:
                raise ConfigError(f"{where}: {one_line(tag)!r} would run code; only plain values are read")
            waiting += item.values()
        elif isinstance(item, (list, tuple, set)):
            waiting += item


def _flat(content: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


_read_only_data()
