"Fine-tuning: the label mask, the schedule, LoRA, resume, equality of runs."
import json, re
from pathlib import Path
import pytest
from compeffdist import base, students
from compeffdist.settings import UserError, load_settings
from compeffdist.store import Store, write_rows

WORDS = "warm cold late lovely loud kind rude sunny".split()
ROWS = [
    dict(
        id=str(i),
        prompt=f"Say how it sounds: glad or cross.\n\nInput: a {w} day {i}\nOutput:",
        answer="glad" if w in ("warm", "lovely", "kind", "sunny") else "cross",
    )
    for i, w in enumerate(WORDS * 3)
]

@pytest.fixture(scope="module")
def tok(): return base.train_tokenizer([r["prompt"] + " " + r["answer"] for r in ROWS] * 5, "llama", 360)

def settings(**over):
    return load_settings("tiny", **dict(
        dict(
            train_epochs=6, train_lr=1e-2, train_batch=4, train_accumulation=1,
            train_max_length=96, train_packing=False, train_precision="fp32",
            train_length_power=0, train_lm_weight=0, train_muon=0,
        ),
        **over,
    ))

def model(tok, family="llama"): return base.new_model(family, len(tok), 32, 2, 2, seed=1, tokenizer=tok)

def test_prompt_tokens_are_masked_and_the_end_token_is_learnt(tok):
    encoded, counts = students.encode_rows(ROWS, tok, 96)
    for row, r in zip(encoded, ROWS):
        learnt = [i for i, l in zip(row["input_ids"], row["labels"]) if l != -100]
        assert tok.decode(learnt) == f" {r['answer']}{tok.eos_token}"
        assert set(row["labels"][:-len(learnt)]) == {-100}
        assert row["input_ids"] == tok(r["prompt"] + " " + r["answer"]).input_ids + [tok.eos_token_id]
    assert counts["rows_out"] == len(ROWS) and counts["truncated"] == counts["dropped"] == 0

def test_long_rows_lose_the_left_of_their_prompt_or_are_dropped(tok):
    long = dict(prompt="one two three " * 60 + "Input: the end\nOutput:", answer="glad")
    endless = dict(prompt="x\nOutput:", answer="glad cross " * 200)
    encoded, counts = students.encode_rows([long, endless], tok, 40)
    assert counts["truncated"] == 1 and counts["dropped"] == 1
    ids = encoded[0]["input_ids"]
    assert len(ids) == 40 and ids[0] == tok.bos_token_id and encoded[0]["labels"][0] == -100
    assert tok.decode(ids).endswith("Input: the end\nOutput: glad" + tok.eos_token)

def test_rows_without_answer_are_refused(tok):
    for bad in (dict(prompt="p", answer=" "), dict(prompt="p", answer=None), dict(prompt=None, answer="a")):
        with pytest.raises(UserError, match="Training row 0"): students.encode_rows([bad], tok)

def test_chat_template_wraps_the_prompt(tok):
    encoded, _ = students.encode_rows(ROWS[:1], tok, 200, chat=True)
    text = tok.decode(encoded[0]["input_ids"])
    assert text.count(tok.bos_token) == 1 and "<|start_header_id|>assistant" in text
    learnt = tok.decode([i for i, l in zip(encoded[0]["input_ids"], encoded[0]["labels"]) if l != -100])
    assert learnt == "glad" + tok.eos_token

def test_no_row_fits(tok, tmp_path):
    with pytest.raises(UserError, match="train_max_length = 2"):
        students.finetune(model(tok), tok, ROWS, settings(train_max_length=2), tmp_path)

@pytest.mark.parametrize("family", list(base.FAMILIES))
def test_training_learns_and_two_runs_are_equal(family, tmp_path):
    import torch
    tok = base.train_tokenizer([r["prompt"] + " " + r["answer"] for r in ROWS] * 5, family, 360)
    runs = [students.finetune(model(tok, family), tok, ROWS, settings(), tmp_path/n, seed=3) for n in "ab"]
    (a, log), (b, _) = runs
    assert log["curve"][-1]["loss"] < 0.5 * log["curve"][0]["loss"]
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))

