"Base students: format data, training, shipped checkpoints."
import json, random, re, shutil
import pytest
from compeffdist import base, formats
from compeffdist.settings import UserError, load_settings
from compeffdist.store import Store

TEXTS = [
    f"The {noun} was {word} when we came back on day {i}, said Anna."
    for i, (noun, word) in enumerate(
        (n, w)
        for n in "food phone film room soup coffee".split()
        for w in "red old slow near cold tall green open".split())]

THINGS = [
    f"{who} had the {dish} and it was {word} , but the {place} was {other}."
    for who in ("We", "My sister")
    for dish in ("soup", "iced tea", "grilled fish")
    for place in ("view", "front desk", "price")
    for word, other in (("cold", "high"), ("rather large", "near the door"))]

def pool(): return formats.Pool(TEXTS)

def test_every_sample_ends_in_an_answer_that_its_prompt_allows():
    rng, p = random.Random(0), pool()
    for _ in range(300):
        sample = formats.classify_sample(rng, p)
        assert sample[-1][1] and not sample[-2][1]
        assert sample[-1][0].strip() in sample[0][0], sample

def test_extraction_answers_are_json_with_the_named_fields_and_copied_values():
    rng, p = random.Random(1), pool()
    closed = {v for vs in p.t["categorical"].values() for v in vs}
    for _ in range(300):
        sample = formats.extract_sample(rng, p)
        instruction, block = sample[0][0], sample[-2][0].replace("*", "")
        found = json.loads(sample[-1][0])
        for row in found if isinstance(found, list) else [found]:
            for field, value in row.items():
                assert field in instruction
                assert value in closed or value == "NULL" or value in block, (value, block)

def test_induced_labels_are_decided_by_the_demonstrations():
    rng, p = random.Random(2), pool()
    for _ in range(100):
        items = formats._induced(rng, p, ["a", "b"], 4)
        assert items[-1][1] in {label for _, label in items[:-1]}

@pytest.mark.parametrize("draw", [
    lambda texts: formats.format_samples(texts, 4000, seed=5),
    lambda texts: formats.school_samples(texts, 8000, seed=5, school=100),
    lambda texts: formats.format_samples(texts, 14_000, seed=5, kinds=formats.THING_KINDS)])
def test_label_names_carry_no_sentiment(draw):
    good, bad = [
        [
            f"what {word} {noun} we saw near the {place}, number {i}"
            for noun in "room phone film soup park".split()
            for place in "station river market bridge".split()
            for i in range(2)]
        for word in ("a wonderful", "an awful")]
    hits = {"wonderful": [], "awful": []}
    for sample in draw(good + bad):
        for (text, _), (answer, is_answer) in zip(sample, sample[1:]):
            if is_answer and answer.strip() in ("positive", "negative"):
                for word in hits:
                    if word in text.rsplit("\n\n", 1)[-1]: hits[word].append(answer.strip() == "positive")
    rates = [sum(h) / len(h) for h in hits.values()]
    assert min(map(len, hits.values())) > 150
    assert abs(rates[0] - rates[1]) < 0.12, rates

def test_too_few_texts_is_an_error():
    with pytest.raises(UserError, match="at least 20"): formats.Pool(["one", "two"])

def test_answer_mask_covers_all_answers_and_the_end_token_only():
    for family in base.FAMILIES:
        tok = base.train_tokenizer(TEXTS, family, 400)
        sample = [
            ("Name it.\n\nInput: x\nOutput:", False), (" red", True),
            ("\n\nInput: y\nOutput:", False), (" green", True)]
        ids, mask = base.encode_segments([sample], tok)[0]
        assert tok.decode([i for i, m in zip(ids, mask) if m]) == " red green" + tok.eos_token
        assert (ids[0] == tok.bos_token_id) == (tok.bos_token is not None)

