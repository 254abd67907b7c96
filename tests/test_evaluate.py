"Prompts, prediction and the evaluation stage against slow twins on tiny random models."
import random
import pytest
from compeffdist.evaluate import (
    Answer, Item, Student, _array_answer, answer_logprobs, block, budget, build_items, build_prompt,
    choose_labels, collisions, decode, decode_tokens, encode, evaluate, evaluation_stage, fit_prompts, item_row,
    label_paths, last_logits, one_line, pick_items, shared_head, stop_tokens, summary, token_batches)
from compeffdist.sentibench import TASKS, render, score
from compeffdist.settings import UserError, load_settings
from compeffdist.store import ResponseRecord, Store, text_hash, write_json
from compeffdist.systems import systems

ASPECTS = [
    dict(sentence=f"The {t} was {w} .", aspects=[
        {"target": t, "category": "FOOD#QUALITY", "polarity": p, "from": "4", "to": str(4 + len(t))}])
    for t in ("soup", "fish", "tea", "rice")
    for w, p in (("great", "positive"), ("cold", "negative"), ("there", "neutral"))]
RECORDS = {
    "atsa_rest16": ASPECTS,
    "acsa_rest16": ASPECTS,
    "asqp_rest16": [
        dict(sentence=a["sentence"], quards=[
            dict(aspect="NULL", category="food quality", opinion="x", sentiment="neutral")])
        for a in ASPECTS],
    "opener": [dict(sentence=a["sentence"], opinions=[]) for a in ASPECTS]}


def records(task, split):
    "Twelve records of any task; train and test differ in their texts."
    rows = RECORDS.get(task) or [
        dict(
            sentence=f"text {i} of {task} .",
            label=TASKS[task].labels[i % len(TASKS[task].labels)], target="the mayor")
        for i in range(12)]
    return [dict(r, sentence=f"{r['sentence']}" if task in RECORDS else f"{split} {r['sentence']}") for r in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    for t in TASKS:
        for split in ("train", "test"): write_json(root/TASKS[t].folder/f"{split}.json", records(t, split))
    return root


@pytest.fixture(scope="module")
def tokenizer(folder):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [i.prompt for i in build_items(folder, shots=2, seeds=[1])],
        vocab_size=600, min_frequency=2, show_progress=False, special_tokens=["<eos>", "<pad>"])
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>", pad_token="<pad>")


def make_model(family, vocab):
    import torch, transformers
    torch.set_num_threads(1) # such small models lose time to several threads, above all on a busy machine
    config, cls, extra = {
        "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", dict(head_dim=16)),
        "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", dict(
            head_dim=16, sliding_window=32,
            layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=16))}[family]
    torch.manual_seed(1)
    c = getattr(transformers, config)(
        vocab_size=vocab, hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=1024, initializer_range=.3,
        eos_token_id=0, pad_token_id=1, bos_token_id=None, **extra)
    return getattr(transformers, cls)(c).eval()


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3"])
def model(request, tokenizer): return make_model(request.param, len(tokenizer))


def settings(**changes):
    return load_settings("tiny", **(dict(
        shots=2, eval_seeds=[42, 52], eval_limit=5, eval_max_new_tokens=12, eval_max_new_tokens_opener=16,
        eval_context=1024, max_words=None) | changes))


# ---- prompts

def test_prompt_formats_to_the_letter():
    t = TASKS["pstance"]
    demo, test = (
        dict(sentence="One\r\ntwo\u2028three", target="Joe", label="AGAINST"),
        dict(sentence="a b c d", target="Ann", label="FAVOR"))
    assert build_prompt(t, test, [demo], 3) == (
        t.instruction
        + "\n\nSentence: One two three\nTarget: Joe\nLabel: against"
        "\n\nSentence: a b c\nTarget: Ann\nLabel:")
    t = TASKS["atsa_rest16"]
    assert build_prompt(t, ASPECTS[0], [ASPECTS[1]]) == (
        t.instruction
        + '\n\nSentence: The soup was cold .\nOutput: [{"aspect_term": "soup", "sentiment": "negative"}]'
        '\n\nSentence: The soup was great .\nOutput:')
    assert "\n" not in one_line("a\n\nb\x0bc") and one_line("a b c", 2) == "a b" and one_line("a b", 2) == "a b"


