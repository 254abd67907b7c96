"The three-line interface: probabilities against a slow twin, typed results, refusals."
import json, math, os, re, shutil, subprocess, sys
from pathlib import Path
import pytest
from compeffdist import base, evaluate, predict
from compeffdist.corpus import render_prompt
from compeffdist.evaluate import choose_labels, choose_whole_labels, label_paths
from compeffdist.predict import (
    SentimentAnalyzer, asking_settings, first_token_label, label_probabilities, whole_label_probabilities)
from compeffdist.sentibench import TASKS
from compeffdist.settings import UserError, load_settings, project_root
from compeffdist.store import read_json, write_json, write_rows

TEXTS = ["The soup was lovely.", "A dull film without any charm at all.", "It opens at nine."]

@pytest.fixture(scope="module")
def analyzer():
    words = [f"{t.instruction} {' '.join(t.labels)} {text}" for t in TASKS.values() for text in TEXTS]
    tok = base.train_tokenizer(words * 2, "llama", 500)
    return SentimentAnalyzer(
        base.new_model("llama", len(tok), 32, 2, 2, seed=4, tokenizer=tok), tok,
        load_settings("tiny", eval_context=1024)
    )

def slow_probabilities(model, ids, paths):
    "Walk down the tree of label tokens, one prompt and one branching at a time, with the whole model."
    import torch
    def walk(prefix, labels, p):
        if len(labels) == 1: return {labels[0]: p}
        depth = len(prefix)
        heads = {paths[l][depth] for l in labels}
        with torch.no_grad(): logits = model(input_ids=torch.tensor([list(ids) + prefix])).logits[0, -1]
        total, out = sum(math.exp(logits[h]) for h in heads), {}
        for h in heads:
            out |= walk(prefix + [h], [l for l in labels if paths[l][depth] == h], p * math.exp(logits[h]) / total)
        return out
    return walk([], list(paths), 1.0)

@pytest.mark.parametrize("labels", [
    ("good", "bad"), ("not good", "not bad at all", "not bad", "fine"), ("irony", "non-irony")
])
def test_label_probabilities_equal_a_slow_twin(analyzer, labels):
    tok = analyzer.tokenizer
    paths = {l: tok(" " + l, add_special_tokens=False).input_ids + [tok.eos_token_id] for l in labels}
    ids = tok([f"Judge it.\n\nSentence: {t}\nLabel:" for t in TEXTS]).input_ids
    for row, i in zip(label_probabilities(analyzer.model, ids, paths, 64), ids):
        assert (
            row == pytest.approx(slow_probabilities(analyzer.model, i, paths), rel=1e-4)
            and sum(row.values()) == pytest.approx(1)
        )

CLASSIFY = [t.name for t in TASKS.values() if t.labels]

@pytest.mark.parametrize("task", CLASSIFY)
def test_labels_are_those_of_the_evaluation_by_its_label_rule(analyzer, task):
    paths = label_paths(TASKS[task], analyzer.tokenizer)
    targets = ["the soup"] * 3 if task == "pstance" else None
    ids, _ = analyzer._ids(TASKS[task], TEXTS, targets)
    for rule, choose in (("first token", choose_labels), ("whole label", choose_whole_labels)):
        asked = SentimentAnalyzer(
            analyzer.model, analyzer.tokenizer, analyzer.settings.model_copy(update=dict(eval_label_rule=rule))
        ).classify(task, TEXTS, targets)
        assert [g.label for g in asked] == choose(analyzer.model, ids, paths), rule
        assert [g.text for g in asked] == TEXTS and all(g.score == g.scores[g.label] for g in asked)

def test_the_rules_differ_where_labels_begin_alike():
    "Two labels share a token that is worth more than the third; of its own the third is the most probable."
    paths = dict(a=[5, 1, 0], b=[5, 2, 0], c=[6, 0])
    assert first_token_label(dict(a=.3, b=.29, c=.41), paths) == "a"
    assert first_token_label(dict(a=.2, b=.25, c=.55), paths) == "c"

def test_classify_names_the_label_of_its_rule(analyzer, monkeypatch):
    paths = dict(zip(TASKS["twitter"].labels, ([5, 1, 0], [5, 2, 0], [6, 0])))
    scores = dict(zip(paths, (.3, .29, .41)))
    monkeypatch.setattr(predict, "label_paths", lambda *a: paths)
    for rule, best in (("label_probabilities", 0), ("whole_label_probabilities", 2)):
        monkeypatch.setattr(predict, rule, lambda *a: [scores])
        asked = SentimentAnalyzer(analyzer.model, analyzer.tokenizer, analyzer.settings.model_copy(
            update=dict(eval_label_rule="whole label" if best else "first token")))
        got = asked.polarity(["Fine."])[0]
        assert (got.label, got.score) == list(scores.items())[best]