def test_base_loss_is_the_full_losses_mean():
    import torch
    torch.manual_seed(0)
    model = base.new_model("qwen3", 60, 16, 1, 2)
    ids = torch.randint(0, 60, (3, 9)); answer = torch.zeros(3, 9, dtype=torch.bool); answer[:, 6:] = True
    loss, answer_loss = base.base_loss(model, ids, answer, torch.ones_like(answer), 0.3)
    full = torch.nn.functional.cross_entropy(
        model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(3, 8)
    assert torch.allclose(answer_loss, full[:, 5:].mean(), atol=1e-5)
    assert torch.allclose(loss, full[:, 5:].mean() + 0.3 * full[:, :5].mean(), atol=1e-5)

def test_lexical_embeddings_keep_the_encoders_geometry_and_leave_other_tokens_random():
    import numpy as np, torch
    tok = base.train_tokenizer(TEXTS, "llama", 400)
    vectors = {}
    def encode(words):
        rng = np.random.default_rng(5)
        # six dimensions in forty
        vectors.update(zip(words, rng.normal(size=(len(words), 6)) @ rng.normal(size=(6, 40))))
        return np.array([vectors[w] for w in words])
    W = base.lexical_embeddings(tok, 16, encode, std=0.05, seed=2)
    assert W.shape == (len(tok), 16) and W.dtype == torch.float32
    spaced = {w: tok.get_vocab()[f"Ġ{w}"] for w in vectors if f"Ġ{w}" in tok.get_vocab()}
    assert len(spaced) > 10
    centred = np.array([vectors[w] for w in spaced]) - np.mean(list(vectors.values()), 0)
    cosine = lambda X: (X @ X.T) / np.outer(np.linalg.norm(X, axis=1), np.linalg.norm(X, axis=1))
    assert np.corrcoef(
        cosine(centred).ravel(),
        cosine(W[list(spaced.values()), :6].double().numpy()).ravel())[0, 1] > 0.98
    unlike = base.lexical_embeddings(tok, 16, None, std=0.05, seed=2)
    others = sorted(
        set(range(len(tok)))
        - {i for t, i in tok.get_vocab().items() if tok.decode([i]).strip().lower() in vectors})
    assert torch.equal(W[others], unlike[others]) and not torch.equal(W, unlike)

@pytest.mark.parametrize("family", list(base.FAMILIES))
def test_built_checkpoint_loads_and_two_builds_are_equal(family, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    made = [
        base.build_base(
            family, TEXTS, tmp_path/n, steps=4, batch=4, vocab=420, hidden=16, layers=1, heads=2, seed=3)
        for n in "ab"]
    a, b = (load_file(tmp_path/n/"model.safetensors") for n in "ab")
    assert all((a[k] == b[k]).all() for k in a) and made[0] == made[1]
    model, tok = AutoModelForCausalLM.from_pretrained(tmp_path/"a"), AutoTokenizer.from_pretrained(tmp_path/"a")
    assert type(model).__name__ == base.FAMILIES[family]["model"]
    assert tok.decode(tok("the food").input_ids, skip_special_tokens=True) == "the food"
    assert (tok.eos_token, tok.pad_token, tok.bos_token) == tuple(
        base.FAMILIES[family][k] for k in ("eos", "pad", "bos"))
    assert tok.apply_chat_template(
        [dict(role="user", content="hi")], tokenize=False,
        add_generation_prompt=True).endswith(base.FAMILIES[family]["reply"])

def test_school_begins_with_short_lists_and_ends_with_prompts():
    samples = formats.school_samples(TEXTS, 900, seed=2, school=200)
    assert (
        samples == formats.school_samples(TEXTS, 900, seed=2, school=200)
        != formats.school_samples(TEXTS, 900, seed=3, school=200))
    said = {formats.repeat_sample(random.Random(i), formats.Pool(TEXTS))[0][0] for i in range(50)}
    lists = [
        [len(x[1][0].split(": ", 1)[1].rsplit("\n", 1)[0].split()) for x in part if x[0][0] in said]
        for part in (samples[:200], samples[-300:])]
    assert len(lists[0]) == 200 and min(lists[0]) >= 2 and max(lists[0]) <= 8
    assert 0.05 < len(lists[1]) / 300 < 0.35 and 8 < max(lists[1]) <= 24

SPOKEN = [ # sentence, its things with their kinds, what is said of each, who begins, the word before, the word after
    ("We had the iced tea", [("iced tea", "drink", "NULL", "We", "the", "NULL")]),
    ("My sister says that the soup was rather cold today .", [
        ("sister", "person", "rather cold today", "My sister", "My", "says"),
        ("soup", "dish", "rather cold today", "My sister", "the", "was"),
        ("today", "time", "NULL", "My sister", "cold", "NULL")]),
    ("The front desk was slow and rude, but the views are nice!", [
        ("front desk", "furniture", "slow", "NULL", "The", "was"),
        ("views", "mood", "nice", "NULL", "the", "are")]),
    ("Nice film. I liked the plots, they were clever", [
        ("film", "film", "NULL", "NULL", "Nice", "I"),
        ("plots", "story", "NULL", "I", "the", "they")]),
    ("It rained all through", [])]

@pytest.mark.parametrize("sentence,expected", SPOKEN)
def test_things_of_a_sentence_by_hand(sentence, expected):
    p, words = pool(), sentence.split()
    quote = lambda what, s, e: formats._BESIDE[what](p, words, s, e)
    assert [
        (quote("term", s, e), kind, quote("said", s, e), quote("who", s, e),
         quote("before", s, e), quote("after", s, e))
        for s, e, kind in formats._things(p, words)] == expected

def test_marks_stand_behind_the_thing_or_behind_its_clause():
    p, words = pool(), "The soup was cold and the staff , too, left early.".split()
    found = formats._things(p, words)
    assert (
        " ".join(formats._marked(words, found, ["A", "B"], False))
        == "The soup [A] was cold and the staff [B] , too, left early.")
    assert (
        " ".join(formats._marked(words, found, ["A", "B"], True))
        == "The soup was cold [A] and the staff [B] , too, left early.")

def test_a_thing_sample_lists_the_things_that_its_text_has_in_order():
    p, seen, listed, checked = formats.Pool(THINGS), set(), 0, dict(said=0, who=0, mark=0)
    for i in range(400):
        sample = formats.thing_sample(random.Random(i), p)
        shown = re.search(r": (.*)\n[^\n]*:$", sample[-2][0]).group(1)
        text = re.sub(r" \[[^]]*\]", "", shown)
        terms, rows = (
            [" ".join(text.split()[s:e]) for s, e, _ in formats._things(p, text.split())],
            json.loads(sample[-1][0]))
        assert all(f in sample[0][0] for row in rows for f in row)
        names = {n: k for k, r in p.t["things"].items() for n in r["names"]}
        field = next((
            f for f in (rows or [{}])[0]
            if f in p.t["thing_fields"]["term"] and all(row[f] in terms for row in rows)), None)
        if not field: continue
        got = [row[field] for row in rows]
        only = any(opening.split("{")[0] in sample[0][0] for opening in p.t["thing_only"])
        assert (
            got == [t for t in dict.fromkeys(terms) if t in got]
            and (only or got == list(dict.fromkeys(terms)))), (text, got)
        for row in rows:
            kinds = {f: names[v] for f, v in row.items() if f in p.t["thing_fields"]["kind"] and v in names}
            assert set(kinds.values()) <= {
                k for s, e, k in formats._things(p, text.split())
                if " ".join(text.split()[s:e]) == row[field]}
            words, at = text.split(), next(
                t for t in formats._things(p, text.split())
                if " ".join(text.split()[t[0]:t[1]]) == row[field])
            for what in ("said", "who"):
                for f in set(row) & set(p.t["thing_fields"][what]):
                    assert row[f] == formats._BESIDE[what](p, words, *at[:2]), (text, row)
                    checked[what] += 1
            for f in set(row) & set(p.t["thing_fields"]["mark"]):
                assert re.match(
                    r"[^.,;:!?\[]*\[" + row[f] + r"\]",
                    shown[shown.index(row[field]) + len(row[field]):]), (shown, row)
                checked["mark"] += 1
        listed += len(rows); seen |= {len(rows)}
    assert listed > 300 and max(seen) == 3 and min(checked.values()) > 50, (listed, seen, checked)

def test_a_text_is_sorted_by_a_kind_that_it_has():
    p, names = formats.Pool(THINGS), {n: k for k, r in formats.Pool(THINGS).t["things"].items() for n in r["names"]}
    for i in range(200):
        sample = formats.sort_sample(random.Random(i), p)
        text = re.search(r": (.*)\n[^\n]*:$", sample[-2][0]).group(1)
        assert (
            names[sample[-1][0].strip()] in {k for _, _, k in p.things[text]}
            and sample[-1][0].strip() in sample[0][0])

def test_marks_carry_no_sentiment():
    rng, p, hits = (
        random.Random(4),
        formats.Pool([
            f"The {noun} was {word} when we came on day {i}."
            for i, noun in enumerate("room phone film soup waiter".split() * 5)
            for word in ("wonderful", "awful")]),
        {"wonderful": [], "awful": []})
    for _ in range(6000):
        sample = formats.thing_sample(rng, p)
        for (text, _), (answer, _) in zip(sample[1::3], sample[2::3]):
            for row in json.loads(answer):
                if mark := {"positive", "negative"} & set(row.values()):
                    hits["wonderful" if "wonderful" in text else "awful"].append("positive" in mark)
    rates = [sum(h) / len(h) for h in hits.values()]
    assert min(map(len, hits.values())) > 1200 and abs(rates[0] - rates[1]) < 0.07, rates

def test_texts_without_known_nouns_still_make_samples():
    p = formats.Pool([
        f"zorb {a} {b} quux{i} never"
        for i, (a, b) in enumerate(
            (a, b)
            for a in "blip blop blub".split()
            for b in "fnord gnarl plugh xyzzy wibble wobble wubble flob".split())])
    for second, first in (
            (formats.thing_sample, formats.extract_sample),
            (formats.sort_sample, formats.classify_sample)):
        assert not p.by_kind and second(random.Random(1), p) == first(random.Random(1), p)

def test_the_second_term_of_a_killed_build_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    from safetensors.torch import load_file
    real, done = base._step, []
    def build(out, work, stop=None):
        done.clear()
        def step(*a):
            if stop and len(done) == stop: raise KeyboardInterrupt
            done.append(1); return real(*a)
        monkeypatch.setattr(base, "_step", step)
        work.mkdir(exist_ok=True)
        try:
            return base.build_base(
                "llama", THINGS, out, steps=100, batch=2, vocab=420, hidden=16, layers=1, heads=2,
                seed=3, school=20, things=105, work=work)
        except KeyboardInterrupt: return None
    whole = build(tmp_path/"a", tmp_path/"wa")
    assert len(done) == 205 and build(tmp_path/"b", tmp_path/"wb", stop=203) is None
    assert build(tmp_path/"b", tmp_path/"wb") == whole and len(done) == 5
    assert all(
        (v == load_file(tmp_path/"b/model.safetensors")[k]).all()
        for k, v in load_file(tmp_path/"a/model.safetensors").items())
    log = json.loads((tmp_path/"a/base_log.json").read_text())
    assert [r["step"] for r in log[:-1]] == list(range(1, 206)) # both terms in one log

def test_ordered_batches_take_windows_in_turn():
    lengths = [random.Random(i).randint(5, 90) for i in range(4 * 16 * 2 + 7)] # two windows and a bit
    rng, step, seen = random.Random(0), 0, []
    for turn in range(4):
        queue = base._next_batches(lengths, 4, rng, step)
        step += len(queue)
        seen.append(sorted(i for b in queue for i in b))
    assert seen == [list(range(0, 64)), list(range(64, 128)), list(range(128, 135)), list(range(128, 135))]
    assert sorted(i for b in base._next_batches(lengths, 4, rng, None) for i in b) == list(range(135))

def test_embeddings_can_be_held_while_the_blocks_learn():
    import torch
    tok = base.train_tokenizer(TEXTS, "llama", 400)
    model = base.new_model("llama", len(tok), 16, 1, 2, seed=4)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    base.train_base(model, tok, formats.format_samples(TEXTS, 20, seed=1), steps=3, batch=4, embedding_lr=0.0)
    assert {n for n, p in model.named_parameters() if torch.equal(p, before[n])} == {"model.embed_tokens.weight"}

@pytest.mark.parametrize("ordered", [False, True])
def test_a_killed_build_goes_on_to_the_same_weights(ordered, tmp_path, monkeypatch):
    import torch
    tok = base.train_tokenizer(TEXTS, "llama", 400)
    samples = formats.format_samples(TEXTS, 60, seed=1)
    def run(work, stop=None):
        model, done = base.new_model("llama", len(tok), 16, 1, 2, seed=4), []
        real = base._step
        def step(*a):
            if stop and len(done) == stop: raise KeyboardInterrupt
            done.append(1); return real(*a)
        monkeypatch.setattr(base, "_step", step)
        try: base.train_base(model, tok, samples, steps=130, batch=2, seed=1, work=work, ordered=ordered)
        except KeyboardInterrupt: pass
        monkeypatch.setattr(base, "_step", real)
        return model, len(done)
    for n in "ab": (tmp_path/n).mkdir()
    whole, _ = run(tmp_path/"a")
    run(tmp_path/"b", stop=110)
    resumed, steps = run(tmp_path/"b")
    assert steps == 30
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters()))