def test_the_gold_is_not_cut():
    long = dict(
        sentence="word "*50 + "soup .",
        aspects=[{"target": "soup", "category": "FOOD#QUALITY", "polarity": "positive"}])
    assert block(TASKS["atsa_rest16"], long, "x", 5) == "Sentence: word word word word word\nOutput: x"
    answer = '[{"aspect_term": "soup", "sentiment": "positive"}]'
    assert item_row(Answer(Item(TASKS["atsa_rest16"], 1, 0, long, (), 5), answer))["correct"]


def test_draws_depend_on_nothing_but_seed_task_and_item(folder):
    key = lambda items: {(i.task.name, i.seed, i.item): i.prompt for i in items}
    whole, part = (
        key(build_items(folder, shots=3, seeds=[42, 52])),
        key(build_items(folder, ["imdb", "opener"], shots=3, seeds=[52], limit=4)))
    assert len(part) == 8 and all(whole[k] == p for k, p in part.items())
    assert whole["imdb", 42, 0] != whole["imdb", 52, 0]
    for i in build_items(folder, ["imdb"], shots=12, seeds=[1]):
        assert len({d["sentence"] for d in i.demonstrations}) == 12
    picks = pick_items(100, 10, 42, "imdb")
    assert (
        picks == sorted(set(picks)) and len(picks) == 10
        and picks != pick_items(100, 10, 42, "sst2")
        and pick_items(5, 0, 1, "x") == pick_items(5, 9, 1, "x") == list(range(5)))
    with pytest.raises(UserError, match="only 12 train records"): build_items(folder, ["imdb"], shots=13)


def test_a_prompt_that_does_not_fit(folder, tokenizer):
    items = build_items(folder, ["acsa_rest16"], shots=4, seeds=[1], limit=3)
    full = encode(tokenizer, [items[0].prompt])[0]
    with pytest.raises(UserError, match="shots_reduce"): fit_prompts(items, tokenizer, settings(), len(full) + 11)
    fewer, ids = fit_prompts(items, tokenizer, settings(shots_reduce=True), len(full) + 11)
    assert (
        len(fewer[0].demonstrations) == 3
        and len(ids[0]) < len(full)
        and fewer[0].demonstrations == items[0].demonstrations[:3])
    assert (
        item_row(Answer(fewer[0], "[]"))["shots"] == 3
        and item_row(Answer(fewer[0], "[]"))["prompt_hash"] == text_hash(fewer[0].prompt))
    with pytest.raises(UserError, match="0 demonstrations"):
        fit_prompts(items, tokenizer, settings(shots_reduce=True), 40)


# ---- prediction

def test_batches_cover_everything_within_the_limit():
    rng = random.Random(0)
    for _ in range(50):
        lengths, limit = [rng.randint(1, 60) for _ in range(rng.randrange(40))], rng.randint(1, 200)
        batches = list(token_batches(lengths, limit, 3))
        assert sorted(sum(batches, [])) == list(range(len(lengths)))
        assert all(len(b) == 1 or len(b)*(max(lengths[i] for i in b) + 3) <= limit for b in batches)


def test_labels_equal_the_published_way(model, tokenizer, folder):
    "Generate two tokens, one prompt at a time, and compare the first step's scores of the labels' first tokens."
    import torch
    for name in ("twitter", "pstance"):
        ids = encode(tokenizer, [i.prompt for i in build_items(folder, [name], shots=3, seeds=[1, 2])])
        paths = label_paths(TASKS[name], tokenizer)
        first = [p[0] for p in paths.values()]
        if collisions(paths): continue
        slow = []
        for i in ids:
            out = model.generate(
                torch.tensor([i]), attention_mask=torch.ones(1, len(i), dtype=torch.long),
                max_new_tokens=2, do_sample=False, output_scores=True, return_dict_in_generate=True)
            slow.append(list(paths)[int(out.scores[0][0, first].argmax())])
        assert choose_labels(model, ids, paths, 700) == choose_labels(model, ids, paths, 1) == slow


