"""`online-sft report RUN_DIR`: what became of a run, in the browser."""

import argparse
import webbrowser
from pathlib import Path

from online_sft.launching import UsageError
from online_sft.record.folder import RecordError, read_record

__all__ = ["main"]


def main(arguments: list[str], summary: str) -> None:
    """Writes the page, and says where."""
    parser = argparse.ArgumentParser(prog="online-sft report", description=summary, allow_abbrev=False)
    parser.add_argument("run_dir", help="The output_dir of a run; it may be going on.")
    parser.add_argument("--compare", nargs="+", default=[], metavar="RUN_DIR", help="Runs to show beside it.")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="Default: report.html in RUN_DIR.")
    parser.add_argument("--open", action="store_true", help="Open it in the browser.")
    options = parser.parse_args(arguments)
    from online_sft.report.content import MOST_SAMPLES, told_apart
    from online_sft.report.page import html_report

    try:
        folders = (options.run_dir, *options.compare)
        runs = told_apart([read_record(folder, most_samples=MOST_SAMPLES // len(folders)) for folder in folders])
        output = options.output or Path(options.run_dir) / "report.html"
        output.write_text(html_report(runs), encoding="utf-8")
    except (RecordError, OSError) as error:
        raise UsageError(error) from error
    print(f"{output} ({output.stat().st_size / 1e6:.1f} MB): {', '.join(run.name for run in runs)}")
    if options.open and not webbrowser.open(output.resolve().as_uri()):
        print("no browser was found here; open the file in one")