def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="base_hidden = 130"): base.new_model("llama", 100, 130, 1, 4)
    with pytest.raises(UserError, match="Allowed: llama, qwen3, gemma3"): base.family_spec("gpt2")

SHIPPED = [f for f in base.FAMILIES if (base.students_folder()/f/"digest.json").is_file()]

def test_all_families_are_shipped(): assert SHIPPED == list(base.FAMILIES)

@pytest.mark.parametrize("family", SHIPPED)
def test_shipped_students_are_whole_and_small(family):
    folder = base.students_folder()/family
    assert base.check_seal(folder)["family"] == family
    assert sum(p.stat().st_size for p in folder.glob("*.safetensors")) <= 5e6

def test_package_stage_copies_and_refuses_a_changed_checkpoint(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM
    import torch
    shipped = tmp_path/"shipped"
    base.build_base(
        "llama", TEXTS, shipped/"llama",
        steps=1, batch=2, vocab=420, hidden=16, layers=1, heads=2, dtype="bfloat16")
    base.seal(shipped/"llama", family="llama")
    monkeypatch.setattr(base, "students_folder", lambda: shipped)
    settings = load_settings("tiny", outputs=str(tmp_path/"out"), student_source="package")
    result = base.base_stage(settings, Store(settings), "llama")
    assert AutoModelForCausalLM.from_pretrained(result.path).dtype == torch.float32
    assert base.base_stage(settings, Store(settings), "llama").cached
    with open(shipped/"llama"/"model.safetensors", "ab") as f: f.write(b"x")
    with pytest.raises(UserError, match="model.safetensors is not the shipped file"):
        base.base_stage(settings, Store(settings), "llama")
    shutil.rmtree(shipped/"llama")
    with pytest.raises(UserError, match="No shipped base student"): base.base_stage(settings, Store(settings), "llama")

def test_a_model_that_cannot_be_fetched_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = load_settings(
        "tiny", outputs=str(tmp_path), student_source="hub", student_model_qwen3="nobody/no-such-model")
    with pytest.raises(UserError, match="nobody/no-such-model.*cannot be loaded"):
        base.base_stage(settings, Store(settings), "qwen3")

@pytest.mark.parametrize("family", list(base.FAMILIES))
def test_plain_attention_gives_the_same_loss_and_gradients(family):
    import torch
    model = base.new_model(family, 300, 32, 2, 2, seed=1)
    ids = torch.randint(0, 300, (3, 40), generator=torch.Generator().manual_seed(0))
    answer = torch.zeros_like(ids, dtype=torch.bool); answer[:, 30:] = True
    def run():
        model.zero_grad()
        loss = base.base_loss(model, ids, answer, ~answer)[0]
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])
    fused = run()
    base.plain_attention(model)
    plain = run()
    assert model.config._attn_implementation == "eager" and fused[0] == pytest.approx(plain[0], abs=1e-5)
    assert torch.allclose(fused[1], plain[1], atol=1e-5)

