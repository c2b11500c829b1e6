"""nanochat-train: train a model, or list the backends that could."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from nanochat.cli import flags
from nanochat.cli import main as command_line
from nanochat.errors import NanochatError, UsageError
from nanochat.train import config as configuration
from nanochat.train.config import TrainConfig
from nanochat.train.settings import SHORTHANDS, expand, read_toml, settings_of


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit status."""
    return command_line.run(_run, argv)


def parser() -> flags.Parser:
    """Every setting as a flag, grouped as in the configuration."""
    root = flags.Parser(
        prog="nanochat-train",
        description="Train a GPT. Every setting may also stand in a TOML file.",
        argument_default=argparse.SUPPRESS,
    )
    flags.add(root, "--config", metavar="FILE", help="TOML file of settings; flags win over it")
    flags.add(root, "--list-backends", action="store_true", help="list every backend and its state")
    flags.add(
        root,
        "--check-backends",
        nargs="*",
        metavar="HOOK:NAME",
        help="prove these backends right on this machine (without a name: all of them)",
    )
    flags.add(
        root, "--json", action="store_true", help="with --list-backends, --check-backends: as JSON"
    )
    groups: dict[str, Any] = {}
    for field in settings_of(TrainConfig):
        about = field.metadata
        group = groups.setdefault(about["group"], None) or root.add_argument_group(about["group"])
        groups[about["group"]] = group
        options: dict[str, Any] = {"help": _help(field.default, about)}
        if about["kind"] is bool:
            options["action"] = "store_true"
        else:
            options["type"] = about["kind"]
            options["metavar"] = about["metavar"] or _METAVARS[about["kind"]]
        if about["many"]:
            options["nargs"] = "*"
        if field.name == "resume":
            options.update(nargs="?", const="auto", metavar="auto|STEP|PATH")
        flags.add(group, f"--{field.name.replace('_', '-')}", **options)
    shorthands = root.add_argument_group("shorthands")
    for name, (_, switched, text) in SHORTHANDS.items():
        switch: dict[str, Any] = (
            {"action": "store_true"} if switched is not None else {"metavar": "VALUE"}
        )
        flags.add(shorthands, f"--{name.replace('_', '-')}", help=text, **switch)
    return root


_METAVARS = {int: "N", float: "X", str: "NAME"}


def _help(default: Any, about: Any) -> str:
    text = about["help"].replace("%", "%%")
    shown = default not in ("", False) and not about["many"] and about["kind"] is not bool
    return f"{text} [{default}]" if shown else text


def _run(argv: Sequence[str] | None) -> int:
    given = vars(parser().parse_args(argv))
    file = given.pop("config", None)
    listing, as_json = given.pop("list_backends", False), given.pop("json", False)
    to_check = given.pop("check_backends", None)
    if isinstance(given.get("sample_prompts"), list):
        given["sample_prompts"] = tuple(given["sample_prompts"])
    layers = [read_toml(file, TrainConfig)] if file is not None else []
    layers.append(expand(given, "the command line"))
    if listing:
        from nanochat.listing import show

        return show(configuration.build(*layers), as_json=as_json)
    if to_check is not None:
        from nanochat.cli.check import check

        config = configuration.build(*layers)
        return check(to_check, device=config.device, dtype=config.dtype, as_json=as_json)
    if as_json:
        raise UsageError("--json goes with --list-backends or --check-backends")
    try:
        return _train(layers)
    except NanochatError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0" and "torch" not in sys.modules:
            # Before torch all ranks of a host do the same: its first one tells.
            raise SystemExit(error.status) from None
        raise


def _train(layers: list[dict[str, Any]]) -> int:
    from nanochat.data.tokenizer import vocab_size_of
    from nanochat.plan import choose_device, make_plan
    from nanochat.registry import discover
    from nanochat.train import environment
    from nanochat.train.bucket import bucket_address, open_address
    from nanochat.train.folder import find_resume
    from nanochat.train.problems import problems_of

    config = configuration.build(*layers)
    resume = None
    if config.resume:
        bucket = bucket_address(config.checkpoint_bucket)
        resume = find_resume(config.resume, config.output, config.run, config.depth, bucket)
        # What was asked of the run before for once is not asked again.
        kept = {
            k: v for k, v in resume.settings.items() if k not in ("remeasure", "verify_kernels")
        }
        config = configuration.build(kept, *layers)
    config = config.with_absolute_paths()
    if config.checkpoint_bucket:
        open_address(config.checkpoint_bucket)  # says early what is not installed
    model = config.model_config(vocab_size_of(config.tokenizer_path()))
    registry = discover()
    measure, applied = None, None
    if "measure" in config.asked.values():
        from nanochat.measure import Measurer

        # Ranks that share a measurement import torch for it, so the environment comes first.
        device, target = choose_device(registry, config.device, config.dtype or None)
        applied = environment.apply(device.backend.environment(target), os.environ)
        measure = Measurer(
            target,
            device=device.backend.name,
            windows=model.windows,
            compile=config.compile,
            remeasure=config.remeasure,
        )
    elif config.remeasure:
        raise UsageError("--remeasure has nothing to measure", "Give --attention or --loss measure")
    plan = make_plan(
        registry,
        config.asked,
        lambda target, dtype: problems_of(
            model, config.device_batch_size, target, dtype, compiled=config.compile
        ),
        dtype=config.dtype or None,
        measure=measure,
    )
    if applied is None:
        applied = environment.apply(plan.device.backend.environment(plan.target), os.environ)
    if os.environ.get("RANK", "0") == "0":
        from nanochat.cli.plan_table import print_plan

        print_plan(plan, applied, verbose=config.verbose)

    from nanochat.train.run import run

    run(config, plan, resume)
    return 0


if __name__ == "__main__":
    sys.exit(main())
