"The scorer against slow, obvious twins; independence of batch and order; bad input."
import math
import numpy as np, pytest, torch
from hypothesis import given, settings as hyp, strategies as st
from compeffdist import difficulty
from compeffdist.difficulty import (
    answer_rank_score, encode_sample, plan_batches, score, token_nll, token_rank_scores, token_ranks)
from compeffdist.settings import UserError


def slow_rank_score(logits, target, top_p):
    "Sort everything in float64, walk down the list, add up."
    p = torch.softmax(logits.double(), -1)
    order = sorted(range(len(p)), key=lambda i: (-float(logits[i]), i))
    rank = order.index(int(target))
    if top_p == 1: size = sum(float(x) > -math.inf for x in logits)
    else:
        mass, size = 0.0, 0
        for i in order:
            mass += float(p[i]); size += 1
            if mass >= top_p - 1e-9: break
    return rank / size if rank < size else 1.0


def tiny(family="llama", vocab=300, **changes):
    from transformers import (
        Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM)
    config, cls = dict(
        llama=(LlamaConfig, LlamaForCausalLM),
        qwen3=(Qwen3Config, Qwen3ForCausalLM),
        gemma3=(Gemma3TextConfig, Gemma3ForCausalLM))[family]
    torch.manual_seed(3)
    sizes = dict(
        vocab_size=vocab, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=96, pad_token_id=0)
    model = cls(config(**{**sizes, **changes}))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2: p.mul_(6)  # random weights that are sure of themselves: ranks of all kinds
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator(["good bad food"], trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>")  # no pad token


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    word = lambda: "".join(rng.choice(list("abcdefg"), size=rng.integers(1, 5)))
    return [
        dict(
            id=f"s{i}",
            prompt=" ".join(word() for _ in range(rng.integers(1, 9))),
            answer=" ".join(word() for _ in range(rng.integers(1, 8))))
        for i in range(30)]


@given(
    st.integers(1, 12), st.integers(2, 200),
    st.sampled_from([0.1, 0.5, 0.9, 0.95, 0.999, 1.0]), st.sampled_from([0.01, 1, 4, 20]),
    st.booleans(), st.integers(0, 10**6))
@hyp(max_examples=150, deadline=None)
def test_token_rank_scores_equal_the_slow_twin(T, V, top_p, scale, ties, seed):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(T, V, generator=g) * scale
    if ties: logits = logits.round()
    logits[:, V // 2:][torch.rand(T, V - V // 2, generator=g) < 0.2] = -math.inf
    targets = torch.randint(0, V, (T,), generator=g)
    fast = token_rank_scores(logits, targets, top_p)
    slow = torch.tensor([slow_rank_score(x, t, top_p) for x, t in zip(logits, targets)])
    assert fast.dtype == torch.float32 and torch.allclose(fast, slow, atol=1e-6)
    assert token_ranks(logits, targets).tolist() == [
        sorted(range(V), key=lambda i: (-float(x[i]), i)).index(int(t)) for x, t in zip(logits, targets)]


@pytest.mark.parametrize("scale", [0.3, 2, 8])
def test_large_vocabulary_takes_every_route_of_the_nucleus(scale):
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 20_000, generator=g) * scale
    order = logits.argsort(descending=True, dim=-1)
    targets = order[torch.arange(6), torch.tensor([0, 1, 40, 500, 5000, 19_000])]
    slow = [slow_rank_score(x, t, 0.95) for x, t in zip(logits, targets)]
    assert np.allclose(token_rank_scores(logits, targets), slow, atol=1e-4)


@pytest.mark.parametrize("scale, ties, peak", [
    (0, False, False), (0.3, True, False), (3, True, True), (8, False, True)])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("sort_from", [1, 8, 10_000])
def test_halving_a_row_counts_what_sorting_it_counts(scale, ties, peak, top_p, sort_from):
    x = np.random.default_rng(3).normal(size=(20, 997)).astype(np.float32) * scale
    if ties: x = x.round()
    for w in np.exp(x - x.max(-1, keepdims=True)):
        goal = w.sum(dtype=np.float64) * top_p * (1 - difficulty.EDGE)
        tail = goal * (1 / top_p - 1) / len(w)
        mass = np.sort(w)[::-1].cumsum(dtype=np.float64)
        assert difficulty._nucleus_size(w, goal, tail, sort_from) == next(
            n for n, m in enumerate(mass, 1) if m >= goal)
        if top_p == 0.95: # a flat row is halved
            assert (w[w > difficulty.PEAK * tail].sum(dtype=np.float64) >= goal) <= peak


@pytest.mark.parametrize("top_p", [0.1, 0.95, 1.0])
@pytest.mark.parametrize("scale", [0, 0.3, 8])
def test_the_way_of_a_gpu_gives_what_the_way_of_a_cpu_gives(scale, top_p, monkeypatch):
    logits = torch.randn(60, 3000, generator=torch.Generator().manual_seed(2)) * scale
    logits[::2] = logits[::2].round()
    logits[:, 5::7] = -math.inf
    targets = logits.argsort(descending=True, dim=-1)[torch.arange(60), torch.arange(60) ** 2 * 2999 // 3481]
    here = token_rank_scores(logits, targets, top_p), token_ranks(logits, targets)
    assert len(here[0].unique()) > 1
    monkeypatch.setattr(difficulty, "_on_cpu", lambda x: False)
    assert all(torch.equal(a, b) for a, b in zip(
        here, (token_rank_scores(logits, targets, top_p), token_ranks(logits, targets))))


def test_a_row_scores_the_same_alone_and_among_others():
    logits, targets = torch.randn(40, 3000) * 3, torch.randint(0, 3000, (40,))
    together = token_rank_scores(logits, targets)
    assert torch.equal(together, torch.cat([token_rank_scores(logits[i:i + 1], targets[i:i + 1]) for i in range(40)]))


def test_two_words_no_token_half_precision():
    assert token_rank_scores(torch.tensor([[0., 5.], [0., 5.]]), torch.tensor([1, 0])).tolist() == [0, 1]
    assert token_rank_scores(torch.tensor([[0., .1], [0., .1]]), torch.tensor([1, 0])).tolist() == [0, 0.5]
    assert token_rank_scores(torch.zeros(0, 7), torch.zeros(0, dtype=torch.long)).shape == (0,)
    assert token_rank_scores(torch.tensor([[1., 2., 3.]]).bfloat16(), torch.tensor([1])).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("logits, targets, top_p, message", [
    (torch.tensor([[0., 1.], [math.nan, 0.]]), [0, 0], .95, "position 1"),
    (torch.full((1, 3), -math.inf), [0], .95, "position 0"),
    (torch.tensor([[math.inf, 0.]]), [0], .95, "position 0"),
    (torch.zeros(1, 3), [3], .95, "vocabulary"), (torch.zeros(1, 3), [-1], .95, "vocabulary"),
    (torch.zeros(2, 3), [0], .95, "shape"), (torch.zeros(1, 3), [0], 0, "top_p"),
    (torch.zeros(1, 3), [0], 1.5, "top_p"), (torch.zeros(1, 0), [0], .9, "V = 0")])
def test_unusable_logits(logits, targets, top_p, message):
    with pytest.raises(UserError, match=message): token_rank_scores(logits, torch.tensor(targets), top_p)


def test_nan_late_in_a_long_sequence_names_its_position():
    logits = torch.zeros(700, 3000); logits[611, 7] = math.nan
    with pytest.raises(UserError, match="position 611"): token_rank_scores(logits, torch.zeros(700, dtype=torch.long))
    with pytest.raises(UserError, match="position 611"): token_nll(logits, torch.zeros(700, dtype=torch.long))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("skip", [True, False])
def test_score_equals_whole_forward_passes(family, skip, tokenizer, samples):
    model = tiny(family)
    expected = []
    for s in samples:
        head, tail = (
            tokenizer(s["prompt"])["input_ids"],
            tokenizer(" " + s["answer"], add_special_tokens=False)["input_ids"])
        with torch.no_grad(): logits = model(torch.tensor([head + tail])).logits[0, len(head) - 1:-1]
        values = [slow_rank_score(x, t, 0.9) for x, t in zip(logits, tail)]
        values = [v for v in values if v > 1e-6 or not skip]
        expected.append(sum(values) / len(values) if values else 0.0)
    got = score(model, tokenizer, samples, top_p=0.9, skip_top_rank=skip, separator=" ")
    assert np.allclose(got["rank_score"], expected, atol=1e-5) and len(set(expected)) > 20


def test_perplexity_and_ifd_equal_cross_entropy(tokenizer, samples):
    model = tiny()
    def ppl(head, tail):
        with torch.no_grad(): logits = model(torch.tensor([head + tail])).logits[0, len(head) - 1:-1]
        return torch.nn.functional.cross_entropy(logits.double(), torch.tensor(tail)).exp().item()
    ids = [
        (tokenizer(s["prompt"])["input_ids"], tokenizer(s["answer"], add_special_tokens=False)["input_ids"])
        for s in samples]
    conditioned, alone = [ppl(*x) for x in ids], [ppl([tokenizer.bos_token_id], t) for _, t in ids]
    assert np.allclose(score(model, tokenizer, samples, "perplexity")["perplexity_score"], conditioned, rtol=1e-4)
    assert np.allclose(score(model, tokenizer, samples, "ifd")["ifd_score"], np.divide(conditioned, alone), rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_bit_equal_in_any_order_and_budget(family, tokenizer, samples):
    model = tiny(family)
    run = lambda rows, **k: {r["id"]: r["rank_score"] for r in score(model, tokenizer, rows, **k)}
    reference = run(samples)
    for budget in (1, 64, 4096):
        for rows in (samples, samples[::-1], samples[7:] + samples[:7]):
            assert run(rows, batch_tokens=budget) == reference
    assert run(samples[3:9]) == {s["id"]: reference[s["id"]] for s in samples[3:9]}
    batched = run(samples, exact=False, batch_tokens=200)
    assert np.allclose(list(batched.values()), list(reference.values()), atol=1e-5)


def test_exact_gives_each_sequence_its_own_pass_and_batching_does_not(tokenizer, samples):
    model, calls = tiny(), []
    model.model.register_forward_pre_hook(lambda m, a, k: calls.append(tuple(k["input_ids"].shape)), with_kwargs=True)
    score(model, tokenizer, samples); one = len(calls); calls.clear()
    score(model, tokenizer, samples, exact=False, batch_tokens=256)
    # 30, and two for the check of the parts
    assert one == 32 and len(calls) < 10 and all(a * b <= 256 for a, b in calls)


def test_head_sees_answers_only(tokenizer):
    model, rows = tiny(), []
    model.lm_head.register_forward_pre_hook(lambda m, a: rows.append(a[0].shape[:-1].numel()))
    score(model, tokenizer, [("a " * 30, "b c")], exact=False); rows.clear()
    score(model, tokenizer, [("a " * 30, "b c")], separator=" ")
    answer = len(tokenizer(" b c")["input_ids"])
    assert rows[-1] == answer


def test_inputs_of_every_kind_agree(tokenizer, samples):
    import pandas as pd
    from datasets import Dataset
    model = tiny()
    results = [
        score(model, tokenizer, x)["rank_score"]
        for x in (
            samples, Dataset.from_list(samples), pd.DataFrame(samples),
            [(s["prompt"], s["answer"]) for s in samples])]
    assert all(r == results[0] for r in results)


def test_a_killed_run_goes_on_and_ends_the_same(tokenizer, samples, tmp_path):
    model = tiny()
    whole = score(model, tokenizer, samples, work=tmp_path/"a")
    lines = (tmp_path/"a/scored.jsonl").read_text().strip().splitlines()
    assert len(lines) == len(samples)
    (tmp_path/"b").mkdir(); (tmp_path/"b/scored.jsonl").write_text("\n".join(lines[:10]) + "\n" + lines[10][:25])
    calls = []
    model.model.register_forward_pre_hook(lambda *a: calls.append(1))
    resumed = score(model, tokenizer, samples, work=tmp_path/"b")
    assert resumed.to_list() == whole.to_list() and len(calls) == 20 + 2
    calls.clear()
    assert score(model, tokenizer, samples, work=tmp_path/"b").to_list() == whole.to_list() and not calls


def test_rows_scored_in_shares_are_taken_over_and_equal(tokenizer, samples, tmp_path):
    model = tiny()
    whole = score(model, tokenizer, samples)
    for share in range(3): score(model, tokenizer, samples[share::3], work=tmp_path/f"{share}-of-3")
    calls = []
    model.model.register_forward_pre_hook(lambda *a: calls.append(1))
    assert score(model, tokenizer, samples, work=tmp_path).to_list() == whole.to_list() and not calls
    # a run that goes on with other shares
    for share in range(2): score(model, tokenizer, samples[share::2], work=tmp_path/f"{share}-of-2")
    assert not calls


def test_the_record_is_not_used_for_another_model_or_setting(tokenizer, samples, tmp_path):
    first = score(tiny(), tokenizer, samples, work=tmp_path)
    other = tiny(); other.lm_head.weight.data.mul_(-1)
    assert (
        score(other, tokenizer, samples, work=tmp_path)["rank_score"]
        == score(other, tokenizer, samples)["rank_score"]
        != first["rank_score"])
    assert (
        score(tiny(), tokenizer, samples, top_p=.3, work=tmp_path)["rank_score"]
        == score(tiny(), tokenizer, samples, top_p=.3)["rank_score"])


def test_error_rows_keep_the_rest(tokenizer):
    got = score(tiny(), tokenizer, [
        ("a", "b"), ("a", ""), ("a " * 95, "b"), ("a " * 40, "b " * 40), ("a", None), ("", "b")]).to_list()
    assert [r["rank_score"] is None for r in got] == [False, True, True, False, True, False]
    assert "empty" in got[1]["error"] and "cut away entirely" in got[2]["error"] and "NoneType" in got[4]["error"]
    assert got[3]["truncated"] and got[3]["n_tokens"] == 96 - got[3]["n_prompt_tokens"]


def test_chat_template_is_used(tokenizer):
    import copy
    t = copy.deepcopy(tokenizer)
    t.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<a>{% endif %}")
    e = encode_sample(t, "good", "bad", separator=" ", chat_template=True)
    assert t.decode(e.ids[:e.start]) == "<s><user>good<a>" and t.decode(e.ids[e.start:]) == "bad"

def test_a_student_that_could_think_first_is_told_not_to(tokenizer):
    "Qwen3's template opens a thought unless enable_thinking is false; scored, trained and asked alike."
    import copy
    from compeffdist.evaluate import encode
    from compeffdist.students import encode_rows
    t = copy.deepcopy(tokenizer)
    t.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<a>"
        "{% if enable_thinking is defined and enable_thinking is false %}<no>{% endif %}{% endif %}")
    e = encode_sample(t, "good", "bad", chat_template=True)
    trained = encode_rows([dict(prompt="good", answer="bad")], t, 64, chat=True)[0][0]["input_ids"]
    assert (
        t.decode(e.ids[:e.start]) == t.decode(encode(t, ["good"], chat=True)[0]) == "<user>good<a><no>"
        and t.decode(trained).startswith("<user>good<a><no>bad"))


def test_a_closing_eos_is_taken_off_the_prompt(tokenizer):
    class Closing:
        bos_token_id, eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        def __call__(self, text, add_special_tokens=True):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return dict(input_ids=[self.bos_token_id] + ids + [self.eos_token_id] if add_special_tokens else ids)
    e = encode_sample(Closing(), "good", "bad")
    assert tokenizer.decode(e.ids) == "<s>goodbad" and e.ids[0] == tokenizer.bos_token_id


def test_wrong_calls(tokenizer, samples):
    model = tiny()
    with pytest.raises(UserError, match="s0.*twice|'s0' occurs more than once"):
        score(model, tokenizer, samples[:1] * 2)
    with pytest.raises(UserError, match="lacks prompt"): score(model, tokenizer, [dict(id="x", answer="b")])
    with pytest.raises(UserError, match="needs a model"): score(None, tokenizer, samples)
    with pytest.raises(UserError, match="batch_tokens"): score(model, tokenizer, samples, batch_tokens=0, exact=False)
    with pytest.raises(UserError, match="do not belong together"): score(tiny(vocab=100), tokenizer, samples)
    broken = tiny(); broken.lm_head.weight.data[5] = math.nan
    with pytest.raises(UserError, match=r"sample 's0' \(row 0\)"): score(broken, tokenizer, samples)


def test_no_samples_and_model_free_metrics(tokenizer, samples):
    assert len(score(tiny(), tokenizer, [])) == 0
    assert score(None, tokenizer, samples, "length")["length_score"] == [
        len(tokenizer(s["answer"])["input_ids"]) for s in samples]
    a, b = score(None, None, samples, "random"), score(None, None, samples[::-1], "random")
    assert a["random_score"] == b["random_score"][::-1] and len(set(a["random_score"])) == 30


def test_mean_over_tokens():
    assert (
        answer_rank_score([0, 0, 0]) == 0
        and answer_rank_score([]) == 0
        and answer_rank_score([0, .5], False) == .25)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_every_sequence_once_and_keep_the_budget(lengths, budget):
    plan = plan_batches(lengths, budget)
    assert sorted(i for b in plan for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in plan)


def test_a_model_with_more_rows_than_the_tokenizer_has_tokens(tokenizer, samples):
    "Checkpoints pad their vocabulary; the padding competes for ranks like any token, and breaks nothing."
    padded, plain = tiny(vocab=len(tokenizer) + 64), tiny(vocab=len(tokenizer))
    plain.load_state_dict({
        k: v[:len(tokenizer)] if v.shape[:1] == (len(tokenizer) + 64,) else v
        for k, v in padded.state_dict().items()})
    a, b = (score(m, tokenizer, samples, "rank", per_token=True) for m in (padded, plain))
    assert (
        a["error"] == [None] * 30
        and all(x >= y for r, s in zip(a["token_ranks"], b["token_ranks"]) for x, y in zip(r, s))
        and a["token_ranks"] != b["token_ranks"])


def test_a_tokenizer_without_pad_token_is_batched(tokenizer, samples):
    assert tokenizer.pad_token_id is None
    model = tiny()
    one, many = score(model, tokenizer, samples), score(model, tokenizer, samples, exact=False, batch_tokens=512)
    assert (
        np.allclose(one["rank_score"], many["rank_score"], atol=1e-5)
        and len({len(s["answer"]) for s in samples}) > 5)


def test_bfloat16_changes_some_ranks_and_not_the_order(tokenizer, samples):
    "Half precision is not bit-equal; how far it goes is counted, not hidden."
    full, half = (score(m, tokenizer, samples, per_token=True, exact=True) for m in (tiny(), tiny().bfloat16()))
    ranks = [np.concatenate(x["token_ranks"]) for x in (full, half)]
    a, b = np.array(full["rank_score"]), np.array(half["rank_score"])
    assert (
        0 < (ranks[0] != ranks[1]).mean() < .6
        and np.abs(a - b).mean() < .05
        and np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1] > .95)


@pytest.mark.parametrize("metric", ["rank", "perplexity", "ifd"])
def test_every_measure_reports_the_row_that_cannot_be_scored(metric, tokenizer):
    got = score(tiny(), tokenizer, [
        dict(id="good", prompt="a", answer="b"),
        dict(id="cut", prompt="a " * 95, answer="b"),
        dict(id="empty", prompt="a", answer=" ")], metric).to_list()
    assert got[0]["error"] is None and got[0][f"{metric}_score"] is not None
    for row in got[1:]: assert row["error"] and row[f"{metric}_score"] is None


def test_the_stage_gives_the_same_scores_in_one_process_and_in_two(tmp_path, monkeypatch):
    from compeffdist import difficulty
    from compeffdist.settings import load_settings
    from compeffdist.store import Store, write_rows
    rows = [
        dict(id=f"r{i}", prompt=f"yes or no? soup {i}\nOutput:", answer=["yes", "no", "no, it is not"][i % 3])
        for i in range(1000)]
    scores = []
    for workers in (1, 2):
        store = Store(load_settings("tiny", outputs=str(tmp_path/str(workers)), families=["llama"], workers=workers))
        store.stage("corpus", lambda out, work: write_rows(out/"corpus.parquet", rows))
        if workers == 2: monkeypatch.setattr(difficulty, "_answer_tokens", None) # nothing is left to be scored here
        assert difficulty.difficulty_stage(store.settings, store).counts["errors"] == 0
        scores.append(store.rows("difficulty", "scores.parquet").to_list())
    assert scores[0] == scores[1] and [s["id"] for s in scores[1]] == [r["id"] for r in rows]