def test_training_in_bf16_is_repeatable():
    samples = formats.format_samples(TEXTS, 12, 0)
    tok = base.train_tokenizer(["".join(s for s, _ in x) for x in samples], "llama", 420)
    models = [base.new_model("llama", 420, 16, 1, 2) for _ in range(3)]
    for m, bf16 in zip(models, (False, True, True)): base.train_base(m, tok, samples, 3, 4, bf16=bf16)
    full, one, two = (m.get_input_embeddings().weight for m in models)
    assert (one == two).all() and not (full == one).all()

@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (40, 40)])
def test_an_orthogonalised_matrix_keeps_its_directions_and_evens_their_sizes(shape):
    import torch
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = base.orthogonalised(matrix)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    seen = u.T @ out @ v.T # in the matrix's own directions
    off = seen - torch.diag(seen.diagonal())
    assert off.abs().max() < 1e-4 and 0.6 < seen.diagonal().min() and seen.diagonal().max() < 1.3
    assert s.max() / s.min() > 3

def test_muon_equals_torchs_own_beside_adamw():
    """torch orthogonalises in bf16, so matrices agree to about a hundredth of a step; the rest agrees exactly."""
    import copy, torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    ours = LlamaForCausalLM(LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True))
    theirs, start = copy.deepcopy(ours), copy.deepcopy(ours)
    optimizer = base.muon_adamw(ours, 1e-2, matrices=1.5, embeddings=0.5, betas=(0.9, 0.95), weight_decay=0.1)
    ends = theirs.get_input_embeddings().weight
    matrices = [p for p in theirs.parameters() if p.ndim == 2 and p is not ends]
    adamw = lambda params, lr, decay: torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.95), weight_decay=decay)
    twins = [
        torch.optim.Muon(matrices, lr=1.5e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        adamw([ends], 5e-3, 0.1), adamw([p for p in theirs.parameters() if p.ndim != 2], 1e-2, 0.0)]
    for step in range(3):
        grads = [torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) for p in ours.parameters()]
        for m in (ours, theirs):
            for p, g in zip(m.parameters(), grads): p.grad = g.clone()
        optimizer.step()
        for t in twins: t.step()
    for (name, a), b, c in zip(ours.named_parameters(), theirs.parameters(), start.parameters()):
        assert not torch.equal(a, c), name
        if b in set(matrices): assert (a - b).norm() < 0.02 * (a - c).norm(), name
        else: assert torch.allclose(a, b, atol=1e-6), name
