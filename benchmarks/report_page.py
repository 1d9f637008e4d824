"""How long the report of a long run takes to open: `PYTHONPATH=. python benchmarks/report_page.py`. Needs Chromium.

10,000 completions of 200 tokens with weights that change, and 2,500 log entries. From the navigation to a page that is
complete, and to the first chart that is drawn. It has no peer: no trainer writes such a page.
"""

import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from online_sft.record.folder import RecordFolder, read_record
from online_sft.record.sample import Sample
from online_sft.report.page import html_report

NUM_STEPS, SAMPLES_PER_STEP, NUM_TOKENS, TIMES = 2_500, 4, 200, 7
WORDS = (" the", " of", " number", " sum", " is", " 12", " and", "\n", " therefore", " x", "=", "7")
METRICS = ("reward", "loss", "kl", "entropy", "grad_norm", "log_prob", "advantage", "seconds/rollout", "seconds/train")


def main() -> None:
    chromium = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        write_record(Path(folder))
        started = time.perf_counter()
        path = Path(folder) / "report.html"
        path.write_text(html_report([read_record(folder)]), encoding="utf-8")
        print(f"written in {time.perf_counter() - started:.1f} s, {path.stat().st_size / 1e6:.1f} MB")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        complete, drawn = zip(*(opened(browser, path.as_uri()) for _ in range(TIMES)), strict=True)
        browser.close()
    for name, seconds in {"complete": complete, "first chart": drawn}.items():
        print(f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}, {TIMES} times)")


def write_record(folder: Path) -> None:
    draw = random.Random(0)
    record = RecordFolder(folder)
    hardware = {"processes": 1, "gpus": [], "cpu": "-"}
    setup = {"trainer": "OnlineSFTTrainer", "objective": "-", "ledger": [], "model": "-", "rewards": ["math"]}
    setup |= {"parameters": 1, "trained_parameters": 1, "data": {"kind": "a data set", "rows": 1, "sha256": "-"}}
    setup |= {"configuration": {}, "changed": [], "versions": {}, "hardware": hardware, "command": "-"}
    record.begin({**setup, "began": 0.0, "resumed_at": []}, step=0)
    for step in range(1, NUM_STEPS + 1):
        metrics = {name: draw.random() for name in METRICS} | {"num_tokens": 1_000 * step}
        record.add_entry({"step": step, "time": 3.0 * step, "metrics": metrics, "rewards": [(0.0, 50), (1.0, 50)]})
        record.add_samples(a_sample(step, draw) for _ in range(SAMPLES_PER_STEP))


def a_sample(step: int, draw: random.Random) -> Sample:
    weights = [None] * 50 + [draw.choice((1.0, -1.0, 0.5)) for _ in range(NUM_TOKENS - 50)]
    texts = tuple(draw.choice(WORDS) for _ in range(NUM_TOKENS))
    return Sample(step, texts, tuple(weights), {"reward": draw.random(), "advantage": draw.random() - 0.5})


def opened(browser, url: str) -> tuple[float, float]:
    """Seconds until the page is complete, and until a chart is drawn."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    started = time.perf_counter()
    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    complete = time.perf_counter() - started
    page.locator("#charts .main-svg").first.wait_for()
    drawn = time.perf_counter() - started
    page.close()
    return complete, drawn


if __name__ == "__main__":
    main()
