"""The report in a real browser: wide and narrow, light and dark, by keyboard, and with hostile text in it."""

import asyncio
import json
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, browsing, find_chromium

from salign.markers import mark_done, read_done
from salign.report.write import write_report
from salign.run import RunDir

pytestmark = pytest.mark.integration

HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'><b>bold</b>"


@pytest.fixture(scope="module")
def chromium() -> str:
    return find_chromium()


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory) -> RunDir:
    """The finished run, in which a model has said something hostile wherever it could."""
    copy = RunDir(tmp_path_factory.mktemp("seen") / "runs" / "small")
    shutil.copytree(finished[0].path, copy.path, ignore=shutil.ignore_patterns("model", "wandb"))
    for folder in [copy.stage("sft"), copy.stage("stable")]:
        mark_done(folder, ["metrics.jsonl"], {}, read_done(finished[0].stage(folder.name)).facts)
    for shard in range(2):
        done, path = read_done(copy.shard(shard)), copy.shard(shard) / "interactions.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["topic"] = f"{HOSTILE} {row['topic']}"
            row["turns"] = [{**turn, "text": HOSTILE} for turn in row["turns"]]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        mark_done(copy.shard(shard), ["interactions.jsonl"], {}, done.facts)
    groups = copy.dataset / "groups.jsonl"
    rows = [{**json.loads(line), "query": HOSTILE} for line in groups.read_text().splitlines()]
    groups.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mark_done(copy.dataset, ["groups.jsonl", "card.json"], {}, read_done(finished[0].dataset).facts)
    write_report(copy, copy.config())
    return copy


def browse(chromium: str, folder: Path, steps: Callable[[Page], Coroutine[Any, Any, None]]) -> Page:
    """A browser for the steps; the page afterwards, for what it said and asked for."""

    async def main() -> Page:
        async with browsing(chromium, folder) as page:
            await steps(page)
            return page

    return asyncio.run(main())


def assert_quiet(page: Page) -> None:
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []


async def drawn(page: Page, scheme: str) -> None:
    await page.until(f"[...document.querySelectorAll('.plot')].every((plot) => plot.dataset.drawn === '{scheme}')")


PLOTS = """[...document.querySelectorAll('.plot')].map((plot) => {
  const box = plot.getBoundingClientRect(), svg = plot.querySelector('.main-svg');
  const marks = plot.querySelectorAll('.plot path, .plot image, .points path, .lines path, .hm image').length;
  const inside = box.left >= 0 && box.right <= innerWidth;
  return [plot.id, plot._fullData.length, marks, inside, svg.getBoundingClientRect().width];
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_every_plot_is_drawn_and_nothing_overflows(chromium, run, tmp_path, width, scheme):
    async def steps(page: Page) -> None:
        await page.look(width, 900, scheme)
        await page.open(run.report / "index.html")
        await drawn(page, scheme)
        assert await page.run("document.documentElement.scrollWidth") <= width
        found = await page.run(PLOTS)
        assert len(found) >= 20
        for name, num_traces, num_marks, inside, drawn_width in found:
            assert num_traces > 0, name
            assert num_marks > 0, name
            assert inside, name
            assert drawn_width > 200, name
        colours = await page.run(
            "[document.body, document.querySelector('.card')].map((e) => getComputedStyle(e).color)"
        )
        assert colours == ["rgb(27, 35, 48)" if scheme == "light" else "rgb(231, 235, 241)"] * 2
        text = "getComputedStyle(document.querySelector('.xtick text')).fill"
        assert await page.run(text) == colours[0]
        await page.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert await page.run("document.documentElement.scrollWidth") <= width  # tables scroll in their own place

    assert_quiet(browse(chromium, tmp_path, steps))


async def press(page: Page, key: str, code: int, text: str = "") -> None:
    named = {"key": key, "windowsVirtualKeyCode": code}
    await page.send("Input.dispatchKeyEvent", type="keyDown", **named, **({"text": text} if text else {}))
    await page.send("Input.dispatchKeyEvent", type="keyUp", **named)


def test_the_map_moves_by_keyboard_and_the_scheme_may_change(chromium, run, tmp_path):
    async def steps(page: Page) -> None:
        await page.look(1200, 900, "light")
        await page.open(run.report / "index.html")
        await drawn(page, "light")
        before = await page.run("document.getElementById('plot-map')._fullData[0].z")
        assert await page.run("document.getElementById('plot-map').dataset.round") == "1"
        await page.run("document.getElementById('map-round').focus()")
        await press(page, "ArrowRight", 39)
        await page.until("document.getElementById('plot-map').dataset.round === '2'")
        assert await page.run("document.getElementById('plot-map')._fullData[0].z") != before
        assert "round 2 of 2" in await page.run("document.getElementById('map-words').textContent")
        await page.run(
            "(() => { const world = document.getElementById('map-world'); world.value = '1';"
            " world.dispatchEvent(new Event('input')); })()"
        )
        await page.until("document.getElementById('map-words').textContent.startsWith('World 1')")
        await page.look(1200, 900, "dark")
        await drawn(page, "dark")

    assert_quiet(browse(chromium, tmp_path, steps))


def test_a_reader_pages_and_filters_and_hostile_text_is_shown_as_text(chromium, run, tmp_path):
    async def steps(page: Page) -> None:
        await page.look(400, 900, "light")
        await page.open(run.report / "index.html")
        await drawn(page, "light")
        reader = "document.getElementById('reader-interactions')"
        count = f"{reader}.querySelector('[data-count]').textContent"
        assert await page.run(count) == "1 of 36"
        assert HOSTILE in await page.run(f"{reader}.querySelector('.item').textContent")
        await page.run(f"{reader}.querySelectorAll('[data-step]')[1].focus()")
        await press(page, "Enter", 13, "\r")
        await page.until(f"{count} === '2 of 36'")
        for name in ("interactions", "groups"):  # through all of them
            step = f"document.querySelectorAll('#reader-{name} [data-step]')[1]"
            await page.run(f"(() => {{ for (let i = 0; i < 300 && !{step}.disabled; i++) {step}.click(); }})()")
            assert await page.run(f"{step}.disabled")
        words = f"(() => {{ const box = {reader}.querySelector('[type=search]'); box.value = 'WORDS'; "
        words += "box.dispatchEvent(new Event('input')); })()"
        await page.run(words.replace("WORDS", "onerror"))
        assert await page.run(count) == "1 of 36"
        await page.run(words.replace("WORDS", "qqzzxx"))
        assert await page.run(count) == "none of the samples is like that"
        assert await page.run("typeof window.pwned") == "undefined"
        assert await page.run("document.querySelectorAll('main img, .item script, .item b').length") == 0
        assert await page.run("document.documentElement.scrollWidth") <= 400

    assert_quiet(browse(chromium, tmp_path, steps))
