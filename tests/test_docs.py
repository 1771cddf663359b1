"""The pages of docs/: every command and snippet runs, and the site builds without warnings."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = sorted(
    p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md") if BLOCK.search(p.read_text())
)

# Optional packages that a page's snippets use.
NEEDS = {
    "tutorial.md": ("matplotlib", "plotly", "sklearn"),
    "published.md": ("pymatgen",),
    "cgcnn_alignn.md": ("ase",),
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder with what the commands take from the repository, to run them in."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of other packages; a page's own show in its output
@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_snippet_runs(page, repository):
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package)
    names: dict = {"__name__": "__main__"}
    for language, code in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(code, page, "exec"), names)
            continue
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True, timeout=300
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


def test_the_changelog_tells_of_this_version():
    assert f"\n## {version('sitenet')}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what CFF asks for
    paper = citation["preferred-citation"]
    assert paper["doi"] == "10.1039/D3DD00005B"
    assert [a["family-names"] for a in paper["authors"]] == [
        "Moran",
        "Gaultois",
        "Gusev",
        "Rosseinsky",
    ]