def test_log_probabilities_and_whole_labels_equal_one_row_at_a_time(model, tokenizer, folder):
    import torch
    from compeffdist.evaluate import answer_logprobs, choose_whole_labels
    items = build_items(folder, ["twitter"], 1, [42], 6)
    ids, paths = encode(tokenizer, [i.prompt for i in items]), label_paths(TASKS["twitter"], tokenizer)
    def alone(row, path):
        with torch.inference_mode(): logp = model(input_ids=torch.tensor([list(row) + path])).logits[0].log_softmax(-1)
        return [logp[len(row) - 1 + k, t].item() for k, t in enumerate(path)]
    want = [{l: alone(row, p) for l, p in paths.items()} for row in ids]
    for batch_tokens in (64, 4096):
        for l, p in paths.items():
            for got, w in zip(answer_logprobs(model, ids, [p] * len(ids), batch_tokens), want):
                assert got == pytest.approx(w[l], abs=1e-4)
        assert choose_whole_labels(model, ids, paths, batch_tokens) == [max(w, key=lambda l: sum(w[l])) for w in want]
    student = Student(model, tokenizer, load_settings("tiny", eval_label_rule="whole label"))
    assert [a.text for a in student.answer(items)] == [max(w, key=lambda l: sum(w[l])) for w in want]

def test_last_logits_equal_a_plain_forward(model, tokenizer):
    import torch
    rng = random.Random(3)
    ids = [[rng.randrange(2, len(tokenizer)) for _ in range(rng.randint(1, 90))] for _ in range(15)]
    with torch.inference_mode(): slow = torch.stack([model(torch.tensor([i])).logits[0, -1, [5, 9, 7]] for i in ids])
    assert torch.allclose(last_logits(model, ids, [5, 9, 7], 300), slow, atol=1e-4)


@pytest.mark.parametrize("head", [1, 20, 50, 89]) # the sliding window of the Gemma has 32 tokens
def test_a_shared_beginning_is_read_once_and_changes_nothing(model, tokenizer, head, monkeypatch):
    import torch
    rng = random.Random(head)
    draw = lambda n: [rng.randrange(2, len(tokenizer)) for _ in range(n)]
    shared = draw(head)
    # one is nothing but the shared beginning
    ids = [shared + [2 + i] + draw(rng.randint(0, 60)) for i in range(9)] + [shared]
    with torch.inference_mode(): slow = torch.stack([model(torch.tensor([i])).logits[0, -1, [5, 9, 7]] for i in ids])
    read, forward = [], model.model.forward
    monkeypatch.setattr(
        model.model, "forward",
        lambda input_ids=None, **k: read.append(input_ids.shape) or forward(input_ids=input_ids, **k))
    assert torch.allclose(last_logits(model, ids, [5, 9, 7], 400), slow, atol=1e-4)
    if head > 1: assert read[0] == (1, head - 1) and max(w for _, w in read[1:]) <= 62
    budgets = [3 + i % 4 for i in range(len(ids))]
    together = decode_tokens(model, ids, budgets, [0], 600)
    alone = [decode_tokens(model, [i], [n], [0])[0] for i, n in zip(ids, budgets)]
    plain = [
        model.generate(
            torch.tensor([i]), attention_mask=torch.ones(1, len(i), dtype=torch.long),
            max_new_tokens=n, do_sample=False, eos_token_id=0, pad_token_id=1)[0, len(i):].tolist()
        for i, n in zip(ids, budgets)]
    assert together == alone == plain


