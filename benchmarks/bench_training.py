"""Training throughput of a tiny student, side by side in one run: a bare PyTorch loop with answer-only logits, our
trainer (the same loss inside trl's SFTTrainer), and trl's own fused loss over all positions.

`python benchmarks/bench_training.py` needs nothing but the package: the rows are embedded texts with short and long
answers. Writes benchmarks/results/training.json and .md.
"""
import random, statistics, tempfile, time
from pathlib import Path
import torch
from compeffdist import grammar, students
from compeffdist.base import bf16_pays, length_batches, plain_attention, students_folder
from compeffdist.replicate import machine
from compeffdist.settings import load_settings, project_root
from compeffdist.store import write_json

ROWS, REPEATS = 640, 3

def rows() -> list[dict]:
    "Prompts of about a hundred tokens; three quarters of the answers are labels, a quarter long."
    texts = [i.text for kind in grammar.DOMAINS for i in grammar.generate(ROWS // 5, kind, 1, "pretrain")]
    head = (
        "Sentiment of a Text\n"
        "Decide how the author judges what the text is about, as a whole, and give the answer in one word. "
        "Choose one of: positive, negative, neutral."
    )
    return [
        dict(
            id=str(i), prompt=f"{head}\n\nInput: {t}\nOutput:",
            answer=t if i % 4 == 0 else random.Random(i).choice(["positive", "negative", "neutral"]),
        )
        for i, t in enumerate(texts)
    ]

def bare(settings, data) -> float:
    "Seconds of a plain loop: the same batches, precision, attention, optimiser and loss."
    model, tok = students.load_student(students_folder()/"llama")
    bf16 = settings.train_precision == "bf16" and bf16_pays()
    if bf16: plain_attention(model)
    encoded, _ = students.encode_rows(data, tok, settings.train_max_length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.train_lr, fused=True)
    pad = lambda b, key, value: torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(encoded[i][key]) for i in b], True, value
    )
    model.train()
    begin = time.perf_counter()
    for batch in length_batches([len(e["input_ids"]) for e in encoded], settings.train_batch, random.Random(1)):
        inputs = dict(input_ids=pad(batch, "input_ids", tok.pad_token_id), labels=pad(batch, "labels", -100))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16): loss = students.weighted_loss(model, inputs, 1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(); optimizer.zero_grad()
    return time.perf_counter() - begin

def trained(settings, data) -> float:
    "Seconds inside trl's trainer."
    model, tok = students.load_student(students_folder()/"llama")
    with tempfile.TemporaryDirectory() as folder: _, log = students.finetune(model, tok, data, settings, Path(folder))
    return log["counts"]["tokens"] / log["tokens_per_second"]

def main() -> None:
    torch.set_num_threads(1)
    data, s = rows(), load_settings("tiny", train_epochs=1, train_lm_weight=0, train_muon=0)
    def fused_attention():
        ours, students.plain_attention = students.plain_attention, lambda model: None
        try: return trained(s, data)
        finally: students.plain_attention = ours
    ways = {
        "bare PyTorch loop, logits at answers only": lambda: bare(s, data),
        "ours: the same loss inside trl": lambda: trained(s, data),
        "ours with torch's fused attention kernel": fused_attention,
        "trl's fused loss over all positions":
            lambda: trained(s.model_copy(update=dict(train_length_power=0.0)), data),
    }
    seconds = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, run in ways.items(): seconds[name].append(run())
    middle = {name: statistics.median(v) for name, v in seconds.items()}
    first = next(iter(middle.values()))
    write_json(project_root()/"benchmarks/results/training.json", dict(
        machine=machine(), rows=ROWS, repeats=REPEATS, threads=1,
        seconds={k: [round(x, 2) for x in v] for k, v in seconds.items()},
    ))
    text = (
        "| way | seconds (median) | throughput against the bare loop |\n"
        "|---|---|---|\n"
        + "".join(f"| {k} | {v:.1f} | {first / v:.2f} |\n" for k, v in middle.items())
    )
    m = machine()
    (project_root()/"benchmarks/results/training.md").write_text(
        text
        + f"\n{ROWS} rows, batch {s.train_batch}, one epoch, shipped Llama, one thread; "
        f"{REPEATS} interleaved repeats. {m['cpu']}, {m['cores']} cores. "
        "Made by `python benchmarks/bench_training.py`.\n"
    )
    print(text)

if __name__ == "__main__": main()
