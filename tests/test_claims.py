"The ledger's rules, its honesty about scale, and the README's numbers against the committed tables."
import io, json, math, random, re, subprocess
from pathlib import Path
import pandas as pd
import pytest
from compeffdist.claims import (
    ABSENT, CLAIMS, FAILS, HOLDS, NUMBER_COLUMNS, ONE_TRAINING, OPEN, PAPERS,
    check_prose, check_table, committed_tables, decide, judged, ledger, most, over_trainings, pooled_sd, quoted,
    readme_numbers, repeated_draws, short_of_paper, systems_named, unbacked)
from compeffdist.sentibench import TASKS
from compeffdist.settings import UserError, load_settings, project_root
from compeffdist.stats import fold, mean_paired, t_interval, vectors
from compeffdist.store import Store, write_rows

ROOT = project_root(Path(__file__))

def answers(accuracy, n=60, tasks=TASKS, seed=0):
    "Items of a made-up system that is right with a given probability."
    rng, rows = random.Random(seed), []
    for t in map(TASKS.get, tasks):
        for i in range(n):
            right = rng.random() < accuracy
            if t.labels:
                gold = t.labels[i % len(t.labels)]
                rows.append(dict(
                    task=t.name, group=t.group, seed=42, item=i,
                    gold=gold, parsed=gold if right else t.labels[(i + 1) % len(t.labels)],
                    n_pred=1., pred_hits=float(right), n_gold=1., gold_hits=float(right)))
            else:
                rows.append(dict(
                    task=t.name, group=t.group, seed=42, item=i,
                    gold="", parsed="",
                    n_pred=1., pred_hits=float(right), n_gold=1., gold_hits=float(right)))
    return rows

@pytest.fixture
def run(tmp_path):
    "A store in which systems can be given an accuracy."
    def make(profile="tiny", draws=1, **accuracy):
        settings = load_settings(profile, outputs=str(tmp_path), bootstrap_samples=300, curve_draws=draws)
        store = Store(settings)
        for k, (name, a) in enumerate(accuracy.items()):
            rows = a if isinstance(a, list) else answers(a, seed=k)
            store.stage(
                f"evaluation-{name.replace('_', '-')}",
                lambda out, work: write_rows(out/"items.parquet", rows) or {},
                params=dict(k=str(a)[:20]))
        return settings, store, ledger(settings, store).set_index(["claim", "family"])
    return make

def test_a_claim_about_samples_is_tested_on_all_their_draws(run):
    made = dict(
        llama_base=.3, llama_distilled=.7, llama_difficulty_10=.5, llama_random_10=.5,
        llama_difficulty_draw2_10=.8, llama_random_draw2_10=.5)
    _, store, table = run(draws=2, **made)
    row = table.loc["difficulty", "llama"]
    assert row.draws == 2 and table.loc["families", "llama"].draws == 1
    single = mean_paired(*(
        store.rows(f"evaluation-llama-{n}", "items.parquet").to_list() for n in ("difficulty-10", "random-10")), 300)
    again = mean_paired(*(
        store.rows(f"evaluation-llama-{n}-10", "items.parquet").to_list()
        for n in ("difficulty-draw2", "random-draw2")), 300)
    assert row.difference == pytest.approx((single["difference"] + again["difference"]) / 2)
    whole = [mean_paired(
        store.rows(f"evaluation-llama-{n}-10", "items.parquet").to_list(),
        store.rows("evaluation-llama-distilled", "items.parquet").to_list(), 300)["difference"]
        for n in ("difficulty", "difficulty-draw2")]
    assert table.loc["enough", "llama"].difference == pytest.approx(sum(whole) / 2)
    # +20 and +30 points: the items decide, two draws do not
    assert row.low > 0 and row.draws_low < 0 < row.draws_high and row.here == OPEN
    good, poor = answers(.9), answers(.4) # the same in both draws
    alike = run(draws=2, **made | dict(
        llama_difficulty_10=good, llama_random_10=poor, llama_difficulty_draw2_10=good, llama_random_draw2_10=poor))
    assert alike[2].loc["difficulty", "llama"].draws_low > 0 and alike[2].loc["difficulty", "llama"].here == HOLDS
    assert list(alike[2].loc["difficulty", "llama"][["both_low", "both_high"]]) == pytest.approx(
        list(alike[2].loc["difficulty", "llama"][["low", "high"]])) # nothing to add for draws that are the same
    _, _, table = run(draws=3, **made) # the third is not there
    assert table.loc["difficulty", "llama"].here == ABSENT

