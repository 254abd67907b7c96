"Ablations: what each leaves out, that samples are what their definition says row by row, and a whole small run."
import pandas as pd
import pytest
from compeffdist import base, texts
from compeffdist.ablations import ablation_rows, ablation_stages, subset
from compeffdist.attributes import attributes_stage
from compeffdist.instructions import instructions_stage
from compeffdist.perspectives import perspectives_stage
from compeffdist.sampling import keep_probability, row_draws
from compeffdist.settings import UserError, load_settings, project_root
from compeffdist.store import Store, write_rows
from compeffdist.systems import ABLATIONS, SUBSETS, System, ablations as ablation_systems, draws_of, systems

TYPES = ["analysis", "closed classification", "open classification", "extraction", "scoring", "structured output"]
ROWS = [
    dict(
        id=f"r{i}", instruction_id=f"i{i % 12}", perspective=i // 6 % 6,
        kind="analysis" if i % 6 == 0 else "task", task_type=TYPES[i % 6],
        text_id=str(i), nearby=False, demonstrations=i % 2 if i % 6 else 0,
        prompt=f"p{i}", answer="a")
    for i in range(600)]
CORPUS = pd.DataFrame(ROWS)

@pytest.mark.parametrize("name, stays", [
    ("no-analyses", lambda r: r["kind"] == "task"),
    ("no-classification", lambda r: "classification" not in r["task_type"]),
    ("no-extraction", lambda r: r["task_type"] != "extraction"),
    ("no-scoring", lambda r: r["task_type"] != "scoring"),
    ("no-structured", lambda r: r["task_type"] != "structured output"),
    ("no-demonstrations", lambda r: r["demonstrations"] == 0)])
def test_a_subset_leaves_out_what_its_name_says(name, stays):
    assert subset(CORPUS, name).tolist() == [stays(r) for r in ROWS]

def test_half_of_the_perspectives_is_a_seeded_draw():
    kept = set(CORPUS[subset(CORPUS, "half-perspectives", 1)].perspective)
    assert len(kept) == 3 and kept == set(
        CORPUS.sample(frac=1, random_state=0)[lambda d: subset(d, "half-perspectives", 1)].perspective)
    assert len({frozenset(CORPUS[subset(CORPUS, "half-perspectives", s)].perspective) for s in range(8)}) > 1

def test_an_unknown_subset_is_named():
    with pytest.raises(UserError, match="'no-labels'.*no-analyses"): subset(CORPUS, "no-labels")

class Shelf:
    "A store that holds these tables only."
    def __init__(self, **tables): self.tables = tables
    def rows(self, stage, file):
        from datasets import Dataset
        return Dataset.from_pandas(self.tables[stage.replace("-", "_")], preserve_index=False)

DIFFICULTY = pd.DataFrame(dict(
    id=CORPUS["id"],
    rank_score=[(i * 7 % 600) / 600 for i in range(600)],
    n_tokens=[1 + i % 9 for i in range(600)]))
OTHER = pd.DataFrame(dict(
    id=CORPUS["id"][::-1],
    perplexity=[float(i) for i in range(600)],
    ifd=[float(i * 11 % 600) for i in range(600)]))
HUMAN = CORPUS.assign(id="h" + CORPUS["id"], kind="analysis", task_type="analysis")
SHELF = Shelf(
    corpus=CORPUS, difficulty=DIFFICULTY, corpus_knowdist=HUMAN, scores_ifd=OTHER,
    scores_qwen3=pd.DataFrame(dict(
        id=CORPUS["id"],
        rank_score=[(i * 13 % 600) / 600 for i in range(600)])))
# those of other constructions draw no rows: tests/test_constructions.py
ALONE = dict(other_clusterings="", other_counts="", other_teachers="")
SETTINGS = load_settings(
    "tiny", sampling_rate=0.3, ablation_rate=0.3, sampling_a=1.0, sampling_by="instruction", **ALONE)

