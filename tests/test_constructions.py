"""Corpora built anew by another clustering, another number of perspectives or another teacher (notebook 09e)."""
import shutil
import pytest
from compeffdist.attributes import attributes_stage
from compeffdist.base import students_folder
from compeffdist.constructions import STAGES, construction_changes, construction_stage
from compeffdist.corpus import corpus_stage
from compeffdist.instructions import instructions_stage
from compeffdist.perspectives import perspectives_stage
from compeffdist.settings import UserError, load_settings
from compeffdist.sampling import sampling_stage
from compeffdist.store import Store, write_rows
from compeffdist.systems import System, systems
from compeffdist.texts import benchmark_stage, texts_stage

SMALL = dict(
    benchmark_train=20, benchmark_test=8, texts_total=150, attributes_min_count=2, corpus_size=60,
    instructions_max_tasks=2, instructions_demo_calls=2, instructions_analysis_prompts=2,
    ablations=True, ablation_rate=0.4, families="llama", other_counts="2",
    other_clusterings="kmeans, agglomerative", other_teachers="student:llama", eval_max_new_tokens=12,
    teacher_max_failure_rate=1)

def built(folder, **over):
    "A store with everything up to the instructions."
    s = load_settings("tiny", outputs=str(folder), **SMALL | over)
    store = Store(s)
    for stage in (
        benchmark_stage, texts_stage, attributes_stage, perspectives_stage, instructions_stage,
    ): stage(s, store)
    return s, store

@pytest.fixture(scope="module")
def own(tmp_path_factory): return built(tmp_path_factory.mktemp("own"))

def system(s, part): return [x for x in systems(s) if x.part == part][0]
def table(store, name): return store.rows(name, "corpus.parquet").to_pandas()

@pytest.mark.parametrize("part", ["clustering", "perspectives"])
def test_a_construction_is_what_a_run_with_its_settings_would_have_built(own, tmp_path, part):
    s, store = own
    x = system(s, part)
    before = {m["stage"]: m["fingerprint"] for m in store.stages()}
    made = construction_stage(s, store, x)
    found = store.rows("perspectives", "perspectives.parquet").to_pandas().perspective.nunique()
    count = found if part == "clustering" else 2
    over = dict(cluster_method="kmeans", cluster_count=count, corpus_size=24)
    twin_settings, twin = built(tmp_path, **over)
    corpus_stage(twin_settings, twin)
    assert made.name == x.sample_stage == f"corpus-{x.name}" and made.counts["rows_out"] == 24
    assert table(store, made.name).equals(table(twin, "corpus"))
    assert store.rows(f"perspectives-{x.name}", "perspectives.parquet").to_pandas().perspective.nunique() == count
    after = {m["stage"]: m["fingerprint"] for m in store.stages()}
    assert all(after[k] == v for k, v in before.items())
    assert set(after) - set(before) >= {f"{k}-{x.name}" for k in STAGES}
    assert construction_stage(s, store, x).cached

def test_a_student_that_teaches_answers_the_controls_prompts(own):
    s, store = own
    x = system(s, "teacher")
    with pytest.raises(UserError, match="'student-llama-distilled' has not been run"): construction_stage(s, store, x)
    corpus_stage(s, store)
    scored = [dict(id=i, rank_score=0.5, n_tokens=3) for i in store.rows("corpus", "corpus.parquet")["id"]]
    store.stage("difficulty", lambda out, work: write_rows(out/"scores.parquet", scored), inputs=["corpus"])
    sampling_stage(s, store, "random-40", 0.4, "random")
    # the shipped base student stands for a distilled one: it is one of the same form
    store.stage("student-llama-distilled", lambda out, work: shutil.copytree(
        students_folder()/"llama", out, dirs_exist_ok=True) and None)
    made = construction_stage(s, store, x)
    rows = table(store, made.name).set_index("id")
    control = store.rows("sample-random-40", "sample.parquet").to_pandas().set_index("id")
    lost = made.counts["malformed"] + made.counts["dead"]
    assert len(rows) == len(control) - lost > 0 and "rank_score" not in rows
    assert rows.prompt.equals(control.prompt[rows.index]) and not rows.answer.equals(control.answer[rows.index])
    from compeffdist.teacher import Request, load_teacher
    teacher = load_teacher(s.model_copy(update=construction_changes(s, store, x)))
    said, = teacher.generate([Request(
        "one", rows.prompt.iloc[0], temperature=s.answer_temperature, max_tokens=s.eval_max_new_tokens)], [0])
    assert said.text.strip() == rows.answer.iloc[0].strip()
    assert not store.has(f"instructions-{x.name}") and construction_stage(s, store, x).cached