def test_evaluation_and_analyzer_choose_alike_on_labels_that_begin_alike(analyzer):
    tok, differs = analyzer.tokenizer, 0
    ids = tok([f"Judge it.\n\nSentence: {t} {k}\nLabel:" for t in TEXTS for k in range(20)]).input_ids
    for labels in (
        ("not good", "not bad", "fine"), ("not good", "not bad", "not here", "a"), ("is it", "is at", "it", "dull")
    ):
        paths = {l: tok(" " + l, add_special_tokens=False).input_ids + [tok.eos_token_id] for l in labels}
        assert len({p[0] for p in paths.values()}) < len(paths)
        rows = label_probabilities(analyzer.model, ids, paths, 4096)
        assert [first_token_label(r, paths) for r in rows] == choose_labels(analyzer.model, ids, paths)
        differs += sum(first_token_label(r, paths) != max(r, key=r.get) for r in rows)
    assert differs > 0

def test_whole_label_probabilities_are_products_over_all_tokens(analyzer):
    import torch
    tok = analyzer.tokenizer
    labels = ("good", "not bad", "so")
    paths = {l: tok(" " + l, add_special_tokens=False).input_ids + [tok.eos_token_id] for l in labels}
    ids = tok([f"Judge it.\n\nSentence: {t}\nLabel:" for t in TEXTS]).input_ids
    for row, i in zip(whole_label_probabilities(analyzer.model, ids, paths, 64), ids, strict=True):
        slow = {}
        for l, path in paths.items():
            with torch.no_grad(): logp = analyzer.model(torch.tensor([list(i) + path])).logits[0].log_softmax(-1)
            slow[l] = math.exp(sum(logp[len(i) - 1 + k, t].item() for k, t in enumerate(path)))
        assert row == pytest.approx({l: v / sum(slow.values()) for l, v in slow.items()}, rel=1e-3)

def test_one_result_a_text_in_order_whatever_the_batch(analyzer):
    alone = [analyzer.emotions([t])[0] for t in TEXTS]
    together = analyzer.emotions(TEXTS)
    assert [a.label for a in alone] == [b.label for b in together]
    assert all(a.scores == pytest.approx(b.scores, abs=1e-5) for a, b in zip(alone, together))
    assert analyzer.polarity([]) == analyzer.aspects([]) == analyzer.ask("Why?", []) == []

SOUP = "The soup was lovely , the\nwaiter and the GIN AND TONIC not ."

@pytest.mark.parametrize("raw, items, valid", [
    (
        '[{"aspect_term": " soup ", "sentiment": "positive"}]',
        [dict(aspect_term="soup", sentiment="positive")], True
    ),
    ("[]", [], True),
    ("I do not know", [], False),
    ("", [], False),
    ('[{"aspect_term": "soup"}]', [], False),
    ('[{"aspect_term": 3, "sentiment": "positive"}]', [], False),
    ('{"aspect_term": "soup", "sentiment": "positive"}', [], False),
    ("[" * 3000, [], False)
])
def test_answers_that_cannot_be_read_are_marked(raw, items, valid):
    got, ok = predict._read_tuples(TASKS["atsa_rest16"], raw, SOUP)
    assert list(got) == items and ok is valid

VALID = [
    ("atsa_rest16", ("soup", "positive"), True),
    ("atsa_rest16", ("the waiter", "conflict"), True), # across the line break, as the student reads it
    ("atsa_rest16", ("GIN AND TONIC", "negative"), True),
    ("atsa_rest16", ("soup", "angry"), False),
    ("atsa_rest16", ("soup", "Positive"), False),
    ("atsa_rest16", ("fish", "positive"), False),
    ("atsa_rest16", ("", "positive"), False),
    ("atsa_rest16", ("NULL", "positive"), False), # its instruction allows no "NULL"
    ("acsa_rest16", ("food quality", "neutral"), True),
    ("acsa_rest16", ("food quality", "conflict"), False),
    ("acsa_rest16", ("soup quality", "neutral"), False),
    ("asqp_rest16", ("NULL", "food quality", "lovely", "positive"), True),
    ("asqp_rest16", ("soup", "food quality", "NULL", "positive"), False),
    ("asqp_rest16", ("soup", "food quality", "awful", "positive"), False),
    ("asqp_rest16", ("soup AND waiter", "food quality", "lovely", "positive"), False),
    ("opener", ("NULL", "soup AND waiter", "lovely AND not", "positive"), True),
    ("opener", ("NULL", "GIN AND TONIC", "not", "negative"), True),
    ("opener", ("NULL", "soup AND fish", "lovely", "positive"), False),
    ("opener", ("chef", "soup", "lovely", "positive"), False),
    ("opener", ("NULL", "soup", "lovely", "NULL"), False),
    ("opener", ("NULL",) * 4, True) # how its instruction has "no opinion" written
]

