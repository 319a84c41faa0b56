"""The documentation: links, commands, settings and files that it names exist, and each command is run or marked."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest
import yaml
from pages import EXECUTABLE, PAGES, ROOT, blocks, commands, project_command, prose

from salign import compose
from salign.commands.config import reference
from salign.commands.init import STARTER
from salign.commands.main import COMMANDS, main
from salign.config import Config, settings_of

ALL_PAGES = [*PAGES, ROOT / "CHANGELOG.md"]
BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language in ("sh", "bash")]
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FILE = re.compile(
    r"(?<![\w/.])(?:configs|docs|jobs|salign|slurm|tests)/[\w./-]*\w\.(?:md|py|yaml|jsonl|json|sbatch|sh|txt)\b"
)
_SETTING = re.compile(rf"`((?:{'|'.join(Config.model_fields)})(?:\.[\w*]+)+)(?:=[^`]*)?`")


def links(page: Path) -> list[str]:
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes from headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@functools.cache
def known_options(*words: str) -> set[str]:
    """The options in the help text of a command."""
    import contextlib
    import io

    shown = io.StringIO()
    before = sys.argv
    sys.argv = ["salign", *words, "--help"]
    try:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main()
    finally:
        sys.argv = before
    return set(re.findall(r"--[a-z][\w-]*", shown.getvalue()))


@functools.cache
def setting_patterns() -> list[list[str]]:
    """Every place in a config, in parts; `*` stands for an item of a list."""
    paths = {setting.path for setting in settings_of(Config)}
    return [path.split(".") for path in paths]


def is_setting(path: str) -> bool:
    """Whether a config may have the path, or sections under it."""
    parts = path.split(".")
    if parts[:2] == ["train", "defaults"]:
        parts = ["train", "stages", "*", *parts[2:]]
    return any(
        len(pattern) >= len(parts)
        and all(have in ("*", want) or want == "*" for have, want in zip(pattern, parts, strict=False))
        for pattern in setting_patterns()
    )


@pytest.fixture(scope="module")
def starter(tmp_path_factory) -> Path:
    """What `salign init` writes: it stands for a user's own config."""
    path = tmp_path_factory.mktemp("mine") / "config.yaml"
    path.write_text(STARTER.format(path=path, name="mine"), encoding="utf-8")
    return path


# --- links and files -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
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
    assert set(PAGES) - {ROOT / "README.md"} <= reached


def test_every_example_config_is_reached_from_the_docs():
    named = {path for page in PAGES for link in links(page) if (path := (page.parent / link).resolve()).exists()}
    assert set((ROOT / "configs" / "examples").glob("*.yaml")) <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = {name for name in _FILE.findall(text) if "NAME" not in name and "COMMAND" not in name}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "config.md"], ids=lambda page: page.name)
def test_every_setting_that_a_page_names_exists(page):
    named = [name for name in _SETTING.findall(prose(page)) if Path(name).suffix not in (".jsonl", ".json", ".yaml")]
    assert [name for name in named if not is_setting(name)] == []


def test_an_unknown_setting_is_noticed():
    assert is_setting("society.topology.size")
    assert is_setting("train.stages.stable.max_steps")
    assert is_setting("train.defaults.num_tokens")
    assert not is_setting("society.topologi.size")
    assert not is_setting("train.stages.stable.no_such_setting")


# --- blocks ----------------------------------------------------------------------------------------


def test_every_block_that_could_be_run_is_marked():
    unmarked = [str(block) for block in BLOCKS if block.language in EXECUTABLE and block.mark is None]
    assert unmarked == [], "put <!-- run --> or <!-- not run: why --> on the line before (tests/pages.py)"