@pytest.mark.parametrize("low, high, bound, word", [
    (.01, .2, 0, HOLDS), (0, .2, 0, OPEN), (-.3, 0, 0, OPEN), (-.3, -.01, 0, FAILS),
    (.0004, .2, 0, OPEN), (-.3, -.0004, 0, OPEN), # printed as +0.0 and -0.0
    (-.019, .1, -.02, HOLDS), (-.02, .1, -.02, OPEN), (-.2, -.02, -.02, OPEN), (-.2, -.03, -.02, FAILS)])
def test_an_interval_decides_by_its_side_of_the_bound(low, high, bound, word): assert decide(low, high, bound) == word

def test_most_is_more_than_half_whatever_the_undecided_become():
    for held in range(13):
        for failed in range(13 - held):
            outcomes = {held + k > 6 for k in range(13 - held - failed)} # k undecided tasks turn out to hold
            want = HOLDS if outcomes == {True} else FAILS if outcomes == {False} else OPEN
            assert most([HOLDS]*held + [FAILS]*failed + [OPEN]*(12 - held - failed)) == want

def test_mean_paired_is_the_mean_of_the_tasks_differences():
    a, b = (
        answers(.9, 200, ["sst2", "twitter", "atsa_rest16"], 1),
        answers(.7, 200, ["sst2", "twitter", "atsa_rest16"], 2))
    got = mean_paired(a, b, 2000)
    seen = [
        [
            fold(t, vectors(t, [r for r in rows if r["task"] == t])[0].sum(0)).mean()
            for t in ("sst2", "twitter", "atsa_rest16")]
        for rows in (a, b)]
    assert got["difference"] == pytest.approx(sum(x - y for x, y in zip(*seen)) / 3)
    assert got["low"] < got["difference"] < got["high"] and mean_paired(a, a, 200)["p"] == 1.0
    with pytest.raises(UserError, match="different tasks"): mean_paired(a, [r for r in b if r["task"] != "sst2"], 10)

def test_nothing_is_filled_in_for_a_system_that_was_not_run(run):
    _, _, rows = run()
    assert set(rows.here) == {ABSENT} and set(rows.verdict) == {"not testable"} and rows.difference.isna().all()

def test_the_pipeline_is_judged_and_the_paper_is_not(run):
    _, _, rows = run(llama_base=.3, llama_distilled=.9, teacher_teacher=.92)
    gain, near = rows.loc[("families", "llama")], rows.loc[("teacher", "llama")]
    assert (
        gain.here == HOLDS and gain.difference > .3
        and gain.verdict == "not testable at this scale" and "stand-in" in gain.why)
    assert (
        rows.loc[("families", "qwen3")].here == ABSENT
        and near.tasks == 12 and near.tasks_held + near.tasks_failed <= 12)
    assert not set(rows.verdict) & {"replicated", "not replicated"}

def drawn(name, accuracies):
    "The draws of one system, as `run` takes them."
    return {f"llama_{name}{f'-draw{k + 1}' * (k > 0)}-10": a for k, a in enumerate(accuracies)}

def test_two_students_of_one_training_each_decide_nothing(run):
    "Whatever the items say: -60 points here. Against a system that is not trained the items decide."
    single = dict(llama_base=.3, llama_distilled=.9, **drawn("difficulty", [.3]), **drawn("random", [.3]))
    _, _, rows = run(**single)
    for claim in ("enough", "difficulty"):
        row = rows.loc[(claim, "llama")]
        assert row.here == OPEN and row.reason == ONE_TRAINING and math.isnan(row.draws_low)
    assert rows.loc[("enough", "llama")].high < -.3 and rows.loc[("families", "llama")].here == HOLDS
    _, _, rows = run(draws=2, **single, **{"llama_difficulty-draw2-10": .32, "llama_random-draw2-10": .31})
    assert rows.loc[("enough", "llama")].here == FAILS