@pytest.mark.parametrize("task, values, valid", VALID)
def test_tuples_that_were_not_asked_for_are_shown_and_marked(task, values, valid):
    item = dict(zip(TASKS[task].fields, values, strict=True))
    assert predict._read_tuples(TASKS[task], json.dumps([item]), SOUP) == ((item,), valid)
    more = dict(item, why="because")
    assert predict._read_tuples(TASKS[task], json.dumps([more]), SOUP) == ((item,), False)
    if task != "opener": # one wrong tuple among right ones
        good = {t: v for t, v, ok in VALID if ok}[task]
        both = [dict(zip(TASKS[task].fields, good)), item]
        assert predict._read_tuples(TASKS[task], json.dumps(both), SOUP) == (tuple(both), valid)

@pytest.mark.parametrize("task, values, valid", VALID)
def test_a_valid_tuple_counts_in_the_evaluation(task, values, valid):
    "Valid is never more lenient than the scoring of notebook 11, \"no opinion\" aside."
    from compeffdist.sentibench import predictions
    counted = predictions(TASKS[task], dict(sentence=SOUP.replace("\n", " ")), [dict(zip(TASKS[task].fields, values))])
    if valid and set(values) != {"NULL"}: assert counted == [values]

def test_a_free_answer_says_whether_it_is_complete(analyzer, monkeypatch):
    tok = analyzer.tokenizer
    line, end = tok("a line]\nand another", add_special_tokens=False).input_ids, tok.eos_token_id
    script = [line + [end], line[:3]] # one ends, one is cut off; neither stops at a line break or a bracket
    def scripted(model, ids, budgets, stop, head):
        assert stop.tolist() == [end]
        return [script[len(i) % 2][:b] for i, b in zip(ids, budgets)]
    monkeypatch.setattr(evaluate, "decode_batch", scripted)
    prompts = tok([render_prompt("analysis", "How?", t) for t in TEXTS]).input_ids
    got = analyzer.ask("How?", TEXTS, max_new_tokens=50)
    assert [(r.text, r.answer, r.complete) for r in got] == [
        (t, tok.decode(script[len(p) % 2], skip_special_tokens=True).strip(), len(p) % 2 == 0)
        for t, p in zip(TEXTS, prompts)
    ]
    assert any("another" in r.answer for r in got) or all(len(p) % 2 for p in prompts)

def test_scores_are_the_mean_probability_of_what_was_written(analyzer):
    import math, torch
    got = analyzer.ask("How?", TEXTS, max_new_tokens=50)
    for r in (*got, *analyzer.aspects(TEXTS)): assert 0 < r.score <= 1
    ids = analyzer.tokenizer(
        render_prompt("analysis", "How?", TEXTS[0], max_words=analyzer.settings.max_words)
    ).input_ids
    with torch.inference_mode():
        logp, total = [], list(ids)
        for _ in range(50):
            p = analyzer.model(input_ids=torch.tensor([total])).logits[0, -1].log_softmax(-1)
            logp.append(p.max().item()); total.append(int(p.argmax()))
            if total[-1] == analyzer.tokenizer.eos_token_id: break
    assert got[0].score == pytest.approx(math.exp(sum(logp) / len(logp)), rel=1e-3)

# ---- texts that are too long

def prompts_asked(monkeypatch):
    "Keeps every prompt whose answer or label is asked of the model."
    seen = []
    for name in ("last_logits", "decode_tokens"):
        def kept(model, ids, *rest, real=getattr(predict, name)):
            seen.extend(map(list, ids)); return real(model, ids, *rest)
        monkeypatch.setattr(predict, name, kept)
    return seen

@pytest.mark.parametrize("method", ["polarity", "aspects", "ask"])
@pytest.mark.parametrize("long", ["word " * 1200, "w" * 4000, "soup\n" * 1200, "good " + "w" * 4000])
def test_a_text_that_does_not_fit_is_cut_and_the_others_are_answered(analyzer, monkeypatch, method, long):
    ask = (lambda t: analyzer.ask("Why?", t, 50)) if method == "ask" else getattr(analyzer, method)
    limit = dict(polarity=8, aspects=analyzer.settings.eval_max_new_tokens, ask=50)[method]
    alone, seen = ask(TEXTS), prompts_asked(monkeypatch)
    together = ask([TEXTS[0], long, *TEXTS[1:]])
    assert [r.cut for r in together] == [False, True, False, False] and together[1].text == long
    said = lambda r: getattr(r, dict(polarity="label", aspects="raw", ask="answer")[method])
    assert [said(r) for i, r in enumerate(together) if i != 1] == list(map(said, alone))
    room, row = analyzer.context - limit, seen[1]
    piece = "w" if long.endswith("www") and not long.startswith("good") else long.split()[0]
    assert len(row) <= room and piece in analyzer.tokenizer.decode(row)
    if not long.startswith("good"): assert len(row) > room - 20 # no more is cut than must be

