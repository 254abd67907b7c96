"""The vLLM back end and a real `vllm serve`, both on CPU with the tiny random checkpoint.

Engine and server run in processes of their own: vLLM changes threads, logging and signals of the process it is in."""
import json, os, signal, socket, subprocess, sys, threading, time, urllib.request
from dataclasses import asdict
from pathlib import Path
import pytest
from conftest import NEEDS_VLLM, VLLM_ENV
from compeffdist.backends import OpenAITeacher, TransformersTeacher
from compeffdist.instructions import SCHEMAS
from compeffdist.settings import UserError
from compeffdist.store import ResponseRecord
from compeffdist.teacher import Request, Response, ask, tally

pytestmark = NEEDS_VLLM
SCHEMA = json.dumps(dict(
    type="object",
    properties=dict(polarity=dict(enum=["positive", "negative"])),
    required=["polarity"], additionalProperties=False,
))
KEY = "sk-loopback-90210"

GREEDY = [Request(f"g{i}", f"The soup was superb. {i}", max_tokens=16) for i in range(8)]
WARM = [
    Request(
        f"w{i}", "A dull film with a clever ending." * (1 + i % 3),
        temperature=1.0, top_p=0.9, max_tokens=12 + i % 5,
    )
    for i in range(24)
]
JSON = [
    Request(f"j{i}", f"Polarity of sentence {i}?", temperature=1.0, max_tokens=80, json_schema=SCHEMA)
    for i in range(4)
]
BUILT = [
    Request(f"b/{k}", f"Answer with JSON: {k}.", temperature=1.0, max_tokens=80, json_schema=v)
    for k, v in SCHEMAS.items()
]
LONG = Request("long", "soup " * 600)
REFUSED = Request("refused", "x", max_tokens=8, json_schema='{"type": "no such type"}')

SCRIPT = """
import json, sys, time, warnings
from dataclasses import asdict, fields
from compeffdist.backends import VLLMTeacher
from compeffdist.settings import load_settings
from compeffdist.store import ResponseRecord, derive_seed
from compeffdist.teacher import Request, ask, load_teacher
checkpoint, folder = sys.argv[1:]
sets = {k: [Request(**r) for r in v] for k, v in json.loads(sys.stdin.read()).items()}
from vllm import EngineArgs
warnings.simplefilter("ignore")
profiles = {n: sorted(set(load_teacher(load_settings(n)).engine_args) - {f.name for f in fields(EngineArgs)}) \
for n in ("gpu", "paper")}
teacher = VLLMTeacher(checkpoint, dtype="float32", max_model_len=512, batch=16, enforce_eager=True)
start = time.perf_counter(); teacher.load(); out = dict(start=time.perf_counter() - start, unknown=profiles)
run = lambda name, requests: [asdict(r) for r in \
ask(teacher, requests, ResponseRecord(f"{folder}/{name}.sqlite"), 42, stage=name, progress=False)]
for name, requests in sets.items(): out[name] = run(name, requests)
out["warm_back"] = run("warm_back", sets["warm"][::-1])[::-1]
out["warm_again"] = run("warm", sets["warm"])
stream = teacher.generate(sets["warm"], [derive_seed(42, r.id) for r in sets["warm"]])
first = [next(stream).id for _ in range(3)]; stream.close()
out["after_stop"] = run("after_stop", sets["greedy"])
many = [Request(f"m{i}", "The soup.", temperature=1.0, max_tokens=32) for i in range(200)]
start = time.perf_counter(); tokens = sum(r["completion_tokens"] for r in run("many", many)); \
out["tokens_s"] = tokens / (time.perf_counter() - start)
print("RESULT" + json.dumps(out))
"""

# `vllm serve`; the CPU build's command line looks for its version under the name "vllm" and would stop there.
CLI = """
import importlib.metadata as m
real = m.version
def version(name):
    try: return real(name)
    except m.PackageNotFoundError: return real(f"{name}-cpu") + "+cpu"
m.version = version
from vllm.entrypoints.cli.main import main
main()"""

@pytest.fixture(scope="module")
def server(tiny_checkpoint, tmp_path_factory):
    "A real `vllm serve` on loopback: (base URL, process). It starts while the offline tests run."
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    log = open(tmp_path_factory.mktemp("serve")/"log", "w+")
    command = [
        sys.executable, "-c", CLI, "serve", tiny_checkpoint, "--served-model-name", "tiny",
        "--host", "127.0.0.1", "--port", port, "--api-key", KEY, "--dtype", "float32",
        "--max-model-len", 512, "--max-num-seqs", 16, "--enforce-eager",
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", 4096,
    ]
    process = subprocess.Popen([str(c) for c in command], env=VLLM_ENV, stdout=log, stderr=log, start_new_session=True)
    url, begin = f"http://127.0.0.1:{port}", time.time()
    try:
        while True:
            try: urllib.request.urlopen(f"{url}/health", timeout=2); break
            except OSError:
                log.flush()
                assert process.poll() is None and time.time() - begin < 700, Path(log.name).read_text()[-3000:]
                time.sleep(0.5)
        print(f"vllm serve answered after {time.time() - begin:.1f} s")
        yield f"{url}/v1", process
    finally:
        for sig in (signal.SIGTERM, signal.SIGKILL):
            try: os.killpg(process.pid, sig)
            except ProcessLookupError: break
            try: process.wait(15)
            except subprocess.TimeoutExpired: pass

