"FSA-Distillation: the benchmark's files, the linear form, the scorer, real teacher responses, and a whole small run."
import json, shutil
from collections import Counter
from pathlib import Path
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st
from compeffdist import fsa, texts
from compeffdist.fsa import (
    FSA_POLARITIES, FSA_SETS, FSA_SPLITS, count_responses,
    embedded_fsa, fsa_pairs, is_implicit, is_mixed, parse_analysis,
    parse_linear, polarity_of, read_fsa, read_responses, render_analysis, render_linear, score_fsa, usable_response)
from compeffdist.evaluate import build_items, pick_items
from compeffdist.sentibench import MAX_OUTPUT, read_split
from compeffdist.settings import UserError, load_settings
from compeffdist.store import Store

REAL = Path(__file__).parents[2]/"shared/data/fsa"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the FSA benchmark is not at {REAL}")
aspect = lambda target, polarity, b=0, e=0, category="FOOD#QUALITY", **more: {
    "target": target, "polarity": polarity, "from": b, "to": e, "category": category, **more}
record = lambda sentence, *aspects: dict(ID="1", sentence=sentence, aspects=list(aspects))

# the linear form
terms = st.text(
    st.characters(blacklist_characters="|;", blacklist_categories=("Cs",)),
    min_size=1, max_size=12).map(str.strip).filter(bool)
pairs = st.lists(st.tuples(terms, st.sampled_from(FSA_POLARITIES)), max_size=6)

@given(pairs)
@hypothesis_settings(deadline=None, max_examples=200)
def test_what_is_written_is_read_back(pairs): assert parse_linear(render_linear(pairs)) == (pairs, 0)

@given(
    st.text(st.one_of(st.sampled_from("|; "), st.characters(blacklist_categories=("Cs",))), max_size=60)
    | st.lists(st.sampled_from(["soup", "|", ";", "positive", "negative", " "]), max_size=15).map("".join))
@hypothesis_settings(deadline=None, max_examples=300)
def test_any_text_is_read_and_what_was_read_can_be_written(text):
    found, unread = parse_linear(text)
    assert len(found) + unread == sum(bool(p.strip()) for p in text.split(";"))
    readable = [p for p in found if p[0]]
    assert parse_linear(render_linear(readable)) == (readable, 0)

def test_a_term_that_the_form_cannot_hold_is_refused():
    for term in ("a|b", "a;b", " "):
        with pytest.raises(UserError, match="linear form"): render_linear([(term, "positive")])

def test_gold_pairs_by_hand():
    r = record(
        "tea and soup and tea",
        aspect("tea", "negative", "17", "20"),
        aspect("soup", "positive", "8", "12"),
        aspect("tea", "negative", "0", "3"),
        aspect("tea", "negative", "0", "3", "DRINKS#PRICES"),
        aspect("NULL", "neutral"),
        aspect(None, "neutral", None, None))
    assert fsa_pairs("atsa/rest14", r) == [("tea", "negative"), ("soup", "positive"), ("tea", "negative")]
    assert fsa_pairs("acsa/rest16", r) == [
        ("food quality", "negative"), ("food quality", "positive"),
        ("drinks prices", "negative"), ("food quality", "neutral")]

# the scorer
def test_f1_by_hand():
    gold = [
        record("soup and tea", aspect("soup", "positive", 0, 4), aspect("tea", "negative", 9, 12)),
        record("a fish", aspect("NULL", "positive"))]
    out = ["soup | positive ; soup | positive ; tea | positive ; rice | negative ; tea", "fish | negative"]
    official, strict = (score_fsa("atsa/rest14", gold, out, rules) for rules in ("official", "strict"))
    assert (official["precision"], official["recall"], official["unread"]) == (2/4, 1/2, 2)
    assert (strict["precision"], strict["recall"]) == (1/5, 1/2)
    assert score_fsa("atsa/rest14", gold, ["", None]) == dict(precision=1.0, recall=0.0, f1=0.0, n_items=2, unread=0)

