"""The `online-sft` command.

`weighted`, `replay`, `trajectories` and `online` train; `serve` samples; `convert` makes data; `verify`, `inspect`,
`score` and `report` look; `schema` describes configuration files; `env` tells versions.

Heavy imports wait until a run starts, so that every `--help` is quick.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from online_sft.launching import (
    DataArguments,
    UsageError,
    fit,
    load_split,
    one_line_errors,
    parse,
    print_help_if_asked,
    without_warnings,
    working_directory_on_path,
)

__all__ = ["main"]


@dataclass
class RewardArguments:
    """Where `online` gets its rewards from."""

    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions, summed: `math` (+1/-1, is the final answer that of the `solution` column), "
            "`reasoning_gym` (the problem's own scorer, by its `metadata`), a dotted import path (`my_lib.my_reward`), "
            "or the path of a reward model."
        },
    )


@dataclass
class InspectArguments:
    """What `inspect` shows."""

    rows: int = field(default=5, metadata={"help": "Rows to show; the findings are of all rows."})
    html: str | None = field(default=None, metadata={"help": "Write a page with the same, to this file."})


@dataclass
class VerifyArguments:
    """How `verify` judges."""

    tolerance: float = field(default=0.01, metadata={"help": "Exit code 1 when the relative bias is above it."})
    json: str | None = field(default=None, metadata={"help": "Write the table to this file, too."})


@dataclass(frozen=True)
class Command:
    summary: str
    run: Callable[[list[str]], None]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one subcommand. A user's mistake ends in one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="online-sft",
        description="Weighted SFT and online SFT for Hugging Face TRL.",
        epilog="`online-sft COMMAND --help` describes a command.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparsers.add_parser(name, help=command.summary, add_help=False)
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = parser.parse_args(arguments[:1]).command
    with one_line_errors(f"online-sft {name}"):
        COMMANDS[name].run(arguments[1:])


def _weighted(arguments: list[str]) -> None:
    import online_sft

    online_sft._own_trainers()
    from trainers.atropos.options import AtroposOptions
    from trainers.checkpoints.options import CheckpointOptions
    from trainers.engine.options import WeightSyncOptions
    from trainers.options import WeightedSFTOptions
    from trainers.recording.options import RecordOptions

    own = (WeightedSFTOptions, DataArguments, AtroposOptions, WeightSyncOptions, CheckpointOptions, RecordOptions)
    _print_help_if_asked("weighted", arguments, own, "trl.SFTConfig", dry_run=True)
    from online_sft import WeightedSFTTrainer

    data, config, model = parse("online-sft weighted", arguments, _weighted_dataclasses(), dry_run=True)
    _train(WeightedSFTTrainer, data, config, model)


def _replay(arguments: list[str]) -> None:
    import online_sft

    online_sft._own_trainers()
    from trainers.atropos.options import AtroposOptions
    from trainers.options import WeightedSFTOptions

    _print_help_if_asked("replay", arguments, (AtroposOptions, WeightedSFTOptions), "trl.SFTConfig")
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--atropos_replay", *arguments]
    from online_sft import WeightedSFTConfig, WeightedSFTTrainer

    # the configuration of the run that wrote the journal may be given as it is
    no_servers = ["--atropos_api_url", "", "--atropos_sync_url", ""]
    data, config, model = parse("online-sft replay", [*arguments, *no_servers], (DataArguments, WeightedSFTConfig))
    if not config.atropos_replay:
        raise UsageError("no journal: online-sft replay JOURNAL, the folder `journal` in a run's output_dir")
    journal = os.path.realpath(config.atropos_replay)
    is_of_that_run = config.atropos_journal is not None and os.path.realpath(config.atropos_journal) == journal
    is_chosen = any(word.split("=")[0] in ("--output_dir", "--output-dir") for word in arguments)
    if os.path.realpath(config.output_dir) == os.path.dirname(journal) or (is_of_that_run and not is_chosen):
        raise UsageError(f"output_dir={config.output_dir!r} holds the run that wrote the journal; set another one")
    _train(WeightedSFTTrainer, data, config, model)


def _serve(arguments: list[str]) -> None:
    import online_sft

    online_sft._own_trainers()
    from trainers.inference_server.serving import main as serve

    serve(arguments)


def _trajectories(arguments: list[str]) -> None:
    import online_sft

    online_sft._own_trainers()
    from trainers.trajectories.commands import main as trajectories

    trajectories(arguments)


def _convert(arguments: list[str]) -> None:
    from online_sft.importers.convert import main as convert

    convert(arguments)


def _online(arguments: list[str]) -> None:
    import online_sft

    online_sft._own_trainers()
    from trainers.checkpoints.options import CheckpointOptions
    from trainers.engine.options import WeightSyncOptions
    from trainers.options import OnlineSFTOptions
    from trainers.recording.options import RecordOptions

    own = (RewardArguments, OnlineSFTOptions, DataArguments, WeightSyncOptions, CheckpointOptions, RecordOptions)
    _print_help_if_asked("online", arguments, own, "trl.GRPOConfig", dry_run=True)
    from online_sft import OnlineSFTTrainer

    data, config, rewards, model = parse("online-sft online", arguments, _online_dataclasses(), dry_run=True)
    if not rewards.reward_funcs:
        raise UsageError("no reward: set --reward_funcs, for example --reward_funcs math")
    # YAML's `reward_funcs: math` arrives as a string
    names = [rewards.reward_funcs] if isinstance(rewards.reward_funcs, str) else rewards.reward_funcs
    reward_funcs = [_load_reward(name) for name in names]
    _train(OnlineSFTTrainer, data, config, model, reward_funcs=reward_funcs)


def _weighted_dataclasses() -> tuple[type, ...]:
    from online_sft import WeightedSFTConfig

    return DataArguments, WeightedSFTConfig


def _online_dataclasses() -> tuple[type, ...]:
    from online_sft import OnlineSFTConfig

    return DataArguments, OnlineSFTConfig, RewardArguments


def _schema(arguments: list[str]) -> None:
    import online_sft

    online_sft._own_trainers()
    from online_sft.config_schema import main as schema
    from trainers.trajectories.commands import train_dataclasses

    schema(
        arguments,
        {"online": _online_dataclasses, "weighted": _weighted_dataclasses, "trajectories": train_dataclasses},
    )


def _inspect(arguments: list[str]) -> None:
    import online_sft

    online_sft._own_trainers()
    from trainers.options import WeightedSFTOptions

    _print_help_if_asked("inspect", arguments, (InspectArguments, DataArguments, WeightedSFTOptions), "trl.SFTConfig")
    from rich.console import Console
    from transformers import AutoTokenizer

    from online_sft import WeightedSFTConfig
    from online_sft.inspection import print_inspection
    from online_sft.inspection_page import html_page
    from trainers.inspection import inspect_dataset
    from trainers.model_files import check_model

    named = ["--dataset_name"] if arguments and not arguments[0].startswith("-") else []
    on_cpu = ["--use_cpu", "true", "--bf16", "false"]  # a GPU run's config file works here too
    data, show, config, model = parse(
        "online-sft inspect", [*on_cpu, *named, *arguments], (DataArguments, InspectArguments, WeightedSFTConfig)
    )
    if data.dataset_streaming:
        raise UsageError("inspect reads all rows: set --dataset_streaming false")
    if show.rows < 0:
        raise UsageError(f"rows must be 0 or more; got {show.rows}")
    dataset = load_split(data, data.dataset_train_split)
    try:
        tokenizer = None
        if model.model_name_or_path is not None:
            remote = {"revision": model.model_revision, "trust_remote_code": config.trust_remote_code}
            check_model(model.model_name_or_path, "model", **remote)
            tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path, **remote)
        inspection = inspect_dataset(dataset, config, tokenizer, num_shown=show.rows)
        if show.html:
            with open(show.html, "w", encoding="utf-8") as file:
                file.write(html_page(inspection))
    except (ValueError, OSError, RuntimeError) as error:  # TRL raises RuntimeError for rows without assistant tokens
        raise UsageError(error) from error
    print_inspection(inspection, Console(highlight=False))
    if inspection.findings:
        raise SystemExit(1)


def _verify(arguments: list[str]) -> None:
    import online_sft

    online_sft._own_trainers()
    from trainers.options import OnlineSFTOptions

    _print_help_if_asked("verify", arguments, (VerifyArguments, OnlineSFTOptions), "trl.GRPOConfig")
    from rich.console import Console

    from online_sft import OnlineSFTConfig
    from online_sft.verification import verify_each_option
    from online_sft.verification_report import print_verification, write_verification

    on_cpu = ["--use_cpu", "true", "--bf16", "false"]  # a GPU run's config file works here too
    dataclasses = (VerifyArguments, OnlineSFTConfig, DataArguments, RewardArguments)
    with without_warnings("trainers.online_sft_config"):  # the ledger comes with the table
        show, config, _, _, _ = parse("online-sft verify", [*on_cpu, *arguments], dataclasses)
    rows, ledger = verify_each_option(config.method), config.bias_ledger()
    print_verification(rows, ledger, config.beta, show.tolerance, Console(highlight=False))
    if show.json:
        try:
            write_verification(show.json, rows, ledger, show.tolerance)
        except OSError as error:
            raise UsageError(error) from error
    if rows[0][1].relative_bias > show.tolerance:
        raise SystemExit(1)


def _score(arguments: list[str]) -> None:
    from online_sft.score_command import main as score

    score(arguments, COMMANDS["score"].summary)


def _report(arguments: list[str]) -> None:
    from online_sft.report.command import main as report

    report(arguments, COMMANDS["report"].summary)


def _env(arguments: list[str]) -> None:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    parser = argparse.ArgumentParser(prog="online-sft env", description=COMMANDS["env"].summary)
    parser.parse_args(arguments)
    import online_sft

    print(f"online-sft {online_sft.__version__} in {online_sft.__path__[0]}, {online_sft._own_trainers().__path__[0]}")
    print(f"python {platform.python_version()} on {platform.platform()}")
    for name in ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "math-verify", "vllm", "deepspeed"):
        try:
            print(f"{name} {version(name)}")
        except PackageNotFoundError:
            print(f"{name} not installed")


COMMANDS = {
    "weighted": Command(
        "Weighted SFT: fine-tune on a data set with an `advantages` column, or on batches of Atropos.", _weighted
    ),
    "replay": Command(
        "Train again on what Atropos has delivered to a run, without a server: online-sft replay JOURNAL "
        "[--FIELD VALUE ...]; weights may be made in other ways.",
        _replay,
    ),
    "serve": Command(
        "An inference server for Atropos environments, on any CPU, that takes the policy's weights.", _serve
    ),
    "trajectories": Command(
        "Behaviour cloning and world models: collect episodes of a model in environments, look at them, train on them.",
        _trajectories,
    ),
    "online": Command("Online SFT: train on the policy's own graded samples.", _online),
    "convert": Command(
        "Data that you already have (of OpenAI, ms-swift, Tinker, verl, DAPO, or rewards) as rows for the trainers: "
        "online-sft convert IN [--from FORMAT] OUT.",
        _convert,
    ),
    "inspect": Command(
        "What `weighted` would train on, and what looks wrong with it: online-sft inspect data.jsonl [--FIELD VALUE "
        "...]. Exit code 1 if anything does, 2 if it cannot be told.",
        _inspect,
    ),
    "verify": Command(
        "What a configuration of `online` optimises: its bias and noise on a policy that can be listed. Exit code 1 if "
        "it is biased.",
        _verify,
    ),
    "report": Command(
        "A page with curves, rewards, times, configuration and completions of a run: online-sft report RUN_DIR "
        "[--compare RUN_DIR ...] [--open].",
        _report,
    ),
    "score": Command("Grade the answers in a file as the math reward does, and compare with labels.", _score),
    "schema": Command(
        "A JSON schema of configuration files, for editors: online-sft schema {online,weighted,trajectories}.", _schema
    ),
    "env": Command("Versions and paths, for a bug report.", _env),
}


def _print_help_if_asked(
    name: str, arguments: list[str], own: tuple[type, ...], inherited: str, *, dry_run: bool = False
) -> None:
    print_help_if_asked(f"online-sft {name}", COMMANDS[name].summary, arguments, own, inherited, dry_run=dry_run)


def _load_reward(name: str) -> Any:
    """A reward function by import path; the trainer knows what other names and paths of reward models mean."""
    import importlib

    if name.endswith(".py"):
        module = os.path.basename(name).removesuffix(".py")
        raise UsageError(f"reward function {name!r} is a file; name the function in it: {module}.my_reward")
    if os.sep in name or "." not in name:
        return name
    module, attribute = name.rsplit(".", 1)
    try:
        with working_directory_on_path():
            return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UsageError(
            f"reward function {name!r} cannot be imported: {error}; give MODULE.FUNCTION, seen from {os.getcwd()}"
        ) from error


def _train(trainer_class: type, data: Any, config: Any, model: Any, **arguments: Any) -> None:
    if model.model_name_or_path is None:
        raise UsageError("no model: set --model_name_or_path to a hub id or a folder")
    atropos = getattr(config, "atropos_sources", [])  # which `online` has not
    if atropos and data.dataset_name and config.eval_strategy == "no":
        raise UsageError(
            f"dataset_name={data.dataset_name!r} beside {atropos[0]}, which is a source of data too; drop one, or set "
            "eval_strategy to evaluate on it"
        )
    train_dataset = None if atropos else load_split(data, data.dataset_train_split)
    eval_dataset = load_split(data, data.dataset_test_split) if config.eval_strategy != "no" else None
    fit(trainer_class, config, model, train_dataset, eval_dataset, dataset_name=data.dataset_name, **arguments)