def test_a_cut_text_keeps_its_target(analyzer, monkeypatch):
    seen = prompts_asked(monkeypatch)
    assert analyzer.classify("pstance", ["word " * 1200], ["the soup"])[0].cut
    assert "Target: the soup" in analyzer.tokenizer.decode(seen[0])

def test_what_leaves_no_room_for_any_text_is_refused(analyzer):
    with pytest.raises(UserError, match=r"Text 0 cannot be cut to fit.*Shorten the instruction"):
        analyzer.ask("Why? " * 1200, ["fine"])
    with pytest.raises(UserError, match=r"Text 1 cannot be cut to fit"):
        analyzer.classify("pstance", ["fine", "fine"], ["soup", "soup " * 1200])
    with pytest.raises(UserError, match=r"-\d+ fit \(1024 of context"): analyzer.ask("Why?", ["fine"], 5000)

def test_refusals(analyzer, tmp_path):
    with pytest.raises(UserError, match=r"Write \[text\]"): analyzer.polarity("one string")
    with pytest.raises(UserError, match="Text 1 is NoneType"): analyzer.polarity(["fine", None])
    with pytest.raises(UserError, match="one target for each of the 3"): analyzer.classify("pstance", TEXTS, ["x"])
    with pytest.raises(UserError, match="Use .classify"): analyzer.extract("sst2", TEXTS)
    with pytest.raises(UserError, match="No model could be loaded"): SentimentAnalyzer.from_pretrained(tmp_path)

# ---- how a checkpoint is asked

def test_a_checkpoint_is_asked_by_what_lies_with_it_then_by_its_profile(tmp_path, monkeypatch):
    student = tmp_path/"project"/"outputs"/"mine"/"artifacts"/"student-x"
    student.mkdir(parents=True)
    (tmp_path/"project"/"settings.ini").write_text("[DEFAULT]\neval_context = 300\n[mine]\nmax_words = 9\n")
    write_json(student/"log.json", dict(profile="mine"))
    got = asking_settings(student)
    assert (got.profile, got.eval_context, got.max_words) == ("mine", 300, 9)
    monkeypatch.setenv("COMPEFFDIST_MAX_WORDS", "7")
    assert asking_settings(student).max_words == 7
    write_json(student/"asking.json", dict(profile="mine", eval_context=200, max_words=5))
    got = asking_settings(student)
    assert (got.profile, got.eval_context, got.max_words) == ("mine", 200, 5)
    for wrong, said in (
        ({"eval_context": 0}, "eval_context = 0 is not"), ({"shout": 1}, "shout = 1"), ([1], "not an object")
    ):
        write_json(student/"asking.json", wrong)
        with pytest.raises(UserError, match=said): asking_settings(student)

def test_a_settings_file_of_something_else_is_passed_over(tmp_path):
    (tmp_path/"settings.ini").write_text("[DEFAULT]\nlib_name = other\n")
    (tmp_path/"student").mkdir()
    assert asking_settings(tmp_path/"student") == load_settings("tiny")

ELSEWHERE = """
import json, sys
from compeffdist.predict import ASKING, SentimentAnalyzer
out = {}
for name, path in json.loads(sys.argv[1]).items():
    a = SentimentAnalyzer.from_pretrained(path)
    out[name] = dict(
        asked={k: getattr(a.settings, k) for k in ASKING},
        said=[[r.label, r.score, r.cut] for r in a.polarity(["The soup was lovely.", "A dull film indeed."])],
        raws=[r.raw for r in a.aspects(["The soup."])], free=[r.answer for r in a.ask("Why?", ["Fine."], 5)])
plain = SentimentAnalyzer(a.model, a.tokenizer)
print(json.dumps(out | dict(plain=plain.settings.eval_max_new_tokens)))
"""

def ask_elsewhere(folder, **paths):
    "What checkpoints say in a process that knows of no project."
    env = {k: v for k, v in os.environ.items() if not k.startswith("COMPEFFDIST_")} | dict(
        PYTHONPATH=str(project_root()), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, json.dumps({k: str(v) for k, v in paths.items()})],
        cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])

