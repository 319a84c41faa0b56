"""The papers beside the code: every page is there that another names, and every page is named by one."""

import re
from pathlib import Path

import pytest

from salign.commands.config import reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return _LINK.findall(text)


def anchors(page: Path) -> set[str]:
    """Of its headings, as they are made from the text."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    dead = []
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_every_page_is_reached_from_the_readme():
    reached = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert {page.resolve() for page in PAGES[1:]} <= reached


def test_the_configuration_reference_is_that_of_the_code():
    """Made by `salign config > docs/config.md`."""
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == reference()


def test_every_setting_of_the_society_says_what_it_is_for():
    """Sections as well as names; what its name and type say whole needs no more words."""
    page = reference()
    for name in ("recall_share", "max_recall_distance", "stopping", "num_rating_retries", "min_digit_mass", "wording"):
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert not line.endswith("|  |"), name


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 12_000
