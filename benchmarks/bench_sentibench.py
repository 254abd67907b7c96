"""Labels by the evaluator against the published way, side by side in one run: the same model, the same prompts, fp32.

The published way generates two tokens for each prompt in batches of four (left-padded, in the order of the items) and
compares the labels' first tokens among the first step's scores. The evaluator batches prompts of similar length, reads
what all prompts of a task share once, runs one forward pass over the rest and computes the labels' logits only.
Measured with the release's four demonstrations, drawn for each item (so that only the instruction is shared), with
four that all items of a task have (`shots_drawn = task`), and without any (as `SentimentAnalyzer` asks). On a GPU,
where there is one, the same model and the same batches as any other use of the evaluator.

`python benchmarks/bench_sentibench.py` needs nothing but the package: an untrained answer takes as long as a good one,
so the shipped Llama student and embedded records do. The second table asks one student by both engines and in both
precisions, by the same rules, and counts labels and arrays that differ from transformers in fp32 (a distilled student
of outputs/tiny where `make replicate` has left one, since its labels are not near ties). Seconds of one thread are
those of the processor, which a busy machine distorts less than the clock on the wall; those of two are the clock's.
Writes benchmarks/results/sentibench.json and .md.
"""
import importlib.util, json, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path
from unittest.mock import patch
import torch
from compeffdist.base import students_folder
from compeffdist.evaluate import (
    CPU_READ, build_items, choose_labels, collisions, encode, evaluate, label_paths, shared_head
)
from compeffdist.replicate import machine
from compeffdist.sentibench import TASKS
from compeffdist.settings import load_settings, project_root
from compeffdist.store import write_json
from compeffdist.systems import asked
from compeffdist.students import load_student
from compeffdist.texts import write_benchmark

TASK_NAMES = ("imdb", "sst2", "twitter", "irony18", "tweeteval", "pstance")
ITEMS, SHOTS, REPEATS, THREADS = 60, ((4, "item"), (4, "task"), (0, "item")), 5, (1, 2)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

SLOW, WIDE = "published: generate two tokens, batch 4", 4096

def published(model, tokenizer, ids, first) -> list[int]:
    "Index of the best label: generate two tokens, batch 4, left padding."
    out = []
    for k in range(0, len(ids), 4):
        part = ids[k:k + 4]
        width = max(map(len, part))
        x = torch.tensor([[tokenizer.pad_token_id] * (width - len(i)) + i for i in part], device=model.device)
        mask = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in part], device=model.device)
        made = model.generate(
            input_ids=x, attention_mask=mask, max_new_tokens=2, min_new_tokens=2, do_sample=False,
            output_scores=True, return_dict_in_generate=True, pad_token_id=tokenizer.pad_token_id,
        )
        out += made.scores[0][:, first].argmax(-1).tolist()
    return out

def compare(model, tokenizer, folder, shots, drawn, threads) -> dict:
    "Seconds of each way, label flips against the published one, and how much of a prompt is shared."
    torch.set_num_threads(threads)
    work = {}
    for name in TASK_NAMES:
        paths = label_paths(TASKS[name], tokenizer)
        if not collisions(paths): # where first tokens collide the two ways differ by design
            items = build_items(folder, [name], shots, [42], drawn=drawn)
            work[name] = (encode(tokenizer, [i.prompt for i in items]), paths)
    first = lambda paths: [p[0] for p in paths.values()]
    def wide(ids, paths):
        with patch("compeffdist.evaluate.CPU_READ", WIDE): return choose_labels(model, ids, paths, WIDE)
    ways = {
        SLOW: lambda ids, paths: [list(paths)[i] for i in published(model, tokenizer, ids, first(paths))],
        f"ours, in batches of {WIDE} tokens": wide,
        f"ours (on a CPU in batches of {CPU_READ} tokens)": lambda ids, paths: choose_labels(model, ids, paths),
    }
    seconds, wall, answers = ({w: [] for w in ways} for _ in range(3))
    with torch.inference_mode():
        for _ in range(REPEATS):
            for way, run in ways.items():
                begin, cpu = time.perf_counter(), time.process_time()
                answers[way] = [label for ids, paths in work.values() for label in run(ids, paths)]
                seconds[way].append(round(time.process_time() - cpu, 2))
                wall[way].append(round(time.perf_counter() - begin, 2))
    lengths = [len(i) for ids, _ in work.values() for i in ids]
    head = sum(shared_head(model, ids)[0] * len(ids) for ids, _ in work.values())
    return dict(
        shots=shots, drawn=drawn, threads=threads, tasks=list(work), items=len(lengths),
        mean_prompt_tokens=round(statistics.mean(lengths), 1), shared=round(head / sum(lengths), 3),
        cpu_seconds=seconds, wall_seconds=wall,
        flips={way: sum(a != b for a, b in zip(answers[SLOW], said)) for way, said in answers.items()},
    )

