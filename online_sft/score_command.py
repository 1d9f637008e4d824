"""`online-sft score FILE`: grades the answers in a file."""

import argparse

from online_sft.launching import DataArguments, UsageError, load_split

__all__ = ["main"]


def main(arguments: list[str], summary: str) -> None:
    """The command: grades a file, and says how the verdicts are distributed."""
    parser = argparse.ArgumentParser(prog="online-sft score", description=summary, allow_abbrev=False)
    parser.add_argument("file", help="A .jsonl, .json, .csv or .parquet file.")
    parser.add_argument("--gold", required=True, metavar="COLUMN", help="Right answers, or solutions that end in one.")
    parser.add_argument("--completion", required=True, metavar="COLUMN", help="What to grade: texts or chats.")
    parser.add_argument("--label", metavar="COLUMN", help="True or false by another grader; default: `label`, if any.")
    parser.add_argument("--output", metavar="FILE.jsonl", help="Write the rows here, each with its `verdict`.")
    parser.add_argument("--timeout_s", type=float, default=2.0, help="Wall clock for one answer. Default: 2.")
    options = parser.parse_args(arguments)
    from rich.console import Console

    from online_sft.rewards import MathVerificationReward
    from online_sft.scoring import as_label, print_confusion, print_verdicts, write_verdicts

    dataset = load_split(DataArguments(dataset_name=options.file), "train")
    for column in filter(None, (options.gold, options.completion, options.label)):
        if column not in dataset.column_names:
            raise UsageError(f"{options.file} has no column {column!r}; it has {', '.join(dataset.column_names)}")
    console = Console(highlight=False)
    try:
        reward = MathVerificationReward(gold_column=options.gold, timeout_s=options.timeout_s)
        golds = {options.gold: dataset[options.gold]}
        for line in reward.check_dataset(golds):
            console.print(f"bad gold: {line}", markup=False)
        verdicts = reward.verdicts(dataset[options.completion], reward.golds(golds))
        print_verdicts(verdicts, console)
        label = options.label or ("label" if "label" in dataset.column_names else None)
        if label:
            print_confusion(verdicts, [as_label(value) for value in dataset[label]], console)
        if options.output:
            write_verdicts(options.output, dataset, verdicts)
    except (ValueError, OSError) as error:
        raise UsageError(error) from error