def obvious(system):
    "The definition, one row at a time."
    seed, by = SETTINGS.sampling_seed + system.draw, (system.by or SETTINGS.sampling_by) == "instruction"
    rows = HUMAN.to_dict("records") if system.subset == "human-written" else ROWS
    draw = {r["id"]: u for r, u in zip(rows, row_draws([r["id"] for r in rows], seed))}
    if system.method == "random":
        part, kept = [
            r for r, k in zip(rows, (
                subset(pd.DataFrame(rows), system.subset, SETTINGS.seed)
                if system.subset else [True] * 600))
            if k], set()
        kinds = {r["kind"] for r in part}
        for kind in kinds:
            own = [r["id"] for r in part if r["kind"] == kind]
            wanted = 0.3 * (600 if len(kinds) == 1 else sum(r["kind"] == kind for r in rows))
            assert wanted <= len(own)
            kept |= {i for i in own if draw[i] < wanted / len(own)}
        return kept
    table = DIFFICULTY.set_index("id").join(OTHER.set_index("id")).join(
        SHELF.tables["scores_qwen3"].set_index("id").rank_score.rename("proxy"))
    value = table[dict(rank="rank_score", length="n_tokens").get(
        system.measure,
        system.measure if system.measure in ("perplexity", "ifd") else "proxy")]
    tie, kept = dict(zip(draw, row_draws(list(draw), seed, "tie"))), set()
    for g in {r["instruction_id"] for r in rows} if by else [None]:
        own = sorted((r["id"] for r in rows if g in (None, r["instruction_id"])), key=lambda i: (value[i], tie[i]))
        if system.method == "hard": kept |= set(own[len(own) - round(system.rate * len(own)):])
        else:
            kept |= {
                i for k, i in enumerate(own)
                if draw[i] < keep_probability(
                    (k + 0.5) / len(own), 1.0 if system.a is None else system.a, system.rate)}
    return kept

@pytest.mark.parametrize(
    "system",
    [s for s in ablation_systems(SETTINGS, "llama") if s.name != "proxy-gemma3-30"],
    ids=lambda s: s.name)
def test_rows_are_those_of_the_definition(system):
    got = ablation_rows(SETTINGS, SHELF, system)
    assert set(got["id"]) == obvious(system) and 140 < len(got) < 220
    assert got["id"].tolist() == sorted(got["id"], key=lambda i: int(i.lstrip("hr")))

def test_analyses_and_tasks_keep_their_numbers():
    for name in ("no-demonstrations", "no-extraction", "half-perspectives"):
        got = ablation_rows(SETTINGS, SHELF, System("llama", name, "random", 0.3, subset=name)).kind.value_counts()
        # three standard deviations
        assert got["analysis"] == pytest.approx(30, abs=15) and got["task"] == pytest.approx(150, abs=36), name

def test_samples_share_their_controls_rows_and_leave_out_what_has_no_score(tmp_path):
    from compeffdist.sampling import sampling_stage
    s = SETTINGS.model_copy(update=dict(outputs=str(tmp_path)))
    store, holes = Store(s), DIFFICULTY.assign(
        rank_score=[None if i % 10 == 0 else v for i, v in enumerate(DIFFICULTY.rank_score)],
        n_tokens=[0 if i % 10 == 0 else n for i, n in enumerate(DIFFICULTY.n_tokens)])
    for stage, file, table in (
            ("corpus", "corpus.parquet", CORPUS),
            ("difficulty", "scores.parquet", holes),
            ("scores-ifd", "scores.parquet", OTHER),
            ("scores-qwen3", "scores.parquet", SHELF.tables["scores_qwen3"]),
            ("corpus-knowdist", "corpus.parquet", HUMAN)):
        store.stage(stage, lambda out, work: write_rows(out/file, table) or {})
    sampling_stage(s, store, "random-30", 0.3, "random")
    control = set(store.rows("sample-random-30", "sample.parquet")["id"])
    for system in ablation_systems(s, "llama"):
        if system.name == "proxy-gemma3-30": continue
        rows = ablation_rows(s, store, system)
        if system.subset != "human-written":
            assert not {f"r{i}" for i in range(0, 600, 10)} & set(rows["id"]), system.name
        if system.subset and system.subset != "human-written":
            assert control & set(
                CORPUS["id"][subset(CORPUS, system.subset, s.seed)]) <= set(rows["id"]), system.name
        if system.draw: assert set(rows["id"]) != control
        if system.name == "random-draw2-30":
            sampling_stage(s, store, "again", 0.3, "random", system.draw)
            assert set(store.rows("sample-again", "sample.parquet")["id"]) == set(rows["id"])

def test_proxies_that_would_share_a_name_are_refused():
    with pytest.raises(UserError, match="'package:qwen3' and 'qwen3/'"):
        ablation_systems(load_settings("tiny", difficulty_proxies="package:qwen3, qwen3/"), "llama")
    assert (
        [s.name for s in ablation_systems(
            load_settings("tiny", difficulty_proxies="/m/a/checkpoint, /m/b/checkpoint", **ALONE), "llama")][-2:]
        == ["proxy-m-a-checkpoint-30", "proxy-m-b-checkpoint-30"])

