"""What a model card says of how its model was trained."""

from online_sft.ledger import bias_ledger
from online_sft.method import Method

__all__ = ["ledger_section"]


def ledger_section(method: Method) -> str:
    """The objective, and what biases its gradient or changes it, as a section in Markdown."""
    ledger = [f"- `{bias.option}={bias.value}`: {bias.effect}" for bias in bias_ledger(method)]
    lines = [
        "## What was optimised",
        "",
        f"E[r] - {method.beta:g} KL(policy || reference), estimated with `{method.estimator}` and baseline "
        f"`{method.baseline}`. Options in force that bias its gradient or change it:",
        "",
        *(ledger or ["- none"]),
    ]
    return "\n" + "\n".join(lines) + "\n"