def test_loss_equals_a_bare_loop_on_one_step(tok, tmp_path):
    import torch
    m = model(tok)
    encoded, _ = students.encode_rows(ROWS, tok, 96)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(e["input_ids"]) for e in encoded], True, tok.pad_token_id)
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(e["labels"]) for e in encoded], True, -100)
    with torch.no_grad():
        want = torch.nn.functional.cross_entropy(
            m(input_ids=ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        ).item()
    _, log = students.finetune(m, tok, ROWS, settings(train_epochs=1, train_batch=len(ROWS)), tmp_path)
    assert log["curve"][0]["loss"] == pytest.approx(want, abs=1e-4)

@pytest.mark.parametrize("muon", [0, 0.5])
def test_every_weight_is_trained_by_the_optimizer_that_the_settings_name(tok, tmp_path, muon):
    import torch
    s = settings(
        train_muon=muon, train_epochs=1, train_scheduler="constant", train_warmup=0, train_clip=1e9,
        train_batch=len(ROWS), train_weight_decay=0.1)
    trained, log = students.finetune(model(tok), tok, ROWS, s, tmp_path)
    assert log["steps"] == 1 and log["optimizer"] == ("muon" if muon else "adamw")
    alone = model(tok)
    batch = [torch.tensor(r["input_ids"]) for r in students.encode_rows(ROWS, tok, 96)[0]]
    labels = [torch.tensor(r["labels"]) for r in students.encode_rows(ROWS, tok, 96)[0]]
    pad = lambda rows, value: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
    alone(input_ids=pad(batch, 0), labels=pad(labels, -100), attention_mask=pad(batch, -1) >= 0).loss.backward()
    common = dict(lr=s.train_lr, betas=(s.train_beta1, s.train_beta2), eps=s.train_eps, weight_decay=0.1)
    if muon: base.muon_adamw(alone, matrices=muon, **common).step()
    else:
        decayed, free = ([p for p in alone.parameters() if (p.ndim == 2) == yes] for yes in (True, False))
        torch.optim.AdamW([dict(params=decayed), dict(params=free, weight_decay=0.0)], **common).step()
    for (name, p), q in zip(trained.named_parameters(), alone.parameters()):
        assert torch.allclose(p, q, atol=2e-5), name

def test_muon_goes_with_adapters_and_not_with_shards(tok, tmp_path, monkeypatch):
    import torch
    made = {}
    for muon in (0, 1):
        s = settings(train_muon=muon, train_lora_r=4, train_epochs=1)
        made[muon], log = students.finetune(model(tok), tok, ROWS, s, tmp_path/f"lora{muon}")
        assert log["optimizer"] == ("muon" if muon else "adamw")
    moved = [n for (n, p), q in zip(made[0].named_parameters(), made[1].parameters()) if not torch.equal(p, q)]
    assert moved and all("proj" in n for n in moved) # the linear layers, which have adapters
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="train_muon = 1.0 needs whole copies .* or the others to 0"):
        students.finetune(model(tok), tok, ROWS, settings(train_muon=1, train_fsdp=True), tmp_path)
    with pytest.raises(UserError, match="train_lm_weight = 0.3 and train_muon = 1.0 needs"):
        s = settings(train_muon=1, train_lm_weight=0.3, train_fsdp=True)
        students.finetune(model(tok), tok, ROWS, s, tmp_path)

@pytest.mark.parametrize("power, lm", [(0, 0), (0.5, 0), (1, 0), (1, 0.3), (0, 2)])
@pytest.mark.parametrize("family", list(base.FAMILIES))
def test_weighted_loss_equals_a_row_by_row_twin(power, lm, family):
    import torch
    tok = base.train_tokenizer([r["prompt"] + " " + r["answer"] for r in ROWS] * 5, family, 360)
    m = model(tok, family).eval()
    encoded, _ = students.encode_rows(
        [dict(r, answer=r["answer"] + " indeed" * (i % 4)) for i, r in enumerate(ROWS)], tok, 96
    )
    encoded = [dict(e, attention_mask=[1] * len(e["labels"])) for e in encoded]
    pad = lambda key, value: torch.nn.utils.rnn.pad_sequence([torch.tensor(e[key]) for e in encoded], True, value)
    total = weight = 0; prompt = []
    with torch.no_grad():
        got = students.weighted_loss(
            m,
            dict(
                input_ids=pad("input_ids", tok.pad_token_id),
                labels=pad("labels", -100),
                attention_mask=pad("attention_mask", 0),
            ),
            power, lm, lm_share=1.0,
        ).item()
        for e in encoded:
            logp = m(input_ids=torch.tensor([e["input_ids"]])).logits[0].log_softmax(-1)
            losses = [-logp[i - 1, y].item() for i, y in enumerate(e["input_ids"]) if i]
            own = [l for l, y in zip(losses, e["labels"][1:]) if y != -100]
            prompt += [l for l, y in zip(losses, e["labels"][1:]) if y == -100]
            total += sum(own) * len(own) ** -power; weight += len(own) ** (1 - power)
    assert got == pytest.approx(total / weight + lm * sum(prompt) / len(prompt), rel=1e-5)

