"""The report in headless Chromium: it draws, filters, is usable by keyboard, and shows what is hostile as text."""

import shutil

import pytest
from record_tools import HOSTILE, write_run

from online_sft.record.folder import read_record
from online_sft.report.page import html_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "no chromium here: apt-get install chromium"
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=quiet)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the report of runs; afterwards nothing may have been asked for, or complained of."""
    contexts, complaints, requests = [], [], []

    def open_report(*runs, scheme="light"):
        path = tmp_path / "report.html"
        path.write_text(html_report([read_record(run) for run in runs]), encoding="utf-8")
        contexts.append(browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert complaints == []
    assert all(url.startswith(("file://", "data:", "blob:")) for url in requests)


def test_it_draws_a_chart_for_every_metric_once_it_is_seen(opened, tmp_path):
    write_run(tmp_path / "run")
    page = opened(tmp_path / "run")
    figures = page.locator("#charts figure")
    for index in range(figures.count()):
        figures.nth(index).scroll_into_view_if_needed()
        figures.nth(index).locator(".main-svg").first.wait_for()
    titles = page.locator("#charts figcaption").all_inner_texts()
    assert [title.split("  ")[0].strip() for title in titles] == [
        "reward reward units",
        "KL from the reference nats",
        "weight w = A / s: median, 5 to 95 % 1/nat",
        "seconds of an optimizer step s a step",
        "tokens a second tokens/s",
        "memory GiB",
        "loss nats",
        "my/own",
    ]
    drawn = page.evaluate("document.querySelector('#charts .plot').data.at(-1).y.length")
    assert drawn == 40
    page.locator("#heatmaps").scroll_into_view_if_needed()
    page.locator("#heatmaps .main-svg").first.wait_for()


def test_smoothing_is_an_exponential_mean_without_bias(opened, tmp_path):
    write_run(tmp_path / "run")
    page = opened(tmp_path / "run")
    page.locator("#charts .main-svg").first.wait_for()
    page.fill("#smoothing", "0.5")
    raw = [right / 100 for right in (100 * step // 40 for step in range(1, 41))]
    mean = mass = 0.0
    expected = []
    for value in raw:
        mean, mass = 0.5 * mean + 0.5 * value, 0.5 * mass + 0.5
        expected.append(mean / mass)
    assert page.evaluate("Array.from(document.querySelector('#charts .plot').data.at(-1).y)") == pytest.approx(expected)
    page.fill("#smoothing", "0")
    assert page.evaluate("Array.from(document.querySelector('#charts .plot').data.at(-1).y)") == pytest.approx(raw)
    page.select_option("#axis", "minutes")
    minutes = page.evaluate("Array.from(document.querySelector('#charts .plot').data.at(-1).x)")
    assert minutes == pytest.approx([3 * step / 60 for step in range(1, 41)])
    page.select_option("#axis", "tokens")
    tokens = page.evaluate("Array.from(document.querySelector('#charts .plot').data.at(-1).x)")
    assert tokens == [10 * step for step in range(1, 41)]


def test_zooming_into_a_chart_zooms_all_and_a_button_undoes_it(opened, tmp_path):
    write_run(tmp_path / "run")
    page = opened(tmp_path / "run")
    page.locator("#charts .main-svg").nth(3).wait_for()
    box = page.locator("#charts .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 60, steps=5)
    page.mouse.up()
    ranges = "[...document.querySelectorAll('#charts .plot')].filter(p => p.layout).map(p => p.layout.xaxis.range)"
    page.wait_for_function(f"{ranges}.every(([low, high]) => low > 5 && high < 35)")
    found = page.evaluate(ranges)
    assert len(found) > 2 and all(each == found[0] for each in found)
    page.click("#unzoom")
    page.wait_for_function(f"{ranges}.every(([low, high]) => low <= 1 && high >= 40)")


def test_the_samples_are_searched_sorted_and_walked_through_by_keyboard(opened, tmp_path):
    write_run(tmp_path / "run")
    page = opened(tmp_path / "run")
    assert page.inner_text("#found") == "80 of 80"
    assert page.input_value("#sort") == "reward"
    assert "right" in page.inner_text("#list li:first-child .what")  # the largest reward first
    page.keyboard.press("/")
    page.keyboard.type("WRONG")
    assert page.inner_text("#found") == "40 of 80"
    assert {"Wrong"} == set(page.locator("#list .what").all_inner_texts())
    page.keyboard.press("Tab")  # run is hidden: one run only
    page.keyboard.press("End")  # of the list of orders
    assert page.input_value("#sort") == "length"
    page.select_option("#sort", "step")
    page.locator("#list").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert "38" in page.inner_text("#detail .tokens")  # of steps 40, 39, 38
    assert page.get_attribute("#list", "aria-activedescendant") == "sample-2"
    page.keyboard.press("End")
    assert page.inner_text("#detail .tokens").startswith("Q: 1 Wrong")
    page.uncheck("#descending")
    assert page.inner_text("#detail .tokens").startswith("Q: 1 Wrong")
    page.fill("#search", "no such text")
    assert page.inner_text("#found") == "0 of 80" and "Nothing found" in page.inner_text("#detail")


def test_the_tokens_are_coloured_by_their_weights(opened, tmp_path):
    write_run(tmp_path / "run")
    page = opened(tmp_path / "run")
    spans = page.locator("#detail .tokens span")
    found = [(spans.nth(i).inner_text(), spans.nth(i).get_attribute("class")) for i in range(spans.count())]
    assert [name for _, name in found] == ["none", "none", "positive", "zero"]
    assert spans.nth(2).get_attribute("title") == "weight 0.5, token 2"
    assert page.evaluate("getComputedStyle(document.querySelector('#detail .positive')).backgroundColor") == (
        "rgba(46, 160, 67, 0.7)"
    )
    page.uncheck("#descending")  # the smallest reward, whose weight is negative
    assert spans.nth(2).get_attribute("class") == "negative"


def test_all_samples_of_a_long_run_can_be_reached(opened, tmp_path):
    write_run(tmp_path / "run", num_steps=500)
    page = opened(tmp_path / "run")
    assert page.locator("#list li").count() == 200
    page.locator("#list").focus()
    page.keyboard.press("End")
    assert page.locator("#list li").count() == 1000
    assert page.get_attribute("#list li:last-child", "aria-selected") == "true"
    page.locator("#list li:last-child").wait_for(state="visible")


def test_what_is_hostile_is_text(opened, tmp_path):
    changes = {"command": HOSTILE, "model": HOSTILE, "configuration": {HOSTILE: HOSTILE}, "changed": [HOSTILE]}
    ledger = [{"option": HOSTILE, "value": HOSTILE, "effect": HOSTILE}]
    write_run(tmp_path / "run", texts=(HOSTILE, HOSTILE), ledger=ledger, **changes)
    page = opened(tmp_path / "run")
    page.wait_for_timeout(300)
    assert page.title() == "run"
    assert page.locator("img").count() == 0
    assert '<img src=x onerror="' in page.inner_text("#detail .tokens")
    assert '<img src=x onerror="' in page.inner_text("#fields-table")


def test_two_runs_are_compared(opened, tmp_path):
    write_run(tmp_path / "a", configuration={"lr": 1, "seed": 0})
    write_run(tmp_path / "b", configuration={"lr": 2, "seed": 0})
    page = opened(tmp_path / "a", tmp_path / "b")
    page.locator("#charts .main-svg").first.wait_for()
    names = page.evaluate("document.querySelector('#charts .plot').data.map(t => t.name)")
    assert set(names) == {"a", "b"}
    rows = page.locator("#fields-table tr.differs")
    assert rows.count() == page.locator("#fields-table tr").count() - 1 == 1
    assert rows.first.inner_text().split() == ["lr", "1", "2"]
    page.select_option("#fields", "all")
    assert page.locator("#fields-table tr").count() == 3
    page.select_option("#run", "1")
    assert page.inner_text("#found") == "80 of 160"
    assert page.locator("#heatmaps figure").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_light_and_dark_and_a_button_switches(opened, tmp_path, scheme):
    """Contrast of text on its background, by WCAG's formula; 4.5 is what it asks for."""
    write_run(tmp_path / "run")
    page = opened(tmp_path / "run", scheme=scheme)
    page.locator("#charts .main-svg").first.wait_for()

    def contrast():
        colours = page.evaluate(
            "['color', 'backgroundColor'].map(n => getComputedStyle(document.body)[n].match(/\\d+/g).map(Number))"
        )
        channel = lambda x: x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4  # noqa: E731
        luminance = [
            sum(w * channel(c / 255) for w, c in zip((0.2126, 0.7152, 0.0722), rgb[:3], strict=True)) for rgb in colours
        ]
        return (max(luminance) + 0.05) / (min(luminance) + 0.05), luminance[1] < luminance[0]

    (before, was_dark), _ = contrast(), page.click("#theme")
    after, is_dark = contrast()
    assert before > 4.5 and after > 4.5
    assert (was_dark, is_dark) == (scheme == "dark", scheme == "light")
    ticks = page.evaluate("getComputedStyle(document.querySelector('#charts .xtick text')).fill")
    assert ticks == page.evaluate("getComputedStyle(document.body).color")  # the charts have been drawn anew


def test_every_control_has_a_name_and_can_be_reached_with_tab(opened, tmp_path):
    write_run(tmp_path / "run")
    page = opened(tmp_path / "run")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    controls = ("theme", "smoothing", "axis", "unzoom", "search", "sort", "descending", "list", "detail", "fields")
    assert tuple(dict.fromkeys(name for name in reached if name)) == controls
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, button')].filter(e => !e.labels?.length && !e.ariaLabel && "
        "!e.textContent.trim()).map(e => e.id)"
    )
    assert unnamed == []