def test_the_side_that_was_trained_once_has_its_variance(run):
    """The spread of the draws, pooled, once for the one training and a third of it for the three;
    without the first the interval would be as narrow as the draws of the tenth alone."""
    made = dict(llama_distilled=.6, **drawn("difficulty", [.4, .45, .5]), **drawn("random", [.3, .5, .7]))
    settings, store, rows = run(draws=3, **made)
    groups = repeated_draws(settings, store)
    assert sorted(groups) == [("llama", "difficulty-10"), ("llama", "random-10")] and all(map(len, groups.values()))
    sd, freedom = pooled_sd(list(groups.values()))
    row = rows.loc[("enough", "llama")]
    assert freedom == 4 and (row.draws_high - row.draws_low) / 2 == pytest.approx(2.776 * sd * (1 + 1/3)**.5, rel=1e-3)
    assert row.both_low < min(row.low, row.draws_low) and row.both_high > max(row.high, row.draws_high)
    assert row.low < row.difference < row.high < 0 < row.both_high and row.here == OPEN
    paired = rows.loc[("difficulty", "llama")] # both sides were drawn: the differences of the draws, as in notebook 21
    gaps = [a - b for a, b in zip(groups["llama", "difficulty-10"], groups["llama", "random-10"])]
    assert (paired.draws_low, paired.draws_high) == pytest.approx(t_interval(gaps))

def test_other_systems_draws_tell_how_far_two_single_trainings_may_lie_apart(run):
    made = dict(llama_distilled=.8, llama_base=.3, **{"llama_two-stage": .7})
    close, far = drawn("difficulty", [.4, .4, .4]), drawn("difficulty", [.2, .4, .6])
    results = []
    for draws in (close, far):
        settings, store, _ = run("paper", draws=3, **made, **draws, **drawn("random", [.4, .4, .4]))
        results.append(ledger(settings, store).set_index(["claim", "family"]).loc[("comprehensive", "llama")])
    assert all(r.low > 0 for r in results) and [r.here for r in results] == [HOLDS, OPEN]
    assert results[0].draws_low > results[1].draws_low and "trainings differ" in results[1].reason

@pytest.mark.parametrize("low, high, trainings, both, word", [
    (.01, .08, None, False, HOLDS), (.01, .08, None, True, OPEN),
    (.01, .08, (.02, .07), True, HOLDS), (.01, .08, (.005, .085), True, OPEN), (.01, .08, (-.1, .19), False, OPEN),
    (-.08, -.03, (-.09, -.02), True, FAILS), (-.08, .02, (-.031, -.029), True, OPEN)])
def test_items_and_trainings_are_taken_together(low, high, trainings, both, word):
    assert judged(dict(difference=(low + high) / 2, low=low, high=high), 0, trainings, both)["here"] == word

def test_without_repeated_draws_the_variation_is_not_known():
    assert over_trainings(.1, [1, 1], [], [[.5], [.6]]) is None and math.isnan(pooled_sd([[.5], [.6]])[0])

def test_at_the_papers_scale_a_verdict_is_given(run):
    made = dict(
        llama_base=.3, llama_distilled=.9, teacher_teacher=.3, qwen3_base=.3, qwen3_distilled=.9,
        **{"llama_two-stage": .88})
    _, _, rows = run("paper", **made, **drawn("difficulty", [.5]))
    assert all(rows.loc[(c, "llama")].verdict == "replicated" for c in ("families", "teacher"))
    assert rows.loc[("tenth", "llama")].why.startswith(ONE_TRAINING) and rows.loc[("tenth", "llama")].here == OPEN
    assert rows.loc[("understanding", "")].verdict == "not testable"
    _, _, rows = run("paper", draws=3, **made, **drawn("difficulty", [.5, .51, .49]), **drawn("random", [.4, .4, .41]))
    assert rows.loc[("tenth", "llama")].verdict == "not replicated"
    for claim in ("families", "teacher"): # another family's teacher taught this student
        row = rows.loc[(claim, "qwen3")]
        assert row.here == HOLDS and row.verdict == "not testable at this scale" and "Qwen/Qwen3-32B" in row.why

@pytest.mark.parametrize("family, teacher", PAPERS[CLAIMS[0].source].teachers.items())
def test_a_family_is_judged_by_its_own_teacher(family, teacher):
    said = {f: short_of_paper(load_settings("paper", teacher_model=teacher), f) for f in ("llama", "qwen3", "gemma3")}
    assert [f for f, why in said.items() if not why] == [family]

def test_the_earlier_method_on_a_part_of_the_rows_is_no_yardstick(run):
    accuracies = dict(llama_base=.3, llama_distilled=.9, **{
        "llama_difficulty-10": .5, "llama_knowdist-10": .3, "llama_two-stage-10": .5,
        "llama_knowdist": .3, "llama_two-stage": .5})
    for profile, measured in (("tiny", False), ("paper", True)):
        _, _, rows = run(profile, **accuracies)
        for claim in ("tenth", "comprehensive", "two-stage", "both stages"):
            row = rows.loc[(claim, "llama")]
            assert (
                (row.here != ABSENT) is measured
                and row.why.startswith("not run in this profile: two-stage") is not measured)

