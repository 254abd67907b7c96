"""Asking a teacher: keys, resume after kill -9, dead letters,
and every back end that needs no vLLM (see test_teacher_vllm.py)."""
import json, os, signal, sqlite3, subprocess, sys, threading, time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest
from compeffdist.backends import (
    OpenAITeacher, RowSampler, TransformersTeacher, VLLMTeacher, checkpoint_revision, encode,
)
from compeffdist.settings import UserError, load_settings
from compeffdist.store import ResponseRecord, derive_seed
from compeffdist.teacher import (
    EmbeddedTeacher, ReplayTeacher, Request, Response,
    ask, failed, load_teacher, request_key, tally, teacher_params,
)


class Fake:
    "Answers `prompt/seed` unless `rule` says otherwise; remembers what it was asked."
    backend, model, revision = "fake", "fake-1", "r1"

    def __init__(self, rule=None, **identity):
        self.rule, self.asked, self.options = (
            rule or (lambda r, s: Response(r.id, f"{r.prompt}/{s}", "stop", 3, 2)),
            [], {},
        )
        self.__dict__.update(identity)

    def generate(self, requests, seeds):
        for r, s in zip(requests, seeds):
            self.asked.append((r.id, s))
            yield self.rule(r, s)


@pytest.fixture
def record(tmp_path):
    return ResponseRecord(tmp_path/"responses.sqlite")


def rows(n, **kw): return [Request(f"r{i}", f"prompt {i}", **kw) for i in range(n)]
def quiet(teacher, requests, record, seed=42, **kw): return ask(teacher, requests, record, seed, progress=False, **kw)
def texts(responses): return [r.text for r in responses]


BASE = Request(
    "a", "question", temperature=1.0, max_tokens=10, top_p=0.9,
    stop=("x",), json_schema='{"type": "object"}',
)
CHANGES = dict(prompt="question?", temperature=0.5, max_tokens=11, top_p=0.8, stop=("x", "y"), json_schema=None)

@pytest.mark.parametrize("field", CHANGES)
def test_every_parameter_of_a_request_is_in_the_key(field):
    assert request_key(Fake(), replace(BASE, **{field: CHANGES[field]}), 1) != request_key(Fake(), BASE, 1)

@pytest.mark.parametrize("identity", [
    dict(backend="b"), dict(model="m"), dict(revision="r2"), dict(options={"chat_template": False}),
])
def test_every_part_of_the_teacher_is_in_the_key(identity):
    assert request_key(Fake(**identity), BASE, 1) != request_key(Fake(), BASE, 1)

def test_seed_is_in_the_key_and_id_is_not():
    assert request_key(Fake(), BASE, 1) != request_key(Fake(), BASE, 2)
    assert request_key(Fake(), BASE, 1) == request_key(Fake(), replace(BASE, id="b"), 1)
    assert request_key(Fake(), replace(BASE, temperature=1), 1) == request_key(Fake(), BASE, 1)

@pytest.mark.parametrize("wrong", [
    dict(id=""), dict(prompt=None), dict(temperature=-1), dict(max_tokens=0),
    dict(top_p=0), dict(stop=("",)), dict(json_schema="{"),
])
def test_wrong_parameters_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))): replace(BASE, **wrong)


def test_only_what_is_missing_is_asked(record):
    first = quiet(Fake(), rows(6), record)
    again = Fake()
    assert texts(quiet(again, rows(6)[::-1], record)) == texts(first)[::-1] and not again.asked
    more = quiet(again, rows(8), record)
    assert [i for i, _ in again.asked] == ["r6", "r7"] and [r.cached for r in more] == [True] * 6 + [False] * 2

def test_another_run_seed_or_revision_asks_anew(record):
    quiet(Fake(), rows(3), record)
    for teacher, seed in ((Fake(), 43), (Fake(revision="r2"), 42)):
        quiet(teacher, rows(3), record, seed)
        assert len(teacher.asked) == 3

def test_order_and_sharding_change_nothing(tmp_path):
    whole = quiet(Fake(), rows(20), ResponseRecord(tmp_path/"a"))
    shards = ResponseRecord(tmp_path/"b")
    parts = {r.id: r.text for i in (3, 1, 0, 2) for r in quiet(Fake(), rows(20)[i::4][::-1], shards)}
    assert parts == {r.id: r.text for r in whole} and len(set(parts.values())) == 20