def test_settings_of_each_part(own):
    s, store = own
    new = lambda part, built: construction_changes(s, store, System("llama", "x", "all", 0.4, part=part, built=built))
    small = dict(corpus_size=24, cluster_weighted=False)
    assert new("clustering", "affinity") == small | dict(cluster_method="affinity", cluster_count=None)
    assert new("perspectives", "3") == small | dict(cluster_method="kmeans", cluster_count=3)
    heavy = s.model_copy(update=dict(cluster_weighted=True))
    weighs = lambda built: construction_changes(
        heavy, store, System("llama", "x", "all", 0.4, part="clustering", built=built))["cluster_weighted"]
    assert [weighs(b) for b in ("kmeans", "affinity", "agglomerative")] == [True, True, False]
    assert new("teacher", "Qwen/Qwen3-8B@b968826") == dict(
        teacher_model="Qwen/Qwen3-8B", teacher_revision="b968826", corpus_oversample=1.0)
    assert new("teacher", "Qwen/Qwen3-8B")["teacher_revision"] == "main"
    with pytest.raises(UserError, match="'x' of part 'measure' has no construction of its own. Allowed: clustering"):
        new("measure", "")

def test_teachers_that_cannot_be_are_refused_and_those_not_trained_left_out():
    with pytest.raises(UserError, match="names 'student:t5', and there is no such family.* Allowed: student:llama"):
        load_settings("tiny", ablations=True, other_teachers="student:t5")
    with pytest.raises(UserError, match="names 'Qwen/Qwen3-8B', and teacher_backend = embedded"):
        load_settings("tiny", ablations=True, other_teachers="Qwen/Qwen3-8B")
    assert load_settings("tiny", other_teachers="Qwen/Qwen3-8B") # not asked for
    names = lambda **kw: {x.built for x in systems(load_settings("tiny", ablations=True, **kw)) if x.part == "teacher"}
    assert names() == {"student:qwen3", "student:gemma3"} and names(families="llama, gemma3") == {"student:gemma3"}
    with pytest.raises(UserError, match="names 'Qwen/Qwen3-8B', and teacher_backend = replay"):
        load_settings("tiny", ablations=True, teacher_backend="replay", other_teachers="Qwen/Qwen3-8B")
    for key, value in (("other_counts", "4, 8, 4"), ("other_clusterings", "kmeans, kmeans")):
        with pytest.raises(UserError, match=f"{key} = .* names one of them twice"):
            load_settings("tiny", ablations=True, **{key: value})
    with pytest.raises(UserError, match="other_counts"): load_settings("tiny", other_counts="0, 4")
    with pytest.raises(UserError, match="other_teachers names 'a/b@1' and 'a/b@2', which would share"):
        systems(load_settings(
            "tiny", ablations=True, teacher_backend="transformers", other_teachers="a/b@1, a/b@2"))

def test_every_family_has_the_matrix_where_it_is_asked_for():
    s = load_settings("tiny", all_families=True, lineage=True, ablations=True, sampling_rate=0.1)
    of = lambda f: {x.name for x in systems(s) if x.family == f}
    assert of("qwen3") == of("gemma3") == {
        "base", "distilled", "knowdist-10", "icldist-10", "two-stage-10", "difficulty-10", "random-10"}
    by = {(x.family, x.name): x for x in systems(s)}
    assert by["qwen3", "difficulty-10"].sample_stage == "sample-difficulty-10-qwen3"
    assert by["llama", "difficulty-10"].sample_stage == "sample-difficulty-10"
    assert {by[f, "random-10"].sample_stage for f in s.families} == {"sample-random-10"}
    hub = load_settings("tiny", all_families=True, difficulty_model="some/proxy") # one scorer, one sample
    assert {x.sample_stage for x in systems(hub) if x.name == "difficulty-10"} == {"sample-difficulty-10"}
    assert {x.name for x in systems(load_settings("tiny")) if x.family == "qwen3"} == {"base", "distilled"}