@pytest.mark.parametrize("change, says", [
    (dict(teacher_model="Qwen/Qwen3-8B"), "Qwen3-8B"), (dict(student_model_llama="x/y"), "x/y"),
    (dict(student_source="build"), "stand-ins"), (dict(eval_limit=10), "a part of"),
    (dict(sentibench="embedded"), "embedded corpus"), (dict(teacher_backend="embedded"), "rule-based"),
    (dict(teacher_backend="replay"), "rule-based"), (dict(texts_source="sentibench"), "the user texts are those of"),
    (dict(texts_total=100), "texts_total = 100, the paper's is 20000"),
    (dict(corpus_size=100), "corpus_size = 100, the paper's is 50000"),
    (dict(train_epochs=0.1), "train_epochs = 0.1, the paper's is 4"),
    (dict(train_lora_r=16), "in the paper: train_lora_r"), (dict(shots=0), "in the paper: shots"),
    (dict(train_accumulation=2), "in the paper: train_batch x train_accumulation")])
def test_what_is_smaller_than_the_paper_is_named(change, says):
    assert says in short_of_paper(load_settings("paper", **change), "llama")
    assert short_of_paper(load_settings("paper"), "llama") == ""

def test_a_share_other_than_a_tenth_is_no_tenth():
    claims = {c.id: c for c in CLAIMS}
    settings = load_settings("paper", sampling_rate=0.2)
    assert "sampling_rate" in short_of_paper(settings, "llama", claims["tenth"])
    assert short_of_paper(settings, "llama", claims["families"]) == ""

def test_incomplete_coverage_is_no_coverage(run):
    _, _, rows = run(llama_distilled=answers(.9, tasks=[t for t in TASKS if t != "opener"]))
    assert rows.loc[("benchmark", "")].here == FAILS and rows.loc[("benchmark", "")].tasks == 11

def test_a_system_asked_other_tasks_is_an_error(run):
    with pytest.raises(UserError, match="different tasks"):
        run(llama_base=.3, llama_distilled=answers(.9, tasks=["sst2"]))

def fsa_stages(settings, pretrained, plain, n=60, worse=0.0):
    """Answers of FSA-Distillation's two starts in the form of notebook 12a, each right with a given probability;
    made in the store's folder. worse: how much less often the pre-trained one is, seed by seed."""
    store, counts = Store(settings), dict(n_pred=1., n_gold=1.)
    def items(names, start, accuracy, extra, seeds=(42,)):
        rng = random.Random(start)
        return [
            dict(task=t, system=start, seed=seed, item=i, **extra(rng.random() < accuracy - less, i))
            for t in names
            for less, seed in zip((worse * k * (start == "pretrained") for k in range(len(seeds))), seeds)
            for i in range(n)]
    def hit(right, i): # hard_test says the opposite, and must not count
        right = right if i % 4 else not right
        return dict(
            split="test" if i % 4 else "hard_test", gold="", parsed="",
            **counts, pred_hits=float(right), gold_hits=float(right))
    said = lambda right, i: dict(
        gold=("positive", "negative")[i % 2],
        parsed=("positive", "negative")[i % 2 if right else 1 - i % 2])
    both = dict(pretrained=pretrained, plain=plain)
    for name in settings.fsa_sets:
        for start, accuracy in both.items():
            store.stage(
                f"fsa-{name.replace('/', '-')}-{start}",
                lambda out, work: write_rows(
                    out/"items.parquet", items([name], start, accuracy, hit, settings.fsa_seeds)) or {})
    store.stage("fsa-zero-shot", lambda out, work: write_rows(
        out/"items.parquet",
        [r for start, accuracy in both.items() for r in items(["yelp2", "sst2"], start, accuracy, said)]) or {})
    return ledger(settings, store).set_index("claim")

MIXTRAL = dict(teacher_model="mistralai/Mixtral-8x7B-Instruct-v0.1", fsa_seeds="42, 52, 62")

