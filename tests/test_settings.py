"settings.ini and its loader."
import configparser, subprocess, sys
from pathlib import Path
import pytest
from compeffdist.settings import Settings, UserError, load_settings, project_root

ROOT = project_root(Path(__file__))
PROFILES = ["tiny", "mini", "gpu", "paper"]

@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_loads(profile): assert load_settings(profile).profile == profile

def test_every_key_of_the_file_is_known():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT/"settings.ini", encoding="utf-8")
    keys = {k for section in [parser.default_section, *parser.sections()] for k in parser[section]}
    assert keys <= set(Settings.model_fields)

def test_paper_profile_has_the_papers_values():
    s = load_settings("paper")
    assert s.train_batch * s.train_accumulation == 8 * 8 * 2
    assert (
        s.train_epochs, s.train_lr, s.train_scheduler, s.train_warmup, s.train_weight_decay,
        s.train_beta1, s.train_beta2, s.train_eps
    ) == (4, 5e-5, "cosine", 0, 0.1, 0.9, 0.999, 1e-8)
    assert (
        s.train_max_length, s.train_packing, s.train_precision, s.train_clip, s.seed
    ) == (2048, True, "bf16", 1, 42)
    assert (
        s.texts_total, s.corpus_size, s.attributes_min_count, s.enumerate_temperature, s.enumerate_max_tokens
    ) == (20000, 50000, 10, 1.0, 1048)
    assert (
        s.cluster_damping, s.cluster_max_iter, s.cluster_preference_percentile, s.cluster_seed
    ) == (0.9, 1000, 0.5, 42)
    assert (
        s.shots, s.eval_seeds, s.eval_max_new_tokens, s.eval_max_new_tokens_opener, s.difficulty_top_p
    ) == (4, [42, 52, 62], 150, 300, 0.95)

@pytest.mark.parametrize("key, value, says", [
    ("sampling_rate", 1.5, "1.5"),
    ("shots", -1, "-1"),
    ("families", "llama, gpt2", "gpt2"),
    ("seeed", 1, "known keys"),
    ("teacher_backend", "ollama", "vllm"),
    ("corpus_size", "many", "many")
])
def test_a_wrong_value_is_named(key, value, says):
    with pytest.raises(UserError) as e: load_settings("tiny", **{key: value})
    assert key in str(e.value) and says in str(e.value)

def test_unknown_profile_lists_the_known():
    with pytest.raises(UserError, match="tiny, mini, gpu, paper"): load_settings("huge")

def test_environment_overrides_the_file_and_is_named_when_wrong(monkeypatch):
    monkeypatch.setenv("COMPEFFDIST_CORPUS_SIZE", "77")
    assert load_settings("tiny").corpus_size == 77
    monkeypatch.setenv("COMPEFFDIST_CORPUS_SIZ", "77")
    with pytest.raises(UserError, match="environment variable COMPEFFDIST_CORPUS_SIZ"): load_settings("tiny")

@pytest.mark.parametrize("content, says", [
    (b"no section\nx = 1\n", "cannot be read"),
    (b"[tiny]\nseed = 1\nseed = 2\n", "cannot be read"),
    (b"[tiny]\nseed = \xff\n", "cannot be read")
])
def test_a_broken_file_is_named(tmp_path, content, says):
    (tmp_path/"settings.ini").write_bytes(content)
    with pytest.raises(UserError, match=says): load_settings("tiny", path=tmp_path/"settings.ini")

def test_settings_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"): load_settings("tiny").seed = 1

def test_no_settings_file_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("COMPEFFDIST_ROOT", raising=False)
    with pytest.raises(UserError, match="No settings.ini"): project_root(tmp_path)

LIGHT = ["difficulty", "sampling", "perspectives", "sentibench", "evaluate", "stats", "settings", "store"]
@pytest.mark.parametrize("module", LIGHT)
def test_importing_is_light(module):
    code = (
        f"import sys, compeffdist.{module}; "
        "heavy = [m for m in ('torch', 'transformers', 'datasets', 'trl', 'vllm', 'papermill', 'sklearn', "
        "'matplotlib') if m in sys.modules]; "
        "sys.exit(str(heavy) if heavy else None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr

def test_without_demonstrations_one_seed_is_asked():
    assert (
        load_settings("tiny", shots=0, eval_seeds=[7, 8]).asked_seeds == [7]
        and load_settings("tiny", shots=1, eval_seeds=[7, 8]).asked_seeds == [7, 8]
    )

@pytest.mark.parametrize("profile, over, words", [
    ("tiny", dict(), "Set train_lora_r = 16"),
    ("paper", dict(train_lora_r=16), "train_fsdp = true is not supported")
])
def test_4_bits_without_adapters_or_in_shards_are_refused_at_once(profile, over, words):
    with pytest.raises(UserError, match=words): load_settings(profile, train_quantization="nf4", **over)
    assert (
        load_settings(profile, train_quantization="nf4", train_lora_r=16, train_fsdp=False).train_quantization
        == "nf4"
    )

def test_a_long_training_keeps_checkpoints():
    for profile in ("mini", "gpu", "paper"): assert load_settings(profile).train_save_steps