def test_on_a_cpu_labels_are_read_in_batches_of_bounded_size_whatever_the_limit(model, monkeypatch):
    from compeffdist import evaluate as module
    shapes, forward = [], model.model.forward
    monkeypatch.setattr(
        model.model, "forward",
        lambda input_ids=None, **k: shapes.append(input_ids.shape) or forward(input_ids=input_ids, **k))
    ids = [[2 + i, 3] * 20 for i in range(60)]
    reads = lambda: last_logits(model, ids, [5, 9]), lambda: answer_logprobs(model, ids, [[7]] * 60)
    for read in reads:
        shapes.clear(); read()
        assert len(shapes) > 1 and all(a * b <= module.CPU_READ for a, b in shapes) and sum(a for a, _ in shapes) == 60
        with monkeypatch.context() as wide:
            wide.setattr(module, "CPU_READ", 10**6)
            shapes.clear(); read()
        assert [a for a, _ in shapes] == [60]

@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_shipped_students_say_the_same_with_and_without_a_shared_beginning(family, tmp_path):
    "Labels and arrays of many prompts in one call against a call for each prompt, which shares nothing."
    from compeffdist.base import students_folder
    from compeffdist.students import load_student
    from compeffdist.texts import write_benchmark
    model, tokenizer = load_student(students_folder()/family)
    model.eval()
    write_benchmark(tmp_path, 20, 12, 1)
    for name, shots in (("twitter", 2), ("tweeteval", 0), ("acsa_rest16", 1), ("asqp_rest16", 0)):
        task = TASKS[name]
        ids = encode(tokenizer, [i.prompt for i in build_items(tmp_path, [name], shots, [1])])
        assert shared_head(model, ids)[0] > 15 and shared_head(model, ids[:1]) == (0, None)
        if task.labels: say = lambda part: choose_labels(model, part, label_paths(task, tokenizer), 1500)
        else: say = lambda part: decode(model, tokenizer, part, [20]*len(part), 3000)
        assert say(ids) == [say([i])[0] for i in ids]


class Spelled:
    "A tokenizer that knows nothing but letters."
    eos_token_id = 0
    def __call__(self, texts, add_special_tokens=False):
        return {"input_ids": [[ord(c) - 30 for c in t] for t in texts]}


def test_colliding_labels_are_decided_where_they_differ():
    """With letters as tokens, negative and neutral share ` ne`;
    the decision is the greedy walk down the tree of labels."""
    import torch
    model, paths = make_model("llama", 128), label_paths(TASKS["twitter"], Spelled())
    assert collisions(paths) == [["negative", "positive", "neutral"]] # all begin with a blank
    assert collisions({k: v[1:] for k, v in paths.items()}) == [["negative", "neutral"]]
    rng = random.Random(0)
    ids = [[rng.randrange(2, 120) for _ in range(rng.randint(3, 20))] for _ in range(12)]
    slow = []
    for i in ids:
        prefix, left = [], dict(paths)
        while len(left) > 1:
            with torch.inference_mode(): logits = model(torch.tensor([i + prefix])).logits[0, -1]
            best = max({p[len(prefix)] for p in left.values()}, key=lambda t: float(logits[t]))
            prefix.append(best); left = {k: p for k, p in left.items() if p[:len(prefix)] == prefix}
        slow.append(*left)
    assert choose_labels(model, ids, paths, 64) == slow and len(set(slow)) > 1


def test_a_label_that_begins_another_is_still_reachable():
    import dataclasses
    task = dataclasses.replace(TASKS["sst2"], labels=("good", "goodish"))
    paths = label_paths(task, Spelled())
    assert paths["good"][-1] == 0 and paths["goodish"][:5] == paths["good"][:-1]
    assert set(choose_labels(
        make_model("llama", 128), [[i, i + 1] for i in range(2, 40)], paths)) <= {"good", "goodish"}