def test_the_same_request_twice_is_asked_once_and_two_under_one_id_are_refused(record):
    teacher = Fake()
    assert len(set(texts(quiet(teacher, rows(2) * 3, record)))) == 2 and len(teacher.asked) == 2
    with pytest.raises(UserError, match="'same'"): quiet(teacher, [Request("same", "a"), Request("same", "b")], record)

def test_what_was_asked_is_recorded_whole(record):
    quiet(Fake(options={"dtype": "auto"}), [BASE], record)
    row, = sqlite3.connect(record.path).execute(
        "select backend, model, revision, prompt, params, seed, "
        "text, finish_reason, prompt_tokens, completion_tokens from responses"
    )
    seed = derive_seed(42, "a")
    assert row[:4] == ("fake", "fake-1", "r1", "question") and row[5:] == (seed, f"question/{seed}", "stop", 3, 2)
    assert json.loads(row[4]) == dict(
        temperature=1.0, max_tokens=10, top_p=0.9, stop=["x"],
        json_schema='{"type": "object"}', options={"dtype": "auto"},
    )


SCRIPT = """
import sys, time
from compeffdist.store import ResponseRecord
from compeffdist.teacher import Request, Response, ask
class Slow:
    backend, model, revision, options = "fake", "slow", "1", {}
    def generate(self, requests, seeds):
        for r, s in zip(requests, seeds):
            with open(sys.argv[2], "a") as f: f.write(r.id + "\\n")
            time.sleep(0.003)
            yield Response(r.id, f"{r.prompt}/{s}")
requests = [Request(f"r{i}", f"p{i}", temperature=1.0) for i in range(300)]
answers = ask(Slow(), requests, ResponseRecord(sys.argv[1]), 42, progress=False)
print("\\n".join(r.text for r in answers))
"""

def run(folder, kill_at=None):
    "Run SCRIPT in its own process; kill -9 once it has made `kill_at` calls."
    calls = folder/"calls"
    p = subprocess.Popen([sys.executable, "-c", SCRIPT, folder/"db.sqlite", calls], stdout=subprocess.PIPE, text=True)
    while kill_at and (not calls.exists() or calls.read_text().count("\n") < kill_at):
        assert p.poll() is None
        time.sleep(0.001)
    if kill_at: os.kill(p.pid, signal.SIGKILL)
    out = p.communicate(timeout=60)[0]
    assert p.returncode == (-9 if kill_at else 0)
    return out

def test_kill_9_loses_nothing_and_repeats_at_most_what_was_in_flight(tmp_path):
    for name in ("calm", "killed"): (tmp_path/name).mkdir()
    calm = run(tmp_path/"calm")
    for kill_at in (1, 60, 170, 280): run(tmp_path/"killed", kill_at)
    assert run(tmp_path/"killed") == calm and calm.count("\n") == 300
    calls = (tmp_path/"killed"/"calls").read_text().split()
    assert len(set(calls)) == 300 and len(calls) <= 300 + 4

def test_ctrl_c_keeps_what_was_answered(record):
    def rule(r, s):
        if r.id == "r5": raise KeyboardInterrupt
        return Response(r.id, "x")
    with pytest.raises(KeyboardInterrupt): quiet(Fake(rule), rows(9), record)
    assert len(record) == 5


def test_failures_become_dead_letters_and_come_alive_again(record):
    broken = Fake(lambda r, s: failed(r, "too hot", 3) if r.id == "r7" else Response(r.id, "x"))
    out = quiet(broken, rows(30), record, stage="s")
    assert tally(out) == dict(asked=30, answered=29, dead=1, cut=0, cached=0, tokens=0)
    assert (out[7].text, out[7].finish_reason, out[7].error) == (None, "error", "too hot")
    assert [(d["request_id"], d["reason"], d["attempts"]) for d in record.dead("s")] == [("r7", "too hot", 3)]
    mended = Fake()
    assert quiet(mended, rows(30), record, stage="s")[7].text and len(mended.asked) == 1 and record.dead("s") == []

@pytest.mark.parametrize("prompt, why", [("", "empty"), (" \n ", "empty"), ("bad \ud800 half", "Unicode")])
def test_what_cannot_be_asked_is_not(record, prompt, why):
    teacher = Fake()
    out = quiet(teacher, [*rows(2), Request("bad", prompt)], record)
    assert why in out[2].error and len(teacher.asked) == 2 and record.dead()[0]["request_id"] == "bad"