@pytest.mark.parametrize("name", FSA_SETS)
@pytest.mark.parametrize("seed", range(3))
def test_f1_equals_a_slow_twin(name, seed):
    import random
    rng = random.Random(seed)
    words, cats = ["soup", "tea", "fish"], ["FOOD#QUALITY", "DRINKS#PRICES"]
    gold = [
        record("soup tea fish", *[
            aspect(
                rng.choice(words + ["NULL"]), rng.choice(FSA_POLARITIES), i, i + 1, rng.choice(cats))
            for i in range(rng.randint(0, 4))])
        for _ in range(150)]
    said = lambda: rng.choice([
        f"{rng.choice(words + ['food quality', 'drinks prices', 'sky'])}"
        f" | {rng.choice(FSA_POLARITIES + ('good',))}",
        "soup", "a | b | positive", ""])
    out = [" ; ".join(said() for _ in range(rng.randint(0, 4))) for _ in gold]
    def parse(text): # the release's rules, told once more
        parts = [[x.strip() for x in p.split("|")] for p in text.split(";")]
        return [
            (p[0], p[1]) for p in parts
            if len(p) == 2 and p[1] in FSA_POLARITIES and (name[:4] == "acsa" or p[0] in "soup tea fish")]
    true = [(i, p) for i, r in enumerate(gold) for p in parse(" ; ".join(f"{a} | {b}" for a, b in fsa_pairs(name, r)))]
    pred = [(i, p) for i, o in enumerate(out) for p in parse(o)]
    precision, recall = sum(p in true for p in pred)/len(pred), sum(t in pred for t in true)/len(true)
    got = score_fsa(name, gold, out)
    assert (
        (got["precision"], got["recall"]) == (precision, recall)
        and precision > 0
        and got["f1"] == pytest.approx(2*precision*recall/(precision + recall)))

def test_score_refuses_what_does_not_pair_up():
    with pytest.raises(UserError, match="1 gold records and 2 outputs"):
        score_fsa("atsa/rest14", [record("a")], ["", ""])
    with pytest.raises(UserError, match="2 gold records and 1 outputs"):
        score_fsa("atsa/rest14", [record("a")] * 2, [""])
    with pytest.raises(UserError, match="official, strict"): score_fsa("atsa/rest14", [record("a")], [""], "loose")

@pytest.mark.parametrize("output", ["x" * 100_000, "| positive ;" * 9_000, "[" * 50_000, "\ud800 | positive", None])
def test_hopeless_output_counts_and_never_raises(output):
    assert score_fsa("atsa/rest14", [record("soup", aspect("soup", "positive", 0, 4))], [output])["recall"] == 0

# the files
@pytest.mark.parametrize("change, says", [
    (dict(sentence=""), "no sentence"),
    (dict(aspects=None), "not a list"),
    (dict(aspects=[aspect("soup", "good")]),
     "'good' is not allowed. Allowed: positive, negative, neutral, conflict"),
    (dict(aspects=[aspect("rice", "positive")]), "'rice' does not occur"),
    (dict(aspects=[aspect(3, "positive")]), "target = 3"),
    (dict(aspects=["soup"]), "'soup' is not allowed|soup is not allowed")])
def test_a_wrong_record_is_named_with_file_and_index(tmp_path, change, says):
    file = tmp_path/"atsa"/"rest14"/"test.json"
    file.parent.mkdir(parents=True)
    good = record("the soup", aspect("soup", "positive", 4, 8))
    file.write_text(json.dumps([good, good | change]), encoding="utf-8-sig")
    with pytest.raises(UserError, match=says) as e: read_fsa(tmp_path, "atsa/rest14", "test")
    assert f"{file}, record 1" in str(e.value)

def test_missing_broken_and_unknown_files(tmp_path):
    with pytest.raises(UserError, match="cannot be read"): read_fsa(tmp_path, "atsa/rest14", "test")
    with pytest.raises(UserError, match="Sets: atsa/laptop14"): read_fsa(tmp_path, "atsa/rest15", "test")
    (tmp_path/"w_hard"/"acsa"/"rest16").mkdir(parents=True)
    file = tmp_path/"w_hard"/"acsa"/"rest16"/"dev.json"
    for text, says in (
            ("[", "not JSON"), ("{}", "no array"), ("[]", "no array"), ("[" * 100_000, "not JSON"),
            (json.dumps([record("a", aspect("b", "positive", category=None))]), "category = None")):
        file.write_text(text)
        with pytest.raises(UserError, match=says): read_fsa(tmp_path, "acsa/rest16", "dev")