def test_decoding_equals_generate(model, tokenizer, folder):
    "Batched, with rows leaving, against transformers' generate one prompt at a time."
    import torch
    ids = encode(tokenizer, [i.prompt for i in build_items(folder, ["atsa_rest16", "opener"], shots=1, seeds=[1])])
    budgets = [7 + i % 9 for i in range(len(ids))]
    stop = stop_tokens(tokenizer)
    slow = []
    for i, n in zip(ids, budgets):
        out = model.generate(
            torch.tensor([i]), attention_mask=torch.ones(1, len(i), dtype=torch.long),
            max_new_tokens=n, do_sample=False, eos_token_id=stop, pad_token_id=1)
        slow.append(tokenizer.decode(out[0, len(i):], skip_special_tokens=True))
    assert decode(model, tokenizer, ids, budgets, 2500) == slow
    assert decode(model, tokenizer, [], []) == []


def test_stop_tokens(tokenizer):
    stop, chat = stop_tokens(tokenizer), stop_tokens(tokenizer, chat=True)
    text = lambda ids: [tokenizer.decode([i]) for i in ids]
    assert (
        tokenizer.eos_token_id in stop
        and any("\n" in t for t in text(stop))
        and all("]" in t for t in text(chat) if t != "<eos>"))
    assert {
        i for i in range(len(tokenizer))
        if "]" in tokenizer.decode([i]) or "\n" in tokenizer.decode([i])} <= set(stop)


# ---- rows and scores

def answer(task, record, text): return item_row(_array_answer(Item(TASKS[task], 42, 0, record, ()), text))


def test_status_of_answers():
    r = ASPECTS[0]
    good = '[{"aspect_term": "soup", "sentiment": "positive"}'
    assert [
        answer("atsa_rest16", r, t)["status"]
        for t in (good + "]", "so: " + good + "] ok", good + ', {"asp', "nothing", None)] == [
            "json", "json", "closed", "none", "dead"]
    assert [
        answer("atsa_rest16", r, t)["correct"]
        for t in (good + "]", good + ', {"asp', "nothing")] == [True, True, False]
    assert answer("imdb", dict(sentence="x", label="positive"), "clearly positive")["status"] == "mentioned"
    row = answer("atsa_rest16", r, '[{"aspect_term": "\\ud800", "sentiment": "positive"}]')
    assert row["parsed"].encode("utf-8") and not row["correct"]


def test_summary_equals_score_on_raw_records(folder):
    rng, rows = random.Random(0), []
    said = {}
    for i in build_items(folder, shots=0, seeds=[1, 2]):
        text = rng.choice(i.task.labels) if i.task.labels else rng.choice([
            "[]", "oops", build_prompt(i.task, i.record), render(i.task, i.record)])
        a = _array_answer(i, text)
        rows.append(item_row(a)); said.setdefault((i.task.name, i.seed), []).append((i.record, a.text))
    out = summary(rows)
    assert len(out) == 24
    for s in out:
        want = score(s["task"], *zip(*said[s["task"], s["seed"]]))
        assert (s["score"], s["precision"], s["n_items"]) == (
            pytest.approx(want["f1"]), pytest.approx(want["precision"]), 12)


def test_evaluate_a_pair_a_folder_and_limits(folder, tokenizer, tmp_path):
    model = make_model("llama", len(tokenizer))
    model.save_pretrained(tmp_path); tokenizer.save_pretrained(tmp_path)
    a = evaluate((model, tokenizer), ["sst2", "opener"], 1, [42], 3, folder=folder, settings=settings())
    b = evaluate(tmp_path, ["sst2", "opener"], 1, [42], 3, folder=folder, settings=settings(eval_batch_tokens=1))
    assert a.to_list() == b.to_list() and len(a) == 6 and set(a["shots"]) == {1}
    with pytest.raises(UserError, match="No model could be loaded"):
        Student.from_pretrained(tmp_path/"nothing", settings())


class Parrot:
    "A teacher that repeats the first demonstration's answer, and fails on one text."
    backend, model, revision, options, max_failure_rate, asked = "parrot", "parrot", "1", {}, .5, 0
    def generate(self, requests, seeds):
        from compeffdist.teacher import Response
        for r in reversed(requests):
            Parrot.asked += 1
            if "text 3" in r.prompt.split("\n\n")[-1]: yield Response(r.id, None, "error", error="no"); continue
            line = r.prompt.split("\n\n")[1].splitlines()[-1]
            yield Response(r.id, "Sure. " + line.split(": ", 1)[1])


