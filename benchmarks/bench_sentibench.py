"""Labels by the evaluator against the published way, side by side in one run: the same model, the same prompts, fp32.

The published way generates two tokens for each prompt in batches of four (left-padded, in the order of the items) and compares the labels' first tokens
among the first step's scores. The evaluator batches prompts of similar length, reads what all prompts of a task share once, runs one forward pass over the rest
and computes the labels' logits only. Measured with the release's four demonstrations, drawn for each item (so that only the instruction is shared), and without any
(as `SentimentAnalyzer` asks).

`python benchmarks/bench_sentibench.py` needs nothing but the package: an untrained answer takes as long as a good one, so the shipped Llama student and
embedded records do. Seconds are those of the processor (one thread), which a busy machine
distorts less than the clock on the wall; both are kept. Writes benchmarks/results/sentibench.json and .md.
"""
import statistics, tempfile, time
from pathlib import Path
import torch
from compeffdist.base import students_folder
from compeffdist.evaluate import build_items, choose_labels, collisions, encode, label_paths, shared_head
from compeffdist.replicate import machine
from compeffdist.sentibench import TASKS
from compeffdist.settings import load_settings, project_root
from compeffdist.store import write_json
from compeffdist.students import load_student
from compeffdist.texts import write_benchmark

TASK_NAMES, ITEMS, SHOTS, REPEATS, THREADS = ("imdb", "sst2", "twitter", "irony18", "tweeteval", "pstance"), 60, (4, 0), 3, 1

SLOW = "published: generate two tokens, batch 4"

def published(model, tokenizer, ids, first) -> list[int]:
    "Index of the best label: generate two tokens, batch 4, left padding."
    out = []
    for k in range(0, len(ids), 4):
        part = ids[k:k + 4]
        width = max(map(len, part))
        x = torch.tensor([[tokenizer.pad_token_id] * (width - len(i)) + i for i in part])
        mask = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in part])
        made = model.generate(input_ids=x, attention_mask=mask, max_new_tokens=2, min_new_tokens=2, do_sample=False, output_scores=True, return_dict_in_generate=True, pad_token_id=tokenizer.pad_token_id)
        out += made.scores[0][:, first].argmax(-1).tolist()
    return out

def compare(model, tokenizer, folder, shots) -> dict:
    "Seconds of each way, label flips against the published one, and how much of a prompt is shared."
    work = {}
    for name in TASK_NAMES:
        paths = label_paths(TASKS[name], tokenizer)
        if not collisions(paths): work[name] = (encode(tokenizer, [i.prompt for i in build_items(folder, [name], shots, [42])]), paths) # where first tokens collide the two ways differ by design
    first = lambda paths: [p[0] for p in paths.values()]
    ours = lambda limit: lambda ids, paths: choose_labels(model, ids, paths, limit)
    ways = {SLOW: lambda ids, paths: [list(paths)[i] for i in published(model, tokenizer, ids, first(paths))],
        f"ours, batches of {(limit := load_settings('tiny').eval_batch_tokens)} tokens (tiny's)": ours(limit), "ours, batches of 1024 tokens": ours(1024)}
    seconds, wall, answers = ({w: [] for w in ways} for _ in range(3))
    with torch.inference_mode():
        for _ in range(REPEATS):
            for way, run in ways.items():
                begin, cpu = time.perf_counter(), time.process_time()
                answers[way] = [label for ids, paths in work.values() for label in run(ids, paths)]
                seconds[way].append(round(time.process_time() - cpu, 2)); wall[way].append(round(time.perf_counter() - begin, 2))
    lengths = [len(i) for ids, _ in work.values() for i in ids]
    head = sum(shared_head(model, ids)[0] * len(ids) for ids, _ in work.values())
    return dict(shots=shots, tasks=list(work), items=len(lengths), mean_prompt_tokens=round(statistics.mean(lengths), 1), shared=round(head / sum(lengths), 3), cpu_seconds=seconds, wall_seconds=wall,
        flips={way: sum(a != b for a, b in zip(answers[SLOW], said)) for way, said in answers.items()})

def main() -> None:
    torch.set_num_threads(THREADS)
    model, tokenizer = load_student(students_folder()/"llama")
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        write_benchmark(Path(folder), 80, ITEMS, 1)
        runs = [compare(model, tokenizer, folder, shots) for shots in SHOTS]
    m = machine()
    write_json(project_root()/"benchmarks/results/sentibench.json", dict(machine=m, threads=THREADS, runs=runs))
    text = "| demonstrations | tokens a prompt | of these shared | way | processor seconds (median) | times as fast | label flips |\n|---|---|---|---|---|---|---|\n"
    for r in runs:
        middle = {way: statistics.median(s) for way, s in r["cpu_seconds"].items()}
        text += "".join(f"| {r['shots']} | {r['mean_prompt_tokens']} | {100 * r['shared']:.0f} % | {way} | {s:.2f} | {middle[SLOW] / s:.2f} | {r['flips'][way]} |\n" for way, s in middle.items())
    text += f"\n{runs[0]['items']} items of {len(runs[0]['tasks'])} tasks ({', '.join(runs[0]['tasks'])}), shipped Llama in fp32, {THREADS} thread, {REPEATS} interleaved repeats. {m['cpu']}, {m['cores']} cores; torch {m['versions']['torch']}, transformers {m['versions']['transformers']}. Made by `python benchmarks/bench_sentibench.py`.\n"
    (project_root()/"benchmarks/results/sentibench.md").write_text(text)
    print(text)

if __name__ == "__main__": main()
