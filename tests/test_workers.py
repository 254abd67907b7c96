"Stages side by side: equal to one after the other, errors reach the caller, finished work stays."
import pytest
from compeffdist import workers
from compeffdist.settings import UserError, load_settings
from compeffdist.store import Store, content_hash
from compeffdist.workers import Job, run_jobs, worker_count

BASES = [Job(f, "base", "base_stage", (f,)) for f in ("llama", "gemma3")]

def settings(tmp_path, **over): return load_settings("tiny", outputs=str(tmp_path), **over)

def test_workers_make_the_same_files_as_one_process(tmp_path):
    made = [run_jobs(settings(tmp_path/str(n), workers=n), BASES) for n in (1, 2)]
    assert [r.name for r in made[0]] == [r.name for r in made[1]] == ["base-llama", "base-gemma3"]
    files = [[{p.name: content_hash(p) for p in r.path.iterdir() if p.name != "stage.json"} for r in run] for run in made]
    assert files[0] == files[1] and all(len(f) > 3 for f in files[0])

def test_an_error_of_a_worker_reaches_the_caller_and_finished_stages_stay(tmp_path):
    s = settings(tmp_path, workers=2)
    with pytest.raises(UserError, match="gpt2.*llama, qwen3, gemma3"): run_jobs(s, [Job("bad", "base", "base_stage", ("gpt2",)), BASES[0]])
    assert run_jobs(s, BASES[:1])[0].path.is_dir()

@pytest.mark.parametrize("wanted, jobs, cores, count", [(1, 9, 4, 1), (0, 9, 4, 4), (0, 2, 4, 2), (3, 9, 2, 3), (0, 0, 4, 1)])
def test_worker_count(tmp_path, monkeypatch, wanted, jobs, cores, count):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert worker_count(settings(tmp_path, workers=wanted), jobs) == count
