"Artefacts, fingerprints, atomic writing, the record of responses."
import ast
import os, signal, subprocess, sys, time
import pytest
from pathlib import Path
from compeffdist import store as store_module
from compeffdist.settings import UserError, load_settings, project_root
from compeffdist.store import (
    ResponseRecord, Store, atomic, code_digest, content_hash, derive_seed,
    read_json, read_rows, write_json, write_rows,
)

@pytest.fixture
def settings(tmp_path): return load_settings("tiny", outputs=str(tmp_path))

def builder(calls, text="x"):
    def build(out, work):
        calls.append(1)
        (out/"a.txt").write_text(text)
        return dict(rows_out=1)
    return build

def test_a_stage_is_rebuilt_when_and_only_when_something_it_depends_on_changes(settings):
    calls, s = [], Store(settings)
    s.stage("one", builder(calls), params=dict(a=1), code=["settings"])
    s.stage("two", builder([], "y"), inputs=["one"])
    assert s.stage("one", builder(calls), params=dict(a=1), code=["settings"]).cached and len(calls) == 1
    assert s.stage("one", builder(calls), params=dict(a=2), code=["settings"]).reason.startswith("params changed (a)")
    assert s.stage("two", builder([], "y"), inputs=["one"]).cached, "the input was made again with the same contents"
    s.stage("one", builder(calls, "other"), params=dict(a=3), code=["settings"])
    assert s.stage("two", builder([], "y"), inputs=["one"]).reason == "inputs changed"

@pytest.mark.parametrize("how", [
    "from compeffdist.b import g",
    "from .b import g",
    "import compeffdist.b; g = compeffdist.b.g",
    "from . import b; g = b.g",
])
def test_code_digest_follows_imports_and_ignores_comments_and_docstrings(tmp_path, monkeypatch, how):
    package = tmp_path/"compeffdist"
    package.mkdir()
    (package/"a.py").write_text(f"def f():\n    {how}\n    return g()\n")
    (package/"b.py").write_text('def g():\n    "Doc."\n    return 1\n')
    monkeypatch.setattr(store_module, "__file__", str(package/"store.py"))
    def digest():
        store_module._code_digests.clear()
        return code_digest("a")
    first = digest()
    (package/"b.py").write_text('def g():\n    "Another."\n    return 1  # why\n')
    assert digest() == first
    (package/"b.py").write_text("def g():\n    return 2\n")
    second = digest()
    assert second != first
    (package/"data").mkdir(); (package/"data"/"b_words.json").write_text("[1]")
    assert digest() != second
    store_module._code_digests.clear()

def test_a_scoring_rule_is_part_of_every_evaluation():
    "The package itself: what a stage's modules import at their top is in its digest."
    from compeffdist.settings import project_root
    package = project_root()/"compeffdist"
    reach = {}
    for stage in ("evaluate", "corpus", "students", "lineage"):
        seen, todo = set(), [stage]
        while todo:
            if (name := todo.pop()) in seen or not (package/f"{name}.py").is_file(): continue
            seen.add(name); todo += store_module._imports(ast.parse((package/f"{name}.py").read_text()))
        reach[stage] = seen
    assert (
        {"sentibench", "teacher", "baselines"} <= reach["evaluate"]
        and "instructions" in reach["corpus"]
        and "base" in reach["students"]
        and "corpus" in reach["lineage"]
    )

def test_a_damaged_artefact_is_refused_by_readers_and_rebuilt_by_its_stage(settings):
    s = Store(settings)
    s.stage("one", builder([]))
    (s.artifacts/"one"/"a.txt").write_text("edited")
    fresh = Store(settings)
    with pytest.raises(UserError, match="a.txt changed since it was written"): fresh.path("one", "a.txt")
    assert fresh.stage("one", builder([])).reason.startswith("a.txt changed")
    assert Store(settings).path("one", "a.txt").read_text() == "x"

def test_a_missing_stage_and_a_missing_file_say_what_to_run(settings):
    s = Store(settings)
    with pytest.raises(UserError, match="make replicate"): s.path("nothing", "x")
    with pytest.raises(UserError, match="make replicate"): s.stage("two", builder([]), inputs=["nothing"])
    s.stage("one", builder([]))
    with pytest.raises(UserError, match="it has: a.txt"): s.path("one", "b.txt")

def test_a_failing_build_leaves_the_old_artefact(settings):
    s = Store(settings)
    s.stage("one", builder([]), params=dict(a=1))
    def fails(out, work): (out/"a.txt").write_text("half"); raise RuntimeError("no")
    with pytest.raises(RuntimeError): s.stage("one", fails, params=dict(a=2))
    assert Store(settings).path("one", "a.txt").read_text() == "x"