def test_language_modelling_lowers_the_loss_on_prompts(tok, tmp_path):
    import torch
    def prompt_loss(m):
        ids = tok(ROWS[0]["prompt"], return_tensors="pt").input_ids
        with torch.no_grad(): return m(input_ids=ids, labels=ids).loss.item()
    with_lm, without = (
        prompt_loss(
            students.finetune(
                model(tok), tok, ROWS,
                settings(train_epochs=8, train_lm_weight=w, train_length_power=1), tmp_path/str(w),
            )[0].eval()
        )
        for w in (1.0, 0.0)
    )
    assert with_lm < without - 0.2

def test_one_process_does_not_drive_several_gpus(tok, tmp_path, monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        UserError, match="2 GPUs are seen by one process.* Set train_processes = 0 .* CUDA_VISIBLE_DEVICES=0"
    ):
        students.finetune(model(tok), tok, ROWS, settings(), tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="train_length_power = 1.0 .* train_fsdp = true cuts it up"):
        students.finetune(model(tok), tok, ROWS, settings(train_length_power=1, train_fsdp=True), tmp_path)

def made_by(n, folder, tok, **over):
    "The stage's student, trained by n processes; its checkpoint's weights and its log."
    from safetensors.torch import load_file
    s = settings(outputs=str(folder), train_processes=n, **over)
    store = Store(s)
    def start(out, work): model(tok).save_pretrained(out); tok.save_pretrained(out)
    store.stage("base-other", start)
    rows = [dict(r, answer=r["answer"] + " indeed" * (i % 4)) for i, r in enumerate(ROWS)]
    store.stage("corpus", lambda out, work: write_rows(out/"corpus.parquet", rows))
    made = students.student_stage(s, store, "llama", "distilled", start="base-other")
    return load_file(made.path/"model.safetensors"), json.loads((made.path/"log.json").read_text())

@pytest.mark.parametrize(
    "over",
    [
        dict(train_length_power=0.5, train_muon=1),
        dict(train_batch=2, train_accumulation=2),
        dict(train_length_power=1, train_batch=2, train_accumulation=2, train_lora_r=4),
    ],
    ids=["rows divided", "accumulation divided", "weighed rows divided, lora"],
)
def test_two_processes_train_what_one_does(tok, tmp_path, over):
    import os, torch
    over = dict(dict(train_epochs=2, train_batch=4, train_lr=1e-3), **over)
    one, log1 = made_by(1, tmp_path/"1", tok, **over)
    two, log2 = made_by(2, tmp_path/"2", tok, **over)
    assert log1["steps"] == log2["steps"] and log1["counts"] == log2["counts"]
    for a, b in zip(log1["curve"], log2["curve"]):
        assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=2e-3)
    for k in one: assert torch.allclose(one[k], two[k], atol=2e-5), k
    assert not torch.distributed.is_initialized() and "WORLD_SIZE" not in os.environ

def test_two_processes_go_on_from_a_checkpoint_in_the_middle_of_an_epoch(tok, tmp_path):
    import torch
    from compeffdist.workers import run_group
    from safetensors.torch import load_file
    def trained(name, work, epochs):
        s = settings(
            outputs=str(tmp_path/"out"), train_batch=4, train_lr=1e-3,
            train_scheduler="constant", train_warmup=0, train_save_steps=8,
            train_length_power=1.0, train_lm_weight=0.3, train_epochs=epochs,
        )
        Store(s).stage("corpus", lambda out, work: write_rows(out/"corpus.parquet", ROWS))
        return (
            run_group(
                2, "students", "_trained",
                (s, base_folder, "corpus", tmp_path/name, tmp_path/work, 3, name),
            )["steps"],
            load_file(tmp_path/name/"model.safetensors"),
        )
    base_folder = tmp_path/"base"; model(tok).save_pretrained(base_folder); tok.save_pretrained(base_folder)
    steps, whole = trained("whole", "a", 2)
    assert trained("part", "b", 8 / 6)[0] == 8 and students._checkpoint(tmp_path/"b").endswith("checkpoint-8")
    again, resumed = trained("resumed", "b", 2)
    assert steps == again == 12 and all(torch.equal(whole[k], resumed[k]) for k in whole)

