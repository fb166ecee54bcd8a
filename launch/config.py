"""Configs: a Python file with ``get_config()``, and overrides from the command line."""

import ast
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

PREFIX = "--config."
_ROOT = Path(__file__).parent.parent


class ConfigError(ValueError):
    """A config file or an override is wrong; the message says what to write instead."""


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Runs ``get_config()`` of a file and applies overrides.

    Args:
      path: of the Python file, from the current folder or from that of the project.
      overrides: ``--config.seed=1`` or ``--config.seed 1`` as two entries.

    Raises:
      ConfigError: for a missing file, an unknown field (with the nearest name), or a value of another type.
    """
    file = next((file for file in (Path(path), _ROOT / path) if file.is_file()), None)
    if file is None:
        raise ConfigError(f"config {path!r} does not exist (has: {', '.join(_known_configs(path))})")
    module_spec = importlib.util.spec_from_file_location("wam_config", file)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    config = module.get_config()
    for name, text in _pairs(overrides):
        _override(config, name, text)
    return config


def default_workdir(path: str) -> Path:
    """Where a config's results are written: ``configs/repwam/adapt.py`` in ``runs/repwam/adapt``."""
    parts = Path(path).with_suffix("").parts
    below = [number for number, part in enumerate(parts) if part == "configs"]
    return Path("runs", *(parts[below[-1] + 1 :] if below else parts[-1:]))


def missing_run(field: str, run: str) -> ConfigError:
    """``field`` names a run that is not here; the message has the command that makes it, where there is one."""
    file = Path("configs", *Path(run).parts[1:]).with_suffix(".py")  # see default_workdir
    here = Path(run).parts[:1] == ("runs",) and (_ROOT / file).is_file()
    how = f"train it first (wam train --config {file.as_posix()})" if here else "train it first"
    return ConfigError(f"config.{field}={run!r} is no run that is here; {how}, or name another")


def to_plain(config: Any) -> Any:
    """A config as JSON-able dicts, lists and numbers."""
    if isinstance(config, ConfigDict):
        return {key: to_plain(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_plain(value) for value in config]
    return config


def _known_configs(path: str) -> list[str]:
    """Those that ``path`` may have meant: of the folder of that name, if there is one."""
    folder = _ROOT / Path(path).with_suffix("")
    configs = folder if folder.is_dir() else _ROOT / "configs"
    found = [file for file in configs.rglob("*.py") if file.stem not in ("__init__", "common")]
    return sorted(file.relative_to(_ROOT).as_posix() for file in found)


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs, rest = [], list(overrides)
    while rest:
        item = rest.pop(0)
        if not item.startswith(PREFIX):
            raise ConfigError(f"argument {item!r} is unknown; config fields are set with {PREFIX}FIELD=VALUE")
        name, equals, value = item.removeprefix(PREFIX).partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"{item} has no value; write {item}=VALUE")
            value = rest.pop(0)
        pairs.append((name, value))
    return pairs


def set_field(config: ConfigDict, name: str, new: Any) -> None:
    """Sets a field by its dotted name.

    Raises:
      ConfigError: for an unknown field (with the nearest name), or a value of another type.
    """
    *parents, leaf = name.split(".")
    node = config
    for part in parents:
        node = _child(node, part, name, config)
    open_ended = parents[-1:] in (["sizes"], ["options"])  # keyword arguments of a spec: checked by the spec
    old = None if open_ended and leaf not in node else _child(node, leaf, name, config)
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        new = float(new)
    if isinstance(old, tuple) and isinstance(new, list):
        new = tuple(new)
    if isinstance(old, ConfigDict) and isinstance(new, dict):
        new = ConfigDict(new)
    if old is not None and type(new) is not type(old):
        raise ConfigError(f"config field {name} is {type(old).__name__} ({old!r}), {new!r} is {type(new).__name__}")
    with node.unlocked():
        node[leaf] = new


def _override(config: ConfigDict, name: str, text: str) -> None:
    old = _lookup(config, name)
    set_field(config, name, text if isinstance(old, str) else _parse(text))


def _lookup(config: ConfigDict, name: str) -> Any:
    node: Any = config
    for part in name.split("."):
        if not isinstance(node, ConfigDict) or part not in node:
            return None
        node = node[part]
    return node


def _child(node: Any, part: str, name: str, config: ConfigDict) -> Any:
    if isinstance(node, ConfigDict) and part in node:
        return node[part]
    near = difflib.get_close_matches(name, list(_fields(config)), n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"config has no field {name!r}{hint}")


def _fields(config: ConfigDict, prefix: str = ""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _parse(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)