def test_fsas_claims_are_judged_with_its_own_teacher_and_student(tmp_path):
    def verdicts(**change):
        settings = load_settings(
            "paper", bootstrap_samples=300, outputs=str(tmp_path/str(len(list(tmp_path.iterdir())))), **change)
        rows = fsa_stages(settings, .9, .4)
        return rows.loc["understanding"], rows.loc["zero-shot"], settings
    *rows, settings = verdicts(**MIXTRAL)
    assert [r.verdict for r in rows] == ["replicated"]*2
    assert all(f in short_of_paper(settings, "llama") for f in ("Mixtral", "Llama-3.1-70B")) # CompEffDist's it is not
    for change, says in (
        (dict(teacher_model="meta-llama/Llama-3.1-70B-Instruct"), "Mixtral"),
        (dict(fsa="embedded"), "embedded corpus"),
        (dict(fsa_model="google-t5/t5-small"), "t5-small"), (dict(fsa_corpus=100), "fsa_corpus = 100"),
        (dict(fsa_train_limit=10), "a part of the FSA sets"), (dict(fsa_pretrain_lr=1e-3), "fsa_pretrain_lr")):
        row = verdicts(**MIXTRAL | change)[0]
        assert row.here == HOLDS and row.verdict == "not testable at this scale" and says in row.why

def test_fsas_trainings_vary_as_others_do(tmp_path):
    single = fsa_stages(load_settings("tiny", outputs=str(tmp_path/"1"), bootstrap_samples=300), .9, .4)
    assert single.loc["understanding"].here == OPEN and single.loc["understanding"].reason == ONE_TRAINING
    assert single.loc["zero-shot"].here == HOLDS # its plain start is not trained
    far = fsa_stages(load_settings(
        "tiny", outputs=str(tmp_path/"2"), bootstrap_samples=300, fsa_seeds="42, 52"), .9, .4, worse=.4)
    row = far.loc["understanding"]
    assert row.draws == 2 and row.low > 0 > row.draws_low and row.here == OPEN and "trainings differ" in row.reason

@pytest.mark.parametrize("pretrained, plain, word", [(.9, .4, HOLDS), (.4, .9, FAILS), (.5, .5, OPEN)])
def test_fsa_starts_are_compared_on_their_test_split(tmp_path, pretrained, plain, word):
    rows = fsa_stages(load_settings(
        "tiny", outputs=str(tmp_path), bootstrap_samples=300, fsa_seeds="42, 52, 62"), pretrained, plain)
    kinds = {c.id: c.kind for c in CLAIMS}
    seen = [k for k in rows.index if kinds[k] in ("pre-training", "zero-shot")]
    assert len(seen) == 2 and all(rows.loc[k].here == word for k in seen)
    assert all(abs(rows.loc[k].difference - (pretrained - plain)) < .2 for k in seen)

def test_fsa_left_out_is_said(tmp_path):
    rows = fsa_stages(load_settings("tiny", outputs=str(tmp_path), bootstrap_samples=300, fsa="none"), .9, .4)
    assert all(
        rows.loc[c.id].here == ABSENT and "not run" in rows.loc[c.id].why
        for c in CLAIMS if c.kind in ("pre-training", "zero-shot"))

KNOWN = {
    ("teacher", "teacher"): 91.26, ("baseline", "majority"): 21.08,
    ("llama", "base"): 20.2, ("llama", "distilled"): 46.29,
    ("llama", "difficulty-10"): 21.44, ("llama", "random-10"): 25.4,
    ("llama", "icldist"): 40.0, ("llama", "icldist-10"): 22.5,
    ("qwen3", "base"): 18.75}
@pytest.mark.parametrize("label, systems", [
    ("teacher (embedded analyst)", ["teacher"]),
    ("most frequent answer", ["majority"]),
    ("Llama, base → distilled", ["base", "distilled"]),
    ("Llama, a tenth of the data: by difficulty, at random", ["difficulty-10", "random-10"]),
    ("Llama, at random, by difficulty (10 %)", ["random-10", "difficulty-10"]),
    ("Llama, ICLDist on a tenth", ["icldist-10"]),
    ("Llama, ICLDist", ["icldist"]),
    ("Qwen3, base → distilled", ["base"]),
    ("somebody else's", [])])
def test_a_rows_label_names_its_systems(label, systems):
    assert [s for _, s in systems_named(label, list(KNOWN))] == systems

HEAD = ["| system | tiny (40 items) | other |", "|---|---|---|"]
@pytest.mark.parametrize("row, faults", [
    ("| teacher | 91.3 | |", 0), ("| teacher | 91.3 | 5 |", 1), ("| teacher | 91.4 | |", 1),
    ("| teacher | 91 | |", 0), ("| teacher | 90 | |", 1), ("| teacher | – | |", 0),
    ("| Llama, base → distilled | 20.2 → 46.3 | |", 0), ("| Llama, base → distilled | 46.3 → 20.2 | |", 2),
    ("| Llama, base → distilled | 20.2 | |", 1), ("| a friend's | 99 | |", 1)])
