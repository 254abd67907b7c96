"The three-line interface: probabilities against a slow twin, typed results, refusals."
import math
import pytest
from compeffdist import base, evaluate, predict
from compeffdist.corpus import render_prompt
from compeffdist.evaluate import choose_labels, label_paths
from compeffdist.predict import SentimentAnalyzer, label_probabilities
from compeffdist.sentibench import TASKS
from compeffdist.settings import UserError, load_settings

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

@pytest.mark.parametrize("task", [t.name for t in TASKS.values() if t.labels])
def test_labels_are_those_of_the_evaluation_unless_first_tokens_collide(analyzer, task):
    paths = label_paths(TASKS[task], analyzer.tokenizer)
    targets = ["the soup"] * 3 if task == "pstance" else None
    got = analyzer.classify(task, TEXTS, targets)
    assert (
        [g.text for g in got] == TEXTS
        and all(g.score == g.scores[g.label] == max(g.scores.values()) for g in got)
    )
    if len({p[0] for p in paths.values()}) == len(paths):
        assert [g.label for g in got] == choose_labels(
            analyzer.model, analyzer._ids(TASKS[task], TEXTS, targets), paths
        )

def test_one_result_a_text_in_order_whatever_the_batch(analyzer):
    alone = [analyzer.emotions([t])[0] for t in TEXTS]
    together = analyzer.emotions(TEXTS)
    assert [a.label for a in alone] == [b.label for b in together]
    assert all(a.scores == pytest.approx(b.scores, abs=1e-5) for a, b in zip(alone, together))
    assert analyzer.polarity([]) == analyzer.aspects([]) == analyzer.ask("Why?", []) == []

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
    got, ok = predict._read_tuples(TASKS["atsa_rest16"], raw)
    assert list(got) == items and ok is valid

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
    with pytest.raises(UserError, match="Text 1 with its instruction"): analyzer.ask("Why?", ["fine", "word " * 1200])

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

def test_refusals(analyzer, tmp_path):
    with pytest.raises(UserError, match=r"Write \[text\]"): analyzer.polarity("one string")
    with pytest.raises(UserError, match="Text 1 is NoneType"): analyzer.polarity(["fine", None])
    with pytest.raises(UserError, match="one target for each of the 3"): analyzer.classify("pstance", TEXTS, ["x"])
    with pytest.raises(UserError, match="Use .classify"): analyzer.extract("sst2", TEXTS)
    with pytest.raises(UserError, match="No model could be loaded"): SentimentAnalyzer.from_pretrained(tmp_path)

# ---- giving a student away

@pytest.fixture
def run_folder(analyzer, tmp_path):
    "The artifacts of a run as the stages write them, with one trained student."
    from compeffdist.store import write_json, write_rows
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
    (tmp_path/"artifacts"/"evaluation-llama-difficulty-10").mkdir()
    write_rows(tmp_path/"artifacts"/"evaluation-llama-difficulty-10"/"scores.parquet", [
        dict(task="sst2", metric="macro_f1", seed=s, score=v, n_items=40, shots=4) for s, v in ((42, .5), (52, .7))
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
        "Licence", "`make replicate PROFILE=tiny`", "| sst2"
    ):
        assert said in card, said
    assert (
        "60" in card.split("| sst2")[1].splitlines()[0]
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
    from compeffdist.store import read_json, write_json
    file = run_folder/"stage.json"
    assert ", then" not in predict.student_facts(run_folder)["base"]
    write_json(file, read_json(file) | dict(inputs={"student-llama-knowdist": {}}))
    assert predict.student_facts(run_folder)["base"].endswith(", then student-llama-knowdist")