KILLED = """
import sys, time
from pathlib import Path
from compeffdist.settings import load_settings
from compeffdist.store import Store, write_rows
s = Store(load_settings("tiny", outputs=sys.argv[1]))
def build(out, work):
    for i in range(40):
        if not (work/f"{i}").exists():
            time.sleep(0.01); (work/f"{i}").write_text("done")
        (out/f"part-{i}.txt").write_text(str(i))
    write_rows(out/"rows.parquet", [dict(i=i) for i in range(40)])
print("ready", flush=True)
s.stage("one", build)
s.stage("two", lambda out, work: write_rows(out/"n.parquet", [dict(n=len(s.rows("one", "rows.parquet")))]), \
inputs=["one"])
"""

def hashes(root):
    return {
        p.relative_to(root).as_posix(): content_hash(p)
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.name != "stage.json" and ".work" not in p.parts
    }

def test_kill_at_any_moment_then_the_same_command_gives_the_same_files(tmp_path):
    script = tmp_path/"killed.py"
    script.write_text(KILLED)
    command = lambda out: [sys.executable, str(script), str(out)]
    subprocess.run(command(tmp_path/"undisturbed"), check=True, capture_output=True)
    for delay in (0.0, 0.05, 0.15, 0.25, 0.35, 0.5):
        process = subprocess.Popen(command(tmp_path/"killed"), stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL); process.wait()
    subprocess.run(command(tmp_path/"killed"), check=True, capture_output=True)
    assert hashes(tmp_path/"killed") == hashes(tmp_path/"undisturbed") and len(hashes(tmp_path/"killed")) == 42

def test_atomic_leaves_no_partial_file_and_keeps_the_old_one(tmp_path):
    write_json(tmp_path/"a.json", 1)
    with pytest.raises(RuntimeError):
        with atomic(tmp_path/"a.json") as p: p.write_text("half"); raise RuntimeError
    assert read_json(tmp_path/"a.json") == 1 and [p.name for p in tmp_path.iterdir()] == ["a.json"]

@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path/"disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)

def test_a_full_disk_is_one_clear_error_and_keeps_what_was_finished(small_disk):
    s = Store(load_settings("tiny", outputs=str(small_disk)))
    s.stage("one", builder([]))
    with pytest.raises(UserError, match="[Ff]ree some"):
        s.stage("big", lambda out, work: write_rows(
            out/"x.parquet", [dict(t=os.urandom(1000).hex()) for _ in range(3000)]
        ))
    assert Store(s.settings).path("one", "a.txt").read_text() == "x"
    with pytest.raises(UserError, match="the disk is full"):
        s.stage("big", lambda out, work: (out/"x").write_bytes(bytes(3 << 20)))

def test_a_full_disk_while_recording_keeps_the_responses_recorded(small_disk):
    record = ResponseRecord(small_disk/"r.sqlite")
    with pytest.raises(UserError, match="responses recorded so far are kept"):
        for i in range(3000): record.put(f"k{i}", text=os.urandom(500).hex(), params={})
    kept = i
    assert kept > 10 and len(ResponseRecord(small_disk/"r.sqlite")) == kept

@pytest.mark.parametrize("read", [read_rows, read_json])
def test_a_half_written_file_is_named(tmp_path, read):
    file = tmp_path/"half.bin"
    file.write_bytes(b"PAR1{")
    with pytest.raises(UserError, match="half.bin"): read(file)

