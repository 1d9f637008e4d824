"""Where the final answer is found, and where none is."""

import pytest

from online_sft.rewards.answers import final_answer, gold_answer

FOUND = [
    # completion, answer, why
    ("Answer: 42", "42", "plain"),
    ("First 3.\nanswer : 42.\n", "42.", "case, space"),
    ("**Answer:** $42$", "$42$", "markdown"),
    ("**Final Answer**: 42", "42", "markdown around the colon"),
    ("Thus the final answer: 42", "42", "three words before it"),
    (r"Answer: $\boxed{42}$", "42", "DAPO's variant"),
    ("Answer:\n$42$", "$42$", "on the next line"),
    ("Answer:\n\\[\n42\n\\]", "42", "displayed"),
    ("Answer: $\n\\frac{1}{2}\n$", r"\frac{1}{2}", "after a lone dollar"),
    (
        "Answer: \\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}\nThat is it.",
        "\\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}",
        "a matrix",
    ),
    ("Answer: 42. The reason is simple.", "42", "the next sentence is no part of it"),
    (r"so \boxed{7}, no, \boxed{42}", "42", "the last box counts"),
    (r"\boxed{33} or \boxed{34}", "33, 34", "boxes joined by a word are a list"),
    (r"\(\boxed{1}\) and \(\boxed{-2}\).", "1, -2", "in maths delimiters, too"),
    (r"\boxed{\boxed{5}}", "5", "the innermost box"),
    ("\\boxed{34}\n\\boxed{34}", "34", "the same box again"),
    ("\\boxed{33}\n\\boxed{34}", "34", "boxes that nothing joins"),
    (r"\boxed{\text{Answer: }34}", r"\text{Answer: }34", "a label inside the box"),
    ("Answer: 34\nAnswer:", "34", "a line that stops short"),
    ("Answer:\n\nThe number is thus\n\\boxed{34}", "34", "a box below an empty line"),
    (r"\boxed   {  x^2 } trailing", "x^2", "spaces"),
    (r"\fbox{42}", "42", "a frame"),
    (r"\boxed 42", "42", "without braces"),
    (r"\boxed{42}, no, \boxed{\frac{1}{2}}", r"\frac{1}{2}", "braces inside"),
    ("Answer: 7\nWait.\nAnswer: 42", "42", "the last answer line counts"),
    (r"\boxed{7} Answer: 42", "42", "a line beats a box"),
    ("\\boxed{44}.\n\nWe may check our answer: $17 \\cdot 44$", "44", "prose is no answer line"),
    ("<think>Answer: 7</think>Answer: 42", "42", "what is thought does not count"),
    ("Answer: 42<|im_end|>", "42", "a special token"),
    ("Answer: \N{FULLWIDTH DIGIT FOUR}\N{FULLWIDTH DIGIT TWO}", "42", "full-width digits"),
    ("x" * 100_000 + "\nAnswer: 42", "42", "a long completion"),
]
NOT_FOUND = [
    (r"Answer: \boxed{}", "an empty box"),
    (r"\boxed{42", "a box that never closes"),
    ("42", "no bare last number is guessed"),
    ("", "empty"),
    ("The answer is 42", "no colon, no answer"),
    ("Answer:", "nothing after the colon"),
    (" Answer: 5 Answer: ", "two labels on a line"),
    ("Answer: 42\n" + "x" * 5000, "too far from the end"),
    ("<think>Answer: 42</think>", "thought, but not said"),
]
GOLDS = [
    ("42", "42"),
    (42, "42"),
    (None, ""),
    ("Janet sells 9 eggs.\n#### 18", "18"),
    (r"Hence the area is $\boxed{\frac{1}{2}}$ units.", r"\frac{1}{2}"),
    ("Add them.\nAnswer: 7", "7"),
    (r"2\sqrt{3}", r"2\sqrt{3}"),
]


@pytest.mark.parametrize(("completion", "answer", "why"), FOUND, ids=[row[2] for row in FOUND])
def test_the_answer_is_found(completion, answer, why):
    assert final_answer(completion) == answer


@pytest.mark.parametrize(("completion", "why"), NOT_FOUND, ids=[row[1] for row in NOT_FOUND])
def test_no_answer_is_made_up(completion, why):
    assert final_answer(completion) in (None, r"\boxed{}")


@pytest.mark.parametrize(("gold", "answer"), GOLDS)
def test_golds_may_be_solutions(gold, answer):
    assert gold_answer(gold) == answer
