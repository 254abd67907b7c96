"FSA-Distillation: the benchmark's files, the linear form, the scorer, real teacher responses, and a whole small run."
import json, shutil
from collections import Counter
from pathlib import Path
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st
from compeffdist import fsa, texts
from compeffdist.fsa import (
    FSA_POLARITIES, FSA_SETS, FSA_SPLITS, embedded_fsa, fsa_pairs, is_implicit, is_mixed, parse_analysis,
    parse_linear, polarity_of, read_fsa, read_responses, render_analysis, render_linear, score_fsa, usable_response)
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
    used = Counter((r["kind"], bool(usable_response(r["kind"], r["text"], r["response"])[0])) for r in rows)
    assert used["analysis", True] >= 220 and used["rewrite", True] == 266
    opinions = [o for r in rows if r["kind"] == "analysis" for o in parse_analysis(r["response"])]
    assert (
        len(opinions) > 850
        and sum(o["polarity"] is not None for o in opinions) > 0.9 * len(opinions)
        and all(o["target"] for o in opinions[:50]))
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
    assert scores.f1["test"] == score_fsa(
        "acsa/rest16", read_fsa(store.path("fsa-data"), "acsa/rest16", "test")[:6], list(test.output))["f1"]
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