def test_without_a_folder_the_embedded_benchmark_is_asked(tokenizer, tmp_path):
    from compeffdist.texts import write_benchmark
    from compeffdist.base import new_model
    s, pair = load_settings("tiny", benchmark_train=8, benchmark_test=5), (
        new_model("llama", len(tokenizer), 32, 1, 2, tokenizer=tokenizer), tokenizer)
    write_benchmark(tmp_path, 8, 5, s.seed)
    ask = lambda folder: evaluate(pair, ["sst2", "twitter"], 1, [42], 3, folder=folder, settings=s).to_list()
    assert ask(None) == ask(tmp_path) and len(ask(None)) == 6

def test_a_teacher_gets_the_same_prompts_and_is_asked_once(folder, tmp_path):
    record = ResponseRecord(tmp_path/"r.sqlite")
    run = lambda **k: evaluate(
        Parrot(), ["imdb", "atsa_rest16"], 2, [42], 0, folder=folder, settings=settings(), record=record, **k)
    rows = run().to_list(); asked = Parrot.asked
    assert (
        asked == 24
        and [r["status"] for r in rows].count("dead") == 1
        and {r["status"] for r in rows[12:]} == {"json"})
    again = run().to_list()
    assert again == rows and Parrot.asked == asked + 1 # only the dead one is tried again
    with pytest.raises(UserError, match="record"): evaluate(Parrot(), ["imdb"], folder=folder, settings=settings())


# ---- the stage

@pytest.fixture
def store(tmp_path, folder, tokenizer):
    import shutil
    s = Store(settings(outputs=str(tmp_path)))
    s.stage("benchmark", lambda out, work: shutil.copytree(folder, out/"benchmark") and {})
    def base(out, work): make_model("llama", len(tokenizer)).save_pretrained(out); tokenizer.save_pretrained(out)
    s.stage("base-llama", base)
    return s


def test_stage_writes_both_tables_and_is_cached(store):
    r = evaluation_stage(store.settings, store, "llama", "base", "base-llama")
    items, scores = store.rows(r.name, "items.parquet"), store.rows(r.name, "scores.parquet")
    assert (
        r.name == "evaluation-llama-base"
        and (len(items), len(scores)) == (12*2*5, 24)
        and r.counts["rows_out"] == 120)
    assert {
        "system", "family", "task", "seed", "item", "prompt_hash", "shots",
        "output", "parsed", "status", "gold", "correct"} <= set(items.column_names)
    assert all(0 <= x <= 1 for x in scores["score"]) and set(scores["n_items"]) == {5} and set(scores["shots"]) == {2}
    assert evaluation_stage(store.settings, store, "llama", "base", "base-llama").cached
    assert not evaluation_stage(
        settings(outputs=store.settings.outputs, shots=1), store, "llama", "base", "base-llama").cached


def test_a_system_asked_with_other_demonstrations_is_a_row_of_its_own(store):
    plain = evaluation_stage(store.settings, store, "llama", "base-0-shot", "base-llama", 0)
    scores, items = (store.rows(plain.name, f"{n}.parquet").to_pandas() for n in ("scores", "items"))
    assert len(scores) == 12 and set(scores.shots) == {0} and len(items) == 12*5 and plain.counts["fewer_shots"] == 0
    mine = evaluation_stage(store.settings, store, "llama", "base", "base-llama")
    assert not set(items.prompt_hash) & set(store.rows(mine.name, "items.parquet")["prompt_hash"])
    rows = [
        (x.name, x.shots)
        for x in systems(load_settings("tiny", shots=2, base_shots=0)) if x.name.startswith("base")]
    assert rows == [("base", None), ("base-0-shot", 0), ("base", None), ("base", None)]
    assert not any(
        x.shots is not None
        for over in (dict(base_shots="none"), dict(base_shots=2))
        for x in systems(load_settings("tiny", shots=2, **over)))


