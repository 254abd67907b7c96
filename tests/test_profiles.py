"Every profile, as far as this machine can take it: settings, systems, teacher up to its weights, training arguments, student classes."
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
    assert (args.num_train_epochs, args.learning_rate, args.max_length, args.packing, args.weight_decay, args.adam_beta2) == (s.train_epochs, s.train_lr, s.train_max_length, s.train_packing, s.train_weight_decay, s.train_beta2)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == s.train_batch * s.train_accumulation

def test_paper_schedule_on_two_devices_is_the_release_schedule(tmp_path):
    args = training_arguments(load_settings("paper"), tmp_path, 50000, processes=2)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps * 2 == 128 and args.lr_scheduler_type == "cosine" and args.max_grad_norm == 1

@pytest.mark.parametrize("profile", PROFILES)
def test_every_family_has_a_student_class_and_every_task_a_budget(profile):
    import transformers
    s = load_settings(profile)
    names = dict(llama="LlamaForCausalLM", qwen3="Qwen3ForCausalLM", gemma3="Gemma3ForCausalLM")
    assert all(hasattr(transformers, names[f]) for f in s.families)
    assert all(budget(t, s) > 0 for t in TASKS.values() if not t.labels)
    assert {x.family for x in systems(s)} == {"teacher", "baseline", *s.families} and sum(x.name == "distilled" for x in systems(s)) == len(s.families)