@pytest.mark.parametrize("name", FSA_SETS)
def test_embedded_records_have_the_benchmarks_shape(name, tmp_path):
    made = embedded_fsa(name, 24, 20, 5)
    (tmp_path/name).mkdir(parents=True)
    for split, records in made.items():
        (tmp_path/name/f"{split}.json").write_text(json.dumps(records))
        if name.startswith("acsa"): assert read_fsa(tmp_path, name, split) == records
    assert (
        [len(made[s]) for s in ("train", "dev", "test")] == [24, 6, 20]
        and made["hard_test"]
        and all(map(is_mixed, made["hard_test"])))
    sentences = [{r["sentence"] for r in made[s]} for s in FSA_SPLITS]
    assert len(set.union(*sentences)) == sum(map(len, sentences)) and made == embedded_fsa(name, 24, 20, 5)

# real files
@real
@pytest.mark.parametrize("name", FSA_SETS)
def test_the_real_benchmark_reads_and_its_gold_scores_one(name):
    sizes = {}
    for split in FSA_SPLITS:
        records = read_fsa(REAL, name, split)
        sizes[split] = len(records)
        score = score_fsa(name, records, [render_linear(fsa_pairs(name, r)) for r in records])
        assert score["f1"] == 1 and score["unread"] == 0
        assert score_fsa(name, records, [""] * len(records))["f1"] == 0
    assert sizes == {
        "atsa/laptop14": dict(train=2436, dev=609, test=800, hard_test=237),
        "atsa/rest14": dict(train=2432, dev=609, test=800, hard_test=340),
        "acsa/laptop16": dict(train=2000, dev=500, test=808, hard_test=237),
        "acsa/rest16": dict(train=1600, dev=400, test=676, hard_test=340)}[name]
    assert all(is_implicit(r) or is_mixed(r) for r in read_fsa(REAL, name, "hard_test"))

@real
def test_the_real_responses_are_told_apart_and_read():
    rows = read_responses(REAL/"mixtral_test_500.jsonl")
    assert Counter(r["kind"] for r in rows) == dict(analysis=234, rewrite=266)
    assert count_responses(rows) == {
        "analyses": 234, "analyses_used": 226, "rewrites": 266, "rewrites_used": 266,
        "opinions": 960, "opinions_with_polarity": 909, "opinions_kept": 789,
        "no opinion with a polarity and a target in the review": 7, "no opinion could be read": 1}
    said = [parse_analysis(r["response"], r["text"]) for r in rows if r["kind"] == "analysis"]
    # a list behind the lines, a target under several aspects, a line for each opinion, empty fields, self-talk
    assert {i: len(said[i]) for i in (2, 42, 70, 134, 211, 109, 115, 200, 73, 131, 175)} == {
        2: 3, 42: 2, 70: 6, 134: 6, 211: 6, 109: 4, 115: 3, 200: 0, 73: 2, 131: 3, 175: 1}
    opinions = [o for part in said for o in part]
    assert [i for i, part in enumerate(said) for o in part if not o["target"]] == [24, 24] # which names none there
    assert not any("Opinion Target" in o["aspect"] + o["sentiment"] for o in opinions)
    first = parse_analysis(next(r["response"] for r in rows if "wireless adapter" in r["response"]))
    assert [(o["target"], o["aspect"], o["sentiment"], o["polarity"]) for o in first] == [
        ("wireless adapter", '"Signal Strength"', "Negative", "negative"),
        ("wireless adapter", '"Connectivity"', "Mild", None),
        ("wireless adapter", '"Size"', "Positive", "positive"),
        ("wireless adapter", '"Price"', "Positive", "positive")]

# a teacher's responses
@pytest.mark.parametrize("said, polarity", [
    ("Very Positive", "positive"), ("Negative (Mild)", "negative"), ("Mild Sentiment", None), ("", None),
    ("Positive and negative", None), ("Unspecified/Neutral", "neutral")])
def test_polarities(said, polarity): assert polarity_of(said) == polarity

def test_an_analysis_is_read_from_json_and_from_lines_alike():
    array = json.dumps([
        dict(aspect_term="soup", aspect_category="food quality", opinion="superb", sentiment="positive"),
        dict(aspect_term="NULL", aspect_category="price", opinion="dear", sentiment="negative")])
    opinions = parse_analysis(f"Sure: {array}")
    assert (
        parse_analysis(render_analysis(opinions)) == opinions
        and [o["polarity"] for o in opinions] == ["positive", "negative"])
    for hopeless in (
            "", "[" * 90_000, "No idea.", "[1, null, [2]]", '[{"aspect_term": null}]',
            "Opinion Target 1:\nSentiment:"):
        assert parse_analysis(hopeless) == []

