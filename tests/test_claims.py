"The ledger's rules, its honesty about scale, and the README's numbers against the committed tables."
import io, json, random, subprocess
from pathlib import Path
import pandas as pd
import pytest
from compeffdist.claims import (
    ABSENT, CLAIMS, FAILS, HOLDS, OPEN,
    check_prose, check_table, decide, ledger, most, short_of_paper, systems_named, unbacked)
from compeffdist.sentibench import TASKS
from compeffdist.settings import UserError, load_settings, project_root
from compeffdist.stats import fold, mean_paired, vectors
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

def test_a_loss_is_said_and_a_wide_interval_is_undecided(run):
    _, _, rows = run(llama_distilled=.9, **{"llama_difficulty-10": .3, "llama_random-10": .3})
    assert rows.loc[("enough", "llama")].here == FAILS and rows.loc[("difficulty", "llama")].here in (OPEN, FAILS)

def test_at_the_papers_scale_a_verdict_is_given(run):
    settings, store, rows = run(
        "paper", llama_base=.3, llama_distilled=.9, teacher_teacher=.3,
        **{"llama_two-stage": .88, "llama_difficulty-10": .5})
    assert (
        rows.loc[("families", "llama")].verdict == "replicated"
        and rows.loc[("teacher", "llama")].verdict == "replicated")
    assert (
        rows.loc[("tenth", "llama")].verdict == "not replicated"
        and rows.loc[("understanding", "")].verdict == "not testable")

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
    (dict(sentibench="embedded"), "embedded corpus"), (dict(teacher_backend="embedded"), "rule-based")])
def test_what_is_smaller_than_the_paper_is_named(change, says):
    assert says in short_of_paper(load_settings("paper", **change), "llama")

def test_incomplete_coverage_is_no_coverage(run):
    _, _, rows = run(llama_distilled=answers(.9, tasks=[t for t in TASKS if t != "opener"]))
    assert rows.loc[("benchmark", "")].here == FAILS and rows.loc[("benchmark", "")].tasks == 11

def test_a_system_asked_other_tasks_is_an_error(run):
    with pytest.raises(UserError, match="different tasks"):
        run(llama_base=.3, llama_distilled=answers(.9, tasks=["sst2"]))

def fsa_stages(settings, pretrained, plain, n=60):
    """Answers of FSA-Distillation's two starts in the form of notebook 12a, each right with a given probability;
    made in the store's folder."""
    store, counts = Store(settings), dict(n_pred=1., n_gold=1.)
    def items(names, start, accuracy, extra):
        rng = random.Random(start)
        return [
            dict(task=t, system=start, seed=42, item=i, **extra(rng.random() < accuracy, i))
            for t in names for i in range(n)]
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
                lambda out, work: write_rows(out/"items.parquet", items([name], start, accuracy, hit)) or {})
    store.stage("fsa-zero-shot", lambda out, work: write_rows(
        out/"items.parquet",
        [r for start, accuracy in both.items() for r in items(["yelp2", "sst2"], start, accuracy, said)]) or {})
    return ledger(settings, store).set_index("claim")

@pytest.mark.parametrize("pretrained, plain, word", [(.9, .4, HOLDS), (.4, .9, FAILS), (.5, .5, OPEN)])
def test_fsa_starts_are_compared_on_their_test_split(tmp_path, pretrained, plain, word):
    rows = fsa_stages(load_settings("tiny", outputs=str(tmp_path), bootstrap_samples=300), pretrained, plain)
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
    ("| teacher | 91.3 | 5 |", 0), ("| teacher | 91.4 | 5 |", 1),
    ("| teacher | 91 | |", 0), ("| teacher | 90 | |", 1), ("| teacher | – | |", 0),
    ("| Llama, base → distilled | 20.2 → 46.3 | |", 0), ("| Llama, base → distilled | 46.3 → 20.2 | |", 2),
    ("| Llama, base → distilled | 20.2 | |", 1), ("| a friend's | 99 | |", 1)])
def test_cells_must_be_the_means_of_what_their_row_names(row, faults):
    assert len(check_table([*HEAD, row], dict(tiny=KNOWN))) == faults

@pytest.mark.parametrize("text, faults", [
    ("came to 46.3", 0), ("came to 46.4", 1), ("1.4 M parameters in 2.5 GB", 0),
    ("version (0.1.0), arXiv 2510.24425", 0), ("a rate of 31.2 %", 1)])
def test_decimals_in_prose_must_be_in_a_table(text, faults): assert len(check_prose(text, [46.29])) == faults

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
    "README and tables of one commit."
    (names, read), tables = _files(), {}
    for n in names:
        if n.endswith(".csv") and n.split("/")[2] == "tables":
            tables.setdefault(n.split("/")[1], {})[Path(n).stem] = pd.read_csv(io.StringIO(read(n)))
    return read("README.md"), tables

def test_the_readme_states_no_score_without_a_row_behind_it():
    readme, tables = _committed()
    assert {"tiny", "mini"} <= set(tables) and unbacked(readme, tables) == []

def test_the_committed_ledger_ends_with_a_good_word_about_the_readme():
    """Notebook 28 is executed before the README follows the new tables, and then lists what is still the old."""
    names, read = _files()
    executed = [n for n in names if n.endswith("/notebooks/28_claims.ipynb")]
    assert "outputs/tiny/notebooks/28_claims.ipynb" in executed
    for n in executed:
        said = json.loads(read(n))["cells"][-1]["outputs"]
        text = "".join("".join(o.get("data", {}).get("text/plain", o.get("text", ""))) for o in said)
        assert text.strip("'\"") == "every decimal of the README's results has a row behind it", (
            f"{n} was executed against an older README and contradicts this one. After the commit of the README: "
            f"make replicate PROFILE={n.split('/')[1]} ONLY=28_claims, and commit {n}.")

def test_a_changed_number_in_the_readme_is_found():
    readme, tables = _committed()
    mean = tables["tiny"]["tab-main"].query("system == 'teacher'").average.iloc[0]
    shown = f"| {mean:.1f} |"
    assert shown in readme and unbacked(readme.replace(shown, f"| {mean + .2:.1f} |"), tables)

def test_every_claim_can_be_looked_up():
    assert len({c.id for c in CLAIMS}) == len(CLAIMS) and all(c.test and c.statement for c in CLAIMS)

def test_a_decimal_is_shown_where_it_stands():
    text = "Of [two](https://example.org/a/long/address) `names_and_more` in arXiv 2510.24425 one came to 46.4."
    assert check_prose(text, [46.29]) == [f"46.4 in {text[text.index('46.4') - 40:text.index('46.4') + 24]!r}"]
