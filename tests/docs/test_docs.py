"""The documentation is true: its code runs, its commands parse and run, its links lead somewhere."""

from __future__ import annotations

import doctest
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unixkd
from unixkd.cli.main import main, parse
from unixkd.cli.options import COMMANDS, check_names
from unixkd.method.unix import METHODS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DOCS = [page for page in PAGES if page.parent != ROOT or page.name == "README.md"]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
each_doc = pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in any of these languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def commands(page: Path, *languages: str) -> list[list[str]]:
    """The words of every line of a page's shell blocks that calls unixkd."""
    lines = "".join(blocks(page, *languages)).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("unixkd ")]


def write_files(page: Path) -> None:
    """Write the YAML and Python blocks whose first line names a file into the current folder."""
    for text in blocks(page, "yaml", "python"):
        if name := re.match(r"# ([\w.-]+\.(?:yaml|py))\n", text):
            Path(name[1]).write_text(text)


@pytest.fixture
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that torchrun gives to a single process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


@each_doc
@pytest.mark.usefixtures("_one_process")
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for number, text in enumerate(blocks(page, "python"), start=1):
        where = f"{page.name}, block {number}"
        if ">>>" in text:
            names = run_doctest(text, names, where)
        else:
            exec(compile(text, where, "exec"), names)


def run_doctest(text: str, names: dict[str, Any], where: str) -> dict[str, Any]:
    """Run a block with prompts; the names it leaves."""
    test = doctest.DocTestParser().get_doctest(text, names, where, where, 0)
    complaints: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=complaints.append, clear_globs=False)
    assert not complaints, "".join(complaints)
    return test.globs


@each_doc
def test_commands_parse(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(page)
    for name, *words in commands(page, "bash", "sh"):
        for option, value in pairwise(words):
            if option == "--config" and not Path(value).exists():  # a run folder that would be there
                Path(value).parent.mkdir(parents=True, exist_ok=True)
                Path(value).write_text("{}\n")
        check_names(parse(name, words))


def target_of(page: Path, link: str) -> tuple[Path, str]:
    path, _, anchor = link.partition("#")
    return (page.parent / path).resolve() if path else page, anchor


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        target, anchor = target_of(page, link)
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


FLAGS_OF_THE_REFERENCE = {
    *("--epoch", "--batch-size", "--k", "--b", "--w", "--lr", "--momentum", "--weight-decay", "--milestones"),
    *("--teacher-path", "--teacher-ckpt", "--student-arch", "--ce-weight", "--kd-weight", "--other-distill"),
    *("--T", "--strategy", "--seed", "--gpu-id"),
}


def test_each_flag_of_the_reference_has_a_row_whose_options_parse():
    """The rows' options together are the published run's, as the recipe has it."""
    page = ROOT / "docs" / "from-reference.md"
    rows = re.findall(r"^\| (`--.*?) \| (`--.*?) \|", page.read_text(), re.MULTILINE)
    assert {flag for left, _ in rows for flag in re.findall(r"--[\w-]+", left)} == FLAGS_OF_THE_REFERENCE
    for _, right in rows:
        words = shlex.split(re.match(r"`(.*?)`", right)[1])
        check_names(parse("distill", [word.replace("ARCH", "vgg13") for word in words]))
    recipe, *_ = found = [parse("distill", words) for _, *words in commands(page, "sh")]
    whole = found[-1]
    assert len(found) == 6
    assert (whole.train, whole.loss, whole.data) == (recipe.train, recipe.loss, recipe.data)
    assert [options.method.name for options in found] == ["kd", "unix", "unix-random", "unix", "unix", "unix"]
    assert [(options.loss.at, options.loss.sp) for options in found[3:5]] == [(1000, 0), (0, 3000)]
    assert METHODS["unix"]().keep == whole.method.keep


def test_every_method_has_a_card_and_every_command_an_example():
    assert {card.stem for card in (ROOT / "docs" / "methods").glob("*.md")} == set(METHODS)
    assert {name for name, *_ in commands(ROOT / "docs" / "cli.md", "bash", "sh")} == set(COMMANDS)


def test_the_api_page_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"^::: unixkd\.(\w+)$", page, re.MULTILINE)) == sorted(unixkd.__all__)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "api" / "index.html").read_text()
    assert [name for name in unixkd.__all__ if f'id="unixkd.{name}"' not in api] == []
    assert "<blockquote>" not in api  # an example that was taken for a quotation
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        assert not re.search(r'<(script|link|img)\b[^>]*\b(src|href)="https?:', text), page
        assert 'href="../benchmarks' not in text, page


def test_own_loop_example(capsys):
    with torch.random.fork_rng():
        runpy.run_path(str(ROOT / "examples" / "own_loop.py"), run_name="__main__")
    output = capsys.readouterr().out
    final = float(re.search(r"^teacher [\d.]+%, student ([\d.]+)%$", output, re.MULTILINE)[1])
    assert final > 50
    assert "images seen" in output


@pytest.fixture
def photos(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(256, size=(8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that pages call runs/teacher."""
    out = tmp_path_factory.mktemp("docs") / "teacher"
    assert main([*shlex.split("train --model wrn_16_2 --data digits"), *SHORT, "--out", str(out)]) == 0
    return out


SHORT = ("--epochs", "2", "--data.limit", "200")
"""Options that shorten a run."""
RUNNING = [page for page in DOCS if page.stem != "cli" and blocks(page, "bash")]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.stem)
def test_commands_that_need_nothing_else_run_shortened(page, teacher, tmp_path, monkeypatch):
    """Those in bash blocks; what needs data that are not here stands in sh blocks, and is parsed."""
    monkeypatch.chdir(tmp_path)
    if not any("--out runs/teacher" in text for text in blocks(page, "bash")):
        shutil.copytree(teacher, tmp_path / "runs" / "teacher")
    for words in commands(page, "bash"):
        options = SHORT if words[0] in ("train", "distill", "compare") else ()
        one_process = ["--jobs", "1"] * (words[0] == "compare")
        assert main([*words, *options, *one_process]) == 0, shlex.join(words)


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_commands_of_the_command_line_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "cli.md"
    write_files(page)
    for words in commands(page, "bash"):
        one_process = ["--jobs", "1"] * (words[0] == "compare")
        assert main([*words, *one_process]) == 0, shlex.join(words)
