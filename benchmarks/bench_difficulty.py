"""The batched rank scorer against the published procedure, written anew: one sample and one token at a time, softmax and full sort.

    .venv/bin/python benchmarks/bench_difficulty.py [--vocab 128256] [--samples 8] [--rounds 3]

Both score the same samples under the same model; rounds are interleaved, so that a busy machine slows both. Memory for logits is the growth of a process's peak
over a pass of the decoder alone, for one sequence of 2,048 tokens. Writes benchmarks/results/difficulty.json and .md.
"""
import argparse, json, re, statistics, subprocess, sys, time
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from compeffdist.difficulty import answer_rank_score, score, token_rank_scores
from compeffdist.replicate import machine
from compeffdist.settings import project_root
from compeffdist.store import write_json


class Words:
    "Just enough of a tokenizer: words are numbers."
    bos_token_id, eos_token_id = 1, 2
    def __call__(self, text, add_special_tokens=True): return dict(input_ids=[1] * add_special_tokens + [int(w) for w in text.split()])


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


def small_llama(vocab, context=512):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context)).eval()
    model.lm_head.weight.data.normal_(0, 1.0)  # peaked distributions, as a trained model's
    return model


def memory(way, vocab, length=2048):
    "Print the growth of the peak (MiB) while one long sequence is scored in one of the two ways."
    model, ids = small_llama(vocab, length), torch.randint(3, vocab, (length - 1,)).tolist()
    peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024 # of this program alone; ru_maxrss is inherited from whoever started it
    sample = [(" ".join(map(str, ids[:47])), " ".join(map(str, ids[47:])))]
    with torch.inference_mode():
        model.model(torch.tensor([[1] + ids]))
        model(torch.tensor([[1] + ids[:8]]))
        before = peak()
        if way == "fast": score(model, Words(), sample)
        else: slow_score(model, Words(), sample)
    print(json.dumps(round(peak() - before)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=128_256); parser.add_argument("--samples", type=int, default=8); parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=("fast", "slow"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.memory: return memory(a.memory, a.vocab)
    model, samples = small_llama(a.vocab), []
    for i in range(a.samples):  # answers are drawn from the model, as a teacher's mostly plausible tokens would be
        ids = torch.randint(3, a.vocab, (60 + 10 * i,)).tolist()
        with torch.inference_mode(): states = model(torch.tensor([[1] + ids])).logits[0, -40:]
        tail = torch.distributions.Categorical(logits=states).sample().tolist()
        samples.append((" ".join(map(str, ids)), " ".join(map(str, tail))))
    logits = torch.cat([model(torch.tensor([[1] + [int(w) for w in p.split()]])).logits[0, -8:].detach() for p, _ in samples[:4]])
    targets = torch.distributions.Categorical(logits=logits).sample()
    work = {"scorer": (lambda: list(score(model, Words(), samples)["rank_score"]), lambda: slow_score(model, Words(), samples)),
        "ranking step": (lambda: token_rank_scores(logits, targets).tolist(), lambda: slow_tokens(logits, targets))}
    result = dict(vocab=a.vocab, samples=a.samples, answer_tokens=40 * a.samples, rounds=a.rounds, threads=torch.get_num_threads(), machine=machine())
    for name, (fast, slow) in work.items():
        difference = max(abs(x - y) for x, y in zip(fast(), slow()))
        times = []
        for _ in range(a.rounds):
            row = []
            for f in (fast, slow): begin = time.perf_counter(); f(); row.append(time.perf_counter() - begin)
            times.append(row)
        result[name] = dict(fast_s=round(statistics.median(t[0] for t in times), 4), slow_s=round(statistics.median(t[1] for t in times), 4), ratio=round(statistics.median(t[1] / t[0] for t in times), 1), largest_difference=difference)
    grown = {way: json.loads(subprocess.run([sys.executable, __file__, "--vocab", str(a.vocab), "--memory", way], capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]) for way in ("fast", "slow")}
    result["memory for logits, T = 2,048 (MiB)"] = grown
    write_json(project_root()/"benchmarks/results/difficulty.json", result)
    text = "| what | ours | published procedure | ratio | largest difference |\n|---|---|---|---|---|\n" + "".join(f"| {k} | {result[k]['fast_s']:.2f} s | {result[k]['slow_s']:.2f} s | {result[k]['ratio']:.1f} | {result[k]['largest_difference']:.1g} |\n" for k in work)
    text += f"| memory for logits, T = 2,048 | {grown['fast']} MiB | {grown['slow']} MiB | {grown['slow'] / max(1, grown['fast']):.1f} | |\n"
    m = result["machine"]
    (project_root()/"benchmarks/results/difficulty.md").write_text(text + f"\nV = {a.vocab:,}, {a.samples} answers of 40 tokens, a two-layer Llama of width 64 in float32, {result['threads']} thread(s), {a.rounds} interleaved rounds, medians. {m['cpu']}, {m['cores']} cores, torch {m['versions']['torch']}, transformers {m['versions']['transformers']}. Made by `python benchmarks/bench_difficulty.py`.\n")
    print(text)


if __name__ == "__main__": main()
