"""The pages of docs/: every command and snippet runs, and the site builds without warnings."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from sitenet.config import load_config

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(bash|python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted(
    p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md") if BLOCK.search(p.read_text())
)

# Optional packages that a page's snippets use.
NEEDS = {
    "cgcnn_alignn.md": ("ase",),
    "embeddings.md": ("matplotlib", "sklearn"),
    "formats.md": ("ase",),
    "published.md": ("pymatgen",),
    "serve.md": ("starlette", "uvicorn", "python_multipart"),
    "what_changes.md": ("pandas", "plotly"),
    "tutorial.md": ("matplotlib", "plotly", "sklearn", "optuna"),
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder to run commands in, with the examples: the crystals that a page names, and an eighth
    of the others."""
    example = Path("examples", "semiconductors")
    (tmp_path / example).mkdir(parents=True)
    text = "".join(p.read_text(encoding="utf-8") for p in DOCS.rglob("*.md"))
    header, *rows = (ROOT / example / "targets.csv").read_text().splitlines()
    rows = [row for k, row in enumerate(rows) if k % 8 == 0 or row.partition(",")[0] in text]
    (tmp_path / example / "targets.csv").write_text("\n".join([header, *rows, ""]))
    for row in rows:
        name = f"{row.partition(',')[0]}.cif"
        shutil.copy(ROOT / example / name, tmp_path / example / name)
    monkeypatch.chdir(tmp_path)
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # from other packages; a page's own are in its output
@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_snippet_runs(page, repository):
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package)
    names: dict = {"__name__": "__main__"}
    for language, code in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(code, page, "exec"), names)
            continue
        if language == "yaml":
            load_config(yaml.safe_load(code))
            continue
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True, timeout=1800
        )
        assert run.returncode == 0, f"{page}:\n{code}\n{run.stdout}{run.stderr}"
        assert "Traceback" not in run.stderr and "Warning" not in run.stderr, run.stderr


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and not run.stderr, run.stderr
    reference = (tmp_path / "api.html").read_text(encoding="utf-8")
    import sitenet

    public = set(sitenet.__all__) - {"__version__", "info"}
    missing = {
        name for name in public if f">{name}<" not in reference and f'.{name}"' not in reference
    }
    assert not missing


def test_every_name_of_the_reference_can_be_imported():
    """As its heading writes it, with the members that the page lists."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    entries = re.findall(r"^::: (\S+)$", page, re.M)
    assert len(entries) > 30
    import sitenet

    for name in entries:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
        assert module != "sitenet" or attribute in sitenet.__all__, name
    listed = re.findall(r"^::: (\S+)\n    options:\n      members: \[(.*)\]$", page, re.M)
    assert len(listed) == 4
    for name, members in listed:
        module, _, attribute = name.rpartition(".")
        thing = getattr(importlib.import_module(module), attribute)
        for member in members.split(", "):
            assert hasattr(thing, member), f"{name}.{member}"
    public = set(sitenet.__all__) - {"__version__", "info"}
    assert public <= {name.removeprefix("sitenet.") for name in entries}


def test_the_menu_has_every_page():
    config = re.sub(r"!\S+", "", (ROOT / "mkdocs.yml").read_text())
    config = yaml.safe_load(config)
    pages = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")}
    assert pages - set(re.findall(r"[\w/-]+\.md", str(config["nav"]))) == {"model_card.md"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_within_the_repository_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_changelog_has_this_version_and_the_next():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", text, re.M)[:2] == ["Unreleased", version("sitenet")]


def test_the_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # required by CFF
    paper = citation["preferred-citation"]
    assert paper["doi"] == "10.1039/D3DD00005B"
    assert [a["family-names"] for a in paper["authors"]] == [
        "Moran",
        "Gaultois",
        "Gusev",
        "Rosseinsky",
    ]