def test_empty_answers_are_asked_again_with_a_new_seed_only_where_that_can_help(record):
    first = {r.id: derive_seed(42, r.id) for r in rows(3)}
    rule = lambda r, s: Response(r.id, " " if r.id == "r1" and s == first["r1"] else f"ok {s}")
    warm = Fake(rule)
    out = quiet(warm, rows(3, temperature=1.0), record)
    assert out[1].text == f"ok {derive_seed(42, 'r1', 1)}" and len(warm.asked) == 4
    again = Fake(rule)
    assert texts(quiet(again, rows(3, temperature=1.0), record)) == texts(out) and not again.asked
    cold = Fake(rule)
    assert "empty" in quiet(cold, rows(3), record)[1].error and len(cold.asked) == 3
    never = Fake(lambda r, s: Response(r.id, "" if r.id == "r0" else "ok"))
    assert (
        quiet(never, rows(3, temperature=0.7), record, stage="n")[0].attempts
        == 3
        == record.dead("n")[0]["attempts"]
    )

def test_a_share_of_failures_above_the_limit_stops_the_call_early(record):
    teacher = Fake(lambda r, s: failed(r, f"no {r.id}") if int(r.id[1:]) % 2 else Response(r.id, "x"))
    with pytest.raises(UserError) as e: quiet(teacher, rows(200), record, stage="answers", max_failure_rate=0.1)
    assert (
        "'answers': 21 of 200" in str(e.value)
        and "no r1" in str(e.value)
        and "21 of the 200 answers" in str(e.value)
    )
    assert len(teacher.asked) == 42 and len(record) == 21 and len(record.dead("answers")) == 21
    assert tally(quiet(teacher, rows(200), record, max_failure_rate=0.5))["dead"] == 100

def test_the_teachers_own_limit_holds_unless_overridden(record):
    teacher = Fake(lambda r, s: failed(r, "no") if int(r.id[1:]) < 4 else Response(r.id, "x"), max_failure_rate=0.5)
    assert tally(quiet(teacher, rows(10), record))["dead"] == 4
    with pytest.raises(UserError): quiet(teacher, rows(10), record, max_failure_rate=0.05)

@pytest.mark.parametrize("n, dead, stops", [(1, 1, False), (3, 1, False), (3, 2, False), (2, 2, True), (9, 3, True)])
def test_one_or_two_unlucky_rows_never_stop_a_small_call(record, n, dead, stops):
    teacher = Fake(lambda r, s: failed(r, "no") if int(r.id[1:]) < dead else Response(r.id, "x"))
    if not stops: assert tally(quiet(teacher, rows(n), record))["dead"] == dead
    else:
        with pytest.raises(UserError): quiet(teacher, rows(n), record)

def test_half_characters_from_a_server_are_mended_before_they_reach_the_record(record):
    assert texts(quiet(Fake(lambda r, s: Response(r.id, "good \ud83d")), rows(1), record)) == ["good ?"]


def test_replay_answers_from_the_record_and_never_calls(record):
    first = quiet(Fake(), rows(30), record)
    class Never(Fake):
        def generate(self, *_): raise AssertionError("called")
    replay = ReplayTeacher(Never())
    assert texts(quiet(replay, rows(30), record)) == texts(first)
    out = quiet(replay, rows(31), record, stage="r")
    assert "'r30' is not in the record" in out[30].error and record.dead("r")[0]["request_id"] == "r30"
    with pytest.raises(UserError, match="not in the record"): quiet(replay, rows(60), record)

def test_replay_takes_on_the_recorded_teachers_identity(record, tiny_checkpoint):
    for backend in ("embedded", "transformers", "vllm", "openai"):
        s = load_settings(
            "tiny", teacher_backend=backend,
            teacher_model=str(tiny_checkpoint) if backend in ("transformers", "vllm") else "m",
        )
        r = s.model_copy(update=dict(teacher_backend="replay", teacher_replay_of=backend))
        assert teacher_params(s) == teacher_params(r) and isinstance(load_teacher(r), ReplayTeacher)