def test_a_killed_stage_goes_on_where_it_was(store, monkeypatch):
    want = evaluation_stage(store.settings, store, "llama", "whole", "base-llama").path
    plain, done = Student.answer, []
    def dying(self, items):
        if len(done) == 5: raise KeyboardInterrupt
        done.append(items[0].task.name); return plain(self, items)
    monkeypatch.setattr(Student, "answer", dying)
    with pytest.raises(KeyboardInterrupt): evaluation_stage(store.settings, store, "llama", "killed", "base-llama")
    rest = []
    monkeypatch.setattr(Student, "answer", lambda self, items: rest.append(items[0].task.name) or plain(self, items))
    got = evaluation_stage(store.settings, store, "llama", "killed", "base-llama").path
    assert done + rest == list(TASKS)
    import pandas as pd
    a, b = [pd.read_parquet(p/"items.parquet").drop(columns="system") for p in (want, got)]
    assert a.equals(b)


def test_stage_needs_its_inputs(store):
    with pytest.raises(UserError, match="no model stage"):
        evaluation_stage(store.settings, store, "llama", "distilled")
    with pytest.raises(UserError, match="student-llama-x"):
        evaluation_stage(store.settings, store, "llama", "x", "student-llama-x")


def test_budgets():
    s = settings(eval_max_new_tokens=99, eval_max_new_tokens_opener=111)
    assert [budget(TASKS[t], s) for t in ("imdb", "asqp_rest16", "opener")] == [8, 99, 111]


# ---- awkward models and outputs

def test_a_model_without_pad_token_and_chat_template_is_evaluated_as_one_with_them(folder, tokenizer):
    import copy
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    assert bare.pad_token_id is None and not bare.chat_template
    model = make_model("llama", len(tokenizer))
    plain = copy.deepcopy(model)
    plain.config.pad_token_id = plain.generation_config.pad_token_id = None
    ask = lambda m, t, **more: evaluate(
        (m, t), ["sst2", "atsa_rest16"], 2, [42], 5, folder=folder, settings=settings(**more)).to_list()
    assert ask(plain, bare) == ask(model, tokenizer)
    with pytest.raises(UserError, match="has no chat template. Set eval_chat_template = false"):
        ask(plain, bare, eval_chat_template=True)


def test_a_context_too_short_for_the_shots_is_an_error_or_counted(folder, tokenizer):
    model = make_model("llama", len(tokenizer))
    longest = max(
        len(encode(tokenizer, [i.prompt])[0])
        for i in build_items(folder, ["sst2"], shots=4, seeds=[42], limit=5))
    tight = dict(eval_context=longest + budget(TASKS["sst2"], settings()) - 1)
    with pytest.raises(UserError, match="shots_reduce = true"):
        evaluate((model, tokenizer), ["sst2"], 4, [42], 5, folder=folder, settings=settings(**tight))
    rows = evaluate(
        (model, tokenizer), ["sst2"], 4, [42], 5,
        folder=folder, settings=settings(shots_reduce=True, **tight)).to_list()
    fewer = sum(r["shots"] < 4 for r in rows)
    assert 0 < fewer <= 5 and min(r["shots"] for r in rows) == 3
    assert all(r["asked_shots"] == 4 for r in rows)
    table = summary(rows)[0]
    assert (table["shots"], table["fewer_shots"], table["n_items"]) == (4, fewer, 5)
    # where every prompt lost one, all of them are counted
    table, = summary([r | dict(shots=3) for r in rows])
    assert (table["shots"], table["fewer_shots"]) == (4, 5)

def test_what_was_said_is_kept_beside_what_is_scored():
    said = 'Sure: [{"aspect_term": "soup", "sentiment": "positive"}] Hope this helps [1]'
    row = answer("atsa_rest16", dict(sentence="The soup.", aspects=[]), said)
    assert row["raw"] == said and row["output"] == said[6:said.index("]") + 1] and row["status"] == "json"
    cut = '[{"aspect_term": "soup", "sentiment": "positive"}, {"asp'
    row = answer("atsa_rest16", dict(sentence="The soup.", aspects=[]), cut)
    assert row["raw"] == cut and row["output"] != cut and row["status"] == "closed"