def sharded(rank, port, folder, tok, over):
    "One of two processes that train a student in shards, on CPUs that accelerate takes for GPUs."
    import os, accelerate.state, torch
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    real = accelerate.state.PartialState.__init__
    def relabelled(self, *args, **kwargs):
        real(self, *args, **kwargs)
        if self._shared_state["distributed_type"] == "MULTI_CPU":
            self._shared_state["distributed_type"] = accelerate.utils.DistributedType.MULTI_GPU
    accelerate.state.PartialState.__init__ = relabelled
    kinds, finished = set(), students._finished
    def watched(trainer, s):
        kinds.update(type(p.data).__name__ for p in trainer.model.parameters())
        return finished(trainer, s)
    students._finished = watched
    m, log = students.finetune(model(tok), tok, ROWS, settings(train_fsdp=True, **over), folder/"work", seed=3)
    if rank == 0:
        assert kinds == {"DTensor"}, kinds
        m.save_pretrained(folder/"sharded")
        (folder/"log.json").write_text(json.dumps(log))

@pytest.mark.parametrize("lora", [0, 4])
def test_a_student_trained_in_shards_equals_one_trained_whole(tok, tmp_path, lora):
    import socket, torch
    from safetensors.torch import load_file
    over = dict(train_epochs=2, train_batch=4, train_lr=1e-3, train_lora_r=lora, train_save_steps=5)
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    torch.multiprocessing.start_processes(sharded, args=(port, tmp_path, tok, over), nprocs=2, start_method="spawn")
    assert students._checkpoint(tmp_path/"work")
    whole, log = students.finetune(model(tok), tok, ROWS, settings(**over), tmp_path/"one", seed=3)
    whole.save_pretrained(tmp_path/"whole")
    for x, y in zip(log["curve"], json.loads((tmp_path/"log.json").read_text())["curve"]):
        assert (x["loss"], x["grad_norm"]) == pytest.approx((y["loss"], y["grad_norm"]), rel=1e-3)
    a, b = (load_file(tmp_path/n/"model.safetensors") for n in ("sharded", "whole"))
    assert a.keys() == b.keys()
    for k in a: assert torch.allclose(a[k], b[k], atol=1e-6), k

def test_shards_need_gpus(tok, tmp_path):
    with pytest.raises(UserError, match="train_fsdp = true, but there is no GPU"):
        made_by(2, tmp_path, tok, train_fsdp=True, train_epochs=1)

def test_a_batch_that_cannot_be_divided_is_one_clear_error():
    s = settings(train_batch=4, train_accumulation=1)
    with pytest.raises(
        UserError, match="train_batch = 4 x train_accumulation = 1 cannot be divided among 3 processes"
    ):
        students.training_arguments(s, Path("unused"), processes=3)
    for n in (1, 2, 4):
        assert students.training_arguments(s, Path("unused"), processes=n).per_device_train_batch_size == 4 // n

def test_one_process_for_each_gpu(monkeypatch):
    import torch
    assert [students.train_processes(settings(train_processes=n)) for n in (0, 1, 2)] == [1, 1, 2]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [students.train_processes(settings(train_processes=n)) for n in (0, 1, 8)] == [4, 1, 4]

def test_lora_trains_adapters_and_saves_an_ordinary_checkpoint(tok, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM
    m = model(tok); before = m.model.embed_tokens.weight.clone()
    q = m.model.layers[0].self_attn.q_proj.weight.clone()
    m, log = students.finetune(m, tok, ROWS, settings(train_lora_r=4, train_lora_alpha=16), tmp_path)
    assert (
        torch.equal(m.model.embed_tokens.weight, before)
        and not torch.equal(m.model.layers[0].self_attn.q_proj.weight, q)
    )
    m.save_pretrained(tmp_path/"m")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path/"m")
    assert not any("lora" in n for n, _ in loaded.named_parameters())
    assert log["curve"][-1]["loss"] < log["curve"][0]["loss"]

@pytest.fixture
def stored(tok, tmp_path):
    "A student on disk, as 4 bits need one."
    model(tok).save_pretrained(tmp_path/"base"); tok.save_pretrained(tmp_path/"base")
    return tmp_path/"base"

def quantized(where, **over):
    s = settings(train_lora_r=4, train_lora_alpha=16, train_quantization="nf4", **over)
    return students.load_student(where, "float32", "nf4"), s

