"Stages side by side: equal to one after the other, errors reach the caller, finished work stays."
from pathlib import Path
import pytest
from compeffdist import workers
from compeffdist.settings import UserError, load_settings, project_root
from compeffdist.store import Store, content_hash
from compeffdist.workers import Job, run_jobs, worker_count

BASES = [Job(f, "base", "base_stage", (f,)) for f in ("llama", "gemma3")]

def settings(tmp_path, **over): return load_settings("tiny", outputs=str(tmp_path), **over)

def test_a_student_trained_in_a_worker_equals_one_trained_on_one_thread(tmp_path):
    import torch
    from compeffdist.store import write_rows
    rows = [
        dict(id=str(i), prompt=f"Say how it sounds: glad or cross.\n\nInput: a {w} day {i}\nOutput:", answer=a)
        for i, (w, a) in enumerate([("warm", "glad"), ("rude", "cross")] * 8)
    ]
    made, threads = [], torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for workers in (1, 2):
            s = settings(tmp_path/str(workers), workers=workers, train_epochs=1, train_batch=4, train_max_length=96)
            Store(s).stage("corpus", lambda out, work: write_rows(out/"corpus.parquet", rows))
            made.append([
                content_hash(r.path/"model.safetensors")
                for r in run_jobs(s, [
                    Job(f, "students", "student_stage", (f, "distilled")) for f in ("llama", "qwen3")
                ])
            ])
    finally: torch.set_num_threads(threads)
    assert made[0] == made[1] and len(set(made[0])) == 2

