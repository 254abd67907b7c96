"The table of experiments: it only grows, and a missing score is an error."
from types import SimpleNamespace
import pandas as pd, pytest
from compeffdist import runs
from compeffdist.sentibench import TASKS
from compeffdist.settings import UserError, load_settings
from compeffdist.systems import System

SYSTEMS = [System("teacher", "teacher"), System("llama", "base"), System("llama", "difficulty-10", "soft", 0.1)]


def scores(value=0.5, drop=None):
    return pd.DataFrame([
        dict(family=s.family, system=s.name, task=t, seed=seed, score=value, shots=4.0, n_items=40)
        for s in SYSTEMS
        for t in TASKS
        for seed in (42, 52)
        if t != drop
    ])

@pytest.fixture
def world(tmp_path, monkeypatch):
    "A store with finished stages, and what `results` reads from it."
    state = SimpleNamespace(fingerprint="f1", table=scores())
    stages = lambda: [
        dict(stage=s.evaluation_stage, fingerprint=state.fingerprint, seconds=3.0, counts={}) for s in SYSTEMS
    ] + [
        dict(
            stage="student-llama-difficulty-10", fingerprint="w", seconds=9.0, counts=dict(steps=7, tokens=100)
        )
    ]
    monkeypatch.setattr(runs, "results", lambda settings, store: state.table)
    monkeypatch.setattr(runs, "systems", lambda settings: SYSTEMS)
    state.store = SimpleNamespace(root=tmp_path, stages=stages)
    return state


def test_rows_are_added_once_and_never_changed(world):
    s = load_settings("tiny")
    first = runs.record_runs(s, world.store)
    assert (
        list(first.system) == ["teacher", "base", "difficulty-10"]
        and set(first.fingerprint) == {"f1"}
        and first["mean"].eq(0.5).all()
    )
    trained = first.iloc[2]
    assert (
        (trained.steps, trained.tokens, trained.train_seconds, trained.metric, trained.rate)
            == (7, 100, 9.0, "rank", 0.1)
        and pd.isna(first.iloc[1].steps)
    )
    world.table = scores(0.9)
    assert runs.record_runs(s, world.store).equals(pd.read_csv(world.store.root/"results.csv")), (
        "the same evaluations: nothing to add"
    )
    assert pd.read_csv(world.store.root/"results.csv")["mean"].eq(0.5).all()
    world.fingerprint = "f2"
    second = runs.record_runs(s, world.store)
    assert len(second) == 6 and list(second["mean"]) == [0.5] * 3 + [0.9] * 3

def test_a_missing_score_is_an_error_and_leaves_the_file_alone(world):
    s = load_settings("tiny")
    runs.record_runs(s, world.store)
    before = (world.store.root/"results.csv").read_text()
    world.fingerprint, world.table = "f3", scores(drop="opener")
    with pytest.raises(UserError, match="no score for opener"): runs.record_runs(s, world.store)
    assert (world.store.root/"results.csv").read_text() == before

def test_another_file_is_refused(world):
    (world.store.root/"results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no column 'family'"): runs.record_runs(load_settings("tiny"), world.store)

def test_a_row_says_what_measured_and_what_constructed():
    from compeffdist.runs import _choice, _corpus
    from compeffdist.systems import systems
    s = load_settings("tiny", ablations=True, all_families=True, lineage=True)
    by = {(x.family, x.name): _choice(s, x) | _corpus(s, x) for x in systems(s)}
    got = lambda name, *keys, family="llama": [by[family, name][k] for k in keys]
    assert got("proxy-qwen3-30", "metric", "proxy") == ["rank", "package:qwen3"]
    assert got("difficulty-10", "metric", "proxy", "teacher") == ["rank", "base-llama", "embedded-analyst"]
    assert got("difficulty-10", "proxy", family="gemma3") == ["base-gemma3"]
    assert got("ifd-30", "metric", "proxy") == ["ifd", "base-llama"] and got("length-30", "proxy") == [None]
    assert got("kmeans-30", "clustering", "perspectives", "metric", "by") == ["kmeans", None, None, None]
    assert got("perspectives-8-30", "clustering", "perspectives") == ["kmeans", "8"]
    assert got("teacher-qwen3-30", "teacher", "clustering") == ["student:qwen3", "affinity"]
    assert got("two-stage-10", "start", "clustering") == ["knowdist-10", None]
    assert got("random-30", "by", "metric") == ["instruction", None] and got("base", "teacher") == [None]
    assert len({tuple(map(str, v.items())) for (f, n), v in by.items() if n.endswith("-30")}) > 20
