"""Values typed on the command line or written in a config, read without ever being executed."""

import argparse
import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as th
import yaml

from sb3_dmpo.cli.errors import UsageError
from sb3_dmpo.files.safe_values import TORCH_CLASSES

#: The classes that a value may name, as people write them: those that `load` takes from a model's file.
CLASSES: dict[str, type[Any]] = {
    f"{prefix}{package}.{name}": getattr(getattr(th, package), name)
    for prefix in ("", "th.", "torch.")
    for module, names in TORCH_CLASSES.items()
    for package in (module.split(".")[1],)
    for name in names
}

#: Names, schedules (lin_3e-4), ids and paths stand for themselves: a letter, then nothing that Python could call.
_PLAIN_TEXT = re.compile(r"[A-Za-z_][\w.+/ -]*")
_MAX_LENGTH = 10_000
_MAX_SEEDS = 1_000


def parse_value(text: Any) -> Any:
    """
    The value behind a text: numbers, True, False, None, quoted or plain text, lists, tuples, dicts, ``dict(a=1)``, and
    activations and optimizers by name (``nn.ReLU``). Nothing is evaluated.

    :param text: e.g. ``"3e-4"``, ``"lin_3e-4"``, ``"dict(net_arch=[64, 64], activation_fn=nn.Tanh)"``; what is no text is
        the value itself
    :raises UsageError: anything else
    """
    if not isinstance(text, str):
        return text
    text = text.strip()
    try:
        if len(text) > _MAX_LENGTH:
            raise ValueError("too long")
        return _value(ast.parse(text, mode="eval").body)
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError):
        if _PLAIN_TEXT.fullmatch(text):
            return text
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        raise UsageError(
            f"cannot read the value {shown!r}: write a number, True, False, None, plain or quoted text, a list, or "
            "dict(name=value, ...); code is not executed."
        ) from None


def parse_settings(items: Sequence[str]) -> dict[str, Any]:
    """
    Settings as they are typed after ``-params``.

    :param items: ``NAME:VALUE`` each
    :raises UsageError: one of them has no name or no value, or one that cannot be read
    """
    settings = {}
    for item in items:
        name, _, text = item.partition(":")
        if not name.strip() or not text.strip():
            raise UsageError(f"{item!r} is no setting: write NAME:VALUE, e.g. gamma:0.99.")
        try:
            settings[name] = parse_value(text)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
    return settings


class StoreSettings(argparse.Action):
    """An option that takes settings, as rl_zoo3's ``StoreDict``; says which one is wrong."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        """
        :param parser: the parser
        :param namespace: where the settings go
        :param values: as in :func:`parse_settings`
        :param option_string: the option's name
        :raises argparse.ArgumentError: one of them cannot be read
        """
        try:
            setattr(namespace, self.dest, parse_settings(values))
        except UsageError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def _value(node: ast.expr) -> Any:
    """The value of an expression; what is not plain raises one of many errors."""
    if isinstance(node, ast.Attribute):
        return CLASSES[ast.unparse(node)]
    if isinstance(node, ast.List | ast.Tuple):
        items = [_value(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    # A key without a name would unpack another dict.
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key is not None}
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict" and not node.args:
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if None not in keywords:
            return {name: _value(value) for name, value in keywords.items()}
    value = ast.literal_eval(node)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError("not a plain value")
    return value


class DistinctKeysLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that is said twice, of which PyYAML would drop the first."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """
        As PyYAML's.

        :param anchor: the mapping's name in the file, if it has one
        """
        node = super().compose_mapping_node(anchor)
        found: set[tuple[str, Any]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in found:
                raise yaml.constructor.ConstructorError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
            found.add((key.tag, str(key.value)))
        return node


def read_yaml(path: Path, loader: type[yaml.SafeLoader] = DistinctKeysLoader) -> Any:
    """
    What a YAML file says. Whatever is wrong with it, there is one kind of error.

    :param path: the file
    :param loader: makes plain data of it
    :raises UsageError: it cannot be read; the message says why, not which file it is
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except UnicodeDecodeError as error:
        raise UsageError(f"it is no text in UTF-8 (byte {error.start})") from error
    except RecursionError:
        raise UsageError("it is nested too deeply") from None
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(str(error)) from error
    except Exception as error:  # of a value that PyYAML cannot make, as 2001-99-99: many kinds
        raise UsageError(f"a value in it cannot be read ({error})") from error


def as_yaml(value: Any) -> Any:
    """
    The value as YAML and JSON can hold it: classes become the names that :func:`parse_value` reads, tuples lists.

    :param value: any value
    """
    if isinstance(value, dict):
        return {str(key): as_yaml(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_yaml(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    for name, known in CLASSES.items():
        if value is known:
            return name
    return str(value)


def check_updates(n_timesteps: int) -> None:
    """
    Refuse a number of updates that is none.

    :param n_timesteps: option ``-n``; -1 is rl_zoo3's way to say that there is none
    :raises UsageError: it is below 1 and not -1
    """
    if n_timesteps < 1 and n_timesteps != -1:
        raise UsageError(f"-n {n_timesteps}: the number of updates has to be at least 1; without -n the config says it.")


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """
    Seeds in the order they were typed, each once.

    :param texts: numbers and ranges, e.g. ``["0-2", "7"]`` or ``["0-2,7"]``
    :raises UsageError: anything else
    """
    seeds: list[int] = []
    for text in ",".join(texts).split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < 2**32 or last - first >= _MAX_SEEDS:
            raise UsageError(f"--seeds {text}: write numbers and ranges, e.g. 0-4 7.")
        seeds.extend(range(first, last + 1))
    return list(dict.fromkeys(seeds))