def test_students_answer_outside_the_project(run_folder, analyzer, tmp_path):
    write_json(run_folder.parent/"evaluation-llama-difficulty-10"/"stage.json", dict(params=dict(
        max_words=3, eval_context=512, eval_max_new_tokens=11, eval_max_new_tokens_opener=12, eval_batch_tokens=999,
        eval_chat_template=False, eval_label_rule="whole label", student_dtype="float32")))
    (elsewhere := tmp_path/"elsewhere").mkdir()
    predict.export_student(run_folder, elsewhere/"given")
    shutil.copytree(run_folder, elsewhere/"bare"/"student")
    shutil.copytree(run_folder, elsewhere/"own"/"outputs"/"student")
    (elsewhere/"own"/"settings.ini").write_text("[tiny]\neval_max_new_tokens = 17\n")
    with pytest.raises(UserError): project_root(elsewhere)
    got = ask_elsewhere(
        elsewhere, given=elsewhere/"given", bare=Path("bare")/"student", own=elsewhere/"own"/"outputs"/"student")
    given = got["given"]["asked"]
    assert (given["max_words"], given["eval_context"], given["eval_label_rule"]) == (3, 512, "whole label")
    assert (given["eval_max_new_tokens"], given["eval_max_new_tokens_opener"]) == (11, 12)
    assert got["own"]["asked"]["eval_max_new_tokens"] == 17
    assert got["bare"]["asked"]["eval_max_new_tokens"] == 96 == got["plain"]
    here = SentimentAnalyzer.from_pretrained(elsewhere/"given")
    here = here.polarity(["The soup was lovely.", "A dull film indeed."])
    assert got["given"]["said"] == [[r.label, pytest.approx(r.score, abs=1e-3), r.cut] for r in here]
    assert [c for _, _, c in got["given"]["said"]] == [True, True] and not got["bare"]["said"][0][2]
    assert len(got["given"]["raws"]) == len(got["own"]["free"]) == 1

def test_a_copied_student_keeps_what_its_training_recorded(tmp_path):
    got = predict._without_project(dict(train_chat_template=True, student_dtype="bfloat16"))
    assert got.eval_chat_template and got.student_dtype == "bfloat16"
    assert not predict._without_project().eval_chat_template

# ---- giving a student away

@pytest.fixture
def run_folder(analyzer, tmp_path):
    "The artifacts of a run as the stages write them, with one trained student."
    student = tmp_path/"artifacts"/"student-llama-difficulty-10"
    analyzer.model.save_pretrained(student); analyzer.tokenizer.save_pretrained(student)
    write_json(student/"log.json", dict(
        profile="tiny", family="llama", system="difficulty-10", sample="sample-difficulty-10",
        counts=dict(rows_out=1177), steps=111, precision="fp32"
    ))
    stages = {
        student.name: dict(params=dict(train_epochs=1.5, train_lr=0.0015)),
        "sample-difficulty-10": dict(
            inputs=dict(corpus={}, difficulty={}), params=dict(method="soft", rate=0.1, a=1.0, by="instruction")
        ),
        "corpus": dict(params=dict(backend="vllm", model="teacher-70B", revision="abc")),
        "texts": dict(params=dict(texts_source="hub")),
        "base-llama": dict(params=dict(student_source="package"))
    }
    for name, facts in stages.items():
        (tmp_path/"artifacts"/name).mkdir(exist_ok=True)
        write_json(tmp_path/"artifacts"/name/"stage.json", dict(stage=name) | facts)
    (evaluation := tmp_path/"artifacts"/"evaluation-llama-difficulty-10").mkdir()
    write_rows(evaluation/"scores.parquet", [
        dict(task="sst2", metric="macro_f1", seed=s, score=v, n_items=40, shots=4, rules="official")
        for s, v in ((42, .5), (52, .7))
    ])
    return student

def test_an_exported_student_loads_anywhere_and_its_card_tells_where_it_comes_from(run_folder, analyzer, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    out = predict.export_student(run_folder, tmp_path/"out")
    model, tok = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert (
        all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), analyzer.model.state_dict().values()))
        and tok.get_vocab() == analyzer.tokenizer.get_vocab()
    )
    card = (out/"README.md").read_text()
    for said in (
        "1,177 prompt-answer rows over user texts of source hub", "teacher-70B, revision abc, back end vllm",
        "soft sampling at rate 0.1, a = 1.0, by instruction", "111 steps, epochs 1.5, lr 0.0015, fp32",
        "Licence", "COMPEFFDIST_TRAIN_LR=0.0015 make replicate PROFILE=tiny`", "| sst2"
    ):
        assert said in card, said
    row = card.split("| sst2")[1].splitlines()[0]
    assert (
        "60" in row and "not known" in row # there are no answers to take an interval of
        and not (out/"stage.json").exists()
        and "stand-in" not in card
    )
    from huggingface_hub import ModelCard
    assert ModelCard.load(out/"README.md").data.library_name == "transformers"

def test_a_card_says_what_is_not_known_and_refuses_what_is_no_student(run_folder, tmp_path):
    import shutil
    alone = tmp_path/"alone"/"student"
    shutil.copytree(run_folder, alone)
    card = predict.model_card(alone)
    assert card.count("not known") >= 4 and "Not evaluated" in card
    (alone/"config.json").unlink()
    with pytest.raises(UserError, match="no config.json"): predict.export_student(alone, tmp_path/"new")
    with pytest.raises(UserError, match="not empty"): predict.export_student(run_folder, tmp_path/"alone")
    assert not (tmp_path/"new").exists()

