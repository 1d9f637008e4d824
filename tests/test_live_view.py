"""What a terminal shows of a run, and what a file gets instead."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from rich.console import Console
from rich.file_proxy import FileProxy
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from online_sft import WeightedSFTConfig, WeightedSFTTrainer
from online_sft.record.sample import Sample
from online_sft.record.terminal import Progress, line_of, view_of
from trainers.recording.live_view import LiveView

ROOT = Path(__file__).resolve().parent.parent


def a_run(num_entries=30):
    progress = Progress("OnlineSFTTrainer out", first_step=10, num_steps=100, began=1000.0)
    for entry in range(1, num_entries + 1):
        progress.step = 10 + entry
        costs = {"seconds/rollout": 1.5, "seconds/train": 0.5, "tokens_per_second": 12_345.0, "memory_gib": 3.25}
        progress.add({"reward": entry / 30, "kl": -0.1, "loss": 7.0, "epoch": 0.5, **costs})
    return progress


def shown(renderable, width=100):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_the_view_says_how_far_the_run_is_how_it_goes_and_what_it_costs():
    text = shown(view_of(a_run(), None, now=1060.0))
    assert "step 40/100  1:00 + 2:00" in text  # 30 of its own steps in a minute, 60 to go
    (reward,) = re.findall(r"reward +1 +(\S+) +reward units", text)
    assert reward[0] == "▁" and reward[-1] == "█" and list(reward) == sorted(reward)
    assert re.search(r"kl +-0.1 +▁+ +nats", text)
    assert "loss" not in text  # whose value means nothing online
    assert "2 s a step  12,345 tokens/s  3.2 GiB" in text
    assert "■ rollout 1.5 s  ■ train 0.5 s" in text
    bar = next(line for line in text.splitlines() if "a step" in line)
    assert bar.count("█") == 48


def test_the_view_shows_a_sample_with_its_weights_and_nothing_that_acts_on_the_terminal():
    sample = Sample(20, ("Say", "\x1b[31m", " red", "\n"), (None, 1.0, -2.0, 0.0), {"reward": 0.5})
    text = shown(view_of(a_run(), sample, now=1060.0))
    assert "sample of step 20, reward 0.5, |weight| up to 2" in text
    assert "Say\\x1b[31m red⏎" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_of_the_view_is_wider_than_the_terminal(width):
    sample = Sample(20, ("word ",) * 1000, (1.0,) * 1000, {"reward": 0.5, "advantage": 1.0})
    lines = shown(view_of(a_run(), sample, now=1060.0), width).splitlines()
    assert max(map(len, lines)) == width
    assert len(lines) < 120


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_view_of_a_run_that_has_diverged_says_so_and_goes_on(bad):
    progress = Progress("out", first_step=0, num_steps=9, began=0.0)
    for grad_norm in (1.0, bad, 2.0):
        progress.add({"grad_norm": grad_norm})
    sample = Sample(1, ("a", "b", "c"), (bad, 1.0, -1.0), {})
    assert "▁!█" in shown(view_of(progress, sample, now=1.0))


def test_the_view_says_what_takes_long():
    assert "rollout 1:05  step 40/100" in shown(view_of(a_run(), None, 1060.0, "rollout", 65.0))
    assert "rollout 0:" not in shown(view_of(a_run(), None, 1060.0, "rollout", 4.0))


def test_a_line_says_the_same():
    assert line_of(a_run(), 1060.0) == "OnlineSFTTrainer out: step 40/100: reward 1, kl -0.1 (1:00, 2:00 to go)"
    fresh = Progress("run", first_step=0, num_steps=5, began=0.0)
    assert line_of(fresh, 3.0) == "run: step 0/5 (0:03)"


def a_trainer(model, tokenizer, cpu_args, **options):
    rows = [{"prompt": "1 + 1 =", "completion": "2", "advantages": 1.0}] * 4
    args = WeightedSFTConfig(**{**cpu_args, "max_steps": 3, "disable_tqdm": False, **options})
    return WeightedSFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def test_a_file_gets_one_line_a_minute_and_the_last(model, tokenizer, cpu_args, capsys):
    a_trainer(model, tokenizer, cpu_args).train()
    a_trainer(model, tokenizer, cpu_args, max_steps=1).train()  # whose first line is the last
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WeightedSFTTrainer out: step")]
    assert [re.search(r"step (\d)/", line).group(1) for line in lines] == ["1", "3", "1"]
    assert "\x1b" not in "".join(lines)


def test_the_view_takes_the_place_of_the_progress_bar_only_where_there_is_one(model, tokenizer, cpu_args):
    def kinds(**options):
        callbacks = a_trainer(model, tokenizer, cpu_args, **options).callback_handler.callbacks
        return {type(each) for each in callbacks} & {LiveView, ProgressCallback, PrinterCallback}

    assert kinds() == {LiveView}
    assert kinds(live_view="off") == {ProgressCallback}
    assert kinds(disable_tqdm=True) == {PrinterCallback}


IN_A_TERMINAL = """
import logging, sys
sys.path.insert(0, {root!r})
from datasets import Dataset
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging
from online_sft import WeightedSFTConfig, WeightedSFTTrainer
from recipes.quickstart.tiny_model import build_model, build_tokenizer

class Talkative(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print(f"printed at {{state.global_step}}")
        transformers_logging.get_logger("transformers.x").warning(f"warned at {{state.global_step}}")

tokenizer = build_tokenizer([" + ", " ="])
args = WeightedSFTConfig("out", max_steps=3, logging_steps=1, use_cpu=True, bf16=False, report_to="none")
data = Dataset.from_list([{{"prompt": "1 + 1 =", "completion": "2", "advantages": 1.0}}] * 4)
model = build_model(tokenizer, seed=0)
trainer = WeightedSFTTrainer(model, args, train_dataset=data, processing_class=tokenizer, callbacks=[Talkative()])
trainer.train()
print("after")
"""


class Failure(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_an_exception_gives_the_terminal_back(model, tokenizer, cpu_args, monkeypatch, capsys):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setattr("rich.console.Console.is_dumb_terminal", False)
    trainer = a_trainer(model, tokenizer, cpu_args)
    trainer.add_callback(Failure())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    written = capsys.readouterr().err
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert written.count(hide) == written.count(show) == 1 and written.index(hide) < written.index(show)
    assert sys.stderr is not None and not isinstance(sys.stderr, FileProxy)


@pytest.mark.slow
def test_what_a_process_prints_appears_above_the_view(tmp_path):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40", "OMP_NUM_THREADS": "1"}
    code = IN_A_TERMINAL.format(root=str(ROOT))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=theirs, stderr=theirs, cwd=tmp_path, env=environment
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # its end of the terminal is closed
            break
        if not part:
            break
        written += part
    assert process.wait() == 0, written.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[AK]|\r", "\n", written.decode())  # to another line, or a line emptied
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    for line in [*(f"printed at {step}" for step in (1, 2, 3)), *(f"warned at {step}" for step in (1, 2, 3)), "after"]:
        assert re.search(rf"^(\[\w+\] )?{line}\s*$", text, re.MULTILINE), (
            f"{line}: {text}"
        )  # a line of its own, not in the frame
    assert "step 3/3" in text and "loss" in text and "1 + 1 =2" in text
