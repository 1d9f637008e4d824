"""Small programming problems with their tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["PROBLEMS", "CodeProblem"]


@dataclass(frozen=True)
class CodeProblem:
    """A function to be written.

    Args:
        function: its name, which also names the problem.
        task: what it does.
        tests: pairs of arguments and what it returns for them, both JSON. The first is shown with the task; of the
            others a model learns the arguments on which it fails, never the result.
    """

    function: str
    task: str
    tests: Sequence[tuple[Sequence[Any], Any]]

    def __post_init__(self) -> None:
        if not self.tests:
            raise ValueError(f"the problem {self.function!r} has no tests; it needs one at least")


PROBLEMS = (
    CodeProblem(
        "digit_sum",
        "`digit_sum(n: int) -> int`: the sum of the decimal digits of an integer, which may be negative.",
        [([407], 11), ([0], 0), ([-93], 12), ([10**30], 1), ([987654321987654321], 90)],
    ),
    CodeProblem(
        "run_lengths",
        "`run_lengths(text: str) -> list`: the runs of equal characters, as lists of a character and its count.",
        [
            (["aab"], [["a", 2], ["b", 1]]),
            ([""], []),
            (["xyx"], [["x", 1], ["y", 1], ["x", 1]]),
            (["1111 "], [["1", 4], [" ", 1]]),
            (["AaA" * 2], [["A", 1], ["a", 1], ["A", 2], ["a", 1], ["A", 1]]),
        ],
    ),
    CodeProblem(
        "is_balanced",
        "`is_balanced(text: str) -> bool`: whether the brackets (), [] and {} in a text are closed in the right order; "
        "other characters do not matter.",
        [(["f(a[0])"], True), (["([)]"], False), ([""], True), (["(("], False), (["}{"], False), (["{[()()]}x"], True)],
    ),
    CodeProblem(
        "merge_intervals",
        "`merge_intervals(intervals: list) -> list`: the union of closed intervals [start, end], as intervals that do "
        "not touch, in ascending order.",
        [
            ([[[1, 3], [2, 5]]], [[1, 5]]),
            ([[]], []),
            ([[[5, 6], [1, 2]]], [[1, 2], [5, 6]]),
            ([[[1, 2], [2, 3], [4, 4]]], [[1, 3], [4, 4]]),
            ([[[0, 10], [2, 3], [9, 12], [-1, -1]]], [[-1, -1], [0, 12]]),
        ],
    ),
    CodeProblem(
        "nth_prime",
        "`nth_prime(n: int) -> int`: the n-th prime number; the first is 2.",
        [([1], 2), ([2], 3), ([10], 29), ([100], 541), ([1500], 12553)],
    ),
    CodeProblem(
        "longest_common_subsequence",
        "`longest_common_subsequence(a: str, b: str) -> int`: the length of the longest string that is left of both "
        "texts when characters are deleted.",
        [
            (["abcde", "ace"], 3),
            (["", "abc"], 0),
            (["abc", "cba"], 1),
            (["AGGTAB", "GXTXAYB"], 4),
            (["ab" * 60, "ba" * 60], 119),
        ],
    ),
    CodeProblem(
        "evaluate_postfix",
        "`evaluate_postfix(tokens: list) -> float`: the value of an expression in postfix notation; tokens are numbers "
        'and the operators "+", "-", "*" and "/".',
        [
            ([[2, 3, "+"]], 5),
            ([[7]], 7),
            ([[1, 2, "-", 4, "*"]], -4),
            ([[1, 4, "/", 0.5, "+"]], 0.75),
            ([[5, 1, 2, "+", 4, "*", "+", 3, "-"]], 14),
        ],
    ),
)
