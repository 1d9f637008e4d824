"""The fenced blocks of the documents, and how tests run them: in order, in one folder, for two steps."""

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from datasets import Dataset
from record_tools import write_run

from online_sft import cli, train

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Block:
    language: str
    title: str | None  # the file that it is written to, instead of being run
    text: str


def blocks_of(document: Path) -> list[Block]:
    """All fenced blocks, in order."""
    found = re.findall(r"^```(\w+)(?: title=\"([^\"]+)\")?[^\n]*\n(.*?)^```$", document.read_text(), re.DOTALL | re.M)
    return [Block(language, title or None, text) for language, title, text in found]


def leave_a_quickstart(folder: Path) -> None:
    """What `make quickstart` leaves, as far as documents use it; its model is the tiny one of the tests."""
    left = folder / "runs" / "quickstart"
    left.mkdir(parents=True)
    (folder / "model").rename(left / "a_imitation")
    demonstrations = [
        {"prompt": "1 + 1 =", "solution": "2", "completion": f" Answer: {a}", "advantages": float(a == 2)}
        for a in (2, 3)
    ]
    Dataset.from_list(demonstrations).to_json(left / "demonstrations.jsonl")
    problems = [{"prompt": f"{a} + 1 =", "solution": str(a + 1)} for a in range(99)]
    Dataset.from_list(problems).to_json(left / "problems.jsonl")
    write_run(left / "c_online_sft")
    shutil.copytree(ROOT / "recipes", folder / "recipes")


def run(blocks: list[Block], document: str) -> None:
    """`make` lines are CI's own; `sh` is run with vLLM, by tests/test_vllm_readme.py; `text` is not run."""
    namespace: dict = {}
    for block in blocks:
        text = re.sub(r'(max_steps"?[=:] ?)\d+', r"\g<1>2", block.text)
        if block.title is not None:
            Path(block.title).write_text(text)
        elif block.language == "python":
            exec(compile(text, document, "exec"), namespace)
        elif block.language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                _run_line(shlex.split(line, comments=True), line)
        else:
            assert block.language in ("sh", "text"), f"a block of language {block.language!r} that nobody runs"


def _run_line(words: list[str], line: str) -> None:
    if words and "=" in words[0]:  # for this command only
        name, _, value = words[0].partition("=")
        with mock.patch.dict(os.environ, {name: value}):
            _run_line(words[1:], line)
    elif words[:1] == ["sed"]:
        subprocess.run(line, shell=True, check=True)
    elif words[:2] == ["online-sft", "inspect"]:
        with pytest.raises(SystemExit, match="1"):  # it finds the row of weight 0
            cli.main(words[1:])
    elif words[:3] == ["python", "-m", "online_sft.train"]:
        train.main([*words[3:], "--total_episodes", "32"])
    elif words and words[0] == "online-sft":
        steps = ["--max_steps", "2"] if words[1] in ("weighted", "online") else []
        cli.main([*words[1:], *steps])
    else:
        assert not words or words[0] in ("cd", "git", "make", "source"), words