def test_embedded_is_deterministic_cut_and_fails_by_row(record, monkeypatch):
    import compeffdist.analyst as analyst
    teacher, requests = EmbeddedTeacher(), [
        Request(
            f"e{i}", f"Analyse the sentiment of the text.\n\nInput: The soup was {w}.\nOutput:",
            temperature=1.0,
        )
        for i, w in enumerate(("superb", "cold", "fine"))
    ]
    seeds = [derive_seed(1, r.id) for r in requests]
    there, back = list(teacher.generate(requests, seeds)), list(teacher.generate(requests[::-1], seeds[::-1]))
    assert texts(there) == texts(back)[::-1] and all(t.strip() for t in texts(there))
    monkeypatch.setattr(analyst, "respond", lambda p, s, t: 1 / 0 if "cold" in p else "one two three STOP four")
    out = list(teacher.generate(
        [replace(requests[0], max_tokens=2), replace(requests[2], stop=("STOP",)), requests[1]],
        [1, 2, 3],
    ))
    assert (out[0].text, out[0].finish_reason, out[0].completion_tokens) == ("one two", "length", 2)
    assert (out[1].text, out[1].finish_reason) == ("one two three ", "stop") and "ZeroDivisionError" in out[2].error


# ---- transformers, on the tiny checkpoint

@pytest.fixture(scope="module")
def local(tiny_checkpoint): return TransformersTeacher(tiny_checkpoint, dtype="float32", batch=5)

def generate(teacher, requests, seed=42):
    out = {r.id: r for r in teacher.generate(requests, [derive_seed(seed, r.id) for r in requests])}
    return [out[r.id] for r in requests]

PROMPTS = [
    Request(f"t{i}", "The soup was superb. " * (1 + i % 4) + str(i), max_tokens=8 + 3 * (i % 3))
    for i in range(13)
]

def test_batched_greedy_equals_model_generate_one_by_one(local):
    import torch
    model, tokenizer, ends = local.load()
    for request, response in zip(PROMPTS, generate(local, PROMPTS)):
        ids = torch.tensor([encode(tokenizer, request.prompt, True)])
        new = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids),
            max_new_tokens=request.max_tokens, do_sample=False,
        )[0, ids.shape[1]:].tolist()
        stop = bool(set(new) & ends)
        want = tokenizer.decode(new, skip_special_tokens=True)
        assert (
            response.text == (want if stop else want.rstrip("\ufffd"))
            and response.finish_reason == ("stop" if stop else "length")
        )
        assert (response.prompt_tokens, response.completion_tokens) == (ids.shape[1], len(new))

def test_samples_do_not_depend_on_their_neighbours(local, tiny_checkpoint):
    warm = [replace(r, temperature=1.0, top_p=0.95) for r in PROMPTS]
    alone = TransformersTeacher(tiny_checkpoint, dtype="float32", batch=1)
    assert texts(generate(local, warm)) == texts(generate(alone, warm[::-1]))[::-1]
    assert texts(generate(local, warm, 43)) != texts(generate(local, warm)) != texts(generate(local, PROMPTS))

def test_mixed_batch_keeps_greedy_rows_greedy(local):
    mixed = [replace(r, temperature=float(i % 2)) for i, r in enumerate(PROMPTS)]
    assert texts(generate(local, mixed))[::2] == texts(generate(local, PROMPTS))[::2]

def test_stop_strings_end_an_answer(local):
    whole = generate(local, PROMPTS[:4])
    asked = [replace(r, stop=(w.text[3],)) for r, w in zip(PROMPTS, whole)]
    for r, w, s in zip(asked, whole, generate(local, asked)):
        assert (s.text, s.finish_reason) == (w.text[:w.text.find(r.stop[0])], "stop")

def test_prompt_longer_than_the_context_is_a_dead_letter(local, tiny_checkpoint, record):
    out = quiet(local, [*PROMPTS[:3], Request("long", "soup " * 600)], record)
    assert (
        all(texts(out)[:3])
        and "model's context of 512" in out[3].error
        and record.dead()[0]["request_id"] == "long"
    )
    short = TransformersTeacher(tiny_checkpoint, dtype="float32", max_model_len=40)
    edge = len(encode(short.load()[1], "soup", True))
    fits, over = generate(
        short,
        [Request("fits", "soup", max_tokens=40 - edge), Request("over", "soup", max_tokens=41 - edge)],
    )
    assert fits.text is not None and "context of 40" in over.error

