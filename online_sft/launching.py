"""What `online-sft` and `python -m online_sft.train` share: arguments, errors in one line, and the run itself."""

import difflib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

from online_sft.advice import with_advice

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from trl import TrlParser

__all__ = [
    "DataArguments",
    "UsageError",
    "fit",
    "given_fields",
    "load_split",
    "one_line_errors",
    "parse",
    "parser_of",
    "print_help_if_asked",
    "without_warnings",
    "working_directory_on_path",
]


_DRY_RUN = ("--dry_run", "--dry-run")
_HELP_OF_DRY_RUN = (
    "Do not train, nor load the model: print the batch arithmetic, an estimate of the memory, what biases the gradient "
    "and three examples as they would be trained on; exit code 2 for what would be refused. On the command line only."
)
_LAYOUTS = {
    "json": "a .jsonl or .json file holds one JSON object per line, in UTF-8",
    "csv": "a .csv file holds a line of column names and then rows, in UTF-8",
    "parquet": "a .parquet file is binary, as Dataset.to_parquet writes it",
}


@dataclass
class DataArguments:
    """What to train on."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub id, local folder, or one local .jsonl, .json, .csv or .parquet file (a `train` split)."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on, with --eval_strategy."})
    dataset_streaming: bool = field(default=False, metadata={"help": "Read the data set as a stream."})


class UsageError(Exception):
    """What the user asked for cannot be done; the message says what to change."""


@contextmanager
def one_line_errors(prog: str) -> Iterator[None]:
    """Turns a `UsageError` into one line on stderr and exit code 2; of several processes, the launcher repeats it."""
    # of peft 0.21 and trl 1.16, which use a name that transformers 5.23 warns about; who types a command cannot
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    try:
        with _told_to_the_launcher():
            yield
    except UsageError as error:
        print(f"{prog}: error: {with_advice(' '.join(str(error).split()))}", file=sys.stderr)
        raise SystemExit(2) from error


def _told_to_the_launcher() -> AbstractContextManager[None]:
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:  # importing torch takes longer than most commands
        return nullcontext()
    from trainers.first_failure import told_to_the_launcher

    return told_to_the_launcher()


@contextmanager
def working_directory_on_path() -> Iterator[None]:
    """For imports by name: a script's own folder is on the path, a console command's is not."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextmanager
