"""The batched rank scorer against the published procedure, written anew: one sample and one token at a time,
softmax and full sort.

    .venv/bin/python benchmarks/bench_difficulty.py [--vocab 128256] [--samples 8] [--rounds 3] [--steps 150]

A small Llama is trained for a minute, so that its distributions are peaked as a trained model's are; the answers are
drawn from it at temperatures 0.3 to 1. Both ways score the same samples under the same model; rounds are interleaved,
so that a busy machine slows both, and times are CPU seconds. The ranking step is timed alone on the model's logits,
divided by 0.3 and by 1, and on nearly flat ones, where the nucleus is most of the vocabulary. The scorer is also held
against the bare forward pass, at the width of the small model and at a larger one with random weights. Memory for
logits is the growth of a process's peak over a pass of the decoder alone, for one sequence of 2,048 tokens. Writes
benchmarks/results/difficulty.json and .md.
"""
import argparse, json, re, statistics, subprocess, sys, time
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from compeffdist.difficulty import answer_rank_score, score, token_rank_scores, token_ranks
from compeffdist.microscope import nucleus_sizes
from compeffdist.replicate import machine
from compeffdist.settings import project_root
from compeffdist.store import write_json


class Words:
    "Just enough of a tokenizer: words are numbers."
    bos_token_id, eos_token_id = 1, 2
    def __call__(self, text, add_special_tokens=True):
        return dict(input_ids=[1] * add_special_tokens + [int(w) for w in text.split()])


def slow_tokens(logits, targets, top_p=0.95):
    out = []
    for x, t in zip(logits, targets):
        p, order = torch.softmax(x.float(), -1).sort(dim=-1, descending=True)
        rank = (order == t).nonzero()[0, 0].item()
        size = int((p.cumsum(0) < top_p).sum()) + 1
        out.append(rank / size if rank < size else 1.0)
    return out


def slow_score(model, tokenizer, samples):
    out = []
    for prompt, answer in samples:
        head, tail = tokenizer(prompt)["input_ids"], tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.inference_mode(): logits = model(torch.tensor([head + tail])).logits[0]
        out.append(answer_rank_score(slow_tokens(logits[len(head) - 1:-1], tail)))
    return out


def llama(vocab, width=64, layers=2, context=512):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context,
    )).eval()


def walk(rows, length, vocab, generator, words=2000, choices=20):
    """A text to learn: some words of the vocabulary, each followed by one of a few others,
    the first of them most often."""
    follow = torch.randint(3, vocab, (words,), generator=torch.Generator().manual_seed(1))
    odds, now, ids = 1 / torch.arange(1, choices + 1.0), torch.randint(words, (rows,), generator=generator), []
    for _ in range(length):
        ids.append(follow[now])
        now = (now * 31 + 7 * torch.multinomial(odds, rows, replacement=True, generator=generator)) % words
    return torch.stack(ids, 1)


def trained_llama(vocab, steps):
    model, generator = llama(vocab), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        ids = walk(8, 48, vocab, generator)
        model(ids, labels=ids).loss.backward(); optimizer.step(); optimizer.zero_grad()
    return model.eval(), generator


def memory(way, vocab, length=2048):
    "Print the growth of the peak (MiB) while one long sequence is scored in one of the two ways."
    model, ids = llama(vocab, context=length), torch.randint(3, vocab, (length - 1,)).tolist()
    # of this program alone; ru_maxrss is inherited from whoever started it
    peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    sample = [(" ".join(map(str, ids[:47])), " ".join(map(str, ids[47:])))]
    with torch.inference_mode():
        model.model(torch.tensor([[1] + ids]))
        model(torch.tensor([[1] + ids[:8]]))
        before = peak()
        if way == "fast": score(model, Words(), sample)
        else: slow_score(model, Words(), sample)
    print(json.dumps(round(peak() - before)))


def timed(ways, rounds):
    "CPU seconds of each function, in interleaved rounds."
    for f in ways: f()
    times = []
    for _ in range(rounds):
        times.append([])
        for f in ways: begin = time.process_time(); f(); times[-1].append(time.process_time() - begin)
    return times


def compared(fast, slow, rounds):
    "Ours and the published procedure: times, their ratio, the largest difference of a score."
    difference, times = max(abs(x - y) for x, y in zip(fast(), slow())), timed((fast, slow), rounds)
    return dict(
        fast_s=round(statistics.median(t[0] for t in times), 4),
        slow_s=round(statistics.median(t[1] for t in times), 4),
        ratio=round(statistics.median(t[1] / t[0] for t in times), 1),
        largest_difference=difference,
    )