def test_what_transformers_cannot_do_is_said(local, tiny_checkpoint, tmp_path):
    with pytest.raises(UserError, match="JSON schema"): generate(local, [BASE])
    with pytest.raises(UserError, match="no such folder"): TransformersTeacher(str(tmp_path/"nowhere"))
    with pytest.raises(UserError, match="config.json"): TransformersTeacher(str(tmp_path))
    with pytest.raises(UserError, match="cannot be loaded"): TransformersTeacher("no-such-name", revision="abc").load()
    _, tokenizer, _ = local.load()
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(UserError, match="teacher_chat_template"): encode(tokenizer, "x", True)
    finally: tokenizer.chat_template = template
    assert encode(tokenizer, "x", False) == tokenizer("x")["input_ids"] != encode(tokenizer, "x", True)

def test_a_checkpoint_changed_in_place_is_another_teacher(tmp_path):
    (tmp_path/"config.json").write_text("{}")
    big = tmp_path/"model.safetensors"
    with open(big, "wb") as f: f.truncate((1 << 26) + 9)
    before = checkpoint_revision(tmp_path)
    with open(big, "r+b") as f: f.seek(-1, os.SEEK_END); f.write(b"x")
    assert checkpoint_revision(tmp_path) != before

@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_row_sampler_draws_from_the_model_distribution(temperature, top_p):
    import torch
    torch.manual_seed(0)
    logits, n = torch.randn(7), 20000
    p, order = (logits.double() / temperature).softmax(0).sort(descending=True)
    p[p.cumsum(0) - p >= top_p] = 0
    want = torch.zeros(7, dtype=torch.float64).scatter_(0, order, p / p.sum())
    request = Request("x", "x", temperature=temperature, top_p=top_p)
    got = torch.bincount(RowSampler([request] * n, range(n))(None, logits.repeat(n, 1)).argmax(-1), minlength=7) / n
    assert (got - want).abs().max() < 0.015 and (got[want == 0] == 0).all()


# ---- an OpenAI-compatible server that misbehaves on purpose

class Server:
    "A loopback server; `rule(prompt, n)` gives (status, headers, body) for the n-th call with that prompt."
    def __init__(self, rule):
        self.rule, self.bodies, self.count, self.now, self.most, self.auth, self.lock = (
            rule, [], {}, 0, 0, set(), threading.Lock()
        )
        outer = self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def log_message(self, *_): pass
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
                with outer.lock:
                    outer.now += 1; outer.most = max(outer.most, outer.now)
                    n = outer.count[prompt] = outer.count.get(prompt, 0) + 1
                    outer.bodies.append((self.path, body, time.monotonic()))
                    outer.auth.add(self.headers.get("Authorization"))
                try:
                    status, headers, reply = outer.rule(prompt, n)
                    data = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
                    self.send_response(status)
                    for k, v in {**headers, "Content-Length": str(len(data))}.items(): self.send_header(k, v)
                    self.end_headers(); self.wfile.write(data)
                except OSError: pass
                finally:
                    with outer.lock: outer.now -= 1
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()

    def close(self): self.http.shutdown(); self.http.server_close()

@pytest.fixture
def serve():
    servers = []
    def start(rule): servers.append(Server(rule)); return servers[-1]
    yield start
    for s in servers: s.close()

def good(text, **kw):
    return 200, {}, dict(
        choices=[dict(message=dict(content=text), finish_reason="stop")],
        usage=dict(prompt_tokens=5, completion_tokens=2),
    ) | kw

def client(server, **kw):
    return OpenAITeacher("m", base_url=server.url, **dict(
        dict(backoff=0.01, max_retries=3, timeout=5, concurrency=8) | kw
    ))

def test_server_gets_every_parameter_and_many_requests_at_a_time(serve, record):
    def rule(prompt, n): time.sleep(0.03); return good(f"re {prompt}")
    server = serve(rule)
    out = quiet(
        client(server),
        rows(
            40, temperature=0.7, top_p=0.9, max_tokens=33,
            stop=("END",), json_schema='{"type": "object"}',
        ),
        record,
    )
    assert texts(out) == [f"re prompt {i}" for i in range(40)] and out[0].prompt_tokens == 5 and 4 <= server.most <= 8
    path, body, _ = next(b for b in server.bodies if b[1]["messages"][0]["content"] == "prompt 3")
    schema = body.pop("response_format")
    assert path == "/v1/chat/completions" and body == dict(
        model="m", temperature=0.7, top_p=0.9, max_tokens=33, stop=["END"],
        seed=derive_seed(42, "r3"), messages=[dict(role="user", content="prompt 3")],
    )
    assert schema["json_schema"]["schema"] == {"type": "object"}

