"""What became of a graded sample."""

from enum import Enum

__all__ = ["Verdict"]


class Verdict(Enum):
    """What became of a sample: correct; wrong in one of six ways; or unscorable, when the gold is to blame."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    UNPARSED = "unparsed"
    SCREENED = "screened"
    TIMED_OUT = "timed_out"
    EXHAUSTED = "exhausted"
    BAD_GOLD = "bad_gold"

    @property
    def is_correct(self) -> bool | None:
        """True, False, or None where no grade is possible."""
        return None if self is Verdict.BAD_GOLD else self is Verdict.CORRECT