def without_warnings(name: str) -> Iterator[None]:
    """Of a logger, which are said elsewhere."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def print_help_if_asked(
    prog: str,
    summary: str,
    arguments: list[str],
    own: tuple[type, ...],
    inherited: str,
    *,
    dry_run: bool = False,
    **defaults: Any,
) -> None:
    """Short help, of light dataclasses only, and exit; `--help_all`, which has to import torch, lists everything.

    Args:
        dry_run: whether the command has `--dry_run`.
    """
    if not {"-h", "--help"} & set(arguments):
        return
    from trl.scripts.utils import TrlParser

    parser = TrlParser(
        own,
        prog=prog,
        usage=f"{prog} [--config FILE.yaml] [--FIELD VALUE ...]",
        description=summary,
        epilog=f"Every field of {inherited} and trl.ModelConfig works too (--model_name_or_path, --output_dir, "
        f"--learning_rate, --max_steps, ...): `{prog} --help_all` lists them.",
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="Fields as YAML; the command line overrides them.")
    if dry_run:
        parser.add_argument(*_DRY_RUN, action="store_true", help=_HELP_OF_DRY_RUN)
    parser.set_defaults(**defaults)
    parser.print_help()
    raise SystemExit(0)


def parse(
    prog: str, arguments: list[str], dataclasses: tuple[type, ...], *, dry_run: bool = False, **defaults: Any
) -> tuple[Any, ...]:
    """One object per dataclass, and trl.ModelConfig last, from `--config FILE.yaml` and overrides.

    Args:
        prog: the program's name, for its help.
        arguments: the command line.
        dataclasses: whose fields are arguments.
        dry_run: whether the command has `--dry_run`, which makes the training configuration one that `fit` describes.
        defaults: instead of those of the dataclasses.

    Raises:
        UsageError: for what cannot be parsed, and for what a config's own checks refuse.
    """

    def refuse(message: str) -> NoReturn:
        raise UsageError(message)

    if dry_run and set(_DRY_RUN) & set(arguments):
        from trainers.dry_run.planned import planned

        arguments = [word for word in arguments if word not in _DRY_RUN]
        arguments, dataclasses = planned(arguments, dataclasses)
    parser = parser_of(prog, dataclasses)
    parser.error = refuse  # argparse would print 150 lines of usage first
    parser.set_defaults(**defaults)
    if "--help_all" in arguments:
        parser.print_help()
        raise SystemExit(0)
    arguments = _spelled_our_way(arguments)
    try:
        given = given_fields(arguments)
        _refuse_unknown(given, parser)
        _refuse_other_kinds(given, parser)
        with tempfile.TemporaryDirectory() as folder:
            return parser.parse_args_and_config(_with_flat_config(arguments, Path(folder)))
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(error) from error


def parser_of(prog: str, dataclasses: tuple[type, ...]) -> "TrlParser":
    """What reads the command line and the `--config` file: the fields of the dataclasses and of trl.ModelConfig."""
    from trl import ModelConfig, TrlParser

    return TrlParser((*dataclasses, ModelConfig), prog=prog, allow_abbrev=False)


def given_fields(arguments: list[str]) -> dict[str, Any]:
    """The fields that the `--config` file and the command line set, with their unparsed values.

    Raises:
        UsageError: when the file cannot be read.
    """
    arguments = _spelled_our_way(arguments)
    given: dict[str, Any] = {}
    if "--config" in arguments:
        given |= _flat(_config_in(arguments[arguments.index("--config") + 1]))
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word.startswith("--"):
            name, has_value, value = word.removeprefix("--").partition("=")
            given[name.replace("-", "_")] = value if has_value else following
    return given


def fit(
    trainer_class: Callable[..., Any],
    config: Any,
    model: Any,
    train_dataset: "Dataset | IterableDataset | None",
    eval_dataset: "Dataset | IterableDataset | None",
    *,
    dataset_name: str | None,
    **arguments: Any,
) -> None:
    """Builds the trainer of the `model` (trl.ModelConfig), trains, and saves; or, for `--dry_run`, describes all that.

    `resume_from_checkpoint` is "auto" for the last whole checkpoint, or a new start where there is none.

    Raises:
        UsageError: when the trainer refuses the model, the data or a combination of options, a package is missing, or
            a reward function's return, a server, a journal or a group of Atropos ends the run.
    """
    from trl import get_peft_config, get_quantization_config

    from online_sft.rewards.checked import RewardError
    from online_sft.trajectories.damage import TrajectoryFileError
    from trainers.atropos.batches import ATROPOS_ERRORS
    from trainers.checkpoints.manifest import ResumeError
    from trainers.dry_run.planned import Planned

    config.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(config.model_init_kwargs or {}),
    }
    try:
        if isinstance(config, Planned):
            from trainers.dry_run.report import describe

            return describe(trainer_class, config, model, train_dataset, eval_dataset, **arguments)
        trainer = trainer_class(
            model=model.model_name_or_path,
            args=config,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=get_peft_config(model),
            quantization_config=get_quantization_config(model),
            **arguments,
        )
        trainer.get_optimizer_cls_and_kwargs(config, trainer.model)  # its package may be missing
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(error) from error
    try:
        trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    except (ResumeError, TrajectoryFileError, *ATROPOS_ERRORS) as error:
        raise UsageError(error) from error
    except RewardError as error:
        if error.__cause__ is not None:  # the user's own code has raised: its traceback tells where
            raise
        raise UsageError(error) from error
    trainer.save_model(config.output_dir)
    if config.save_merged_model:
        trainer.save_merged_model(os.path.join(config.output_dir, "merged"))
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset_name)
    trainer.end()


def load_split(data: DataArguments, split: str) -> "Dataset | IterableDataset":
    """One split of a hub data set, a local folder, or a local .json, .jsonl, .csv or .parquet file."""
    import datasets
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    if not data.dataset_name:
        raise UsageError("no data: set --dataset_name to a hub id, a folder, or a .jsonl, .json, .csv or .parquet file")
    builders = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
    builder = next((kind for ending, kind in builders.items() if data.dataset_name.endswith(ending)), None)
    if builder is None and os.path.isfile(data.dataset_name):
        raise UsageError(f"{data.dataset_name!r} is of no known kind; make it a file of {', '.join(builders)}")
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it would log what we raise
    try:
        if builder:
            if split != data.dataset_train_split:
                raise ValueError("a single file has one split only; use a folder with a file per split")
            files = {split: data.dataset_name}
            return load_dataset(builder, data_files=files, split=split, streaming=data.dataset_streaming)
        return load_dataset(data.dataset_name, name=data.dataset_config, split=split, streaming=data.dataset_streaming)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load split {split!r} of {data.dataset_name!r}: {error}") from error
    except (DatasetGenerationError, StopIteration) as error:  # what is no JSON, and an empty file
        reason = error.__cause__ or "it holds no rows"
        hint = f"; {_LAYOUTS[builder]}" if builder else ""
        raise UsageError(f"cannot read split {split!r} of {data.dataset_name!r}: {reason}{hint}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _spelled_our_way(arguments: list[str]) -> list[str]:
    """`--config=FILE` as two words, which is all that TRL's parser knows; `--data.atropos.x` as `--atropos_x`."""
    arguments = [
        word.replace("--data.atropos.", "--atropos_", 1) if word.startswith("--data.atropos.") else word
        for argument in arguments
        for word in (argument.split("=", 1) if argument.startswith("--config=") else [argument])
    ]
    if arguments[-1:] == ["--config"]:
        raise UsageError("--config needs a file")
    return arguments