def test_qlora_learns_on_weights_in_4_bits_and_saves_whole_ones(tok, stored, tmp_path):
    import torch
    from bitsandbytes.nn import Linear4bit
    (m, tok), s = quantized(stored, train_epochs=20)
    assert sum(isinstance(l, Linear4bit) for l in m.modules()) == 2 * 7
    m, log = students.finetune(m, tok, ROWS, s, tmp_path/"work", seed=3)
    assert (
        log["curve"][-1]["loss"] < log["curve"][0]["loss"] - 0.2
        and not any(isinstance(l, Linear4bit) for l in m.modules())
    )
    m.save_pretrained(tmp_path/"out"); tok.save_pretrained(tmp_path/"out")
    before, after = (students.load_student(w)[0].state_dict() for w in (stored, tmp_path/"out"))
    for name, w in after.items():
        change = w - before[name]
        if name.endswith("proj.weight"):
            # the adapter and nothing of the rounding
            assert 0 < torch.linalg.matrix_rank(change, rtol=1e-3) <= 4, name
        else:
            assert not change.any(), name

def test_merged_adapters_are_those_that_were_trained(tok, stored, tmp_path, monkeypatch):
    import torch
    (m, tok), s = quantized(stored)
    kept, merge = {}, students._merged
    def watched(model, settings):
        from peft import get_peft_model_state_dict
        kept.update({k: v.clone() for k, v in get_peft_model_state_dict(model).items()})
        return merge(model, settings)
    monkeypatch.setattr(students, "_merged", watched)
    m, _ = students.finetune(m, tok, ROWS, s, tmp_path/"work")
    first = "model.layers.0.self_attn.q_proj"
    a, b = (next(v for k, v in kept.items() if f"{first}.lora_{x}" in k) for x in "AB")
    want = students.load_student(stored)[0].state_dict()[f"{first}.weight"] + 16 / 4 * b.float() @ a.float()
    torch.testing.assert_close(m.state_dict()[f"{first}.weight"], want)

def test_adapters_are_trained_in_fp32_and_an_interrupted_run_ends_with_the_same(tok, stored, tmp_path, monkeypatch):
    import torch
    from transformers import TrainerCallback
    def run(folder):
        (m, t), s = quantized(stored, train_save_steps=5)
        return students.finetune(m, t, ROWS, s, folder, seed=3)[0]
    seen, merge = set(), students._merged
    monkeypatch.setattr(
        students, "_merged",
        lambda m, s: seen.update(p.dtype for n, p in m.named_parameters() if "lora" in n) or merge(m, s),
    )
    whole = run(tmp_path/"whole")
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == 13: raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(students, "_progress", lambda name: Kill())
        with pytest.raises(KeyboardInterrupt): run(tmp_path/"cut")
    resumed = run(tmp_path/"cut")
    assert seen == {torch.float32} and all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))

def test_missing_bitsandbytes_is_named(stored, monkeypatch):
    import transformers.quantizers.quantizer_bnb_4bit as module
    monkeypatch.setattr(
        module.Bnb4BitHfQuantizer, "validate_environment",
        lambda self, *a, **k: (_ for _ in ()).throw(ImportError("bitsandbytes is not here")),
    )
    with pytest.raises(
        UserError, match="train_quantization = nf4: bitsandbytes is not here.*compeffdist\\[train\\]"
    ):
        students.load_student(stored, "float32", "nf4")

@pytest.mark.parametrize("muon", [0, 1.5])
def test_an_interrupted_run_ends_with_the_same_weights(tok, tmp_path, monkeypatch, muon):
    import torch
    from transformers import TrainerCallback
    s = settings(train_save_steps=5, train_muon=muon)
    whole, _ = students.finetune(model(tok), tok, ROWS, s, tmp_path/"whole", seed=3)
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == 13: raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(students, "_progress", lambda name: Kill())
        with pytest.raises(KeyboardInterrupt): students.finetune(model(tok), tok, ROWS, s, tmp_path/"cut", seed=3)
    assert students._checkpoint(tmp_path/"cut").endswith("checkpoint-10")
    resumed, log = students.finetune(model(tok), tok, ROWS, s, tmp_path/"cut", seed=3)
    assert log["steps"] == 36
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters()))