def test_a_file_that_is_no_record_is_named(tmp_path):
    (tmp_path/"r.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(UserError, match="r.sqlite"): ResponseRecord(tmp_path/"r.sqlite")

def test_record_survives_many_keys_and_a_second_reader(tmp_path):
    record = ResponseRecord(tmp_path/"r.sqlite")
    for i in range(1201): record.put(f"k{i}", text=str(i), params=dict(n=i))
    other = ResponseRecord(tmp_path/"r.sqlite")
    assert {
        k: v["text"] for k, v in other.get_many([f"k{i}" for i in range(1201)]).items()
    } == {f"k{i}": str(i) for i in range(1201)}
    record.bury("k5000", "s", "r", "why"); record.put("k5000", text="back", params={})
    assert other.dead() == []

def test_seeds_differ_by_every_part_and_do_not_collide():
    seeds = {derive_seed(42, stage, i) for stage in ("a", "b") for i in range(5000)}
    assert (
        len(seeds) >= 9990
        and derive_seed(1, "a", 1) != derive_seed(2, "a", 1)
        and derive_seed(1, "a", "b") != derive_seed(1, "ab")
    )

def test_rows_round_trip_in_every_form(tmp_path):
    import pandas as pd
    from datasets import Dataset
    rows = [dict(id="é", n=1, l=["a"]), dict(id="b\n", n=2, l=[])]
    for i, form in enumerate((rows, pd.DataFrame(rows), Dataset.from_list(rows))):
        write_rows(tmp_path/f"{i}.parquet", form)
        assert read_rows(tmp_path/f"{i}.parquet").to_list() == rows

@pytest.mark.parametrize("read", [read_rows, read_json])
def test_an_unreadable_file_is_only_to_be_deleted_if_a_run_made_it(tmp_path, read):
    (tmp_path/"00_a.ipynb").write_bytes(b"PAR1{")
    with pytest.raises(UserError, match="If a run made it, delete it .*; if not, restore or correct it"):
        read(tmp_path/"00_a.ipynb")

def test_a_record_that_another_run_is_writing_is_not_a_full_disk(tmp_path):
    import sqlite3
    record = ResponseRecord(tmp_path/"r.sqlite")
    record._db.execute("pragma busy_timeout = 10")
    other = sqlite3.connect(tmp_path/"r.sqlite", isolation_level=None)
    other.execute("begin immediate")
    for write in (lambda: record.put("k", text="", params={}), lambda: record.bury("k", "s", "r", "why")):
        with pytest.raises(UserError, match="r.sqlite.*locked. Another run is writing it") as e: write()
        assert "disk" not in str(e.value)
    other.execute("rollback")
    record.put("k", text="", params={})
    assert len(record) == 1

def test_a_damaged_record_is_named_by_whoever_reads_it(tmp_path):
    record = ResponseRecord(tmp_path/"r.sqlite")
    record._db.executescript("drop table responses; drop table dead")
    for read in (lambda: record.get_many(["k"]), record.dead, lambda: len(record)):
        with pytest.raises(UserError, match="r.sqlite.*no such table.*Move it away"): read()
    record._db.close()
    with pytest.raises(store_module.sqlite3.ProgrammingError): record.dead() # our mistake, not the file's

def test_training_does_not_hang_on_the_code_of_a_teacher():
    "A changed message in a back end must not train every student again."
    package, seen, todo = project_root()/"compeffdist", set(), ["students", "difficulty"]
    while todo:
        name = todo.pop()
        if name in seen | store_module.PLUMBING or not (package/f"{name}.py").is_file(): continue
        seen.add(name)
        todo += store_module._imports(ast.parse((package/f"{name}.py").read_text()))
    assert {"base", "chat"} <= seen and not seen & {"backends", "teacher", "analyst", "author"}

def test_a_branch_renames_its_stages_and_shares_the_rest(tmp_path):
    store = Store(load_settings("tiny", outputs=str(tmp_path)))
    write = lambda value: lambda out, work: write_json(out/"x.json", value) or dict(rows_out=1)
    store.stage("first", write(1)); store.stage("second", write(2), inputs=["first"])
    branch = store.branch("b", ["second", "third"])
    assert not branch.has("second") and branch.has("first")
    made = branch.stage("second", write(3), inputs=["first"])
    branch.stage("third", write(4), inputs=["second"])
    assert made.name == "second-b" and [s["stage"] for s in store.stages()] == [
        "first", "second", "second-b", "third-b"]
    assert (branch.json("first", "x.json"), branch.json("second", "x.json")) == (1, 3)
    assert store.json("second", "x.json") == 2
    assert set(store.stages()[-1]["inputs"]) == {"second-b"} and branch.path("third").name == "third-b"
    assert branch.record is store.record or branch.record.path == store.record.path
    with pytest.raises(UserError, match="'third' has not been run"): store.path("third")

def test_a_stage_knows_the_commit_that_built_it(tmp_path, monkeypatch):
    from compeffdist import store as module
    monkeypatch.setattr(module, "git_commit", lambda: "abc")
    store = Store(load_settings("tiny", outputs=str(tmp_path)))
    build = lambda out, work: write_json(out/"x.json", 1) or {}
    store.stage("first", build)
    monkeypatch.setattr(module, "git_commit", lambda: "later")
    assert store.stage("first", build).cached and store.stages()[0]["commit"] == "abc"

def test_a_stage_is_built_outside_a_project_and_without_git(tmp_path, monkeypatch):
    store = Store(load_settings("tiny", outputs=str(tmp_path/"out")))
    build = lambda out, work: write_json(out/"x.json", 1) or {}
    monkeypatch.chdir(tmp_path); monkeypatch.delenv("COMPEFFDIST_ROOT", raising=False)
    store.stage("first", build)
    monkeypatch.chdir(project_root(Path(__file__))); monkeypatch.setenv("PATH", str(tmp_path))
    store.stage("second", build)
    assert [s["commit"] for s in store.stages()] == ["unknown", "unknown"]

def test_a_branch_of_a_branch_keeps_both_names(tmp_path):
    store = Store(load_settings("tiny", outputs=str(tmp_path)))
    inner = store.branch("a", ["one"]).branch("b", ["two"])
    assert [inner.named(n) for n in ("one", "two", "three")] == ["one-a", "two-b", "three"]