def test_some_blocks_are_run_and_a_mark_is_on_nothing_else():
    assert len([block for block in BLOCKS if block.mark == "run"]) >= 5
    assert [str(block) for block in BLOCKS if block.mark and block.language not in EXECUTABLE] == []


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_command_of_salign_is_one_that_exists(block):
    for words in commands(block):
        found = project_command(words)
        if found is None:
            continue
        name, arguments = found
        assert name in COMMANDS or name == "COMMAND", words
        if name == "COMMAND":
            continue
        sub = arguments[:1] if name == "dashboard" and arguments[0] in ("check", "apply", "sync") else []
        given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        assert given <= known_options(name, *sub), words


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_config_on_a_command_line_is_valid(block, starter, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(block):
        found = project_command(words)
        if found is None or found[0] != "launch":
            continue
        arguments = [word for word in found[1] if not word.startswith("--") and word not in ("...", "|")]
        files = [word for word in arguments if "=" not in word]
        assert len(files) <= 1, words
        path = ROOT / files[0] if files else compose.shipped("quickstart.yaml")
        compose.load(path if path.exists() else starter, [word for word in arguments if "=" in word])


@pytest.mark.parametrize(
    "block", [one for one in BLOCKS if one.language == "yaml" and one.page.name != "sites.md"], ids=str
)  # those of sites: test_sites.py
def test_every_piece_of_a_config_is_valid(block, tmp_path):
    """Over the quickstart; relative to configs/, as the shipped files have their paths."""
    tree = yaml.safe_load(block.text)
    assert set(tree) <= {*Config.model_fields, "bases"}, f"{block}: write it from the top of a config"
    path = ROOT / "configs" / "quickstart.yaml"
    piece = tmp_path / "piece.yaml"
    piece.write_text(yaml.safe_dump({"bases": [str(path)], **tree}), encoding="utf-8")
    compose.load(piece)


# --- troubleshooting -------------------------------------------------------------------------------

# What others say: a shell, Slurm.
_NOT_OURS = {"salign: command not found", "OUT_OF_MEMORY", "NODE_FAIL", "TIMEOUT", "DependencyNeverSatisfied"}


def spoken() -> str:
    """Every text in the code, with a bar for what is filled in, and what is no Python."""
    found = [(ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "salign/cluster/slurm/job.sh")]
    for path in (ROOT / "salign").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "|" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_message_in_troubleshooting_is_one_that_the_code_says():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 60
    said = spoken()
    unknown = []
    for message in messages:
        parts = [part.strip() for part in re.split(r"\.\.\.|\b[NM]\b|\?", message)]
        if message not in _NOT_OURS and not all(part in said for part in parts):
            unknown.append(message)
    assert unknown == []


def test_every_test_that_the_page_of_faults_names_exists():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)`", page)
    there = re.findall(
        r"^(?:async )?def (test_\w+)",
        "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py")),
        re.MULTILINE,
    )
    assert len(named) > 30
    assert set(named) - set(there) == set()
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert [row for row in rows if "`test_" not in row.rsplit(" | ", 1)[-1]] == []


# --- the pages that the code makes -----------------------------------------------------------------


def test_the_configuration_reference_is_that_of_the_code():
    """Made by `salign config > docs/config.md`."""
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == reference()


def test_every_setting_of_the_society_says_what_it_is_for():
    """Sections as well as settings; a name and type that need no explanation may have none."""
    page = reference()
    for name in ("recall_share", "max_recall_distance", "stopping", "num_rating_retries", "min_digit_mass", "wording"):
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert not line.endswith("|  |"), name


def test_the_readme_and_its_picture_are_small():
    assert len((ROOT / "README.md").read_bytes()) <= 12_000
    assert (ROOT / "docs" / "images" / "report.png").stat().st_size <= 300_000


def test_no_page_refers_to_a_document_that_is_not_in_the_repository():
    for folder in ("configs", "docs", "jobs", "salign", "slurm"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".md", ".py", ".yaml", ".sh", ".sbatch"):
                text = path.read_text(encoding="utf-8")
                assert not re.search(r"\(method: section|design notes|\.\./shared/|shared/design", text), path