def too_large(m, limit, backward):
    """Hooks that ask the allocator for a petabyte when a forward (or backward) pass sees more than
    `limit` tokens; returns the sizes that went through."""
    import torch
    done = []
    def check(ids):
        if ids.numel() > limit: torch.empty(1 << 50)
        done.append(ids.numel())
    def forward(module, args, kwargs, out=None):
        ids = kwargs["input_ids"]
        if not backward: return check(ids)
        out.last_hidden_state.register_hook(lambda grad: check(ids))
    if backward: m.get_decoder().register_forward_hook(forward, with_kwargs=True)
    else: m.get_decoder().register_forward_pre_hook(forward, with_kwargs=True)
    return done

@pytest.mark.parametrize("backward, over", [
    (False, {}),
    (True, {}),
    (False, dict(train_length_power=1.0)),
    (True, dict(train_length_power=0.5)),
    (False, dict(train_packing=True, train_max_length=48, train_accumulation=1)),
])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_effective_one(tok, tmp_path, backward, over):
    import torch
    rows = [dict(r, answer=r["answer"] + " indeed" * (i % 3)) for i, r in enumerate(ROWS)]
    s = settings(**dict(dict(train_epochs=1, train_batch=4, train_accumulation=2, train_lr=1e-3), **over))
    whole, free = students.finetune(model(tok), tok, rows, s, tmp_path/"whole", seed=3)
    m = model(tok)
    done = too_large(m, 70, backward)
    with pytest.warns(UserWarning, match=(
        r"Out of memory at step 1: micro-batches of 4 rows are taken in \d parts .* "
        rf"effective batch stays {4 * s.train_accumulation}"
    )):
        cut, log = students.finetune(m, tok, rows, s, tmp_path/"cut", seed=3)
    assert free["micro_batch"] == 4 and log["micro_batch"] < 4 and log["steps"] == free["steps"] and max(done) <= 70
    # Adam does not see a wrong scale, these do
    for a, b in zip(free["curve"], log["curve"]):
        assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-3)
    for (name, a), b in zip(whole.named_parameters(), cut.parameters()): assert torch.allclose(a, b, atol=2e-5), name
    assert not all(torch.equal(a, b) for a, b in zip(model(tok).parameters(), cut.parameters()))

def test_out_of_memory_on_a_single_row_and_other_errors(tok, tmp_path, monkeypatch):
    m = model(tok); too_large(m, 5, False)
    with pytest.warns(UserWarning), pytest.raises(UserError, match="single training row. Lower train_max_length"):
        students.finetune(m, tok, ROWS, settings(), tmp_path/"a")
    m = model(tok)
    def broken(*args): raise RuntimeError("no such kernel")
    m.get_decoder().register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="no such kernel"): students.finetune(m, tok, ROWS, settings(), tmp_path/"b")

def test_the_papers_schedule():
    own = {p: students._optimizer(load_settings(p)) is not None for p in ("tiny", "mini", "gpu", "paper")}
    assert own == dict(tiny=True, mini=True, gpu=False, paper=False) # Muon; None is trl's AdamW
    args = students.training_arguments(
        load_settings("paper", train_fsdp=False), Path("unused"), bf16=True, processes=2
    )
    assert (
        args.learning_rate, args.num_train_epochs, args.lr_scheduler_type, args.warmup_steps
    ) == (5e-5, 4, "cosine", 0)
    assert (
        args.adam_beta1, args.adam_beta2, args.adam_epsilon, args.weight_decay, args.max_grad_norm
    ) == (0.9, 0.999, 1e-8, 0.1, 1.0)
    assert (args.max_length, args.packing, args.bf16, args.seed) == (2048, True, True, 42)
    assert (
        args.per_device_train_batch_size == 8
        and args.per_device_train_batch_size * args.gradient_accumulation_steps * 2 == 128
    )

def test_the_effective_batch_is_the_papers_on_any_number_of_gpus():
    for n in (1, 2, 4, 8, 16):
        assert (
            (a := students.training_arguments(
                load_settings("paper", train_fsdp=False), Path("unused"), bf16=True, processes=n
            )).per_device_train_batch_size
            * a.gradient_accumulation_steps
            * n
            == 128
        )

