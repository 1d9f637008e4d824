r"""Where the final answer stands: after the last `Answer:` of a completion, else in its last `\boxed{}`.

No number is guessed from other text: what a completion merely mentions earns nothing.
"""

import re

from online_sft.rewards.plain_text import readable

__all__ = ["final_answer", "gold_answer"]

_TAIL = 4000  # characters; a final answer stands at the end, and pattern matching on 100,000 is slow
# "We may check our answer: ..." is prose: in lower case at most three words stand before it.
_ANSWER_LINE = re.compile(
    r"(?:(?<![A-Za-z])A(?:nswer|NSWER)|^[^\w\n]*(?:\w+ +){0,3}answer)[ \t*_]*:(?!\s*\})[ \t*_]*", re.MULTILINE
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|([^\s{}$\\]+))")
_BETWEEN_BOXES = re.compile(r"(?:[\s$]|\\[()\[\],;: ]|\\text\{|\}|\\q?quad|(?P<joint>and|or|[,;]))*")
_NO_CONTENT = re.compile(r"(?:[\s$*_`]|\\\[|\\\(|latex|math)*\n")
_NEXT_SENTENCE = re.compile(r"\.\s+(?=[A-Z][a-z])")
_GSM8K = re.compile(r"####[ \t]*([^\n]+)")
_MAX_LINES = 40


def final_answer(completion: str) -> str | None:
    r"""The text after the last `Answer:` (the next line if that is empty), else in the last `\boxed{}` or `\fbox{}`.

    Only the last 4,000 characters count, and of those only what follows the last `</think>`. Boxes joined by `and`,
    `or` or a comma are one answer, a list. None when there is no answer.
    """
    text = readable(completion[-_TAIL:]).rpartition("</think>")[2]
    for line in reversed(list(_ANSWER_LINE.finditer(text))):
        answer = _first_statement(text[line.end() :])
        is_in_a_box = answer.count("{") < answer.count("}")
        if answer and not is_in_a_box and not _ANSWER_LINE.search(answer):  # "Answer: 5 Answer:" is none
            is_next_line = "\n" in text[line.end() : text.index(answer, line.end())]
            return _boxed(answer) or (is_next_line and _boxed(text[line.end() :])) or answer
    return _boxed(text) or None


def gold_answer(gold: object) -> str:
    r"""The answer in a solution: after `####` (GSM8K), in its last `\boxed{}`, after `Answer:`, else all of it."""
    try:
        text = "" if gold is None else readable(str(gold)[-_TAIL:])
    except ValueError:  # an integer of more than 4,300 digits
        return ""
    marked = _GSM8K.findall(text)
    if marked:
        return marked[-1].strip()
    return (_boxed(text) or (final_answer(text) if _ANSWER_LINE.search(text) else None) or text).strip()


def _first_statement(text: str) -> str:
    r"""The first line with content, and as many more as its braces and environments need to close."""
    opening = _NO_CONTENT.match(text)
    lines = text[opening.end() if opening else 0 :].split("\n")
    statement = lines[0]
    for line in lines[1:_MAX_LINES]:
        if statement.count("{") <= statement.count("}") and statement.count(r"\begin") <= statement.count(r"\end"):
            break
        statement += "\n" + line
    return _NEXT_SENTENCE.split(statement, maxsplit=1)[0].strip()


def _boxed(text: str) -> str | None:
    """What the last box holds, joined with the boxes before it if only `and`, `or` and commas stand between them."""
    boxes = [box for box in map(lambda match: _content(text, match), _BOX.finditer(text)) if box is not None]
    if not boxes:
        return None
    start, _, content = boxes[-1]
    contents = [content]
    for earlier, end, content in reversed(boxes[:-1]):
        between = _BETWEEN_BOXES.fullmatch(text[end:start])
        if between is None or not between["joint"]:
            break
        contents.insert(0, content)
        start = earlier
    return ", ".join(dict.fromkeys(map(str.strip, contents)))


def _content(text: str, box: re.Match[str]) -> tuple[int, int, str] | None:
    """(start, end, content) of a box, up to its own closing brace; None when it never closes or is around another."""
    if box[1] is not None:  # \boxed 34
        return box.start(), box.end(), box[1]
    depth = 1
    for position in range(box.end(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            content = text[box.end() : position]
            return None if _BOX.search(content) else (box.start(), position + 1, content)
    return None
