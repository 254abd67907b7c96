"The file of published numbers: what it refuses, what stays empty, and the comparison columns."
import pytest
from compeffdist.plan import TEST_SIZES
from compeffdist.reference import COLUMNS, comparison, measured, read_reference, size_ratio, taught_families
from compeffdist.settings import UserError, load_settings
from compeffdist.store import Store, write_json, write_rows

HEAD = ",".join(COLUMNS)

def test_the_projects_file_has_a_source_for_every_number_and_invents_no_score():
    rows = read_reference()
    assert all(r["source"] for r in rows) and {r["quantity"]: r["value"] for r in rows}["attributes"] == 1786
    assert all(r["value"] is None for r in rows if r["source"].endswith("tables"))

@pytest.mark.parametrize("text, says", [
    ("", "columns are missing"), ("a,b", "a, b"),
    (f"{HEAD}\nx,llama,base,average,6l.3,,", "line 2: value = '6l.3'"),
    (f"{HEAD}\nx,,,q,nan,,", "'nan'"),
    (f"{HEAD}\n\nx,,,q,1", "line 3: 5 cells"),
    (f"{HEAD}\n,,,q,1,,", "line 2: source"),
    (f"{HEAD}\nx,,,q,1,,\nx,,,q,2,,", "line 3: x / q was given in line 2")
])
def test_a_broken_row_is_named(tmp_path, text, says):
    (tmp_path/"r.csv").write_text(text)
    with pytest.raises(UserError) as e: read_reference(tmp_path/"r.csv")
    assert says in str(e.value)

def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="none.csv"): read_reference(tmp_path/"none.csv")

def test_a_users_number_makes_the_comparison_appear(tmp_path):
    (tmp_path/"r.csv").write_text(
        f"{HEAD}\n"
        "my paper,llama,base,sst2,50.5,F1,\n"
        "my paper,llama,base,average,,F1,\n"
        "my paper,qwen3,base,sst2,40,F1,\n"
        "my paper,llama,teacher,sst2,90,F1,\n"
        "my paper,qwen3,teacher,sst2,90,F1,\n"
    )
    s = load_settings("tiny", outputs=str(tmp_path/"out"))
    store = Store(s)
    def scores(value): return lambda out, work: write_rows(out/"scores.parquet", [
        dict(task=t, seed=k, score=value + k/100)
        for t in ("sst2", "imdb")
        for k in (0, 1, 2)
    ]) or {}
    store.stage("evaluation-llama-base", scores(.6))
    store.stage("evaluation-teacher-teacher", scores(.8), params=dict(a=1))
    t = comparison(s, store, read_reference(tmp_path/"r.csv"))
    assert (
        t.ours.round(6).tolist()[:2] == [61, 61]
        and t.difference.round(6)[0] == 10.5
        and t.difference.isna().tolist() == [False, True, True, False, False]
    )
    assert t.ours.isna().tolist() == [False, False, True, False, False] and t.ours[3] == t.ours[4]
    assert t.remark.tolist()[2:] == ["", *["ours is the rule-based stand-in"]*2] and "stand-in" in t.remark[0]

