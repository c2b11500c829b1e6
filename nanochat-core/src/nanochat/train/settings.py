"""One place for each setting's name, default, kind, group and help.

The command line and the TOML file are both read through this table, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, field, fields
from difflib import get_close_matches
from typing import Any

from nanochat.errors import UsageError


def setting(
    default: Any,
    help: str,
    group: str,
    *,
    kind: type | None = None,
    metavar: str | None = None,
    many: bool = False,
) -> Any:
    """A dataclass field that knows how it is typed and explained.

    `kind` is the type of a value where the default does not show it, `many` allows several.
    """
    kind = kind or type(default)
    return field(
        default=default,
        metadata={"help": help, "group": group, "kind": kind, "metavar": metavar, "many": many},
    )


def settings_of(record: type) -> tuple[Field[Any], ...]:
    """The settings of a record, in the order in which help shows them."""
    return tuple(f for f in fields(record) if "kind" in f.metadata)


SHORTHANDS: dict[str, tuple[str, Any, str]] = {
    "kernel": ("loss", None, "loss backend, as --loss; `current` is plain PyTorch"),
    "device_type": ("device", None, "as --device"),
    "fp8": ("quantization", "fp8", "as --quantization fp8"),
    "fp8_recipe": ("quantization", None, "with --fp8: tensorwise or rowwise"),
    "xla_flash_attn": ("attention", "xla-flash", "as --attention xla-flash"),
    "no_compile": ("compile", False, "run the model without torch.compile"),
    "resume_from_step": ("resume", None, "as --resume STEP (-1: do not resume, -2: auto)"),
    "model_tag": ("output", None, "as --output runs/TAG"),
}
"""Other spellings of a setting: name -> (setting, the value that a bare switch means, help)."""


def expand(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Replace shorthands by the settings they stand for.

    `source` names where the values come from. Raises UsageError if two of them contradict.
    """
    values = dict(values)
    recipe = values.pop("fp8_recipe", "tensorwise")
    if recipe not in ("tensorwise", "rowwise"):
        raise UsageError(f"--fp8-recipe is {recipe!r}", "Use tensorwise or rowwise")
    expanded: dict[str, Any] = {}
    said_as: dict[str, str] = {}
    for name, given in values.items():
        setting_name, value = name, given
        if name in SHORTHANDS:
            setting_name, switched, _ = SHORTHANDS[name]
            if switched is not None:
                if given is False:
                    continue
                value = switched
            elif name == "resume_from_step":
                if str(given) == "-1":
                    continue
                value = "auto" if str(given) == "-2" else str(given)
            elif name == "model_tag":
                value = f"runs/{given}"
            elif name == "device_type" and given == "":
                continue
            if name == "fp8" and recipe == "rowwise":
                value = "fp8-rowwise"
        if setting_name in expanded and not _same(setting_name, expanded[setting_name], value):
            raise UsageError(
                f"{said_as[setting_name]} and {_spelled(name, given)} of {source} contradict "
                "each other",
                "Give one of them",
            )
        expanded[setting_name] = value
        said_as[setting_name] = _spelled(name, given)
    return expanded


def _same(name: str, one: Any, other: Any) -> bool:
    current = {"current": "torch"} if name == "loss" else {}
    return bool(current.get(one, one) == current.get(other, other))


def _spelled(name: str, value: Any) -> str:
    flag = "--" + name.replace("_", "-")
    return flag if isinstance(value, bool) else f"{flag} {value}"


def read_toml(path: str, record: type) -> dict[str, Any]:
    """Settings from a TOML file: the flags' names, with - or _, at the top level.

    Raises UsageError if the file cannot be read, a name is unknown, or a value has another type.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # type: ignore[import-not-found,no-redef]
    try:
        with open(path, "rb") as file:
            raw = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"cannot read the settings in {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error

    kinds = {f.name: f for f in settings_of(record)}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = key.replace("-", "_")
        if name not in kinds and name not in SHORTHANDS:
            near = get_close_matches(name, [*kinds, *SHORTHANDS], n=1)
            raise UsageError(
                f"{path} has an unknown setting {key!r}",
                f"Did you mean {near[0]!r}?" if near else "nanochat-train --help lists them all",
            )
        if name in values:
            raise UsageError(f"{path} has {name!r} twice, with - and with _")
        values[name] = _typed(path, key, value, name, kinds)
    return expand(values, path)


def _typed(path: str, key: str, value: Any, name: str, kinds: Mapping[str, Field[Any]]) -> Any:
    if name in SHORTHANDS:
        base, switched, _ = SHORTHANDS[name]
        kind: type = bool if switched is not None else kinds[base].metadata["kind"]
        many = False
    else:
        kind, many = kinds[name].metadata["kind"], kinds[name].metadata["many"]
    if many:
        if isinstance(value, list) and all(isinstance(v, kind) for v in value):
            return tuple(value)
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif name in ("resume", "resume_from_step") and type(value) in (int, str):
        return str(value)
    elif type(value) is kind:
        return value
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    wanted = f"a list of {kind.__name__}" if many else expected[kind]
    raise UsageError(f"{key!r} in {path} is {value!r}, it must be {wanted}")