def test_bare_prompts_and_extra_body(serve, record):
    server = serve(lambda p, n: (200, {}, dict(choices=[dict(text="bare", finish_reason="length")])))
    out, = quiet(client(server, chat_template=False, extra_body={"min_p": 0.1}), rows(1), record)
    assert (out.text, out.finish_reason, out.prompt_tokens) == ("bare", "length", 0)
    assert server.bodies[0][0] == "/v1/completions" and server.bodies[0][1]["min_p"] == 0.1

TROUBLES = {
    "429": (429, {}, "slow down"),
    "500": (500, {}, "oops"),
    "503": (503, {}, {}),
    "not json": (200, {}, "<html>"),
    "no choices": (200, {}, {"choices": []}),
    "null": (200, {}, "null"),
    "408": (408, {}, ""),
}

@pytest.mark.parametrize("trouble", TROUBLES)
def test_passing_troubles_are_retried(serve, record, trouble):
    server = serve(lambda p, n: TROUBLES[trouble] if n < 3 else good("fine"))
    out, = quiet(client(server), rows(1), record)
    assert out.text == "fine" and out.attempts == 3 == server.count["prompt 0"]

@pytest.mark.parametrize("trouble", ["429", "500", "not json"])
def test_lasting_troubles_of_one_row_end_in_a_dead_letter(serve, record, trouble):
    server = serve(lambda p, n: TROUBLES[trouble] if p == "prompt 4" else good("fine"))
    out = quiet(client(server), rows(30), record, stage="s")
    assert tally(out)["dead"] == 1 and "4 attempts" in out[4].error and server.count["prompt 4"] == 4
    assert record.dead("s")[0]["attempts"] == 4

def test_retry_after_is_honoured(serve, record):
    server = serve(lambda p, n: (429, {"Retry-After": "1"}, "") if n == 1 else good("fine"))
    assert quiet(client(server), rows(1), record)[0].text == "fine"
    assert 0.95 <= server.bodies[1][2] - server.bodies[0][2] < 3

def test_time_outs_are_retried_then_given_up(serve, record):
    def rule(prompt, n):
        if prompt == "prompt 1" or n == 1: time.sleep(0.8)
        return good("late")
    server = serve(rule)
    out = quiet(client(server, timeout=0.3, max_retries=1), rows(3), record)
    assert texts(out) == ["late", None, "late"] and "no answer within 0.3 s" in out[1].error

@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_a_refused_request_is_a_dead_letter_at_once(serve, record, status):
    server = serve(lambda p, n: (status, {}, dict(error="too long for me")) if p == "prompt 2" else good("fine"))
    out = quiet(client(server), rows(5), record)
    assert (
        f"status {status}" in out[2].error
        and "too long for me" in out[2].error
        and server.count["prompt 2"] == 1
        and tally(out)["answered"] == 4
    )

@pytest.mark.parametrize("status, word", [(401, "LESSON_KEY"), (402, "credit"), (404, "teacher_model")])
def test_what_concerns_all_requests_stops_at_once_with_one_error(serve, record, status, word):
    server = serve(lambda p, n: (status, {}, "no"))
    with pytest.raises(UserError, match=word):
        quiet(client(server, api_key_env="LESSON_KEY", concurrency=2), rows(50), record)
    assert len(server.bodies) <= 4 and record.dead() == []

def test_server_that_goes_down_ends_in_one_error_and_loses_nothing(serve, record):
    server = serve(lambda p, n: good("fine"))
    teacher = client(server, max_retries=2)
    quiet(teacher, rows(10), record)
    server.close()
    start = time.monotonic()
    with pytest.raises(UserError) as e: quiet(teacher, rows(60), record)
    assert (
        "cannot be reached" in str(e.value)
        and "10 of the 60 answers" in str(e.value)
        and len(record) == 10
        and time.monotonic() - start < 30
    )
    assert record.dead() == []

