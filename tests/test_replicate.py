"The runner: what it refuses, how it fails, what it writes."
import json, shutil, subprocess, sys
from pathlib import Path
import nbformat as nbf
import pytest
from compeffdist.replicate import (
    Kernels, Progress, _environment, _tidy, check_parameters, git_commit, main, notebooks, replicate,
    run_notebook, warm_modules
)
from compeffdist.settings import UserError, load_settings, project_root

ROOT = project_root(Path(__file__))

def notebook(path, *code, tags=("parameters",)):
    nb = nbf.v4.new_notebook(cells=[nbf.v4.new_code_cell(c) for c in code])
    nb.metadata["kernelspec"] = dict(name="python3", display_name="python3", language="python")
    if tags: nb.cells[0].metadata["tags"] = list(tags)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbf.write(nb, path)
    return path

@pytest.fixture
def project(tmp_path, monkeypatch):
    "A small project of its own: settings, notebooks, outputs."
    shutil.copy(ROOT/"settings.ini", tmp_path)
    (tmp_path/"nbs").mkdir()
    monkeypatch.setenv("COMPEFFDIST_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path

def test_a_notebook_without_its_parameters_cell_is_refused(project):
    with pytest.raises(UserError, match="0 cells tagged"):
        check_parameters(notebook(project/"nbs/00_a.ipynb", "profile = 'tiny'", tags=()), {})

def test_an_unknown_parameter_is_refused_before_anything_runs(project, capsys):
    notebook(project/"nbs/00_a.ipynb", "profile = 'tiny'", "open('ran', 'w')")
    assert main(["--profile", "tiny", "-p", "shoots", "4"]) == 2
    assert (
        "no parameter 'shoots'" in capsys.readouterr().err
        and not (project/"ran").exists() and not (project/"nbs/ran").exists()
    )

def test_parameters_reach_the_notebook(project):
    notebook(
        project/"nbs/00_a.ipynb", "profile = 'x'\nshots = 1",
        "import json; json.dump([profile, shots], open('got.json', 'w'))"
    )
    replicate("mini", parameters=dict(shots=3))
    assert json.loads((project/"nbs/got.json").read_text()) == ["mini", 3]

def test_a_users_mistake_ends_in_one_line_and_status_2(project, capsys):
    notebook(
        project/"nbs/00_a.ipynb", "profile = 'tiny'",
        "from compeffdist.settings import UserError\n"
        "raise UserError('the server is down. Start it.')"
    )
    assert main([]) == 2
    assert (
        "00_a, cell" in (err := capsys.readouterr().err)
        and "the server is down. Start it." in err
        and "Traceback" not in err
    )

def test_our_mistake_ends_in_status_1_and_names_the_executed_notebook(project, capsys):
    notebook(project/"nbs/00_a.ipynb", "profile = 'tiny'", "1/0")
    assert main([]) == 1
    assert "ZeroDivisionError" in (err := capsys.readouterr().err) and "notebooks/00_a.ipynb" in err

def test_what_ran_before_a_failure_is_kept(project):
    notebook(project/"nbs/00_a.ipynb", "profile = 'tiny'", "x = 1")
    notebook(project/"nbs/01_b.ipynb", "profile = 'tiny'", "1/0")
    assert main([]) == 1
    manifest = json.loads((project/"outputs/tiny/manifest.json").read_text())
    assert list(manifest["notebooks"]) == ["00_a"] and (project/"outputs/tiny/notebooks/00_a.ipynb").is_file()

def test_an_executed_notebook_names_no_folder_and_no_hour(project):
    notebook(project/"nbs/00_a.ipynb", "profile = 'tiny'", "from pathlib import Path\nprint(Path.cwd())")
    replicate("tiny")
    text = (project/"outputs/tiny/notebooks/00_a.ipynb").read_text(encoding="utf-8")
    made = nbf.reads(text, 4)
    assert (
        "./nbs" in made.cells[-1].outputs[0].text
        and str(project) not in text
        and "execution" not in made.cells[-1].metadata
        and made.metadata.papermill == dict(parameters=dict(profile="tiny"))
    )
    nbf.validate(made)
    notebook(project/"nbs/00_a.ipynb", "profile = 'tiny'", "from pathlib import Path\nraise OSError(Path.cwd())")
    assert (
        main([]) == 1
        and str(project) not in (project/"outputs/tiny/notebooks/00_a.ipynb").read_text(encoding="utf-8")
    )
    (project/"half.ipynb").write_text('{"cells": [', encoding="utf-8")
    _tidy(project/"half.ipynb", project) # a file that was not finished does not hide what stopped the run

def test_manifest_and_index_tell_what_was_run(project):
    code = (
        "from compeffdist.settings import load_settings\n"
        "from compeffdist.store import Store, write_rows\n"
        "from compeffdist.figures import save_table\n"
        "import pandas as pd\n"
        "s = Store(load_settings(profile))\n"
        "s.stage('one', lambda out, work: write_rows(out/'x.parquet', [dict(a=1)]) or dict(rows_out=1))\n"
        "save_table(s, 'tab-x', pd.DataFrame(dict(a=[1])), 'One.')"
    )
    notebook(project/"nbs/00_a.ipynb", "profile = 'tiny'", code)
    index = replicate("tiny")
    manifest = json.loads((project/"outputs/tiny/manifest.json").read_text())
    assert (
        manifest["stages"]["one"]["counts"] == dict(rows_out=1)
        and "tab-x.csv" in manifest["tables"]
        and manifest["settings"]["seed"] == 42
    )
    assert str(project) not in json.dumps(manifest), "no path of this machine in what is committed"
    assert (
        "tab-x" in index.read_text()
        and "notebooks/00_a.ipynb" in index.read_text()
        and str(project) not in index.read_text()
    )

def test_the_order_is_the_number(project):
    for name in ("02a_b", "02_a", "10_c", "00_z"): notebook(project/f"nbs/{name}.ipynb", "profile = 'tiny'")
    assert (
        [p.stem for p in notebooks()] == ["00_z", "02_a", "02a_b", "10_c"]
        and [p.stem for p in notebooks(["02"])] == ["02_a", "02a_b"]
    )

def test_commit_outside_a_checkout_is_unknown(tmp_path): assert git_commit(tmp_path) == "unknown"

def test_the_command_exits_with_its_status(project):
    done = subprocess.run(
        [sys.executable, "-m", "compeffdist.replicate", "--profile", "no"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Allowed: tiny, mini, gpu, paper" in done.stderr

COUNTED = """from pathlib import Path
from compeffdist.settings import load_settings
from compeffdist.store import Store, write_rows
from compeffdist.figures import save_table
import pandas as pd
ran = Path('ran.txt'); ran.write_text(ran.read_text() + 'x' if ran.is_file() else 'x')
s = Store(load_settings(profile))
s.stage('one', lambda out, work: write_rows(out/'a.parquet', [dict(a=1)]) and {}, params=dict(seed=s.settings.seed))
save_table(s, 'tab-x', pd.DataFrame(dict(a=[1])), 'A caption.')"""

@pytest.fixture
def counted(project):
    notebook(project/"nbs/00_a.ipynb", "profile = 'tiny'", COUNTED)
    replicate("tiny")
    return project, lambda: len((project/"nbs/ran.txt").read_text())

def test_nothing_changed_means_nothing_is_opened(counted, capsys):
    project, times = counted
    built = json.loads((project/"outputs/tiny/manifest.json").read_text())
    assert built["stages_built"] == ["one"]
    replicate("tiny")
    manifest = json.loads((project/"outputs/tiny/manifest.json").read_text())
    assert (
        times() == 1
        and "unchanged, not run" in capsys.readouterr().out
        and manifest["unchanged"] == ["00_a"]
        and manifest["stages_built"] == built["stages_built"] and manifest["seconds"] == built["seconds"]
        and manifest["seconds_unchanged"] < 60 and "seconds_unchanged" not in built
        and manifest["notebooks"]["00_a"] > 0
    )
    replicate("tiny", rerun=True)
    assert times() == 2

def test_a_stage_rebuilt_with_other_content_opens_what_read_it(counted):
    "The fingerprint says from what a stage was made; what it contains may differ, e.g. when a model wrote it."
    project, times = counted
    from compeffdist.settings import load_settings
    from compeffdist.store import Store, write_rows
    store = Store(load_settings("tiny", outputs=str(project/"outputs")))
    old = store.stages()[0]
    shutil.rmtree(store.artifacts/"one")
    store.stage(
        "one", lambda out, work: write_rows(out/"a.parquet", [dict(a=2)]) and {},
        params=dict(seed=store.settings.seed)
    )
    assert (
        store.stages()[0]["fingerprint"] == old["fingerprint"]
        and store.stages()[0]["outputs"] != old["outputs"]
    )
    replicate("tiny")
    assert times() == 2

def test_a_stage_rebuilt_by_a_later_notebook_opens_no_earlier_one(counted, monkeypatch, capsys):
    project, times = counted
    notebook(
        project/"nbs/01_b.ipynb", "profile = 'tiny'",
        COUNTED.replace("ran.txt", "ran_b.txt").replace("'one'", "'two'")
        .replace("s.settings.seed", "s.settings.shots").replace("tab-x", "tab-y")
    )
    replicate("tiny")
    monkeypatch.setenv("COMPEFFDIST_SHOTS", "3"); replicate("tiny") # opens both; the first sees the old stage two
    assert times() == 2 and (project/"nbs/ran_b.txt").read_text() == "xx"
    replicate("tiny")
    assert times() == 2 and (project/"nbs/ran_b.txt").read_text() == "xx"

def _edit(project): notebook(project/"nbs/00_a.ipynb", "profile = 'tiny'", COUNTED + "\nmore = 1")
def _package(project): (project/"compeffdist").mkdir(); (project/"compeffdist/new.py").write_text("x = 1")

@pytest.mark.parametrize("change", [
    _edit, _package,
    lambda p: (p/"outputs/tiny/tables/tab-x.csv").unlink(),
    lambda p: (p/"outputs/tiny/tables/tab-x.csv").write_text("a\n2\n"),
    lambda p: shutil.rmtree(p/"outputs/tiny/artifacts/one"),
    lambda p: (p/"outputs/tiny/artifacts/one/a.parquet").write_bytes(b"torn"),
    lambda p: (p/"outputs/tiny/notebooks/00_a.run.json").write_text("{ torn"),
    lambda p: (p/"outputs/tiny/notebooks/00_a.ipynb").unlink()
], ids="notebook package table-gone table-changed stage-gone stage-torn record-torn copy-gone".split())
def test_any_change_opens_the_notebook_again(counted, change):
    project, times = counted
    change(project)
    replicate("tiny")
    assert times() == 2
    replicate("tiny")
    assert times() == 2

def test_a_setting_opens_the_notebook_again(counted, monkeypatch):
    project, times = counted
    monkeypatch.setenv("COMPEFFDIST_SHOTS", "3"); replicate("tiny")
    assert times() == 2

def test_progress_of_a_long_cell_reaches_terminal_and_log_while_it_runs(project, capsys, monkeypatch):
    import re
    monkeypatch.setattr("compeffdist.replicate.Progress.__init__.__defaults__", (0.5,), raising=True)
    notebook(
        project/"nbs/00_a.ipynb", "profile = 'tiny'",
        "import time\n"
        "from tqdm import tqdm\n"
        "for _ in tqdm(range(40), desc='rows', mininterval=0.2): time.sleep(0.1)"
    )
    assert main([]) == 0
    shown = [int(n) for n in re.findall(r"rows: .*\| (\d+)/40 \[", capsys.readouterr().out)]
    assert len(set(shown)) >= 3 and shown == sorted(shown)
    assert "40/40" in (project/"outputs/tiny/log.txt").read_text()
    stream = [
        o
        for c in json.loads((project/"outputs/tiny/notebooks/00_a.ipynb").read_text())["cells"]
        for o in c.get("outputs", [])
    ]
    # one bar in the executed copy, not one for each step
    assert len(stream) == 1 and "".join(stream[0]["text"]).count("rows:") == 1

def test_the_log_is_closed_at_the_end_also_of_a_run_that_fails(project, monkeypatch):
    import logging
    made = []
    class Kept(Progress):
        def __init__(self, log): super().__init__(log); made.append(self)
    monkeypatch.setattr("compeffdist.replicate.Progress", Kept)
    notebook(project/"nbs/00_a.ipynb", "profile = 'tiny'", "1/0")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"): replicate("tiny")
    assert made[0].file.closed and not logging.getLogger("papermill").handlers

@pytest.mark.parametrize("given, offline", [
    ({}, True), (dict(fsa_model="google-t5/t5-base"), False),
    (dict(fsa_model="google-t5/t5-base", fsa="none"), True),
    (dict(difficulty_model="HuggingFaceTB/SmolLM2-135M"), False),
    (dict(difficulty_proxies="package:qwen3, HuggingFaceTB/SmolLM2-135M"), False),
    (dict(student_source="hub"), False)
])
def test_a_run_is_offline_unless_a_setting_names_the_hub(given, offline):
    env = _environment(load_settings("tiny", **given))
    assert [env.get(f"{k}_OFFLINE") for k in ("HF_HUB", "TRANSFORMERS")] == ["1" if offline else None]*2

def alive(pid):
    try: return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError: return False

def test_a_kernel_started_ahead_runs_its_notebook_and_ends(project):
    path = notebook(
        project/"nbs/00_a.ipynb", "profile = 'tiny'",
        "import os, sys, json\n"
        "repr('import pandas as pd')\n"
        "json.dump([os.getpid(), 'pandas' in sys.modules, get_ipython().history_manager.hist_file, "
        "sorted(n for n in globals() if not n.startswith('_'))], open('got.json', 'w'))"
    )
    assert warm_modules(path) == ["pandas"]
    kernels = Kernels()
    try:
        kernels.prepare([path]); kernels.prepare([path])
        ahead = kernels.started[path].provisioner.pid
        run_notebook(path, project/"out.ipynb", dict(profile="tiny"), kernels)
    finally: kernels.close()
    pid, warm, history, names = json.loads((project/"nbs/got.json").read_text())
    assert pid == ahead and warm and history == ":memory:" and not alive(pid) and not kernels.started
    # warming up leaves no name behind
    assert set(names) <= {"In", "Out", "exit", "get_ipython", "open", "quit", "profile", "os", "sys", "json"}

def test_kernels_whose_notebooks_do_not_run_are_ended(project, monkeypatch):
    notebook(project/"nbs/00_a.ipynb", "profile = 'tiny'", "1/0")
    notebook(project/"nbs/01_b.ipynb", "profile = 'tiny'", "x = 1")
    ahead, close = [], Kernels.close
    monkeypatch.setattr(Kernels, "close", lambda self: (
        ahead.extend(k.provisioner.pid for k in self.started.values()), close(self)
    ))
    assert main([]) == 1
    assert len(ahead) == 1 and not alive(ahead[0])

def test_a_kernel_that_was_ended_while_it_waited_is_replaced(project):
    import os, signal
    path = notebook(project/"nbs/00_a.ipynb", "profile = 'tiny'", "x = 1")
    kernels = Kernels()
    kernels.prepare([path])
    os.kill(pid := kernels.started[path].provisioner.pid, signal.SIGKILL)
    while alive(pid): pass
    assert run_notebook(path, project/"out.ipynb", dict(profile="tiny"), kernels) > 0 and not kernels.started

def test_a_changed_benchmark_folder_of_either_kind_is_seen(tmp_path, monkeypatch):
    from compeffdist.replicate import _public, run_key
    from compeffdist.settings import load_settings
    for key in ("sentibench", "fsa"):
        folder = tmp_path/key; folder.mkdir(); (folder/"train.json").write_text("[]")
        settings = load_settings("tiny", **{key: str(folder)})
        before = run_key(settings, {})
        assert run_key(settings, {}) == before and _public(settings)[key] == key
        (folder/"train.json").write_text("[1]")
        after = run_key(settings, {})
        assert {k for k in before if before[k] != after[k]} == {"benchmark"}


def test_outputs_of_clones_are_compared_wherever_the_clones_lie(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT/"benchmarks")
    from same_outputs import files
    root = tmp_path/"a.work.b"/"outputs/tiny"
    for name in ("tables/a.csv", "artifacts/one/b.json", "artifacts/one.work/c.json"):
        (root/name).parent.mkdir(parents=True, exist_ok=True); (root/name).write_text("x")
    assert set(files(str(tmp_path/"a.work.b"), "tiny")) == {"tables/a.csv", "artifacts/one/b.json"}