def _with_flat_config(arguments: list[str], folder: Path) -> list[str]:
    """With a config file in which `data: {atropos: {x: ...}}` is `atropos_x`: TRL's parser knows no nesting."""
    import yaml

    if "--config" not in arguments:
        return arguments
    place = arguments.index("--config") + 1
    config = _config_in(arguments[place])
    if "data" not in config:
        return arguments
    flat = folder / "config.yaml"
    flat.write_text(yaml.safe_dump(_flat(config)))
    return [*arguments[:place], str(flat), *arguments[place + 1 :]]


def _config_in(file: str) -> Mapping[str, Any]:
    import yaml

    way_out = "its lines are `name: value`, indented with spaces, in UTF-8"
    try:
        config = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(error) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"the config file {file} is no YAML; {way_out}: {error}") from error
    if not isinstance(config, Mapping):
        raise UsageError(f"the config file {file} sets no fields, it holds {config!r:.60}; {way_out}")
    return config


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    data = config.get("data", {})
    if not isinstance(data, Mapping) or set(data) - {"atropos"} or not isinstance(data.get("atropos", {}), Mapping):
        raise UsageError(f"data holds settings of atropos only (data: atropos: api_url: ...); got {data!r:.80}")
    of_atropos = {f"atropos_{name}": value for name, value in data.get("atropos", {}).items()}
    return {**{name: value for name, value in config.items() if name != "data"}, **of_atropos}


def _refuse_unknown(given: Mapping[str, Any], parser: "TrlParser") -> None:
    """Runs before the configs are built, whose own complaints would come first."""
    known = {action.dest for action in parser._actions} | {"config", "env"}
    for option in parser._option_string_actions:
        known.add(option.removeprefix("--").replace("-", "_"))  # `--no_...` switches have no dest of their own
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            if isinstance(given[key], Mapping):
                raise ValueError(
                    f"unknown argument {key!r}: fields are in no sections; write {', '.join(map(str, given[key]))} at "
                    f"the left margin, without {key!r}"
                )
            raise ValueError(f"unknown argument {key!r}; did you mean {nearest!r}?")


def _refuse_other_kinds(given: Mapping[str, Any], parser: "TrlParser") -> None:
    """Of what YAML has read: argparse looks at texts only, and the rest would fail deep inside."""
    kinds = {action.dest: action.type for action in parser._actions if action.nargs is None}
    hints = {name: hint for each in parser.dataclass_types for name, hint in get_type_hints(each).items()}
    for name, value in given.items():
        kind = kinds.get(name)
        may_be_none = type(None) in get_args(hints.get(name))
        if kind not in (int, float) or isinstance(value, str) or (value is None and may_be_none):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            number = "whole number" if kind is int else "number"
            raise ValueError(f"{name} must be a {number}; the config file has {name}: {value!r}")
