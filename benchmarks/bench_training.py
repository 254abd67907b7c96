"""Training throughput of a tiny student, side by side in one run, in pairs of a bare PyTorch loop and our trainer with
the same batches, precision, attention, optimiser and loss: the loss of `tiny` and `mini` (output layer at the answers
only) with AdamW and with Muon, and the loss of `gpu` and `paper` (mean over the answers' tokens) as transformers
computes it in a bare loop and as trl does.

`python benchmarks/bench_training.py` needs nothing but the package: the rows are embedded texts with short and long
answers. Writes benchmarks/results/training.json and .md.
"""
import random, statistics, tempfile, time
from pathlib import Path
import torch
from compeffdist import grammar, students
from compeffdist.base import bf16_pays, length_batches, muon_adamw, plain_attention, students_folder
from compeffdist.replicate import machine
from compeffdist.settings import load_settings, project_root
from compeffdist.store import write_json

ROWS, REPEATS = 640, 5

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
    "Seconds of a plain loop; without length power with the model's own loss."
    model, tok = students.load_student(students_folder()/"llama")
    bf16 = settings.train_precision == "bf16" and bf16_pays()
    if bf16: plain_attention(model)
    encoded, _ = students.encode_rows(data, tok, settings.train_max_length)
    optimizer = (
        muon_adamw(
            model, lr=settings.train_lr, matrices=settings.train_muon,
            betas=(settings.train_beta1, settings.train_beta2), weight_decay=settings.train_weight_decay
        ) if settings.train_muon
        else torch.optim.AdamW(model.parameters(), lr=settings.train_lr, fused=True))
    pad = lambda b, key, value: torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(encoded[i][key]) for i in b], True, value
    )
    model.train()
    begin = time.perf_counter()
    for batch in length_batches([len(e["input_ids"]) for e in encoded], settings.train_batch, random.Random(1)):
        inputs = dict(input_ids=pad(batch, "input_ids", tok.pad_token_id), labels=pad(batch, "labels", -100))
        inputs["attention_mask"] = (inputs["input_ids"] != tok.pad_token_id).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = (
                students.weighted_loss(model, inputs, settings.train_length_power) if settings.train_length_power
                else model(**inputs, use_cache=False).loss)
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
    muon = load_settings("tiny", train_epochs=1, train_lm_weight=0)
    plain = s.model_copy(update=dict(train_length_power=0.0))
    def fused_attention():
        ours, students.plain_attention = students.plain_attention, lambda model: None
        try: return trained(s, data)
        finally: students.plain_attention = ours
    ways = {
        "bare loop, logits at answers only, AdamW": lambda: bare(s, data),
        "ours: the same inside trl": lambda: trained(s, data),
        "ours with torch's fused attention kernel": fused_attention,
        "bare loop, logits at answers only, Muon": lambda: bare(muon, data),
        "ours: the same with Muon inside trl": lambda: trained(muon, data),
        "bare loop, transformers' own loss, AdamW": lambda: bare(plain, data),
        "ours: trl's own loss": lambda: trained(plain, data),
    }
    base = dict(zip(ways, (0, 0, 0, 3, 3, 5, 5)))
    seconds = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, run in ways.items(): seconds[name].append(run())
    middle = {name: statistics.median(v) for name, v in seconds.items()}
    against = lambda name: statistics.median(
        a / b for a, b in zip(seconds[list(ways)[base[name]]], seconds[name]))
    write_json(project_root()/"benchmarks/results/training.json", dict(
        machine=machine(), rows=ROWS, repeats=REPEATS, threads=1,
        seconds={k: [round(x, 2) for x in v] for k, v in seconds.items()},
    ))
    text = (
        "| way | seconds (median) | throughput against its bare loop (median of the rounds) |\n"
        "|---|---|---|\n"
        + "".join(f"| {k} | {v:.1f} | {against(k):.2f} |\n" for k, v in middle.items())
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
