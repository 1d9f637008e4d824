"""What a model card says of how its model was trained."""

from trainers.online_sft_config import OnlineSFTConfig

__all__ = ["ledger_section"]


def ledger_section(args: OnlineSFTConfig) -> str:
    """The objective, and what biases its gradient or changes it, as a section in Markdown."""
    ledger = [f"- `{bias.option}={bias.value}`: {bias.effect}" for bias in args.bias_ledger()]
    lines = [
        "## What was optimised",
        "",
        f"E[r] - {args.beta:g} KL(policy || reference), estimated with `{args.estimator}` and baseline "
        f"`{args.baseline}`. Options in force that bias its gradient or change it:",
        "",
        *(ledger or ["- none"]),
    ]
    return "\n" + "\n".join(lines) + "\n"