def test_an_analyzer_is_the_evaluations_student(analyzer, tmp_path):
    assert isinstance(analyzer, evaluate.Student) and analyzer.context == 1024
    assert SentimentAnalyzer(analyzer.model, analyzer.tokenizer).settings == load_settings("tiny")

def test_a_text_that_was_cut_is_marked(analyzer):
    short = SentimentAnalyzer(
        analyzer.model, analyzer.tokenizer, analyzer.settings.model_copy(update=dict(max_words=4))
    )
    texts = ["The soup was lovely.", "The soup was lovely indeed."]
    for ask in (short.polarity, short.aspects, lambda t: short.ask("What is it?", t, 2)):
        assert [r.cut for r in ask(texts)] == [False, True]
    assert (
        not any(r.cut for r in analyzer.polarity(texts))
        and short.polarity(texts)[1].scores != analyzer.polarity(texts)[1].scores
    )

def test_a_second_stage_names_its_first(run_folder):
    file = run_folder/"stage.json"
    assert ", then" not in predict.student_facts(run_folder)["base"]
    write_json(file, read_json(file) | dict(inputs={"student-llama-knowdist": {}}))
    assert predict.student_facts(run_folder)["base"].endswith(", then student-llama-knowdist")

def test_a_card_has_intervals_of_the_answers(run_folder):
    from compeffdist.stats import interval
    rows = [
        dict(task="sst2", item=i, seed=s, gold="positive" if i % 2 else "negative",
             parsed="positive" if i % 3 else "negative")
        for i in range(40) for s in (42, 52)]
    write_rows(run_folder.parent/"evaluation-llama-difficulty-10"/"items.parquet", rows)
    band = interval("sst2", rows, 2000)
    line = predict.model_card(run_folder).split("| sst2")[1].splitlines()[0]
    assert f"[{100 * band['low']:.1f}, {100 * band['high']:.1f}]" in line and band["high"] - band["low"] > .1

@pytest.mark.parametrize("model, licence", [
    ("meta-llama/Llama-3.1-70B-Instruct", "Llama 3.1 Community License"),
    ("meta-llama/Llama-3.2-3B-Instruct", "Llama 3.2 Community License"),
    ("meta-llama/Llama-2-7b", "not stated"), ("Qwen/Qwen3-32B", "Apache-2.0"), ("Qwen/Qwen2.5-3B", "not stated"),
    ("google/gemma-3-27b-it", "Gemma Terms of Use"), ("HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0"),
    ("copy/meta-llama/Llama-3.2-3B-Instruct", "not stated"), ("", "not stated"), (None, "not stated")
])
def test_licences_are_those_known_by_a_models_name(model, licence): assert predict.model_licence(model) == licence

def stage(run_folder, name, **params):
    "Change what a stage says of its settings."
    file = run_folder.parent/name/"stage.json"
    write_json(file, read_json(file) | dict(params=params))

def test_a_card_names_the_licences_of_all_that_a_student_comes_from(run_folder):
    told = predict.student_facts(run_folder)["licence"]
    assert told.startswith("none stated for these weights") and told.endswith("user texts: not stated")
    assert f"Base student: {predict.OURS}" in told and "teacher: not stated" in told
    hub = dict(student_source="hub", family="llama", model="meta-llama/Llama-3.2-3B", revision="x")
    stage(run_folder, "base-llama", **hub)
    stage(run_folder, "corpus", backend="vllm", model="Qwen/Qwen3-8B", revision="abc")
    stage(run_folder, "texts", texts_source="hub", texts_hub=["some/reviews/plain:text@abc", "other/tweets:content"])
    told = predict.student_facts(run_folder)["licence"]
    assert "Base student: Llama 3.2 Community License; teacher: Apache-2.0" in told
    assert told.endswith("not stated (some/reviews/plain, other/tweets)")
    stage(run_folder, "corpus", backend="embedded", model="embedded-analyst", revision="abc")
    stage(run_folder, "texts", texts_source="embedded")
    assert predict.student_facts(run_folder)["licence"].count(predict.OURS) == 2

# ---- the command

@pytest.fixture
def as_filed(run_folder):
    "A run whose stages record what the profile tiny has."
    s = load_settings("tiny")
    stage(run_folder, "corpus", backend="embedded", model="embedded-analyst", revision="abc", corpus_size=12000)
    stage(run_folder, "texts", texts_source="embedded", texts_total=s.texts_total)
    file = run_folder/"stage.json"
    inputs = {"base-llama": {}, "sample-difficulty-10": {}}
    write_json(file, dict(params=dict(train_lr=s.train_lr, max_words=None, seed=s.seed), inputs=inputs))
    for name, inputs in (("sample-difficulty-10", "corpus difficulty"), ("corpus", "texts")):
        file = run_folder.parent/name/"stage.json"
        write_json(file, read_json(file) | dict(inputs=dict.fromkeys(inputs.split(), {})))
    stage(run_folder, "sample-difficulty-10", method="soft", rate=.1, a=1.0, by="instruction", seed=77)
    return run_folder

