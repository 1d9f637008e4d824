"""Takes the pictures in docs/images from the quickstart's run: `make screenshots`. Needs Chromium."""

import argparse
import io
import shutil
import subprocess
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from rich.console import Console

from online_sft.record.folder import RunRecord, read_record
from online_sft.record.terminal import Progress, view_of
from online_sft.report.page import html_report

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
_TERMINAL = (
    '<body style="margin:0;background:#0d1117;color:#e6edf3"><pre style="margin:0;padding:12px;display:inline-block;'
    "font:14px/1.25 'DejaVu Sans Mono',monospace\">{code}</pre></body>"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "quickstart" / "c_online_sft")
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    run = read_record(options.run)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        terminal(browser, run)
        for scheme in ("light", "dark"):
            report(browser, run, scheme)
        subprocess.run(["make", "docs"], cwd=ROOT, check=True)  # which shows those
        for scheme in ("light", "dark"):
            home(browser, ROOT / "build" / "site" / "index.html", scheme)
        browser.close()


def terminal(browser: Browser, run: RunRecord) -> None:
    """The view as it was when 60 % of the run was done, drawn again from its record."""
    num_steps = max(entry["step"] for entry in run.entries)
    entries = [entry for entry in run.entries if entry["step"] <= 0.6 * num_steps]
    progress = Progress(f"{run.setup['trainer']} {run.name}", 0, num_steps, run.setup["began"])
    for entry in entries:
        progress.step = entry["step"]
        progress.add(entry["metrics"])
    sample = max(
        (each for each in run.samples if each.step == progress.step), key=lambda each: abs(each.values["advantage"])
    )
    console = Console(width=100, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(view_of(progress, sample, entries[-1]["time"]))
    page = browser.new_page(device_scale_factor=2)
    page.set_content(console.export_html(inline_styles=True, code_format=_TERMINAL))
    page.locator("pre").screenshot(path=IMAGES / "terminal.png")
    page.close()


def report(browser: Browser, run: RunRecord, scheme: str) -> None:
    """Its beginning, and its completions."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1400, "height": 1000})
    path = IMAGES / "report.html"
    path.write_text(html_report([run]), encoding="utf-8")
    page.goto(path.as_uri())
    page.locator("#charts .main-svg").nth(5).wait_for()
    page.screenshot(path=IMAGES / f"report_{scheme}.png")
    page.select_option("#sort", "advantage")
    page.locator("#completions").scroll_into_view_if_needed()
    page.locator("#completions").screenshot(path=IMAGES / f"completions_{scheme}.png")
    page.close()
    path.unlink()


def home(browser: Browser, index: Path, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1400, "height": 900})
    page.goto(index.as_uri())
    page.wait_for_load_state("networkidle")
    page.screenshot(path=IMAGES / f"docs_{scheme}.png")
    page.close()


if __name__ == "__main__":
    main()