@pytest.fixture(scope="module")
def engine(tiny_checkpoint, tmp_path_factory):
    "What the offline engine answered, by set of requests."
    sets = dict(
        greedy=GREEDY, warm=WARM, json=JSON, built=BUILT,
        stop=[Request("s", GREEDY[0].prompt, max_tokens=16, stop=("e",))],
        bad=[*GREEDY[:4], LONG, REFUSED],
    )
    p = subprocess.run(
        [sys.executable, "-c", SCRIPT, tiny_checkpoint, tmp_path_factory.mktemp("engine")],
        input=json.dumps({k: [asdict(r) for r in v] for k, v in sets.items()}),
        env=VLLM_ENV, capture_output=True, text=True, timeout=700,
    )
    assert p.returncode == 0, p.stderr[-3000:]
    out = json.loads(p.stdout.split("RESULT")[1])
    print(f"vLLM started in {out['start']:.1f} s, {out['tokens_s']:.0f} tokens/s")
    return {k: [Response(**r) for r in v] if isinstance(v, list) else v for k, v in out.items()}

def texts(responses): return [r.text for r in responses]


# ---- the offline engine

def test_greedy_answers_equal_transformers(engine, tiny_checkpoint):
    local = {r.id: r for r in TransformersTeacher(tiny_checkpoint, dtype="float32").generate(GREEDY, [0] * 8)}
    for r in engine["greedy"]:
        assert (r.text, r.finish_reason, r.prompt_tokens) == (
            local[r.id].text, local[r.id].finish_reason, local[r.id].prompt_tokens
        )

def test_order_changes_no_sample_and_a_second_run_asks_nothing(engine):
    assert texts(engine["warm"]) == texts(engine["warm_back"]) == texts(engine["warm_again"])
    assert all(r.cached for r in engine["warm_again"]) and len(set(texts(engine["warm"]))) > 20

def test_structured_answers_follow_the_schema(engine):
    assert {json.loads(r.text)["polarity"] for r in engine["json"]} <= {"positive", "negative"}

def test_the_schemas_of_instruction_construction_are_held_to(engine):
    starts = {"b/tasks": '{"tasks":[', "b/definition": '{"name":"', "b/examples": '{"examples":['}
    for r in engine["built"]:
        # a random model may not come to the end of a string
        assert r.error is None and "".join(r.text.split()).startswith(starts[r.id]), r

def test_stop_strings_and_an_abandoned_stream(engine):
    whole, r = engine["greedy"][0].text, engine["stop"][0]
    assert "e" in whole and (r.text, r.finish_reason) == (whole[:whole.index("e")], "stop")
    assert texts(engine["after_stop"]) == texts(engine["greedy"])

def test_what_does_not_fit_or_is_refused_fails_alone(engine):
    *good, long, refused = engine["bad"]
    assert texts(good) == texts(engine["greedy"][:4])
    assert "model's context of 512" in long.error and refused.error.startswith("vLLM refused it")

def test_vllm_knows_every_argument_that_the_profiles_pass(engine):
    assert engine["unknown"] == {"gpu": [], "paper": []}


# ---- a server

@pytest.fixture
def teacher(server, monkeypatch):
    monkeypatch.setenv("LOOPBACK_KEY", KEY)
    return OpenAITeacher(
        "tiny", base_url=server[0], api_key_env="LOOPBACK_KEY",
        concurrency=8, timeout=60, max_retries=2, backoff=0.05,
    )

def serve_ask(teacher, requests, path, **kw):
    return ask(teacher, requests, ResponseRecord(path), 42, progress=False, **kw)

def test_server_and_offline_engine_agree(engine, teacher, tmp_path):
    out = serve_ask(teacher, GREEDY, tmp_path/"a")
    assert texts(out) == texts(engine["greedy"])
    assert (
        [(r.prompt_tokens, r.completion_tokens, r.finish_reason) for r in out]
        == [(r.prompt_tokens, r.completion_tokens, r.finish_reason) for r in engine["greedy"]]
    )

def test_seeds_reach_the_server(teacher, tmp_path):
    there, back = serve_ask(teacher, WARM, tmp_path/"a"), serve_ask(teacher, WARM[::-1], tmp_path/"b")[::-1]
    assert texts(there) == texts(back) and len(set(texts(there))) > 20

def test_schema_reaches_the_server(teacher, tmp_path):
    assert {json.loads(r.text)["polarity"] for r in serve_ask(teacher, JSON, tmp_path/"a")} <= {"positive", "negative"}

def test_a_prompt_too_long_for_the_server_is_a_dead_letter_at_once(teacher, tmp_path):
    out = serve_ask(teacher, [*GREEDY, LONG], tmp_path/"a")
    assert (
        tally(out)["answered"] == 8
        and "status 400" in out[-1].error
        and "512" in out[-1].error
        and out[-1].attempts == 1
    )

def test_wrong_key_and_wrong_model_are_one_clear_error(teacher, server, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="teacher_model"):
        serve_ask(
            OpenAITeacher("other", base_url=server[0], api_key_env="LOOPBACK_KEY"), GREEDY, tmp_path/"a"
        )
    monkeypatch.setenv("LOOPBACK_KEY", "wrong")
    with pytest.raises(UserError, match="LOOPBACK_KEY"): serve_ask(teacher, GREEDY, tmp_path/"a")

def test_server_killed_under_way_is_one_error_and_nothing_is_lost(teacher, server, tmp_path):
    "Last: it kills the server."
    record, many = ResponseRecord(tmp_path/"a"), [Request(f"k{i}", f"Soup {i}", max_tokens=200) for i in range(400)]
    def kill():
        while len(record) < 5: time.sleep(0.01)
        os.killpg(server[1].pid, signal.SIGKILL)
    killer = threading.Thread(target=kill); killer.start()
    with pytest.raises(UserError, match="cannot be reached") as e: ask(teacher, many, record, 42, progress=False)
    killer.join()
    assert 5 <= len(record) < 400 and f"{len(record)} of the 400 answers" in str(e.value)