@pytest.mark.parametrize("kind, response, why", [
    ("analysis", "I'm sorry, I cannot.", "refusal"),
    ("analysis", "All good.", "no opinion could be read"),
    ("analysis", "Opinion Target 1:\nSentiment: Positive", "target in the review"),
    ("rewrite", "", "nothing"),
    ("rewrite", 'Opinion Target 1: "soup"', "an analysis"),
    ("analysis", 'Opinion Target 1: "fish"\nSentiment: Positive', "target in the review"),
    ("rewrite", "The soup was cold.", "itself")])
def test_what_is_not_used_says_why(kind, response, why):
    text, reason = usable_response(kind, "The soup was cold.", response)
    assert text == "" and why in reason

def test_broken_response_files(tmp_path):
    with pytest.raises(UserError, match="cannot be read"): read_responses(tmp_path/"none.jsonl")
    (tmp_path/"x.jsonl").write_text('{"Text": "a", "mixtral_response": "b"}\n\n{"Text": "a"}\n')
    with pytest.raises(UserError, match="line 3"): read_responses(tmp_path/"x.jsonl")

# the student
@pytest.fixture(scope="module")
def small():
    s = load_settings(
        "tiny", fsa_hidden=16, fsa_layers=1, fsa_vocab=400, fsa_input_tokens=32, fsa_output_tokens=24,
        train_precision="fp32")
    return s, *fsa.new_t5(["The soup was lovely and the staff rude.", "soup | positive ; staff | negative"] * 20, s)

def test_line_breaks_survive_and_texts_are_cut(small):
    s, model, tok = small
    ids = fsa.encode_texts(["soup\nstaff", "soup " * 99], tok, 10)
    assert (
        tok.decode(ids[0], skip_special_tokens=True).replace(fsa.NEWLINE, "\n") == "soup\nstaff"
        and len(ids[1]) == 10
        and all(i[-1] == tok.eos_token_id for i in ids))
    with pytest.raises(UserError, match="multiple of 16"): fsa.new_t5(["a"], s.model_copy(update=dict(fsa_hidden=20)))
    with pytest.raises(UserError, match="fsa_model"): fsa.load_t5("/nowhere/t5")

def test_outputs_do_not_depend_on_the_batch(small):
    s, model, tok = small
    texts = ["The soup was lovely.", "rude", "The staff and the soup and the staff and the soup."]
    assert fsa.write_outputs(model, tok, texts, s, 6) == [fsa.write_outputs(model, tok, [t], s, 6)[0] for t in texts]

def test_zero_shot_equals_a_slow_twin(small):
    import torch
    s, model, tok = small
    texts = ["The soup was lovely.", "rude", "The staff and the soup and the staff."] * 2
    start = 'Opinion Target 1: "NULL"\nAspect: general\nSentiment:'
    def logp(text, label):
        x = torch.tensor(fsa.encode_texts(["analyse: " + text], tok, s.fsa_input_tokens))
        head, word = (
            tok(t, add_special_tokens=False).input_ids
            for t in (start.replace("\n", fsa.NEWLINE), f" {label.capitalize()}"))
        with torch.inference_mode():
            p = model(
                input_ids=x,
                decoder_input_ids=torch.tensor([[tok.pad_token_id, *head, *word][:-1]])).logits[0].log_softmax(-1)
        return sum(float(p[len(head) + k, w]) for k, w in enumerate(word))
    slow = [max(("negative", "positive"), key=lambda l: logp(t, l)) for t in texts]
    assert fsa.zero_shot(model, tok, texts, s) == slow