NOTES = """
import time
from compeffdist.store import write_json
def note_stage(settings, store, name, until):
    def build(out, work):
        end = time.monotonic() + 200
        while until and not store.has(until) and time.monotonic() < end: time.sleep(.1)
        write_json(out/"seen.json", sorted(s["stage"] for s in store.stages()))
    return store.stage(name, build)
"""
def test_a_job_waits_for_the_one_it_goes_on_from(tmp_path):
    "`slow` ends only when `free`, which stands behind it and the one that waits, has ended."
    import os, subprocess, sys
    from compeffdist.store import read_json
    (tmp_path/"noting.py").write_text(NOTES)
    (tmp_path/"run.py").write_text(f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import noting; sys.modules["compeffdist.noting"] = noting
from compeffdist.settings import load_settings
from compeffdist.workers import Job, run_jobs
if __name__ == "__main__":
    jobs = [Job("slow", "noting", "note_stage", ("slow", "free")), \
Job("second", "noting", "note_stage", ("second", ""), "slow"), \
Job("free", "noting", "note_stage", ("free", ""))]
    print([r.name for r in run_jobs(load_settings("tiny", outputs={str(tmp_path/'out')!r}, workers=2), jobs)])
""")
    said = subprocess.run(
        [sys.executable, str(tmp_path/"run.py")],
        env=dict(os.environ, COMPEFFDIST_ROOT=str(project_root())),
        capture_output=True, text=True, timeout=300,
    )
    assert "['slow', 'second', 'free']" in said.stdout, said.stderr
    seen = {n: read_json(tmp_path/f"out/tiny/artifacts/{n}/seen.json") for n in ("slow", "second", "free")}
    assert seen == dict(slow=["free"], second=["free", "slow"], free=[])

@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_cannot_wait_for_what_does_not_stand_before_it(tmp_path, workers):
    for jobs in (
        [Job("a", "base", "base_stage", ("llama",), "b"), Job("b", "base", "base_stage", ("qwen3",))],
        [Job("a", "base", "base_stage", ("llama",), "a")],
    ):
        with pytest.raises(UserError, match="'a' waits for '[ab]'"):
            run_jobs(settings(tmp_path, workers=workers), jobs)

def test_what_waits_for_a_job_that_failed_is_not_begun(tmp_path):
    s = settings(tmp_path, workers=2)
    with pytest.raises(UserError, match="gpt2"):
        run_jobs(s, [
            Job("bad", "base", "base_stage", ("gpt2",)),
            Job("then", "base", "base_stage", ("llama",), "bad"),
        ])
    assert not Store(s).stages()

PARENT = """
import sys
sys.path.insert(0, {here!r})
from compeffdist.settings import load_settings
from compeffdist.workers import Job, run_jobs
if __name__ == "__main__":
    run_jobs(load_settings("tiny", outputs={out!r}, workers=2), \
[Job(str(i), "slowly", "sleep_stage", ({out!r}, i)) for i in range(4)])
"""
SLOWLY = """
import os, time
from pathlib import Path
def sleep_stage(settings, store, out, i):
    Path(out, f"begun-{i}").write_text(str(os.getpid())); time.sleep(25); Path(out, f"ended-{i}").write_text("")
"""

def is_alive(pid):
    "Is a process there and no zombie?"
    try: return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except (FileNotFoundError, ProcessLookupError): return False # gone before or while it was read

def left_without(parent, folder):
    """Kill a process once its two children have noted their ids in `begun-*`;
    the children that are there ten seconds later."""
    import time
    noted = lambda: [int(pid) for p in folder.glob("begun-*") if (pid := p.read_text())] # empty while it is written
    for _ in range(800):
        if len(pids := noted()) == 2: break
        time.sleep(0.25)
    parent.kill(); parent.wait()
    assert len(pids) == 2
    for _ in range(40):
        alive = [p for p in pids if is_alive(p)]
        if not alive: break
        time.sleep(0.25)
    return alive

def test_workers_end_with_the_process_that_started_them(tmp_path):
    import os, subprocess, sys
    out = tmp_path/"out"; out.mkdir()
    (tmp_path/"slowly.py").write_text(SLOWLY)
    (tmp_path/"parent.py").write_text(
        "import sys, slowly\nsys.modules['compeffdist.slowly'] = slowly\n"
        + PARENT.format(here=str(tmp_path), out=str(out))
    )
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path/"parent.py")], cwd=tmp_path,
        env=os.environ | dict(COMPEFFDIST_ROOT=str(project_root())),
    )
    assert not left_without(parent, out) and not list(out.glob("ended-*"))

def test_two_processes_that_want_the_same_stage_build_it_once(tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    from compeffdist.store import write_json
    import time
    built = []
    def build(out, work): built.append(1); time.sleep(0.5); write_json(out/"a.json", 1)
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: Store(settings(tmp_path)).stage("slow", build), range(3)))
    assert len(built) == 1 and sorted(r.cached for r in made) == [False, True, True]

def test_an_error_of_a_worker_reaches_the_caller_and_finished_stages_stay(tmp_path):
    s = settings(tmp_path, workers=2)
    with pytest.raises(UserError, match="gpt2.*llama, qwen3, gemma3"):
        run_jobs(s, [Job("bad", "base", "base_stage", ("gpt2",)), BASES[0]])
    assert run_jobs(s, BASES[:1])[0].path.is_dir()

@pytest.mark.parametrize("wanted, jobs, cores, count", [
    (1, 9, 4, 1), (0, 9, 4, 4), (0, 2, 4, 2), (3, 9, 2, 3), (0, 0, 4, 1),
])
def test_worker_count(tmp_path, monkeypatch, wanted, jobs, cores, count):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert worker_count(settings(tmp_path, workers=wanted), jobs) == count

BARS = """
import time
from tqdm import tqdm
def count_stage(settings, store, n):
    for _ in tqdm(range(n), desc="inner", mininterval=0.1): time.sleep(0.1)
    return n
"""

def test_the_bars_of_workers_are_shown_beside_the_jobs(tmp_path):
    import os, re, subprocess, sys
    (tmp_path/"counting.py").write_text(BARS)
    (tmp_path/"parent.py").write_text(f"""
import sys, counting
sys.modules["compeffdist.counting"] = counting
from compeffdist.settings import load_settings
from compeffdist.workers import Job, run_jobs
if __name__ == "__main__":
    print(run_jobs(load_settings("tiny", outputs={str(tmp_path)!r}, workers=2), \
[Job("slow one", "counting", "count_stage", (80,)), Job("quick one", "counting", "count_stage", (30,))], \
"counts"))
""")
    end = subprocess.run(
        [sys.executable, str(tmp_path/"parent.py")], cwd=tmp_path,
        env=os.environ | dict(COMPEFFDIST_ROOT=str(project_root()), PYTHONPATH=f"{tmp_path}:{project_root()}"),
        capture_output=True, text=True, timeout=300,
    )
    assert end.returncode == 0 and end.stdout.strip() == "[80, 30]", end.stderr[-800:]
    shown = [line for line in re.split(r"[\r\n]", end.stderr) if line.startswith("counts:")]
    done = [int(n) for line in shown for n in re.findall(r"slow one (\d+)/80 \([^)]*it/s, [\d:]+ left\)", line)]
    assert len(set(done)) >= 3 and done == sorted(done) and "2/2" in shown[-1]

def test_only_bars_are_taken_from_a_workers_error_stream():
    import io
    from compeffdist.workers import _Bars
    class Queue(list): put = list.append
    behind, queue = io.StringIO(), Queue()
    stream = _Bars(queue, behind)
    stream.job = "job"
    print("one", file=stream); print("two", file=stream)
    for part in ("\rrows:  50%|#####     | 5/10 [00:05<00:05,  1.00it/s]", "\n"): stream.write(part)
    print("three", file=stream)
    assert behind.getvalue() == "one\ntwo\nthree\n" and queue == [("job", "5/10 (1.00it/s, 00:05 left)")]

MEMBERS = """
import os, time
from pathlib import Path
from compeffdist.settings import UserError
def rank(): return int(os.environ["RANK"])
def total(*numbers):
    import torch, torch.distributed as dist
    dist.init_process_group("gloo")
    x = torch.tensor([float(sum(numbers) * (rank() + 1))]); dist.all_reduce(x)
    return x.item(), torch.get_num_threads()
def one_fails(who, before):
    import torch.distributed as dist
    if not before: dist.init_process_group("gloo")
    if rank() == who: raise UserError(f"row 7 of process {who}")
    if before: dist.init_process_group("gloo")
    dist.barrier(); time.sleep(280)
def one_is_killed(who):
    import signal
    import torch.distributed as dist
    if rank() == who: os.kill(os.getpid(), signal.SIGKILL)
    dist.init_process_group("gloo")
def note(folder): Path(folder, f"begun-{rank()}").write_text(str(os.getpid())); time.sleep(280)
"""

def group_script(folder, call):
    "Run `call` with the functions above as compeffdist.members; what it printed, and how long it took."
    import os, subprocess, sys, time
    (folder/"members.py").write_text(MEMBERS)
    (folder/"script.py").write_text(
        "import sys, members\n"
        "sys.modules['compeffdist.members'] = members\n"
        "from compeffdist.workers import run_group\n"
        "from compeffdist.settings import UserError\n"
        "if __name__ == '__main__':\n"
        f"    try: print('GOT', {call})\n"
        "    except UserError as e: print('REFUSED', e)\n"
    )
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(folder/"script.py")], cwd=folder,
        env=os.environ | dict(COMPEFFDIST_ROOT=str(project_root())),
        capture_output=True, text=True, timeout=290,
    )
    return done.stdout.strip() or done.stderr, time.monotonic() - begin

def test_a_group_shares_what_it_computes(tmp_path):
    assert group_script(
        tmp_path, "run_group(2, 'members', 'total', (1, 2))[0], run_group(3, 'members', 'total', (1,))[0]"
    )[0] == "GOT 9.0 6.0"

@pytest.mark.parametrize("call, says", [
    ("'one_fails', (1, True)", "row 7 of process 1 (One of 2 processes of members.one_fails.)"),
    ("'one_fails', (0, False)", "row 7 of process 0"),
    ("'one_fails', (1, False)", "row 7 of process 1"),
    ("'one_is_killed', (1,)", "ended from outside, most likely for lack of memory"),
    ("'one_is_killed', (0,)", "ended from outside"),
])
def test_the_first_failure_ends_a_group_at_once(tmp_path, call, says):
    said, seconds = group_script(tmp_path, f"run_group(2, 'members', {call})")
    assert said.startswith("REFUSED") and says in said and seconds < 240, said # the others would sleep on

def test_a_group_ends_with_the_process_that_started_it(tmp_path):
    import os, subprocess, sys
    (tmp_path/"members.py").write_text(MEMBERS)
    (tmp_path/"script.py").write_text(
        "import sys, members\n"
        "sys.modules['compeffdist.members'] = members\n"
        "from compeffdist.workers import run_group\n"
        f"if __name__ == '__main__': run_group(2, 'members', 'note', ({str(tmp_path)!r},))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path/"script.py")], cwd=tmp_path,
        env=os.environ | dict(COMPEFFDIST_ROOT=str(project_root())),
    )
    assert not left_without(parent, tmp_path)
