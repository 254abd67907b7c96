"""Every profile, as far as this machine can take it:
settings, systems, teacher up to its weights, training arguments, student classes."""
import re
import pytest
from compeffdist.evaluate import budget
from compeffdist.sentibench import TASKS
from compeffdist.settings import load_settings
from compeffdist.students import training_arguments
from compeffdist.systems import systems
from compeffdist.teacher import load_teacher

PROFILES = ["tiny", "mini", "gpu", "paper"]

@pytest.mark.parametrize("profile", PROFILES)
def test_teacher_is_built_up_to_its_weights(profile):
    settings = load_settings(profile)
    teacher = load_teacher(settings)
    assert (teacher.backend, teacher.model) == (settings.teacher_backend, settings.teacher_model)

@pytest.mark.parametrize("profile", PROFILES)
def test_training_arguments_carry_the_profile(profile, tmp_path):
    s = load_settings(profile)
    args = training_arguments(s, tmp_path, 1000)
    assert (
        args.num_train_epochs, args.learning_rate, args.max_length, args.packing,
        args.weight_decay, args.adam_beta2
    ) == (
        s.train_epochs, s.train_lr, s.train_max_length, s.train_packing,
        s.train_weight_decay, s.train_beta2
    )
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == s.train_batch * s.train_accumulation

def test_paper_schedule_on_two_devices_is_the_release_schedule(tmp_path):
    args = training_arguments(load_settings("paper"), tmp_path, 50000, processes=2)
    assert (
        args.per_device_train_batch_size * args.gradient_accumulation_steps * 2 == 128
        and args.lr_scheduler_type == "cosine"
        and args.max_grad_norm == 1
    )

@pytest.mark.parametrize("profile", ["gpu", "paper"])
def test_every_name_on_the_hub_carries_a_commit(profile):
    s = load_settings(profile)
    named = [
        s.teacher_revision, s.embedding_revision, s.fsa_revision,
        *(getattr(s, f"student_revision_{f}") for f in s.families),
        *(n.partition("@")[2] for n in [*s.texts_hub, *s.difficulty_proxies])
    ]
    assert len(named) > 8 and all(re.fullmatch("[0-9a-f]{40}", r) for r in named)

def test_another_model_does_not_keep_the_revision_of_the_first(monkeypatch):
    assert load_settings("paper", teacher_model="Qwen/Qwen3-32B").teacher_revision == "main"
    assert (
        load_settings("paper", teacher_model="Qwen/Qwen3-32B", teacher_revision="9216db5").teacher_revision
        == "9216db5"
    )
    assert (
        load_settings("paper", teacher_model=load_settings("paper").teacher_model).teacher_revision
        == load_settings("paper").teacher_revision
    )
    before = load_settings("paper")
    assert (
        load_settings("paper", student_model_llama=before.student_model_llama).student_revision_llama
        == before.student_revision_llama
        != "main"
    )
    monkeypatch.setenv("COMPEFFDIST_STUDENT_MODEL_LLAMA", "meta-llama/Llama-3.2-1B-Instruct")
    after = load_settings("paper")
    assert (
        after.student_revision_llama == "main"
        and after.student_revision_qwen3 == before.student_revision_qwen3 != "main"
    )

@pytest.mark.parametrize("packing", [False, True])
def test_gemma_3s_class_with_images_is_scored_trained_and_asked(tmp_path, packing):
    "google/gemma-3-4b-it is a Gemma3ForConditionalGeneration; here with two layers and a hidden size of 32."
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration
    from compeffdist.base import students_folder
    from compeffdist.difficulty import difficulty_stage
    from compeffdist.evaluate import evaluation_stage
    from compeffdist.store import Store, write_rows
    from compeffdist.students import student_stage
    from compeffdist.texts import benchmark_stage
    tok = AutoTokenizer.from_pretrained(students_folder()/"gemma3")
    ends = dict(pad_token_id=tok.pad_token_id, eos_token_id=tok.eos_token_id, bos_token_id=tok.bos_token_id)
    text = dict(
        vocab_size=len(tok) + 2, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        intermediate_size=64, max_position_embeddings=1024, **ends
    )
    pictures = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=28, patch_size=14
    )
    small = Gemma3ForConditionalGeneration(Gemma3Config(
        text_config=text, vision_config=pictures, mm_tokens_per_image=4,
        image_token_index=len(tok), boi_token_index=len(tok) + 1, eoi_token_index=len(tok) + 1, **ends
    ))
    small.save_pretrained(tmp_path/"hub"); tok.save_pretrained(tmp_path/"hub")
    s = load_settings(
        "tiny", outputs=str(tmp_path/"out"),
        families="gemma3", student_source="hub", student_model_gemma3=str(tmp_path/"hub"),
        workers=1, train_epochs=1, train_warmup=0, train_batch=4, train_max_length=96, train_packing=packing,
        **dict.fromkeys(("train_length_power", "train_lm_weight"), 0 if packing else 1),
        eval_limit=1, shots=1, shots_reduce=True, eval_seeds="42", benchmark_train=8, benchmark_test=4,
        eval_max_new_tokens=4, eval_max_new_tokens_opener=4
    )
    store, words = Store(s), [("warm", "glad"), ("rude", "cross")] * 4
    store.stage("corpus", lambda out, work: write_rows(out/"corpus.parquet", [
        dict(
            id=str(i), instruction_id="a",
            prompt=f"Say: glad or cross.\n\nInput: a {w} day {i}\nOutput:", answer=a
        )
        for i, (w, a) in enumerate(words)
    ]))
    benchmark_stage(s, store)
    trained = student_stage(s, store, "gemma3", "distilled")
    after, before = (AutoModelForCausalLM.from_pretrained(p) for p in (trained.path, tmp_path/"hub"))
    assert type(after) is type(before) is Gemma3ForConditionalGeneration
    changed = {n for n, w in before.named_parameters() if not w.equal(after.get_parameter(n))}
    assert any("language_model" in n for n in changed) and not any("vision" in n for n in changed)
    assert difficulty_stage(s, store).counts["errors"] == 0
    assert evaluation_stage(s, store, "gemma3", "distilled", trained.name).counts["rows_out"] == len(TASKS)

@pytest.mark.parametrize("profile", PROFILES)
def test_every_family_has_a_student_class_and_every_task_a_budget(profile):
    import transformers
    s = load_settings(profile)
    names = dict(llama="LlamaForCausalLM", qwen3="Qwen3ForCausalLM", gemma3="Gemma3ForCausalLM")
    assert all(hasattr(transformers, names[f]) for f in s.families)
    assert all(budget(t, s) > 0 for t in TASKS.values() if not t.labels)
    assert (
        {x.family for x in systems(s)} == {"teacher", "baseline", *s.families}
        and sum(x.name == "distilled" for x in systems(s)) == len(s.families)
    )
