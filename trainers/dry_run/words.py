"""The batch arithmetic of a run in words and numbers: a name and a sentence per line."""

from typing import Any

from trainers.dry_run.arithmetic import OnlineBatches, RowBatches
from trainers.dry_run.estimate import Sizes
from trainers.trajectory_sft_config import TrajectorySFTConfig

__all__ = ["of_atropos", "of_collected", "of_completions", "of_evaluation", "of_rows", "of_tokens"]

Lines = dict[str, str]
_DENOMINATORS = {
    "tokens": "loss tokens, those of weight 0 included",
    "sequences": "sequences with a loss token",
    "abs_advantages": "the sum of |weight| over loss tokens",
    "constant": "nothing: loss_denominator_value",
}


def of_rows(batches: RowBatches, args: Any, num_given: int | None, *, is_estimate: bool) -> Lines:
    """Of weighted SFT and of trajectories on a data set.

    Args:
        batches: the numbers.
        args: the configuration.
        num_given: rows or trajectories of the data set; None: of a file of Atropos.
        is_estimate: whether the number of rows was extrapolated.
    """
    about, row = "about " if is_estimate else "", "packed row" if args.packing else "row"
    known = batches.num_rows is not None
    made = f"{about}{_count(batches.num_rows, row)}" if known else "rows of a stream, whose length is unknown"
    is_of_trajectories = isinstance(args, TrajectorySFTConfig)
    given = None if num_given is None else _count(num_given, "trajectory" if is_of_trajectories else "row")
    return {
        "data": made if given is None or given == made.removeprefix("about ") else f"{given}, which make {made}",
        "optimizer step": f"{_step(batches)} = {_count(batches.per_step, row)}",
        "divided by": f"{_DENOMINATORS[args.loss_denominator]}, counted over the whole step, all processes",
        "epoch": (
            f"{about}{_count(batches.steps_per_epoch, 'step')}, {about}"
            f"{_count(batches.micro_batches_per_epoch, 'micro-batch')} a process"
            if known
            else "unknown: the data is a stream"
        ),
        **_all_steps(batches, about),
    }


def of_atropos(batches: RowBatches, args: Any) -> Lines:
    """Of weighted SFT on batches that arrive while it trains."""
    return {
        "data": "batches of Atropos, one for each optimizer step",
        "optimizer step": f"{_step(batches)} = {_count(batches.per_step, 'sequence')}, whatever the batch's size",
        "divided by": f"{_DENOMINATORS[args.loss_denominator]}, counted over the whole step, all processes",
        "steps in all": f"{batches.max_steps:,}",
    }


def of_collected(batches: RowBatches, args: Any) -> Lines:
    """Of trajectories that the policy collects while it trains."""
    rounds = -(-batches.max_steps // args.collect_every)
    return {
        "data": f"{_count(rounds, 'round')} of {_count(args.collect_episodes, 'episode')}, one before every "
        f"{_count(args.collect_every, 'step')}: {rounds * args.collect_episodes:,} episodes; the newest "
        f"{args.max_trajectories:,} are trained on",
        "optimizer step": f"{_step(batches)} = {_count(batches.per_step, 'row')}",
        "divided by": f"{_DENOMINATORS[args.loss_denominator]}, actions and observations apart",
        "steps in all": f"{batches.max_steps:,}",
    }


def of_completions(batches: OnlineBatches, args: Any) -> Lines:
    """Of online SFT."""
    prompts = f"{batches.prompts_per_step:,.6g}"
    known = batches.num_rows is not None
    lines = {
        "data": _count(batches.num_rows, "prompt") if known else "a stream of prompts, of unknown length",
        "optimizer step": f"{_step(batches)} = {_count(batches.per_step, 'completion')} (of {prompts} prompts x "
        f"{_count(batches.num_generations, 'generation')})",
        "generation batch": f"{batches.per_device:,} per device x {_count(batches.num_processes, 'process')} x "
        f"{batches.steps_per_generation} steps_per_generation = {batches.completions_per_generation:,} completions of "
        f"{_count(batches.prompts_per_generation, 'prompt')}, sampled at once, for "
        f"{batches.steps_of_a_generation:.6g} of these steps (num_iterations={batches.num_iterations})",
        "epoch": (
            f"{_count(batches.generations_per_epoch, 'generation batch')}, "
            f"{_count(batches.steps_per_epoch, 'step')}{_left_out(batches)}"
            if known
            else "unknown: the data is a stream"
        ),
        **_all_steps(batches, ""),
        "completions in all": f"{batches.completions_sampled:,} sampled, {batches.completions_trained_on:,} trained on",
    }
    if args.filter_groups_enable:
        lines["fresh prompts"] = (
            "groups whose samples all earn the same are sampled anew, which takes up to "
            f"{args.max_filter_retries} times as many completions more (filter_groups_enable)"
        )
    return lines


def of_evaluation(num_rows: int | None, args: Any, num_generations: int | None) -> Lines:
    """Of each evaluation; nothing without one."""
    if args.eval_strategy == "no":
        return {}
    every = f"every {args.eval_steps:g} steps" if args.eval_strategy == "steps" else "after every epoch"
    if num_rows is None:
        return {"evaluation": every}
    completions = f" x {num_generations} generations" if num_generations else ""
    rows = "prompt" if num_generations else "row"
    return {
        "evaluation": f"{every}: {_count(num_rows, rows)}{completions}, {args.per_device_eval_batch_size} at a time on "
        "each process"
    }


def of_tokens(sizes: Sizes, args: Any, why: str) -> Lines:
    """The most that sequences, micro-batches and optimizer steps can have.

    Args:
        sizes: of a micro-batch.
        args: the configuration.
        why: where the length of a sequence is from.
    """
    if sizes.tokens is None:
        return {"tokens": "without limit"}
    num_micro_batches = args.gradient_accumulation_steps * args.world_size
    return {
        "tokens": f"at most {sizes.tokens_per_sequence:,} a sequence ({why}), {sizes.tokens:,} a micro-batch, "
        f"{sizes.tokens * num_micro_batches:,} an optimizer step, padding included"
    }


def _step(batches: RowBatches | OnlineBatches) -> str:
    return (
        f"{batches.per_device:,} per device x {batches.accumulation} accumulation x "
        f"{_count(batches.num_processes, 'process')}"
    )


def _all_steps(batches: RowBatches | OnlineBatches, about: str) -> Lines:
    source = "max_steps" if batches.max_steps > 0 else f"num_train_epochs={batches.num_epochs:g}"
    about = "" if batches.max_steps > 0 else about
    epochs = "; epochs: unknown" if batches.epochs is None else f"; epochs: {batches.epochs:.4g}"
    return {"steps in all": f"{about}{batches.num_steps:,} ({source}){epochs}"}


def _left_out(batches: OnlineBatches) -> str:
    count = (batches.num_rows or 0) % batches.prompts_per_generation
    return f"; {_count(count, 'prompt')} of each order are left out" if count else ""


def _count(number: int | None, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun[-1] in "sh" else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
