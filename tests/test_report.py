"""What a report says of runs: all that was recorded, in numbers that add up, and never as HTML."""

import json
import re

import pytest
from record_tools import HOSTILE, setup, write_run

from online_sft import cli
from online_sft.metric_reference import METRICS
from online_sft.record.folder import RunRecord, read_record
from online_sft.record.sample import Sample
from online_sft.report.charts import charts_of
from online_sft.report.content import content_of, packed, reward_heatmap, thinned, told_apart
from online_sft.report.page import html_report


def test_every_metric_is_in_one_chart():
    names = [name for name in METRICS if "{" not in name] + ["somebody/elses", "rewards/math/mean"]
    names += ["eval_pass@1", "eval_pass@1_low", "eval_pass@1_high"]
    shown = [line for chart in charts_of(names) for line in chart.lines]
    assert len(shown) == len(set(shown))
    of_the_run = {"step", "epoch", "num_tokens", "total_flos", "runtime", "samples_per_second", "steps_per_second"}
    assert set(names) - set(shown) == of_the_run | {name for name in names if name.startswith("train_")}


def test_charts_have_units_and_meanings_and_bands_only_where_all_their_lines_are():
    charts = {chart.title: chart for chart in charts_of(["kl", "weight/q50", "eval_avg@4", "eval_avg@4_low"])}
    assert charts["KL from the reference"].unit == "nats" and "k1 estimate" in charts["KL from the reference"].meaning
    assert charts["weight w = A / s: median, 5 to 95 %"].kind == "lines"
    assert {"eval_avg@4", "eval_avg@4_low"} <= set(charts)  # no upper end: no interval
    (band,) = [chart for chart in charts_of(["eval_avg@4", "eval_avg@4_low", "eval_avg@4_high"])]
    assert (band.kind, band.lines, band.section) == (
        "band",
        ("eval_avg@4_low", "eval_avg@4", "eval_avg@4_high"),
        "Evaluation",
    )


def test_the_loss_is_about_learning_except_online():
    of = lambda names: {chart.title: chart.section for chart in charts_of(names)}["loss"]  # noqa: E731
    assert (of(["loss", "nll"]), of(["loss", "reward"])) == ("Learning", "Optimizer")


def test_the_shares_of_the_rewards_are_exact_where_there_are_few():
    entries = [{"step": 5, "rewards": [(0.0, 3), (1.0, 1)]}, {"step": 10, "rewards": [(1.0, 8)]}, {"step": 11}]
    expected = {"steps": [5, 10], "rewards": [0.0, 1.0], "shares": [[0.75, 0.0], [0.25, 1.0]]}
    assert reward_heatmap(entries) == expected
    assert reward_heatmap([{"step": 1}]) is None


def test_the_shares_of_many_rewards_and_steps_add_up_to_one():
    entries = [{"step": s, "rewards": [(s / 7 + x / 50, 1) for x in range(101)]} for s in range(1, 1001)]
    heatmap = reward_heatmap(entries)
    assert len(heatmap["rewards"]) == 40 and len(heatmap["steps"]) == 200 and heatmap["steps"][-1] == 1000
    for column in zip(*heatmap["shares"], strict=True):
        assert sum(column) == pytest.approx(1.0)
    low, high = 1 / 7, 1000 / 7 + 2
    assert heatmap["rewards"][0] == pytest.approx(low + (high - low) / 80)


def test_samples_are_thinned_evenly_and_the_page_says_so():
    samples = [Sample(step, ("a",) * 10, (1.0,) * 10, {}) for step in range(1000)]
    assert [sample.step for sample in thinned(samples, 10, 10**6)] == list(range(0, 1000, 100))
    assert [sample.step for sample in thinned(samples, 1000, 50)] == [0, 200, 400, 600, 800]
    assert thinned(samples, 10**6, 10**6) == samples and thinned([], 5, 5) == []
    content = content_of([RunRecord("a", setup(), [], samples, 1000)] * 11)
    assert {len(run["samples"]) for run in content["runs"]} == {909}
    assert {run["recorded_samples"] for run in content["runs"]} == {1000}