def command(folder):
    facts = predict.student_facts(folder)
    return facts["command"], facts["known"]

def test_a_command_of_the_profile_alone_names_no_setting(as_filed):
    assert command(as_filed)[0] == "make replicate PROFILE=tiny" and "nothing otherwise" in command(as_filed)[1]

def test_settings_given_to_a_run_stand_in_its_command_from_whichever_stage(as_filed, monkeypatch):
    "Also where the environment that reads them has them set."
    monkeypatch.setenv("COMPEFFDIST_TEXTS_TOTAL", "900")
    stage(as_filed, "texts", texts_source="hub", texts_total=900, texts_hub=["a/b:c", "d/e:f"])
    stage(as_filed, "corpus", backend="vllm", model="Qwen/Qwen3-8B", revision="abc", corpus_size=12000)
    got, how = command(as_filed)
    import shlex
    parts = shlex.split(got) # as a shell reads it
    assert parts[-3:] == ["make", "replicate", "PROFILE=tiny"] and "before it" in how
    assert sorted(parts[:-3]) == [
        "COMPEFFDIST_TEACHER_BACKEND=vllm", "COMPEFFDIST_TEACHER_MODEL=Qwen/Qwen3-8B",
        "COMPEFFDIST_TEACHER_REVISION=abc", "COMPEFFDIST_TEXTS_HUB=a/b:c, d/e:f",
        "COMPEFFDIST_TEXTS_SOURCE=hub", "COMPEFFDIST_TEXTS_TOTAL=900"]
    for p in parts[:-3]: monkeypatch.setenv(*p.split("=", 1))
    assert load_settings("tiny").texts_hub == ["a/b:c", "d/e:f"] # and as the settings read it

@pytest.mark.parametrize("value", [None, True, False, 7, 0.5, [1, 2], []])
def test_settings_are_written_as_the_environment_has_them(value, monkeypatch):
    key = {bool: "eval_chat_template", list: "other_counts", int: "max_words", float: "lineage_rate"}
    key = key.get(type(value), "max_words")
    monkeypatch.setenv(f"COMPEFFDIST_{key.upper()}", predict._plain(value))
    assert getattr(load_settings("mini"), key) == value

def test_a_system_of_the_full_matrix_says_so_and_one_of_neither_too(as_filed):
    log = read_json(as_filed/"log.json")
    for system, matrix, said in (
        ("distilled", False, "nothing"), ("knowdist", True, "nothing"), ("difficulty-70", True, "nothing"),
        ("difficulty-33", False, "have no such system")
    ):
        write_json(as_filed/"log.json", log | dict(system=system))
        got, how = command(as_filed)
        assert (got.endswith(" MATRIX=full"), said in how) == (matrix, True), system

def test_the_full_matrix_is_the_makefiles():
    text = (project_root(Path(__file__))/"Makefile").read_text()
    text = text.partition("ifeq ($(MATRIX),full)")[2].partition("endif")[0]
    lines = dict(re.findall(r"export COMPEFFDIST_(\w+) := (.+)", text))
    made = load_settings("tiny", **{k.lower(): v for k, v in lines.items()})
    assert {k.lower(): getattr(made, k.lower()) for k in lines} == predict.MATRIX_FULL

def test_a_command_says_how_little_is_known(as_filed, tmp_path):
    log = read_json(as_filed/"log.json")
    write_json(as_filed/"log.json", log | dict(profile="gone"))
    assert command(as_filed) == ("make replicate PROFILE=gone", "as far as the profile's settings go")
    write_json(as_filed/"log.json", log)
    (as_filed/"stage.json").unlink()
    assert command(as_filed)[1] == "as far as the profile's settings go"

def test_the_users_folder_is_part_of_the_command(as_filed):
    stage(as_filed, "texts", texts_source="sentibench")
    assert " SENTIBENCH=<folder>" in command(as_filed)[0]
    stage(as_filed, "texts", texts_source="embedded")
    assert "SENTIBENCH" not in command(as_filed)[0]
    (as_filed.parent/"benchmark").mkdir()
    write_json(as_filed.parent/"benchmark"/"stage.json", dict(params=dict(source="folder", digest="abc")))
    file = as_filed.parent/"texts"/"stage.json"
    write_json(file, read_json(file) | dict(inputs=dict(benchmark={})))
    assert " SENTIBENCH=<folder>" in command(as_filed)[0]

# ---- the students of a run

def names(settings): return [f"{s.family}-{s.name}" for s in predict.exported_systems(settings)]