def test_too_few_rows_name_the_rate_that_works():
    many = load_settings("tiny", ablation_rate=0.6)
    with pytest.raises(
            UserError,
            match=r"ablation_rate = 0.6 needs more rows .* Set it to 0\.(\d+) or less") as e:
        ablation_rows(many, SHELF, System("llama", "x", "random", 0.6, subset="no-demonstrations"))
    rate = float(str(e.value).split("Set it to ")[1].split()[0])
    assert len(ablation_rows(many, SHELF, System("llama", "x", "random", rate, subset="no-demonstrations")))

def test_nothing_left_is_an_error():
    bare = Shelf(corpus=CORPUS[CORPUS.kind == "analysis"], difficulty=DIFFICULTY)
    with pytest.raises(UserError, match="'no-analyses-30' keeps none of 100 rows"):
        ablation_rows(
            SETTINGS, bare, next(s for s in ablation_systems(SETTINGS, "llama") if s.subset == "no-analyses"))

def test_what_a_profile_lacks_is_no_ablation():
    names = lambda **kw: {s.name for s in ablation_systems(load_settings("tiny", ablation_rate=0.2, **kw), "llama")}
    assert (
        names() - names(corpus_max_demonstrations=0) == {"no-demonstrations-20"}
        and names() - names(corpus_task_types="scoring, closed classification")
        == {"no-extraction-20", "no-structured-20"})
    assert (
        names(sampling_by="overall") - names() == {"hard-instruction-20", "difficulty-instruction-20"}
        and names(sampling_a=0.5) - names() == {"difficulty-a100-20"})
    assert (
        not any(s.part in ABLATIONS for s in systems(load_settings("tiny")))
        and {s.subset for s in systems(load_settings("tiny", ablations=True))} == {"", *SUBSETS})

def test_every_control_is_among_the_systems():
    for profile in ("tiny", "mini", "gpu", "paper"):
        s = load_settings(profile, ablations=True)
        assert (
            {f"{kind}-{100 * s.ablation_rate:g}" for kind in ("random", "difficulty")}
            <= {x.name for x in systems(s)})

def test_a_whole_small_run(tmp_path, monkeypatch, smallest_students):
    s = load_settings(
        "tiny", curve_draws=1, outputs=str(tmp_path/"out"), ablations=True, lineage=False, ablation_rate=0.3,
        families="llama", difficulty_proxies="package:qwen3", other_clusterings="kmeans", other_counts="2",
        other_teachers="", attributes_min_count=1, instructions_max_tasks=1, instructions_demo_calls=1, corpus_size=60,
        texts_total=40, benchmark_train=8, benchmark_test=4, train_epochs=1, train_lr=1e-2,
        eval_limit=1, eval_seeds="42", shots=1, shots_reduce=True,
        eval_max_new_tokens=4, eval_max_new_tokens_opener=4, workers=1)
    store = Store(s)
    texts.benchmark_stage(s, store); texts.texts_stage(s, store)
    for stage in (attributes_stage, perspectives_stage, instructions_stage): stage(s, store)
    store.stage("corpus", lambda out, work: write_rows(out/"corpus.parquet", CORPUS.head(120)) or dict(rows_out=120))
    from compeffdist.difficulty import difficulty_stage
    difficulty_stage(s, store)
    done = {r.name: r for r in ablation_stages(s, store)}
    wanted = [x for x in systems(s) if x.part != "main" or x.name in ("random-30", "difficulty-30")]
    assert (
        {"scores-ifd", "scores-qwen3", "corpus-knowdist"} <= set(done)
        and (
            {x.model_stage for x in wanted}
            | {x.evaluation_stage for x in wanted}
            | {x.sample_stage for x in wanted}) <= set(done))
    other, own = (
        store.rows("scores-ifd", "scores.parquet").to_pandas(),
        store.rows("difficulty", "scores.parquet").to_pandas())
    assert other.perplexity.notna().all() and (other.perplexity > 1).all() and set(other["id"]) == set(own["id"])
    assert (store.rows("scores-qwen3", "scores.parquet").to_pandas().rank_score != own.rank_score).any()
    assert (
        done["sample-no-extraction-30"].counts["rows_out"]
        == store.rows("sample-no-extraction-30", "sample.parquet").num_rows
        and "extraction" not in store.rows("sample-no-extraction-30", "sample.parquet")["task_type"])
    assert {
        r["instruction_id"].split("/")[0]
        for r in store.rows("sample-human-written-30", "sample.parquet")} == {"knowdist"}
    assert all(r.cached for r in ablation_stages(s, store))
    assert ablation_stages(load_settings("tiny", outputs=str(tmp_path/"other")), store) == []
    shown(s, store, tmp_path, monkeypatch)

