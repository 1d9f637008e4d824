"""Every block of the README runs, in order, in one folder."""

import re
import shlex
from pathlib import Path

import pytest
from datasets import Dataset

from online_sft import cli, train

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def test_the_makefile_has_the_targets_that_the_readme_names():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"make ([a-z-]+)", README)
    assert {"quickstart", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE), target


@pytest.mark.slow
def test_every_block_runs(saved_model, tmp_path, monkeypatch):
    """`make` lines are CI's own; `runs/quickstart/a_imitation` is the tiny model of the tests; two steps are enough."""
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "model").rename(tmp_path / "runs" / "quickstart" / "a_imitation")
    demonstrations = [
        {"prompt": "1 + 1 =", "solution": "2", "completion": f" Answer: {a}", "advantages": float(a == 2)}
        for a in (2, 3)
    ]
    Dataset.from_list(demonstrations).to_json(tmp_path / "runs" / "quickstart" / "demonstrations.jsonl")
    namespace: dict = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(re.sub(r'(max_steps"?[=:] ?)\d+', r"\g<1>2", block), "README.md", "exec"), namespace)
        elif language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:2] == ["online-sft", "inspect"]:
                    with pytest.raises(SystemExit, match="1"):  # it finds the row of weight 0
                        cli.main(words[1:])
                elif words[:3] == ["python", "-m", "online_sft.train"]:
                    train.main([*words[3:], "--total_episodes", "32"])
                elif words and words[0] == "online-sft":
                    steps = ["--max_steps", "2"] if words[1] in ("weighted", "online") else []
                    cli.main([*words[1:], *steps])
                else:
                    assert not words or words[0] in ("make", "git", "cd"), line
        elif language != "sh":  # which tests/test_vllm_readme.py runs
            assert language == "text", f"a block of language {language!r} that nobody runs"