def test_cells_must_be_the_means_of_what_their_row_names(row, faults):
    assert len(check_table([*HEAD, row], dict(tiny=KNOWN))) == faults

DRAWS = pd.DataFrame(dict(
    rate=[.1, .2], mean=[-7.3, -20.7], low=[-23., -27.4], high=[8.4, -14.], differences=["−0.4, −8.5", "+1.0, −3.2"]))
MADE = dict(tiny={"tab-draws": DRAWS, "results": pd.DataFrame(dict(
    system=["teacher", "distilled", "distilled"], run=[1, 1, 2], sst2=[.8, .6, .4], average=[.9, .5, .3]))})

def line(phrase, table="tab-draws", rows="rate=0.2", columns="mean", form="each", over="", note=""):
    return {
        "phrase": phrase, "profile": "tiny", "table": table, "rows": rows, "columns": columns, "over": over,
        "as": form, "note": note}

@pytest.mark.parametrize("text, entry, faults", [
    ("21 points behind", line("{} points behind", form="-each"), 0),
    ("20.7 points behind", line("{} points behind", form="-each"), 0),
    ("21 points behind", line("{} points behind"), 1), # ahead is not behind
    ("31 points behind", line("{} points behind", form="-each"), 1),
    ("21  points\nbehind", line("{} points behind", form="-each"), 0),
    ("14 to 27", line("{} to {}", columns="low|high", form="-range"), 0),
    ("27 to 14", line("{} to {}", columns="low|high", form="-range"), 2),
    ("0 and 8", line("{} and {}", rows="rate=0.1", columns="differences", form="-each"), 0),
    ("0 and 8", line("{} and {}", rows="rate=0.10", columns="differences", form="-range"), 0),
    ("0, 8", line("{}, {}", rows="rate=0.1", columns="mean"), 1), # two numbers for one value
    ("contains 0", line("contains {}", rows="rate=0.1", columns="low|high", form="within"), 0),
    ("contains 0", line("contains {}", rows="rate=0.1|0.2", columns="low|high", form="within"), 1),
    ("75 %", line("{} %", "results", "system=distilled; run=1", "sst2", "each %", "system=teacher"), 0),
    ("50 %", line("{} %", "results", "system=distilled", "sst2", "each %", "system=teacher"), 0), # the last run
    ("75 %", line("{} %", "results", "system=distilled", "sst2", "each %", "system=teacher"), 1),
    ("7", line("{}", "tab-none"), 1), ("7", line("{}", rows="rate=0.9"), 1), ("7", line("{}", columns="none"), 1),
    ("7", line("{}", rows="none=1"), 1), ("EMNLP 2025", line("EMNLP 2025"), 0), ("EMNLP 2026", line("EMNLP 2025"), 2),
    ("21 points behind, and 3", line("{} points behind", form="-each"), 1), # the 3 is of no phrase
    ("nothing", line("{} points behind"), 1), # a phrase that is gone
    ("121 points behind", line("{} points behind", form="-each"), 1),
    ("21 points behind; 99 points behind", line("{} points behind", form="-each"), 1)])
def test_a_phrases_numbers_are_those_of_its_rows(text, entry, faults):
    assert len(check_prose(text, [entry], MADE)) == faults

@pytest.mark.parametrize("text, faults", [
    ("1.4 M parameters in 2.5 GB, of 3B models", 0), ("3 times as good, 75-shot, in 5 s", 3),
    ("version (0.1.0), arXiv 2510.24425, SST2, Yelp2", 0),
    ("`a = 4` and [b](c/5.md)", 0), ("a rate of 31.2 %", 1), ("97 of them", 1), ("70,000 answers", 1)])
def test_a_number_of_no_phrase_is_found(text, faults):
    found = check_prose(text, [], MADE)
    assert len(found) == faults and all("readme_numbers.csv" in f for f in found)

@pytest.mark.parametrize("text, says", [
    ("", "columns are missing"), ("a,b", "a, b"), ("{head}\n{{}} points,tiny", "line 2: 2 cells"),
    ("{head}\n{{}} points,tiny,tab-draws,,mean,,each,", "has no rows"), ("{head}\nin 2025,,,,,,,", "has no note"),
    ("{head}\n{{}} points,tiny,tab-draws,rate=1,mean,,some,", "as = 'some'")])
