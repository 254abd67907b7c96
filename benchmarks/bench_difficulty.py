"""The batched rank scorer against the published procedure, written anew: one sample and one token at a time, softmax and full sort.

    .venv/bin/python benchmarks/bench_difficulty.py [--vocab 128256] [--samples 8] [--rounds 3]

Both score the same samples under the same model; rounds are interleaved, so that a busy machine slows both. Prints one JSON object.
"""
import argparse, json, platform, statistics, time
import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM
from compeffdist.difficulty import answer_rank_score, score, token_rank_scores


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=128_256); parser.add_argument("--samples", type=int, default=8); parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=a.vocab, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)).eval()
    model.lm_head.weight.data.normal_(0, 1.0)  # peaked distributions, as a trained model's
    samples = []
    for i in range(a.samples):  # answers are drawn from the model, as a teacher's mostly plausible tokens would be
        ids = torch.randint(3, a.vocab, (60 + 10 * i,)).tolist()
        with torch.inference_mode(): states = model(torch.tensor([[1] + ids])).logits[0, -40:]
        tail = torch.distributions.Categorical(logits=states).sample().tolist()
        samples.append((" ".join(map(str, ids)), " ".join(map(str, tail))))
    logits = torch.cat([model(torch.tensor([[1] + [int(w) for w in p.split()]])).logits[0, -8:].detach() for p, _ in samples[:4]])
    targets = torch.distributions.Categorical(logits=logits).sample()
    work = {"scorer": (lambda: list(score(model, Words(), samples)["rank_score"]), lambda: slow_score(model, Words(), samples)),
        "ranking step": (lambda: token_rank_scores(logits, targets).tolist(), lambda: slow_tokens(logits, targets))}
    result = dict(vocab=a.vocab, samples=a.samples, answer_tokens=40 * a.samples, torch=torch.__version__, transformers=transformers.__version__, threads=torch.get_num_threads(), machine=platform.machine())
    for name, (fast, slow) in work.items():
        difference = max(abs(x - y) for x, y in zip(fast(), slow()))
        times = []
        for _ in range(a.rounds):
            row = []
            for f in (fast, slow): begin = time.perf_counter(); f(); row.append(time.perf_counter() - begin)
            times.append(row)
        result[name] = dict(fast_s=round(statistics.median(t[0] for t in times), 4), slow_s=round(statistics.median(t[1] for t in times), 4), ratio=round(statistics.median(t[1] / t[0] for t in times), 1), largest_difference=difference)
    print(json.dumps(result, indent=1))


if __name__ == "__main__": main()