@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", list(base.FAMILIES))
def test_packed_texts_do_not_see_each_other(family, attention, tmp_path):
    import torch
    from datasets import Dataset
    tok = base.train_tokenizer([r["prompt"] + " " + r["answer"] for r in ROWS] * 5, family, 360)
    m, s = model(tok, family), settings(train_packing=True, train_max_length=200, train_batch=2)
    m.set_attn_implementation(attention)
    encoded, _ = students.encode_rows(ROWS, tok, 200)
    trainer = students._trainer_class(2, 0, 0)(
        model=m, args=students.training_arguments(s, tmp_path, len(encoded), 1),
        train_dataset=Dataset.from_list(encoded), processing_class=tok,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    starts = [i for i, p in enumerate(batch["position_ids"][0].tolist()) if p == 0]
    total = count = 0
    with torch.no_grad():
        joined = m(**{k: v for k, v in batch.items() if k != "labels"}).logits
        for begin, end in zip(starts, [*starts[1:], joined.shape[1]]):
            alone, labels = m(input_ids=batch["input_ids"][:, begin:end]).logits, batch["labels"][0, begin + 1:end]
            torch.testing.assert_close(joined[:, begin:end], alone, atol=1e-5, rtol=1e-4)
            total += torch.nn.functional.cross_entropy(alone[0, :-1], labels, reduction="sum").item()
            count += (labels != -100).sum()
        assert (
            len(starts) > 8
            and trainer.compute_loss(m, dict(batch), num_items_in_batch=count).item()
                == pytest.approx(total / count.item(), abs=1e-4)
        )

def test_packing_does_not_go_with_weighed_rows(tok, tmp_path):
    with pytest.raises(UserError, match="train_packing = true joins rows"):
        students.finetune(model(tok), tok, ROWS, settings(train_packing=True, train_length_power=1), tmp_path)

def test_attention_is_the_familys_setting_and_what_is_missing_is_named(stored):
    with pytest.raises(UserError, match="student_attention_gemma3 = 'flash'.*sdpa"):
        load_settings("tiny", student_attention_gemma3="flash")
    assert students.load_student(stored, attention="eager")[0].config._attn_implementation == "eager"
    with pytest.raises(UserError, match="student_attention_… = flash_attention_2.*flash-attn"):
        students.load_student(stored, attention="flash_attention_2")

def test_student_stage_makes_a_checkpoint_with_its_log(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM
    shipped = tmp_path/"shipped"
    base.build_base(
        "qwen3", [f"{r['prompt']} {i}" for i, r in enumerate(ROWS)], shipped/"qwen3",
        steps=1, batch=2, vocab=420, hidden=16, layers=1, heads=2,
    )
    base.seal(shipped/"qwen3", family="qwen3")
    monkeypatch.setattr(base, "students_folder", lambda: shipped)
    s = settings(train_epochs=1, outputs=str(tmp_path/"out"), student_source="package")
    store = Store(s)
    store.stage("corpus", lambda out, work: write_rows(out/"corpus.parquet", ROWS))
    made = students.student_stage(s, store, "qwen3", "distilled", "corpus")
    assert json.loads((made.path/"log.json").read_text())["counts"]["rows_in"] == len(ROWS)
    assert type(AutoModelForCausalLM.from_pretrained(made.path)).__name__ == "Qwen3ForCausalLM"
    assert students.student_stage(s, store, "qwen3", "distilled", "corpus").cached

def test_a_broken_checkpoint_is_one_clear_error(tmp_path):
    (tmp_path/"config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded as a student"): students.load_student(tmp_path)

def test_bf16_on_a_cpu_trains_with_plain_attention_and_puts_the_other_back(tok, tmp_path, monkeypatch):
    import torch
    from compeffdist import students
    seen, m = [], model(tok)
    monkeypatch.setattr(students, "bf16_pays", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    m.get_decoder().register_forward_pre_hook(lambda *a: seen.append(m.config._attn_implementation))
    _, log = students.finetune(m, tok, ROWS[:4], settings(train_epochs=1, train_precision="bf16"), tmp_path)
    assert set(seen) == {"eager"} and m.config._attn_implementation == "sdpa" and log["precision"] == "bf16"

@pytest.mark.parametrize("over", [{}, dict(train_lora_r=4), dict(train_packing=True)], ids=["full", "lora", "packed"])
def test_a_student_trained_in_bf16_answers_in_its_own_precision(over, tok, tmp_path, monkeypatch):
    import torch
    from compeffdist import students
    monkeypatch.setattr(students, "bf16_pays", lambda: True)
    changed = settings(train_epochs=1, train_precision="bf16", **over)
    m, log = students.finetune(model(tok), tok, ROWS[:8], changed, tmp_path)
    m.eval().save_pretrained(tmp_path/"saved"); tok.save_pretrained(tmp_path/"saved")
    ids = torch.tensor([tok(ROWS[0]["prompt"]).input_ids])
    with torch.no_grad():
        parts = m.get_output_embeddings()(m.get_decoder()(ids).last_hidden_state)
        assert log["precision"] == "bf16" and torch.equal(m(ids).logits, parts)
        assert torch.equal(m(ids).logits, students.load_student(tmp_path/"saved")[0](ids).logits)
        assert torch.equal(m(ids, return_dict=False)[0], parts)

def test_fsdp_keeps_the_models_own_layers_whole():
    from types import SimpleNamespace
    for family, layer in dict(
        llama="LlamaDecoderLayer", qwen3="Qwen3DecoderLayer", gemma3="Gemma3DecoderLayer"
    ).items():
        model, args = base.new_model(family, 64, 16, 1, 2), SimpleNamespace(fsdp=True, fsdp_plugin_args={})
        students._fit_to(args, model)
        assert (
            args.fsdp_plugin_args == {"transformer_cls_names_to_wrap": layer}
            and args.ddp_find_unused_parameters is False
        )
        model.config.vision_config = {}
        students._fit_to(args, model)
        assert args.ddp_find_unused_parameters is True

@pytest.mark.parametrize("own, accumulation, said", [
    (8, 4, "train_batch = 4 and train_accumulation = 16"),
    (3, 1, "train_batch = 1 and train_accumulation = 6"),
    (1, 4, "on a single training row"),
])
def test_out_of_memory_in_a_group_says_which_settings_keep_the_effective_batch(own, accumulation, said):
    import torch
    from types import SimpleNamespace
    trainer = object.__new__(students._frugal_trainer(own, 0))
    trainer.accelerator, trainer.window = SimpleNamespace(num_processes=2), ()
    trainer.args = SimpleNamespace(
        per_device_train_batch_size=own, train_batch_size=own, gradient_accumulation_steps=accumulation
    )
    with pytest.raises(UserError, match=said) as e: trainer._halve(torch.nn.Linear(2, 2))
    if own > 1:
        batch, steps = map(int, re.findall(r"train_\w+ = (\d+)", str(e.value)))
        assert batch * steps == own * accumulation * 2 # what the two processes took together

def test_no_rows_and_no_end_token_are_errors(tok):
    with pytest.raises(UserError, match="There are no training rows. Raise sampling_rate"):
        students.encode_rows([], tok)
    from copy import deepcopy
    endless = deepcopy(tok); endless.eos_token = None
    with pytest.raises(UserError, match="has no end token"):
        students.encode_rows([dict(prompt="p", answer="a")], endless)

@pytest.mark.parametrize(
    "family, end", [("llama", "<|eot_id|>"), ("qwen3", "<|im_end|>"), ("gemma3", "<end_of_turn>")])
def test_an_answer_in_a_chat_ends_as_the_family_ends_a_turn(family, end):
    from transformers import AutoTokenizer
    from compeffdist.base import students_folder
    from compeffdist.chat import user_turn
    from compeffdist.evaluate import stop_tokens
    tokenizer = AutoTokenizer.from_pretrained(students_folder()/family)
    row, = students.encode_rows([dict(prompt="Is it good?", answer="yes")], tokenizer, chat=True)[0]
    said = [dict(role="user", content="Is it good?"), dict(role="assistant", content="yes")]
    whole = tokenizer.apply_chat_template(said, tokenize=False, enable_thinking=False)
    own = user_turn(tokenizer, "Is it good?", "x = true") + "yes"
    assert tokenizer.decode(row["input_ids"]) == own + end
    assert whole.replace("<think>\n\n</think>\n\n", "").strip().endswith("yes" + end)
    assert row["labels"][-1] == tokenizer.convert_tokens_to_ids(end) in stop_tokens(tokenizer, chat=True)

def test_gradient_checkpointing_changes_nothing_but_memory(tok, tmp_path):
    import torch
    rows = [dict(prompt=f"Is text {i} good?", answer="yes" if i % 2 else "no") for i in range(8)]
    made = []
    for on in (False, True):
        s = load_settings(
            "tiny", train_epochs=2, train_batch=4, train_accumulation=1, train_precision="fp32",
            train_gradient_checkpointing=on)
        torch.manual_seed(0)
        model = base.new_model("llama", len(tok), 32, 2, 2, tokenizer=tok)
        model, _ = students.finetune(model, tok, rows, s, tmp_path/str(on))
        made.append(model.state_dict())
    assert all(torch.allclose(made[0][k], made[1][k], atol=1e-6) for k in made[0])