def test_a_line_that_says_no_source_is_refused(tmp_path, text, says):
    (tmp_path/"n.csv").write_text(text.format(head=",".join(NUMBER_COLUMNS)))
    with pytest.raises(UserError) as e: readme_numbers(tmp_path/"n.csv")
    assert says in str(e.value)

def test_no_list_is_an_error(tmp_path):
    with pytest.raises(UserError, match="none.csv"): readme_numbers(tmp_path/"none.csv")

def test_tables_of_a_run_and_its_record_are_read(tmp_path):
    (tmp_path/"tiny"/"tables").mkdir(parents=True)
    DRAWS.to_csv(tmp_path/"tiny"/"tables"/"tab-draws.csv", index=False)
    DRAWS.to_csv(tmp_path/"tiny"/"results.csv", index=False)
    (tmp_path/"nothing").mkdir()
    tables = committed_tables(tmp_path)
    assert list(tables) == ["tiny"] and set(tables["tiny"]) == {"tab-draws", "results"}
    assert quoted(line("{}"), tables) == [[-20.7]]

def _files():
    """Names of the outputs in the last commit and how to read a file of it, so that a run in the working tree
    is not held against them; the working tree outside a checkout."""
    git = lambda *a: subprocess.run(["git", "-C", str(ROOT), *a], capture_output=True, text=True)
    names = git("ls-tree", "-r", "--name-only", "HEAD", "outputs").stdout.splitlines()
    if names: return names, lambda n: git("show", f"HEAD:{n}").stdout
    return (
        [p.relative_to(ROOT).as_posix() for p in ROOT.glob("outputs/*/*/*")],
        lambda n: (ROOT/n).read_text(encoding="utf-8"))

def _committed():
    "README, tables and the list of its numbers of one commit."
    (names, read), tables = _files(), {}
    for n in names:
        if n.endswith(".csv") and n.split("/")[2] in ("tables", "results.csv"):
            tables.setdefault(n.split("/")[1], {})[Path(n).stem] = pd.read_csv(io.StringIO(read(n)))
    return read("README.md"), tables, read("compeffdist/data/readme_numbers.csv")

@pytest.fixture
def committed(tmp_path):
    readme, tables, listed = _committed()
    (tmp_path/"n.csv").write_text(listed)
    return readme, tables, readme_numbers(tmp_path/"n.csv" if listed else None) # a commit from before the list

def test_the_readme_states_no_number_without_a_row_behind_it(committed):
    readme, tables, numbers = committed
    assert {"tiny", "mini"} <= set(tables) and unbacked(readme, tables, numbers) == []

def test_the_committed_ledger_ends_with_a_good_word_about_the_readme():
    """Notebook 28 is executed before the README follows the new tables, and then lists what is still the old."""
    names, read = _files()
    executed = [n for n in names if n.endswith("/notebooks/28_claims.ipynb")]
    assert "outputs/tiny/notebooks/28_claims.ipynb" in executed
    for n in executed:
        said = json.loads(read(n))["cells"][-1]["outputs"]
        text = "".join("".join(o.get("data", {}).get("text/plain", o.get("text", ""))) for o in said)
        good = re.search(r'\) or "(.+)"$', "".join(json.loads(read(n))["cells"][-1]["source"]))[1]
        assert text.strip("'\"") == good, (
            f"{n} was executed against an older README and contradicts this one. After the commit of the README: "
            f"make replicate PROFILE={n.split('/')[1]} ONLY=28_claims, and commit {n}.")

def test_a_changed_number_in_the_readme_is_found(committed):
    readme, tables, numbers = committed
    mean = tables["tiny"]["tab-main"].query("system == 'teacher'").average.iloc[0]
    shown = f"| {mean:.1f} |"
    assert shown in readme and unbacked(readme.replace(shown, f"| {mean + .2:.1f} |"), tables, numbers)

N = r"(\d+(?:\.\d+)?)"
@pytest.mark.parametrize("phrase, change", [
    (f"end {N} to {N} points above", lambda a, b: (str(int(a) + 20), str(int(b) + 20))), # 31 to 41: 51 to 61
    (f"reaches {N}, {N} and {N} % of the teacher", lambda *a: ["99"]*3),                 # 97, 97 and 96: 99
    (f"KnowDist {N}, ICLDist {N}", lambda a, b: (b, a))])                                # swapped
