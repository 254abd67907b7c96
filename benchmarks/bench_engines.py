"""Rank scores of the same rows by transformers (`score`) and by vLLM (`score_vllm`), side by side in one process.

    python benchmarks/bench_engines.py [--rows 400] [--rounds 3] [--top-k 256]

Rows are prompts with answers of the packaged format samples, the model is the packaged Llama student in float32.
Rounds are interleaved; starting the engine is not counted. Writes benchmarks/results/engines.json and .md.
"""
import argparse, os, statistics, time
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_LOGGING_LEVEL="WARNING", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", HF_HUB_OFFLINE="1",
)
import torch
from compeffdist.backends import _on_cpu
from compeffdist.base import students_folder
from compeffdist.difficulty import score
from compeffdist.formats import format_samples
from compeffdist.replicate import machine
from compeffdist.scale import score_vllm
from compeffdist.settings import project_root
from compeffdist.store import write_json
from compeffdist.students import load_student
from compeffdist.texts import _embedded_texts

def rows(n):
    "Prompts and last answers of format samples."
    out = []
    for i, parts in enumerate(format_samples([t["text"] for t in _embedded_texts(500, 1)], 3 * n, 1)):
        prompt, (answer, marked) = "".join(t for t, _ in parts[:-1]), parts[-1]
        if marked and prompt.strip() and answer.strip():
            out.append(dict(id=str(i), prompt=prompt.rstrip(), answer=answer.strip()))
    return out[:n]

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 400), ("rounds", 3), ("top-k", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    a, where = parser.parse_args(), str(students_folder()/"llama")
    from vllm import LLM
    model, tokenizer = load_student(where, "float32")
    engine = LLM(**_on_cpu(1024) | dict(
        model=where, dtype="float32", max_model_len=1024, max_num_seqs=64, enforce_eager=True, max_logprobs=a.top_k
    ))
    samples = rows(a.rows)
    ways = {
        "transformers, one row at a time (bit-equal in any order)":
            lambda: score(model, tokenizer, samples, separator=" ", exact=True),
        "transformers, batches of 8,192 tokens":
            lambda: score(model, tokenizer, samples, separator=" ", exact=False),
        f"vLLM, top_k = {a.top_k}, wider ones by transformers":
            lambda: score_vllm(engine, tokenizer, samples, model, a.top_k, separator=" "),
    }
    first = {k: f() for k, f in ways.items()}
    reference = next(iter(first.values()))["rank_score"]
    times = {k: [] for k in ways}
    for _ in range(a.rounds):
        for k, f in ways.items(): begin = time.perf_counter(); f(); times[k].append(time.perf_counter() - begin)
    last = list(ways)[-1]
    wide = sum(e == "transformers" for e in first[last]["engine"])
    result = [
        dict(
            way=k, seconds=round(statistics.median(t), 2),
            ratio=round(statistics.median(b / c for b, c in zip(times[next(iter(ways))], t)), 2),
            largest_difference=max(abs(x - y) for x, y in zip(reference, first[k]["rank_score"])),
        )
        for k, t in times.items()
    ]
    m, tokens = machine(), sum(first[last]["n_tokens"]) + sum(first[last]["n_prompt_tokens"])
    write_json(project_root()/"benchmarks/results/engines.json", dict(
        machine=m, rows=len(samples), tokens=tokens, rounds=a.rounds, wide=wide,
        threads=torch.get_num_threads(), results=result,
    ))
    text = (
        "| way | seconds | speed against the first | largest difference in score |\n"
        "|---|---|---|---|\n"
        + "".join(
            f"| {r['way']} | {r['seconds']} | {r['ratio']} | {r['largest_difference']:.1g} |\n" for r in result
        )
    )
    text += (
        f"\n{len(samples)} rows, {tokens:,} tokens ({sum(first[last]['n_tokens']):,} of answers), "
        f"packaged Llama student ({sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters) in float32; "
        f"{wide} rows had a nucleus wider than top_k. "
        f"{a.rounds} interleaved rounds, medians (of a ratio: the median of the rounds' ratios); "
        f"starting vLLM is not counted. {m['cpu']}, {m['cores']} cores. "
        "Made by `python benchmarks/bench_engines.py`.\n"
    )
    (project_root()/"benchmarks/results/engines.md").write_text(text)
    print(text)

if __name__ == "__main__": main()