def given_away(store, to):
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    assert fsa.export_t5(store, to) == to and not (to/"stage.json").exists()
    given, kept = (
        AutoModelForSeq2SeqLM.from_pretrained(p) for p in (to, store.path("fsa-pretrained", "pretrained")))
    assert all(torch.equal(p, q) for p, q in zip(given.parameters(), kept.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(to).convert_tokens_to_ids(fsa.NEWLINE) is not None
    card, counts = (to/"README.md").read_text(), store.json("fsa-corpus", "stage.json")["counts"]
    for said in (
            f"| Data | {counts['analysis']} analyses and {counts['rewrite']} rewrites", "rule-based stand-in",
            f"a random T5 of {given.num_parameters():,} parameters", "| Licence | not stated",
            "make replicate PROFILE=tiny", "source embedded"):
        assert said in card, said
    with pytest.raises(UserError, match="is not empty"): fsa.export_t5(store, to)

def test_a_t5_that_was_not_made_cannot_be_given_away(tmp_path):
    store = Store(load_settings("tiny", outputs=str(tmp_path)))
    with pytest.raises(UserError, match="'fsa-pretrained' has not been run"): fsa.export_t5(store, tmp_path/"given")

def test_the_whole_system_runs_and_is_cached(tmp_path, monkeypatch):
    s = load_settings(
        "tiny", outputs=str(tmp_path), texts_total=40, benchmark_train=8, benchmark_test=12,
        fsa_sets="acsa/rest16", fsa_corpus=4, fsa_hidden=16, fsa_layers=1, fsa_vocab=400,
        fsa_pretrain_epochs=1, fsa_epochs=1, eval_limit=6, workers=1)
    store = Store(s)
    texts.benchmark_stage(s, store); texts.texts_stage(s, store)
    done = {r.name: r for r in fsa.fsa_stages(s, store)}
    assert list(done) == [
        "fsa-data", "fsa-corpus", "fsa-pretrained", "fsa-acsa-rest16-pretrained", "fsa-acsa-rest16-plain",
        "fsa-zero-shot"]
    corpus = store.rows("fsa-corpus", "corpus.parquet").to_list()
    assert (
        {r["kind"] for r in corpus} == {"analysis", "rewrite"}
        and all(parse_analysis(r["response"]) for r in corpus if r["kind"] == "analysis"))
    items = store.rows("fsa-acsa-rest16-plain", "items.parquet").to_pandas()
    scores = store.rows("fsa-acsa-rest16-plain", "scores.parquet").to_pandas().set_index("subset")
    test = items[items.split == "test"]
    assert scores.n_items["test"] == len(test) == 6 and set(scores.index) >= {"test", "hard_test", "mixed"}
    records = read_fsa(store.path("fsa-data"), "acsa/rest16", "test")
    chosen = pick_items(len(records), 6, s.seed, "acsa/rest16/test")
    assert list(test["item"]) == chosen != list(range(6))
    assert scores.f1["test"] == score_fsa("acsa/rest16", [records[i] for i in chosen], list(test.output))["f1"]
    zero = store.rows("fsa-zero-shot", "items.parquet").to_pandas()
    asked = {(i.task.name, i.item) for i in build_items(
        store.path("benchmark", "benchmark"), ["yelp2", "sst2"], 1, [42], 6, run_seed=s.seed)}
    for system in ("plain", "pretrained"):
        part = zero[zero.system == system]
        assert len(part) == 12 and set(zip(part.task, part["item"])) == asked
    labels = {t: read_split(store.path("benchmark", "benchmark"), t, "test") for t in ("yelp2", "sst2")}
    assert all(r.gold == labels[r.task][r.item]["label"].lower() for r in zero.itertuples())
    given_away(store, tmp_path/"given")
    assert all(r.cached for r in fsa.fsa_stages(s, store))
    assert fsa.fsa_stages(s.model_copy(update=dict(fsa="none")), store) == []

def test_a_folder_is_named_from_the_root_wherever_the_notebook_runs(tmp_path, monkeypatch):
    from compeffdist.fsa import fsa_data_stage
    from compeffdist.settings import project_root
    ini = project_root(Path(__file__))/"settings.ini"
    (tmp_path/"nbs").mkdir(); (tmp_path/"settings.ini").write_text("")
    monkeypatch.setenv("COMPEFFDIST_ROOT", str(tmp_path)); monkeypatch.chdir(tmp_path/"nbs")
    s = load_settings(
        "tiny", path=ini, outputs=str(tmp_path/"one"), fsa_sets="acsa/rest16",
        benchmark_train=4, benchmark_test=4)
    made = fsa_data_stage(s, Store(s))
    (tmp_path/"data").mkdir(); shutil.copytree(made.path, tmp_path/"data/fsa")
    own = load_settings("tiny", path=ini, outputs=str(tmp_path/"two"), fsa="data/fsa", fsa_sets="acsa/rest16")
    copied = fsa_data_stage(own, Store(own))
    assert all(
        read_fsa(copied.path, "acsa/rest16", k) == read_fsa(made.path, "acsa/rest16", k)
        for k in ("train", "test"))


@pytest.mark.parametrize("change, says", [
    (dict(target=...), r"has no target"),
    (dict(**{"from": "x"}), "from = 'x' is not a position"),
    (dict(to=-3), "to = -3 is not a position"),
    (dict(to="4.5"), "to = '4.5' is not a position")
])
def test_a_wrong_aspect_is_named_with_file_and_index(tmp_path, change, says):
    file = tmp_path/"atsa"/"rest14"/"test.json"
    file.parent.mkdir(parents=True)
    wrong = {k: v for k, v in (aspect("soup", "positive", "4", "8") | change).items() if v is not ...}
    file.write_text(json.dumps([record("the soup", wrong)]))
    with pytest.raises(UserError, match=says) as e: read_fsa(tmp_path, "atsa/rest14", "test")
    assert f"{file}, record 0, aspects[0]" in str(e.value)

@pytest.mark.parametrize("line", [
    '{"Text": "a", "mixtral_response": null}', '{"Text": 3, "mixtral_response": "b"}', '["a"]', "null", "[" * 100_000
])
def test_a_response_that_is_no_text_is_named_with_file_and_line(tmp_path, line):
    (file := tmp_path/"x.jsonl").write_text('{"Text": "a", "mixtral_response": "b"}\n' + line)
    with pytest.raises(UserError, match="line 2 is no record") as e: read_responses(file)
    assert str(file) in str(e.value) and line[:20] in str(e.value)

def test_gold_that_is_not_right_is_named_by_its_index():
    good = record("the soup", aspect("soup", "positive", 4, 8))
    for wrong, says in (
            (aspect("soup", "meh"), "gold record 1, aspects\\[0\\]: polarity = 'meh' is not allowed"),
            ({"target": "soup"}, "gold record 1, aspects\\[0\\]: polarity = None is not allowed"),
            (aspect("rice", "positive"), "gold record 1, aspects\\[0\\]: target = 'rice' does not occur"),
            ({"polarity": "positive"}, "gold record 1, aspects\\[0\\] has no target")):
        with pytest.raises(UserError, match=says):
            score_fsa("atsa/rest14", [good, record("the soup", wrong)], ["", ""])
    with pytest.raises(UserError, match="gold record: aspects = 'None' is not a list"):
        fsa.judge_fsa("atsa/rest14", dict(sentence="soup", aspects=None), "")
    for call in (fsa.judge_fsa, lambda name, r, o, rules: score_fsa(name, [r], [o], rules)):
        with pytest.raises(UserError, match="no FSA set 'atsa/rest15'. Sets: atsa/laptop14"):
            call("atsa/rest15", good, "", "official")
        with pytest.raises(UserError, match="'loose'. Allowed: official, strict"):
            call("atsa/rest14", good, "", "loose")

@pytest.mark.parametrize("rules", ["official", "strict"])
def test_an_output_beyond_the_limit_is_no_prediction(rules):
    gold, line = record("soup", aspect("soup", "positive", 0, 4)), "soup | positive ; x"
    longest = line + " " * (MAX_OUTPUT - len(line))
    read, cut = (fsa.judge_fsa("atsa/rest14", gold, text, rules) for text in (longest, longest + " "))
    assert (read["gold_hits"], read["unread"]) == (1, 1) and read["n_pred"] == 1 + (rules == "strict")
    assert cut == fsa.judge_fsa("atsa/rest14", gold, None, rules)

@pytest.mark.parametrize("output", [7, 0, float("nan"), ["soup | positive"], {}, b"soup | positive"])
def test_an_output_that_is_no_text_is_named_by_its_index(output):
    gold = [record("soup", aspect("soup", "positive", 0, 4))] * 3
    with pytest.raises(UserError, match=f"output 2 = .* is of type {type(output).__name__}"):
        score_fsa("atsa/rest14", gold, ["", None, output])

# where an analysis ends
opinion = lambda target, number=1, sentiment="Positive", head="": (
    f'{head}Opinion Target {number}: "{target}"\nAspect: quality\nSentiment: {sentiment}\nReasoning: because.\n\n')

@pytest.mark.parametrize("list_", [
    '["Opinion Target 1: \'soup\'", "Opinion Target 2: \'tea\'"]', '[{"OpinionTarget": "soup"}]', "[1, null]", "[]"])
def test_a_list_beside_the_numbered_lines_hides_no_opinion(list_):
    said = opinion("soup") + opinion("tea", 2) + f"Response:\n{list_}"
    assert [o["target"] for o in parse_analysis(said)] == ["soup", "tea"]

@pytest.mark.parametrize("said, targets", [
    (opinion("soup") + opinion("soup") + opinion("tea", 2), ["soup", "soup", "tea"]), # another aspect
    (opinion("the soup") + opinion("their tea"), ["the soup"]), # a word that is not in the review
    (opinion("soup") + opinion("tea", 2) + opinion("soup"), ["soup", "tea"]), # the list again
    (opinion("soup") + "Review: the tea is bad\n" + opinion("tea"), ["soup"]),
    (opinion("soup") + "Example Output:\n" + opinion("tea"), ["soup"]),
    (opinion("soup", head="1. ") + opinion("tea", 2, head="2. "), ["soup", "tea"])])
def test_a_second_first_target_ends_the_analysis_only_where_it_is_not_the_reviews(said, targets):
    assert [o["target"] for o in parse_analysis(said, "The soup was good, the tea too.")] == targets

def test_opinions_on_one_line_each_are_read():
    said = (
        'Opinion Target 1: "soup", Aspect: Taste, Sentiment: Positive, Reasoning: good.\n'
        'Opinion Target 2: "tea" -- Aspect: Price -- Sentiment: Negative - Reasoning: dear.')
    assert [tuple(o.values()) for o in parse_analysis(said)] == [
        ("soup", "Taste", "Positive", "positive", "good."), ("tea", "Price", "Negative", "negative", "dear.")]

# training
def trained(small, folder, name="t5", **kw):
    from copy import deepcopy
    s, model, tok = small
    pairs = [(f"The soup was lovely {c} and the staff rude.", f"soup {c} | positive") for c in "abcdefghijkl"]
    model = deepcopy(model)
    log = fsa.train_t5(model, tok, pairs, s.model_copy(update=kw), folder, 4, 4, 1e-2, 3, name)
    return model, log

def test_an_interrupted_training_ends_with_the_same_weights(small, tmp_path, monkeypatch):
    import torch
    from transformers import TrainerCallback
    from compeffdist import students
    whole, log = trained(small, tmp_path/"whole", train_save_steps=2)
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == 9: raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(students, "_progress", lambda name: Kill())
        with pytest.raises(KeyboardInterrupt): trained(small, tmp_path/"cut", train_save_steps=2)
    assert students._checkpoint(tmp_path/"cut").endswith("checkpoint-8") # in the third of four epochs
    resumed, again = trained(small, tmp_path/"cut", train_save_steps=2)
    assert log["steps"] == again["steps"] == 12
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters()))