def test_a_reviewers_false_numbers_are_found(committed, phrase, change):
    readme, tables, numbers = committed
    m = re.search(phrase, readme)
    parts = re.split(N, m[0])
    parts[1::2] = change(*m.groups())
    changed = sum(a != b for a, b in zip(m.groups(), parts[1::2]))
    assert changed and len(unbacked(readme.replace(m[0], "".join(parts)), tables, numbers)) == changed

def test_every_number_of_the_readmes_phrases_is_held_to_its_row(committed):
    readme, tables, numbers = committed
    for entry in numbers:
        pattern = r"\s+".join(N.join(map(re.escape, w.split("{}"))) for w in entry["phrase"].split())
        m = re.search(pattern.replace(N, r"(\d+(?:[.,]\d+)?)"), readme)
        assert m, entry["phrase"]
        for k in range(1, m.lastindex + 1 if m.lastindex else 1):
            false = readme[:m.start(k)] + str(float(m[k].replace(",", "")) + 113) + readme[m.end(k):]
            assert unbacked(false, tables, numbers), (entry["phrase"], k)

def test_a_new_number_and_a_sentence_that_is_gone_are_found(committed):
    readme, tables, numbers = committed
    at = readme.index("## What came out") + len("## What came out")
    assert len(unbacked(readme[:at] + " It is 7 points better." + readme[at:], tables, numbers)) == 1
    assert "is not in the README" in unbacked(readme, tables, [*numbers, line("{} points better")])[-1]

def test_every_claim_can_be_looked_up():
    assert len({c.id for c in CLAIMS}) == len(CLAIMS) and all(c.test and c.statement for c in CLAIMS)

def test_a_decimal_is_shown_where_it_stands():
    text = "Of [two](https://example.org/a/long/address) `names_and_more` in arXiv 2510.24425 one came to 46.4."
    said, = check_prose(text, [], {})
    assert said.startswith(f"46.4 in {text[text.index('46.4') - 40:text.index('46.4') + 24]!r} is tied to no table")

# settings that change where and how fast a run computes, or what is compared beside the claims
NO_MATTER = {
    "outputs", "workers", "profile", "seed", "families", "inventory", "bootstrap_samples", "benchmark_train",
    "benchmark_test", "sampling_seed", "sampling_rate", "curve_rates", "curve_draws", "ablations", "ablation_rate",
    "all_families", "lineage", "other_clusterings", "other_counts", "other_teachers", "base_shots", "student_dtype",
    "difficulty_batch_tokens", "difficulty_compare_rows", "difficulty_proxies", "eval_batch_tokens", "eval_context",
    "cluster_memory_gib", "train_batch", "train_accumulation", "train_fsdp", "train_gradient_checkpointing",
    "train_lora_alpha", "train_processes", "train_save_steps", "construct_max_tokens", "construct_schema",
    "answer_max_tokens", "texts_hub"}
# looked at one by one: which models, which benchmark, which texts
LOOKED_AT = {
    "texts_source", "texts_total", "corpus_size", "train_epochs", "sentibench", "eval_limit", "max_words",
    "student_source", "teacher_backend", "teacher_model", "teacher_replay_of"}

def test_every_setting_that_decides_a_claim_is_compared_with_the_paper():
    from compeffdist.settings import Settings
    outside = ("plan_", "base_", "fsa", "teacher_", "student_model_", "student_revision_", "student_attention_")
    rest = {
        k for k in Settings.model_fields
        if not k.startswith(outside) and not k.endswith("_revision")
    } - set(PAPERS[CLAIMS[0].paper].exact) - NO_MATTER - LOOKED_AT
    assert not rest, f"compared with the paper, or of no matter? {sorted(rest)}"

@pytest.mark.parametrize("key, value", [
    ("sampling_a", 0), ("sampling_by", "overall"), ("corpus_nearby_share", .7), ("corpus_oversample", 2),
    ("corpus_analysis_share", 0), ("corpus_max_demonstrations", 0), ("difficulty_model", "some/proxy"),
    ("cluster_weighted", True), ("eval_label_rule", "whole label"), ("eval_max_new_tokens", 5),
    ("shots_drawn", "task")])
def test_a_run_with_another_method_does_not_speak_about_the_paper(key, value):
    assert short_of_paper(load_settings("paper"), "llama") == ""
    assert key in short_of_paper(load_settings("paper", **{key: value}), "llama")