def shown(s, store, tmp_path, monkeypatch):
    "Notebook 27 on what the small run left."
    import papermill
    for key in (
        "outputs", "families", "difficulty_proxies", "bootstrap_samples", "other_clusterings", "other_counts",
        "other_teachers"):
        monkeypatch.setenv(
            f"COMPEFFDIST_{key.upper()}",
            ", ".join(map(str, v)) if isinstance(v := getattr(s, key), list) else str(v))
    papermill.execute_notebook(
        str(project_root()/"nbs/27_ablations.ipynb"), str(tmp_path/"27.ipynb"),
        parameters=dict(profile="tiny", ablations=True, ablation_rate=0.3),
        cwd=str(project_root()/"nbs"), progress_bar=False)
    table = pd.read_csv(store.tables/"tab-ablations.csv").set_index(["part", "system"])
    assert (
        set(table.index.get_level_values(0)) == set(ABLATIONS) - {"teacher"}
        and len(table) == len([x for x in systems(s) if x.part in ABLATIONS]) + 5)
    assert table.loc[("perspectives", "perspectives-2-30"), "change"] == "2 (k-means)"
    fewer, own = (table.loc[("perspectives", n), "average"] for n in ("perspectives-2-30", "kmeans-30"))
    assert table.loc[("perspectives", "perspectives-2-30"), "difference"] == pytest.approx(fewer - own, abs=1e-3)
    assert table.control["clustering", "kmeans-30"] == False and table.control["perspectives", "kmeans-30"] == True
    scores = (
        store.rows("evaluation-llama-no-extraction-30", "scores.parquet")
        .to_pandas().groupby("task").score.mean().mean() * 100)
    control = (
        store.rows("evaluation-llama-random-30", "scores.parquet")
        .to_pandas().groupby("task").score.mean().mean() * 100)
    once = table.reset_index().drop_duplicates("system").set_index("system").average
    draws = [[once[f"{c}-30"], once[f"{c}-draw2-30"], once[f"{c}-draw3-30"]] for c in ("random", "difficulty")]
    spread, row = (sum(pd.Series(d).var() for d in draws) / 2) ** 0.5, table.loc["construction", "no-extraction-30"]
    assert (
        row.average == pytest.approx(scores, abs=1e-3)
        and row.difference == pytest.approx(scores - sum(draws[0]) / 3, abs=1e-3)
        and draws[0][0] == pytest.approx(control, abs=1e-3))
    assert (
        table.half.tolist() == pytest.approx(
            # numbers of perspectives are compared with one student of k-means
            [2.776 * spread * (2 if part == "perspectives" else 4 / 3) ** 0.5 for part, _ in table.index],
            rel=1e-2, abs=1e-3)
        and table.control.sum() == 3 + 2 + 2 + 1 + 1)
    assert (store.figures/"fig-ablations.png").is_file()

def test_colliding_proxies_are_named_with_those_that_collide():
    s = load_settings("tiny", difficulty_proxies="package:llama, llama/, package:qwen3, qwen3/")
    with pytest.raises(UserError, match="names 'package:llama' and 'llama/', which would share the name 'llama'"):
        ablation_systems(s, "llama")

def test_a_sample_drawn_again_keeps_its_name_apart_and_other_rows(tmp_path):
    s = load_settings("tiny", curve_draws=3, curve_rates="0.1, 0.3, 1.0")
    known = {x.name: x for x in systems(s) if x.family == "llama"}
    assert [x.name for x in draws_of(s, known["difficulty-30"])] == [
        "difficulty-30", "difficulty-draw2-30", "difficulty-draw3-30"]
    assert draws_of(s, known["distilled"]) == [known["distilled"]]
    assert len({x.sample_stage for x in known.values() if x.part == "draws"}) == 8
    # the ablations bring the draws of their own rate, and each name stands once
    both = load_settings("tiny", curve_draws=3, curve_rates="0.1, 0.3, 1.0", ablations=True)
    names = [(x.family, x.name) for x in systems(both)]
    assert len(names) == len(set(names))
    control = next(x for x in systems(both) if x.name == "random-30")
    assert [x.name for x in draws_of(both, control)] == ["random-30", "random-draw2-30", "random-draw3-30"]
