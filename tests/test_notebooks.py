"""The notebooks are the source: each has its fixed parts, is clean,
and exports exactly the package that is checked in."""
import json, shutil, subprocess, sys
from pathlib import Path
import pytest
from compeffdist.settings import project_root

ROOT = project_root(Path(__file__))
NOTEBOOKS = sorted((ROOT/"nbs").glob("[0-9]*.ipynb"))
cells = lambda path: json.loads(path.read_text(encoding="utf-8"))["cells"]
source = lambda cell: "".join(cell["source"])
named = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)

@named
def test_opening(path):
    first, *rest = cells(path)
    assert (
        first["cell_type"] == "markdown"
        and source(first).startswith("# ") and "\n> " in source(first)
        and len(source(first)) > 200
    )
    parameters = [c for c in rest if "parameters" in c["metadata"].get("tags", [])]
    assert len(parameters) == 1 and 'profile = "tiny"' in source(parameters[0])

@named
def test_size_and_prose(path):
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    assert len(cells(path)) <= 80
    assert max(len(source(c).splitlines()) for c in code) <= 40
    prose = sum(len(source(c).split()) for c in cells(path) if c["cell_type"] == "markdown")
    assert prose > 120

@named
def test_no_line_of_code_is_wider_than_a_screen(path):
    wide = [l for c in cells(path) if c["cell_type"] == "code" for l in source(c).splitlines() if len(l) > 119]
    assert not wide, wide

def test_no_line_of_tests_and_benchmarks_is_wider_than_a_screen():
    files = [*(ROOT/"tests").glob("*.py"), *(ROOT/"benchmarks").glob("*.py")]
    wide = [f"{f.name}:{i}" for f in files for i, l in enumerate(f.read_text().splitlines(), 1) if len(l) > 119]
    assert len(files) > 30 and not wide, wide

@named
def test_no_notebook_ends_itself(path):
    "papermill counts an exit with a message as a failure, and the runner stops."
    assert not any(
        "SystemExit" in source(c) or "sys.exit(" in source(c)
        for c in cells(path)
        if c["cell_type"] == "code" and "#| export" not in source(c)
    )

@named
def test_imports_of_the_package_have_a_cell_of_their_own(path):
    for cell in cells(path):
        lines = [l for l in source(cell).splitlines() if l.strip() and not l.startswith("#")]
        if (
            cell["cell_type"] == "code" and source(cell).startswith("#| export")
            and lines and lines[0].startswith(("import ", "from "))
        ):
            block = [l for l in lines if l.startswith(("def ", "class "))]
            assert not block, source(cell)[:200]

@named
def test_results_notebooks_export_nothing_and_never_train(path):
    text = "\n".join(source(c) for c in cells(path) if c["cell_type"] == "code")
    assert ("#| default_exp" in text) == (int(path.stem[:2]) < 20)
    if int(path.stem[:2]) >= 20:
        working = (
            "student_stage", "evaluation_stage", ".stage(", "finetune", "train_t5", "run_jobs", "base_stage",
            "ablation_stages", "construction_stage", "load_teacher", "generate(", ".backward(")
        assert not [w for w in working if w in text]

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "compeffdist"):
        shutil.copytree(
            ROOT/name, folder/name,
            ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "students")
        )
    for name in ("pyproject.toml", "settings.ini"): shutil.copy(ROOT/name, folder)
    return folder

def test_package_is_what_the_notebooks_export(copy):
    before = {p.name: p.read_text() for p in (copy/"compeffdist").glob("*.py")}
    for p in (copy/"compeffdist").glob("*.py"):
        if p.name != "__init__.py": p.unlink()
    subprocess.run([Path(sys.executable).parent/"nbdev-export"], cwd=copy, check=True, capture_output=True)
    after = {p.name: p.read_text() for p in (copy/"compeffdist").glob("*.py")}
    assert {n for n in before | after if before.get(n) != after.get(n)} == set(), (
        "edit the notebook, then run: make sync"
    )

def test_notebooks_are_clean(copy):
    before = {p.name: p.read_text() for p in (copy/"nbs").glob("*.ipynb")}
    subprocess.run([Path(sys.executable).parent/"nbdev-clean"], cwd=copy, check=True, capture_output=True)
    assert {p.name for p in (copy/"nbs").glob("*.ipynb") if before[p.name] != p.read_text()} == set(), "run: make sync"
    assert all(not c.get("outputs") for p in NOTEBOOKS for c in cells(p)), (
        "outputs belong to outputs/<profile>/notebooks; nbs/ holds source only"
    )