ASKED = ("sst2", "irony18", "twitter", "tweeteval", "atsa_rest16", "asqp_rest16")
VLLM = """
import json, sys
from compeffdist.evaluate import VLLMStudent, evaluate
from compeffdist.settings import load_settings
checkpoint, folder, dtype, tasks, limit = sys.argv[1:]
settings = load_settings("tiny", eval_limit=int(limit), student_dtype=dtype)
student = VLLMStudent(checkpoint, settings, batch=64, enforce_eager=True)
rows = evaluate(student, tasks.split(), folder=folder, settings=settings)
print("RESULT" + json.dumps([(r["status"], r["output"]) for r in rows]))
"""

def engines(folder) -> dict:
    "Answers of one student by transformers and vLLM in fp32 and bf16, against transformers in fp32."
    made = project_root()/"outputs/tiny/students/llama-distilled"
    checkpoint = made if made.is_dir() else students_folder()/"llama"
    settings = load_settings("tiny", eval_limit=ITEMS)
    def here(dtype):
        model, tokenizer = load_student(checkpoint, dtype)
        return [
            (r["status"], r["output"])
            for r in evaluate((model.eval(), tokenizer), ASKED, folder=folder, settings=settings)
        ]
    def there(dtype):
        env = dict(
            os.environ, VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
            VLLM_LOGGING_LEVEL="WARNING", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1",
            HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="",
        )
        p = subprocess.run([
            sys.executable, "-c", VLLM, checkpoint, folder, dtype, " ".join(ASKED), str(ITEMS),
        ], env=env, capture_output=True, text=True)
        if p.returncode: raise SystemExit(p.stderr[-3000:])
        return [tuple(r) for r in json.loads(p.stdout.split("RESULT")[1].splitlines()[0])]
    ways = {
        "transformers, fp32": here("float32"), "transformers, bf16": here("bfloat16")
    } | (
        {"vLLM, fp32": there("float32"), "vLLM, bf16": there("bfloat16")}
        if importlib.util.find_spec("vllm") else {}
    )
    first = ways["transformers, fp32"]
    many = {kind: sum((status == "label") == kind for status, _ in first) for kind in (True, False)}
    differ = lambda said, labels: sum(
        a != b for (_, a), (status, b) in zip(said, first, strict=True) if (status == "label") == labels
    )
    rows = {
        w: dict(
            labels=many[True], arrays=many[False],
            labels_differ=differ(said, True), arrays_differ=differ(said, False))
        for w, said in ways.items()
    }
    return dict(
        student="distilled Llama of outputs/tiny" if made.is_dir() else "shipped Llama", tasks=ASKED, ways=rows
    )

def main() -> None:
    model, tokenizer = load_student(students_folder()/"llama")
    model.eval().to(DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        write_benchmark(Path(folder), 80, ITEMS, 1)
        runs = [
            compare(model, tokenizer, folder, *shots, threads)
            for shots in SHOTS for threads in (THREADS if DEVICE == "cpu" else (1,))]
        both = engines(folder)
    m = machine()
    write_json(
        project_root()/"benchmarks/results/sentibench.json",
        dict(machine=m, runs=runs, engines=both),
    )
    text = (
        "| demonstrations | drawn for each | tokens a prompt | of these shared | threads | way "
        "| seconds (median) | times as fast (median of the rounds) | label flips |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    for r in runs:
        seconds = r["cpu_seconds" if r["threads"] == 1 and DEVICE == "cpu" else "wall_seconds"]
        text += "".join(
            f"| {r['shots']} | {r['drawn'] if r['shots'] else ''} | {r['mean_prompt_tokens']} "
            f"| {100 * r['shared']:.0f} % | {r['threads']} | {way} "
            f"| {statistics.median(s):.2f} | {statistics.median(a / b for a, b in zip(seconds[SLOW], s)):.2f} "
            f"| {r['flips'][way]} |\n"
            for way, s in seconds.items()
        )
    text += (
        f"\n{runs[0]['items']} items of {len(runs[0]['tasks'])} tasks ({', '.join(runs[0]['tasks'])}), "
        f"shipped Llama in fp32, {REPEATS} interleaved repeats; "
        "seconds of the processor for one thread, of the clock for two. "
        f"{m['cpu']}, {m['cores']} cores; "
        f"torch {m['versions']['torch']}, transformers {m['versions']['transformers']}. "
        "Made by `python benchmarks/bench_sentibench.py`.\n"
    )
    text += (
        "\n| engine, precision | labels | that differ from transformers in fp32 | arrays | that differ |\n"
        "|---|---|---|---|---|\n"
        + "".join(
            f"| {w} | {r['labels']} | {r['labels_differ']} | {r['arrays']} | {r['arrays_differ']} |\n"
            for w, r in both["ways"].items()
        )
    )
    text += (
        f"\n{both['student']}, {', '.join(ASKED)}, {ITEMS} items each, {asked(load_settings('tiny'))}. "
        "Both engines compare the labels' first tokens and end an array at the same tokens.\n"
    )
    (project_root()/"benchmarks/results/sentibench.md").write_text(text)
    print(text)

if __name__ == "__main__": main()
