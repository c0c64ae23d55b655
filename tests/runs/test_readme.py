"""README.md, bench/README.md and the guides: figures are up to date, links lead somewhere, snippets and commands work."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from hub_model.card import snippets
from runs.readme import BENCH, README, ROOT, filled
from tests.parsers import actions, parser_of

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), BENCH, ROOT / "tests" / "FAULTS.md"]
PROGRAMS = {  # and the modules with their `main`
    **{name: f"{name}.__main__" for name in ("bench", "dataset_script", "hub_model", "local_hub", "space")},
    **{name: name for name in ("runs.publish", "runs.readme", "train_accelerate")},
}
# options of accelerate, torchrun and hf
OTHERS = {"--multi_gpu", "--num_processes", "--nproc_per_node", "--attempts"}
# Commands of the README and what runs them: a test, with other names and sizes, or a person.
RUN_BY = {
    "make run": "by hand: minutes of training; every stage has tests of its own",
    "make space": "tests/runs/test_space.py::test_the_second_time_nothing_is_built_or_pushed",
    "python -m hub_model score": "tests/hub_model/test_score.py::test_every_image_is_a_row_in_the_order_of_the_paths",
    "python -m space build": "tests/space/test_static.py::test_200_cells_are_answered_as_in_python_offline_and_nothing_is_sent",
    "python -m http.server": "by hand: Python's own",
    "python -m dataset_script build": "tests/dataset_script/test_build.py::test_stored_bytes_are_the_files_bytes",
    "accelerate launch": "tests/stress/test_training_kills.py",
    "python -m hub_model build": "tests/hub_model/test_build.py::test_every_number_of_the_card_is_that_of_the_logits",
    "hf auth login": "by hand: it needs an account",
    "make publish": "tests/runs/test_publish.py::test_three_linked_repos_and_a_collection_and_nothing_on_a_rerun",
}


@pytest.mark.parametrize(("page", "lines"), [(README, 180), (BENCH, 120)], ids=["README", "bench"])
def test_figures_are_those_of_their_files_and_the_page_stays_short(page, lines):
    text = page.read_text()
    assert filled(text) == text, "run python -m runs.readme"
    assert len(text.splitlines()) <= lines


def test_every_relative_link_leads_to_a_file():
    target = r"\]\((?!https?:|#)([^)#]+)"
    links = [(page, link) for page in PAGES for link in re.findall(target, page.read_text())]
    assert len(links) > 15
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_the_screenshot_is_small():
    assert 10_000 < (ROOT / "docs" / "screenshot.png").stat().st_size <= 200_000


def test_the_snippets_run_in_a_clone(tmp_path):
    (tmp_path / "hub_model").symlink_to(ROOT / "hub_model")
    Image.new("RGB", (250, 250), "white").save(tmp_path / "cell.jpg")
    program = "\n".join(snippets(README.read_text()))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'label': '" in done.stdout


# ---- commands
def code_lines(text: str) -> Iterator[str]:
    """The lines of a page's shell code, with continued lines joined and without comments."""
    fenced = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    unfenced = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    indented = re.findall(r"(?:^ {4}(?! ).+\n)+", unfenced, re.MULTILINE)
    for block in (*fenced, *indented):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if code := re.sub(r"(^|\s)#.*", "", line).strip():
                yield code


def options_of(module: str) -> set[str]:
    """Every option of a program and of its commands."""
    return {option for _, action in actions(parser_of(module)) for option in action.option_strings}


def our_commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The project's own programs in a page's shell code, each with its arguments."""
    for line in code_lines(text):
        for match in re.finditer(r"(?:python -m |(?=train_accelerate\.py))([\w.]+?)(?:\.py)?(?= |$)", line):
            if match[1] in PROGRAMS:
                yield match[1], shlex.split(re.split(r"&&|\||'(?:\s|$)", line[match.end() :])[0])


def test_every_command_of_the_readme_is_run_by_a_test_or_listed_as_untested():
    commands = list(code_lines(README.read_text()))
    starts = {command: [start for start in RUN_BY if command.startswith(start)] for command in commands}
    assert [command for command, matches in starts.items() if len(matches) != 1] == []
    assert {start for matches in starts.values() for start in matches} == set(RUN_BY)
    for test in (test for test in RUN_BY.values() if test.startswith("tests/")):
        path, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / path).read_text(), test


def test_every_command_of_a_page_is_accepted_by_its_program():
    commands = [command for page in PAGES for command in our_commands(page.read_text())]
    assert len(commands) > 15
    for program, arguments in commands:
        parser_of(PROGRAMS[program]).parse_args(arguments)


@pytest.mark.parametrize("page", [README, *(ROOT / "docs").glob("*.md")], ids=lambda page: page.stem)
def test_every_option_and_target_that_a_page_names_exists(page):
    text, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    known = OTHERS.union(*(options_of(module) for module in PROGRAMS.values()))
    assert set(re.findall(r"`(--[a-z_-]+)", text)) - known == set()
    targets = re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


def test_the_options_of_hf_jobs_are_those_of_the_client():
    lines = code_lines((ROOT / "docs" / "scaling.md").read_text())
    command = next(line for line in lines if line.startswith("hf jobs run")).partition(" bash -c ")[0]
    named = set(re.findall(r" (--?[a-z-]+)", command))
    page = subprocess.check_output([Path(sys.executable).with_name("hf"), "jobs", "run", "--help"], text=True)
    assert named >= {"--flavor", "--secrets", "-e"}
    assert [option for option in named if not re.search(rf"(^|[\s,]){option}\b", page)] == []