def test_each_epoch_has_an_order_of_its_own(small, tmp_path):
    s, model, tok = small
    rows = [dict(input_ids=[5] * n, labels=[6]) for n in range(2, 24)]
    order = fsa._t5_trainer(
        4, model=model, args=fsa._t5_arguments(s, tmp_path, 1, 4, 1e-3, 7), train_dataset=rows)._get_train_sampler()
    drawn = []
    for epoch in (0, 1, 0): order.set_epoch(epoch); drawn.append(list(order))
    assert drawn[0] == drawn[2] != drawn[1] and all(sorted(d) == list(range(22)) for d in drawn)
    assert max(drawn[0][4 * k + 3] - drawn[0][4 * k] for k in range(5)) == 3 # lengths side by side share a batch

def test_training_shows_what_is_done_and_left(small, tmp_path, capsys):
    trained(small, tmp_path, "t5 plain, atsa/rest14")
    said = capsys.readouterr().err
    assert "t5 plain, atsa/rest14, 12 rows" in said and "12/12" in said and "step/s" in said

def test_several_gpus_leave_the_batch_as_it_is(small, tmp_path, monkeypatch):
    import torch
    from transformers import TrainingArguments
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    usual = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=16)
    assert (usual.n_gpu, usual.train_batch_size) == (4, 64)
    args = fsa._t5_arguments(small[0], tmp_path, 1, 16, 1e-3, 1)
    assert (args.n_gpu, args.train_batch_size) == (1, 16)