@pytest.mark.parametrize("kw, said", [
    (dict(shots=-1), "shots = -1"), (dict(seeds=42), "seeds = 42"), (dict(tasks="sst2"), "tasks = 'sst2'"),
    (dict(limit=-1), "limit = -1"), (dict(tasks=[]), r"tasks = \[\]"), (dict(seeds=[]), r"seeds = \[\]")])
def test_calls_that_ask_nothing_are_refused(folder, kw, said):
    with pytest.raises(UserError, match=said + " is not accepted. Allowed: "):
        evaluate(object(), **dict(tasks=["sst2"]) | kw, folder=folder, settings=settings())

@pytest.mark.parametrize("system", [5, None, object()])
def test_what_is_no_system_is_refused(folder, system):
    with pytest.raises(UserError, match="is no system that could be evaluated. Pass a checkpoint's folder"):
        evaluate(system, ["sst2"], 0, [42], 1, folder=folder, settings=settings())

def test_a_task_of_ones_own_is_evaluated_and_summarised(folder, tokenizer):
    from dataclasses import replace as changed
    mine = changed(TASKS["sst2"], name="mine")
    rows = evaluate((make_model("llama", len(tokenizer)), tokenizer), [mine], 1, [42], 4,
        folder=folder, settings=settings()).to_list()
    own, = summary(rows, tasks=[mine])
    twin, = summary([r | dict(task="sst2") for r in rows])
    assert own | dict(task="sst2") == twin and own["task"] == "mine"
    with pytest.raises(UserError, match="mine"): summary(rows)

def test_one_set_of_demonstrations_for_a_task_or_one_for_each_item(folder):
    shown = lambda drawn: [
        tuple(d["sentence"] for d in i.demonstrations)
        for i in build_items(folder, ["sst2"], shots=3, seeds=[42, 52], limit=5, drawn=drawn)]
    each, one = shown("item"), shown("task")
    assert len(set(each)) > 2 and len(set(one[:5])) == len(set(one[5:])) == 1 and one[0] != one[5]

@pytest.mark.parametrize("rule, told", [("first token", 1), ("whole label", 0)])
def test_labels_that_begin_alike_are_reported(folder, tokenizer, monkeypatch, rule, told):
    import warnings
    from compeffdist import evaluate as module
    monkeypatch.setattr(
        module, "label_paths", lambda task, *a: {l: [5, 6 + k, 0] for k, l in enumerate(task.labels)})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        evaluate(
            (make_model("llama", len(tokenizer)), tokenizer), ["sst2"], 0, [42], 2, folder=folder,
            settings=settings(eval_label_rule=rule))
    found = [str(w.message) for w in seen if "begin with the same token" in str(w.message)]
    assert len(found) == told and all("sst2: negative = positive" in f for f in found)


@pytest.mark.parametrize("said", [
    "x" * 100_000, "[" * 100_000, '[{"aspect_term": ' * 6_000,
    '[{"a": [' + "[" * 40_000 + "]" * 40_000 + "]}]", "\ud800"])
def test_a_teachers_monstrous_answer_is_no_prediction(folder, tmp_path, said):
    from compeffdist.teacher import Response
    class Monster:
        backend, model, revision, options, max_failure_rate = "monster", "monster", "1", {}, .5
        def generate(self, requests, seeds): yield from (Response(r.id, said) for r in requests)
    rows = evaluate(
        Monster(), ["sst2", "atsa_rest16"], 0, [42], 2,
        folder=folder, settings=settings(), record=ResponseRecord(tmp_path/"r.sqlite")).to_list()
    assert (
        [r["status"] for r in rows] == ["invalid"] * 2 + ["none"] * 2
        and not any(r["n_pred"] or r["correct"] for r in rows))