@pytest.mark.parametrize("model, family", [
    ("meta-llama/Llama-3.1-70B-Instruct", "llama"), ("Qwen/Qwen3-32B", "qwen3"), ("google/gemma-3-27b-it", "gemma3"),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", None)])
def test_a_teacher_is_compared_with_that_of_its_family_alone(tmp_path, model, family):
    s = load_settings("paper", teacher_model=model, outputs=str(tmp_path))
    store, families = Store(s), ("llama", "qwen3", "gemma3")
    for k, name in enumerate(("teacher-teacher", "llama-distilled", "qwen3-base")):
        store.stage(f"evaluation-{name}", lambda out, work: write_rows(
            out/"scores.parquet", [dict(task="sst2", seed=1, score=.5)]) or {}, params=dict(k=k))
    row = lambda f, name: dict(source="x", family=f, system=name, quantity="sst2", value=60., unit="F1", note="")
    t = comparison(s, store, [*(row(f, "teacher") for f in families), row("llama", "distilled"), row("qwen3", "base")])
    assert taught_families(s) == [f for f in families if f == family]
    assert t.ours.notna().tolist() == [*(f == family for f in families), True, True]
    other = "" if family == "llama" else f"ours was taught by {model}"
    assert t.remark.tolist() == ["", "", "", other, ""] # the base was taught by none

@pytest.mark.parametrize("profile, change, ratio", [
    ("paper", {}, 70/3), ("paper", dict(families="qwen3", teacher_model="Qwen/Qwen3-32B"), 8), ("gpu", {}, 8/0.6),
    ("tiny", {}, None), ("paper", dict(student_source="build"), None), ("paper", dict(teacher_model="x/y"), None),
    ("paper", dict(teacher_backend="replay"), None)]) # replays the embedded analyst
def test_how_much_larger_the_teacher_is_stands_in_its_name(tmp_path, profile, change, ratio):
    s = load_settings(profile, outputs=str(tmp_path), **change)
    assert size_ratio(s) == pytest.approx(ratio)
    assert measured(s, Store(s)).get(("", "", "teacher over student")) == pytest.approx(ratio)

def test_published_test_sizes_are_in_the_file_and_ours_are_what_is_asked(tmp_path):
    published = {r["quantity"]: r["value"] for r in read_reference()}
    assert {t: published[f"test items: {t}"] for t in TEST_SIZES} == TEST_SIZES
    assert all(published[q] == n for q, n in (("parameters", 220), ("corpus of analyses", 20_000),
        ("corpus of rewrites", 20_000), ("versions of the corpus", 10)))
    for limit, ours in ((40, [40, 25]), (0, [100, 25])):
        s = load_settings("tiny", outputs=str(tmp_path/str(limit)), eval_limit=limit)
        store = Store(s)
        store.stage("benchmark", lambda out, work: write_json(
            out/"benchmark.json", dict(counts=dict(sst2=dict(train=9, test=100), imdb=dict(train=9, test=25)))) or {})
        store.stage("fsa-corpus", lambda out, work: dict(analysis=280, rewrite=300))
        store.stage("fsa-pretrained", lambda out, work: dict(parameters=377_920))
        got = measured(s, store)
        assert [got["", "", f"test items: {t}"] for t in ("sst2", "imdb")] == ours
        assert [got["t5-base", "", q] for q in ("corpus of analyses", "corpus of rewrites")] == [280, 300]
        assert got["t5-base", "", "parameters"] == pytest.approx(.37792)

def test_a_missing_score_is_an_error_and_not_zero(tmp_path):
    s = load_settings("tiny", outputs=str(tmp_path))
    store = Store(s)
    store.stage("evaluation-llama-base", lambda out, work: write_rows(out/"scores.parquet", [
        dict(task="sst2", seed=1, score=float("nan"))
    ]) or {})
    with pytest.raises(UserError, match="llama base is missing"): measured(s, store)

@pytest.mark.parametrize("level, cell, ours", [
    ("two-stage", "0.25", 25), ("two-stage", "", float("inf")), # a level that no share reaches
    ("two-stage-10", "0.25", None) # trained on a tenth of its rows: not the level that the abstract means
])
def test_a_tenth_of_the_data_is_a_result_and_no_setting(tmp_path, level, cell, ours):
    s = load_settings("tiny", outputs=str(tmp_path))
    store = Store(s)
    assert ("", "", "share needed") not in measured(s, store)
    store.tables.mkdir(parents=True, exist_ok=True)
    (store.tables/"tab-share-needed.csv").write_text(f"level,average,difficulty,random\n{level},30,{cell},0.5\n")
    assert measured(s, store).get(("", "", "share needed")) == ours