def test_the_configurations_of_runs_are_compared_field_by_field(tmp_path):
    write_run(tmp_path / "a", configuration={"lr": 1e-3, "seed": 0, "only_a": True})
    write_run(tmp_path / "b", configuration={"lr": 1e-4, "seed": 0}, changed=["lr", "seed"])
    runs = [read_record(tmp_path / name) for name in "ab"]
    rows = {row.pop("name"): row for row in content_of(runs)["configuration"]}
    assert rows["lr"] == {"values": ["0.001", "0.0001"], "changed": True, "differs": True}
    assert rows["seed"] == {"values": ["0", "0"], "changed": True, "differs": False}
    assert rows["only_a"] == {"values": ["True", "None"], "changed": False, "differs": True}


def test_the_lengths_of_tokens_are_those_that_javascript_counts():
    sample = Sample(1, ("a", "\U0001f600", ""), (None, 1.0, 1.0), {})
    (shown,) = content_of([RunRecord("a", setup(), [], [sample], 1)])["runs"][0]["samples"]
    assert shown["lengths"] == packed([1, 2, 0]) == "$%#" and shown["text"] == "a\U0001f600"
    assert (shown["runs"], shown["weights"]) == (packed([1, 2]), [None, 1.0])
    long = Sample(1, ("a",) * 120_000, (1.0,) * 120_000, {})
    (shown,) = content_of([RunRecord("a", setup(), [], [long], 1)])["runs"][0]["samples"]
    assert [ord(run) - 35 for run in shown["runs"]] == [50_000, 50_000, 20_000] and shown["weights"] == [1.0] * 3


def test_no_text_of_a_run_ends_the_script_or_becomes_html(tmp_path):
    write_run(tmp_path / "<b>run", texts=(HOSTILE, "x"), command=HOSTILE, configuration={"output_dir": HOSTILE})
    page = html_report([read_record(tmp_path / "<b>run")])
    assert "owned" in page and '<script>document.title="owned"' not in page and "<img src=x" not in page
    assert "<title>&lt;b&gt;run</title>" in page
    (content,) = re.findall(r'<script id="content" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert json.loads(content)["runs"][0]["samples"][0]["text"] == f"Q: 1 {HOSTILE}\n"


def test_the_page_asks_for_nothing(tmp_path):
    write_run(tmp_path / "run")
    page = html_report([read_record(tmp_path / "run")])
    ours = page[: page.index("<script>")]
    assert "default-src 'none'" in ours and "connect-src" not in ours
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", ours)


def test_the_command_writes_the_page_and_says_where(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    cli.main(["report", str(tmp_path / "a"), "--compare", str(tmp_path / "b")])
    said = capsys.readouterr().out
    assert re.fullmatch(rf"{tmp_path}/a/report.html \(\d\.\d MB\): a, b\n", said)
    cli.main(["report", str(tmp_path / "a" / "record"), "--output", str(tmp_path / "c.html")])
    assert "<title>a</title>" in (tmp_path / "c.html").read_text()


def test_runs_of_one_name_are_told_apart():
    runs = [RunRecord(name, setup(), [], [], 0) for name in ("out", "a", "out")]
    assert [run.name for run in told_apart(runs)] == ["out (1)", "a", "out (2)"]


def test_the_command_says_which_folders_have_a_record(tmp_path, capsys):
    write_run(tmp_path / "a")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["report", str(tmp_path)])
    assert f"there are some in {tmp_path / 'a'}" in capsys.readouterr().err
    (tmp_path / "a" / "record" / "run.json").write_text("{")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["report", str(tmp_path / "a")])
    assert "run.json cannot be read" in capsys.readouterr().err