def test_an_api_key_reaches_the_server_and_nothing_else(serve, tmp_path, monkeypatch, caplog, capfd):
    caplog.set_level(0)
    secret = "sk-very-secret-73519"
    monkeypatch.setenv("LESSON_KEY", secret)
    def rule(p, n): return good("fine") if p != "prompt 3" else (400, {}, f"bad request, key {secret}")
    server = serve(rule)
    record = ResponseRecord(tmp_path/"responses.sqlite")
    teacher = client(server, api_key_env="LESSON_KEY")
    out = ask(teacher, rows(8), record, 42)
    assert server.auth == {f"Bearer {secret}"} and "key [key]" in out[3].error
    refusing = serve(lambda p, n: (401, {}, f"Incorrect API key provided: {secret}"))
    with pytest.raises(UserError) as e: quiet(client(refusing, api_key_env="LESSON_KEY"), rows(9), record)
    seen = "".join([
        str(e.value), caplog.text, *capfd.readouterr(), str(vars(teacher)),
        str(teacher_params(load_settings("tiny", teacher_backend="openai", teacher_api_key_env="LESSON_KEY"))),
    ])
    assert (
        secret not in seen
        and [p for p in tmp_path.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()] == []
    )

def test_a_key_in_the_place_of_its_name_is_refused_unseen():
    with pytest.raises(UserError) as e: OpenAITeacher("m", api_key_env="sk-12345")
    assert "12345" not in str(e.value)
    with pytest.raises(UserError) as e: OpenAITeacher("m", base_url="http://user:pass@host/v1")
    assert "pass@" not in str(e.value)


# ---- from settings

@pytest.mark.parametrize("profile", ["tiny", "mini", "gpu", "paper"])
@pytest.mark.filterwarnings("ignore:.*branch 'main'")
def test_every_profiles_teacher_can_be_built_up_to_the_weights(profile):
    s = load_settings(profile)
    teacher = load_teacher(s)
    assert teacher.backend == s.teacher_backend and teacher.max_failure_rate == s.teacher_max_failure_rate
    if isinstance(teacher, VLLMTeacher):
        assert (
            teacher.engine_args["tensor_parallel_size"] == s.teacher_tensor_parallel
            and teacher._engine is None
        )

def test_settings_reach_the_back_ends(tiny_checkpoint):
    s = load_settings(
        "tiny", teacher_backend="openai", teacher_model="served", teacher_revision="r9",
        teacher_base_url="http://h:1/v1/", teacher_concurrency=3, teacher_timeout=9.0,
        teacher_max_retries=1, teacher_chat_template=False, teacher_max_failure_rate=0.2,
    )
    t = load_teacher(s)
    assert (
        t.model, t.revision, t.base_url, t.concurrency, t.timeout,
        t.max_retries, t.options["chat_template"], t.max_failure_rate,
    ) == ("served", "r9", "http://h:1/v1", 3, 9.0, 1, False, 0.2)
    s = load_settings(
        "tiny", teacher_backend="transformers", teacher_model=str(tiny_checkpoint),
        teacher_dtype="float32", teacher_max_model_len=100, teacher_batch=7,
    )
    t = load_teacher(s)
    assert t.revision.startswith("files-") and (t.options["dtype"], t.max_model_len, t.batch) == ("float32", 100, 7)
    s = load_settings(
        "tiny", teacher_backend="vllm", teacher_model=str(tiny_checkpoint),
        teacher_gpu_memory=0.5, teacher_max_model_len=100,
    )
    assert (
        load_teacher(s).engine_args["gpu_memory_utilization"] == 0.5
        and load_teacher(s).engine_args["max_model_len"] == 100
    )

def test_a_hub_name_without_a_commit_is_warned_about():
    with pytest.warns(UserWarning, match="teacher_revision"): VLLMTeacher("Qwen/Qwen3-8B")


@pytest.mark.parametrize("usage", ["12 tokens", [5, 2], 7])
def test_usage_that_is_no_object_is_a_body_that_is_no_completion(usage):
    from types import SimpleNamespace
    from compeffdist.backends import _parse
    body = dict(choices=[dict(text="yes")], usage=usage)
    with pytest.raises(ValueError, match="no completion"):
        _parse(BASE, SimpleNamespace(json=lambda: body, text=json.dumps(body)), 1)