def test_headline_students_are_exported_and_of_large_ones_the_distilled():
    s = load_settings("tiny")
    lineage = [f"llama-{n}-10" for n in ("knowdist", "icldist", "two-stage")]
    samples = ["llama-difficulty-10", "llama-random-10"]
    assert names(s) == ["llama-distilled", *lineage, *samples, "qwen3-distilled", "gemma3-distilled"]
    full = s.model_copy(update=predict.MATRIX_FULL)
    assert len(names(full)) == 3 * 6 and "gemma3-two-stage" in names(full) and "llama-difficulty-70" not in names(full)
    assert names(s.model_copy(update=dict(student_source="hub"))) == [f"{f}-distilled" for f in s.families]

@pytest.fixture
def run_store(analyzer, tmp_path):
    "A store with two trained students, the second one's stage changing with its parameter."
    from compeffdist.store import Store
    store = Store(load_settings("tiny", outputs=str(tmp_path), families="llama", lineage="false"))
    def train(system, loss=1.0):
        def build(out, work):
            analyzer.model.save_pretrained(out); analyzer.tokenizer.save_pretrained(out)
            write_json(out/"log.json", dict(
                profile="tiny", family="llama", system=system, sample="corpus",
                counts=dict(rows_out=5), steps=1, precision="fp32", final_loss=loss))
        return store.stage(f"student-llama-{system}", build, params=dict(loss=loss))
    for system in ("distilled", "difficulty-10", "random-10"): train(system)
    return store, train

def test_exports_are_written_once_and_again_only_where_something_changed(run_store):
    store, train = run_store
    students, wanted = store.root/"students", ["llama-distilled", "llama-difficulty-10", "llama-random-10"]
    (students/"llama-former").mkdir(parents=True)
    (students/"llama-former"/"README.md").write_text("of a system that is no more")
    assert predict.export_students(store.settings, store) == dict.fromkeys(wanted, "written")
    assert all({"README.md", "asking.json", "log.json"} <= {f.name for f in (students/n).iterdir()} for n in wanted)
    before = {f: f.stat().st_mtime_ns for f in students.rglob("*")}
    assert predict.export_students(store.settings, store) == dict.fromkeys(wanted, "unchanged")
    assert {f: f.stat().st_mtime_ns for f in students.rglob("*")} == before
    train("distilled", loss=2.0)
    (students/"llama-random-10"/"README.md").write_text("spoilt")
    (students/"llama-difficulty-10"/"left.txt").write_text("by hand")
    assert set(predict.export_students(store.settings, store).values()) == {"written"}
    assert read_json(students/"llama-distilled"/"log.json")["final_loss"] == 2.0
    assert not (students/"llama-difficulty-10"/"left.txt").exists()
    assert (students/"llama-former"/"README.md").read_text() == "of a system that is no more"
    (students/"llama-distilled"/"model.safetensors").write_bytes(b"half")
    assert predict.export_students(store.settings, store)["llama-distilled"] == "written"

def test_a_student_that_was_not_trained_is_named(run_store):
    store, _ = run_store
    shutil.rmtree(store.artifacts/"student-llama-random-10")
    with pytest.raises(UserError, match="student-llama-random-10"): predict.export_students(store.settings, store)

@pytest.mark.parametrize("branch, params", [
    ("difficulty-qwen3", dict(families=["qwen3"])),
    ("corpus-kmeans-30", dict(cluster_method="kmeans", cluster_count=16, corpus_size=3600)),
    ("corpus-teacher-qwen3-30", dict(backend="transformers", model="student-qwen3-distilled", revision="x"))])
def test_what_a_branch_of_the_run_changed_is_no_setting_of_the_run(as_filed, branch, params):
    folder = as_filed.parent/branch
    folder.mkdir(exist_ok=True)
    write_json(folder/"stage.json", dict(stage=branch, params=params, inputs={}))
    own = read_json(as_filed/"stage.json")
    write_json(as_filed/"stage.json", own | dict(inputs=own["inputs"] | {branch: {}}))
    assert command(as_filed)[0] == "make replicate PROFILE=tiny" and "nothing otherwise" in command(as_filed)[1]

def test_a_free_answer_ends_as_the_student_was_taught_in_a_chat_or_not():
    "Gemma 3 closes a turn with another token than a text."
    from transformers import AutoTokenizer
    tok = AutoTokenizer.from_pretrained(base.students_folder()/"gemma3")
    asked = []
    class Ended(SentimentAnalyzer):
        def _written(self, ids, limit, stop): asked.append(set(stop)); return [[9, turn], [9, text], [9, 9]], [1.0] * 3
    model = base.new_model("gemma3", len(tok), 32, 2, 2, tokenizer=tok)
    turn, text = tok.convert_tokens_to_ids("<end_of_turn>"), tok.eos_token_id
    made = Ended(model, tok, load_settings("tiny")).ask("What is felt?", TEXTS)
    assert asked == [{turn, text}] and turn != text and [r.complete for r in made] == [True, True, False]