def over_forward(model, samples, rounds):
    """The scorer against the forward pass, with the head on all positions (what a model does by itself)
    and on the answer alone (the least that scoring needs)."""
    pairs = [(1 + len(p.split()), torch.tensor([[1] + [int(w) for w in f"{p} {a}".split()]])) for p, a in samples]
    @torch.inference_mode()
    def whole():
        for _, ids in pairs: model(ids)
    @torch.inference_mode()
    def answers():
        for n, ids in pairs: model.lm_head(model.model(ids).last_hidden_state[0, n - 1:-1])
    times = timed((lambda: score(model, Words(), samples), whole, answers), rounds)
    scorer, bare, least = (statistics.median(t[i] for t in times) for i in range(3))
    return dict(
        scorer_s=round(scorer, 3), whole_forward_s=round(bare, 3), answer_forward_s=round(least, 3),
        over_whole=round(statistics.median(t[0] / t[1] for t in times) - 1, 2),
        over_answers=round(statistics.median(t[0] / t[2] for t in times) - 1, 2),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--memory", choices=("fast", "slow"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.memory: return memory(a.memory, a.vocab)
    (model, generator), samples, text = (
        trained_llama(a.vocab, a.steps), [], lambda ids: " ".join(map(str, ids.tolist()))
    )
    for i in range(a.samples):  # what a teacher writes is mostly plausible to the student
        ids = walk(1, 60 + 10 * i, a.vocab, generator)[0]
        whole = model.generate(
            torch.cat([torch.tensor([1]), ids])[None],
            do_sample=True, temperature=(0.3, 0.5, 0.7, 1.0)[i % 4], top_k=0,
            max_new_tokens=40, min_new_tokens=40, pad_token_id=0,
        )
        samples.append((text(ids), text(whole[0, -40:])))
    with torch.inference_mode():
        logits = torch.cat([
            model(torch.tensor([[1] + [int(w) for w in p.split()]])).logits[0, -8:] for p, _ in samples[:4]
        ])
    result = dict(
        vocab=a.vocab, samples=a.samples, answer_tokens=40 * a.samples, rounds=a.rounds,
        threads=torch.get_num_threads(), machine=machine(),
    )
    result["scorer"] = compared(
        lambda: list(score(model, Words(), samples)["rank_score"]),
        lambda: slow_score(model, Words(), samples),
        a.rounds,
    )
    for name, x in {
        "ranking step, temperature 0.3": logits / 0.3,
        "ranking step, temperature 1": logits,
        "ranking step, nearly flat": logits / logits.std() / 10,
    }.items():
        targets = torch.distributions.Categorical(logits=x).sample()
        result[name] = compared(
            lambda: token_rank_scores(x, targets).tolist(), lambda: slow_tokens(x, targets), a.rounds
        ) | dict(
            rank_0=round((token_ranks(x, targets) == 0).double().mean().item(), 2),
            nucleus=int(nucleus_sizes(x).double().median()),
        )
    work = [k for k in result if k.startswith(("scorer", "ranking"))]
    result["over the forward pass"] = {
        "width 64, 2 layers": over_forward(model, samples, a.rounds),
        "width 512, 8 layers": over_forward(llama(a.vocab, 512, 8), samples[:4], a.rounds),
    }
    grown = {
        way: json.loads(subprocess.run(
            [sys.executable, __file__, "--vocab", str(a.vocab), "--memory", way],
            capture_output=True, text=True, check=True,
        ).stdout.strip().splitlines()[-1])
        for way in ("fast", "slow")
    }
    result["memory for logits, T = 2,048 (MiB)"] = grown
    write_json(project_root()/"benchmarks/results/difficulty.json", result)
    table = (
        "| what | ours | published procedure | ratio | largest difference | tokens of rank 0 | median nucleus |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    for k in work:
        r = result[k]
        table += (
            f"| {k} | {r['fast_s']:.3f} s | {r['slow_s']:.2f} s | {r['ratio']:.1f} | {r['largest_difference']:.1g} "
            f"| {format(r['rank_0'], '.0%') if 'rank_0' in r else ''} "
            f"| {format(r['nucleus'], ',') if 'nucleus' in r else ''} |\n"
        )
    table += (
        f"| memory for logits, T = 2,048 | {grown['fast']} MiB | {grown['slow']} MiB "
        f"| {grown['slow'] / max(1, grown['fast']):.1f} | | | |\n\n"
    )
    table += (
        "| model | scorer | forward pass, all logits | forward pass, logits of answers "
        "| scorer over the first | over the second |\n"
        "|---|---|---|---|---|---|\n"
    )
    for k, r in result["over the forward pass"].items():
        table += (
            f"| {k} | {r['scorer_s']:.2f} s | {r['whole_forward_s']:.2f} s | {r['answer_forward_s']:.2f} s "
            f"| {r['over_whole']:+.0%} | {r['over_answers']:+.0%} |\n"
        )
    m = result["machine"]
    (project_root()/"benchmarks/results/difficulty.md").write_text(
        table
        + f"\nV = {a.vocab:,}, {a.samples} answers of 40 tokens (4 for width 512), Llamas in float32, "
        f"the small one trained for {a.steps} steps, the other random; {result['threads']} thread(s), CPU seconds, "
        f"{a.rounds} interleaved rounds, medians (of a ratio: the median of the rounds' ratios). "
        f"{m['cpu']}, {m['cores']} cores, "
        f"torch {m['versions']['torch']}, transformers {m['versions']['transformers']}. "
        "Made by `python benchmarks/bench_difficulty.py`.\n"
    )
    print(table)


if __name__ == "__main__": main()
