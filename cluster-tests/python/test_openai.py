"""What a user of the official OpenAI client expects of the demo model. Run: test_openai.py BASE_URL."""

import asyncio
import sys
import traceback

import openai

BASE = sys.argv[1]
MODEL = "demo-llm"
PARIS = "The capital of France is Paris."
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
client = openai.OpenAI(base_url=BASE, api_key="unused", max_retries=0, timeout=60)


def expect_error(kind, status, param, call):
    try:
        call()
    except kind as error:
        assert error.status_code == status, (error.status_code, status)
        assert error.param == param, (error.param, param)
        assert error.message, "no message"
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def test_models():
    ids = [model.id for model in client.models.list()]
    assert ids == [MODEL], ids
    assert client.models.retrieve(MODEL).id == MODEL
    expect_error(openai.NotFoundError, 404, "model", lambda: client.models.retrieve("no-such-model"))


def test_chat():
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert answer.object == "chat.completion" and answer.id and answer.created
    assert answer.model == MODEL
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == PARIS, choice.message.content
    assert choice.finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens >= 0


def test_content_as_parts():
    parts = [{"type": "text", "text": "What is the capital "}, {"type": "text", "text": "of France?"}]
    messages = [{"role": "user", "content": parts}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert answer.choices[0].message.content.strip(), answer


def test_chat_stream():
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in deltas) == PARIS
    assert [choice.finish_reason for choice in deltas if choice.finish_reason] == ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stream_without_usage():
    stream = client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, max_tokens=4)
    assert all(chunk.choices and chunk.usage is None for chunk in stream)


def test_stream_left_early():
    with client.chat.completions.create(
        model=MODEL, messages=QUESTION, stream=True, max_tokens=400, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream))
    test_chat()


def test_logprobs():
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 4
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        best = token.top_logprobs[0]
        assert best.token == token.token and best.logprob == token.logprob, "greedy takes the best"
        assert bytes(token.bytes).decode() == token.token
        scores = [other.logprob for other in token.top_logprobs]
        assert scores == sorted(scores, reverse=True)
    assert PARIS.startswith("".join(token.token for token in content))


def test_stop():
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stop=[" is", "zzz"])
    assert answer.choices[0].message.content == "The capital of France"
    assert answer.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stop="France is P", stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "The capital of ", text


def test_max_tokens():
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, **limit)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 3


def test_seed():
    def sample(seed):
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=1.8, seed=seed, max_tokens=24
        )
        return answer.choices[0].message.content

    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in range(6)}) > 1


def test_several_choices():
    def sample():
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, n=3, temperature=1.8, seed=11, max_tokens=24
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = sample()
    assert first == sample(), "a seed decides all choices"
    assert len(set(first)) > 1, "choices differ among themselves"
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, n=3, temperature=1.8, seed=11, max_tokens=24, stream=True
    )
    texts = ["", "", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == first, (texts, first)


def test_completions():
    prompt = "The router is the front door of the cluster."
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0)
    assert answer.object == "text_completion" and answer.choices[0].finish_reason == "length"
    text = answer.choices[0].text
    assert text.startswith(" It accepts a request"), text
    stream = client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == text
    several = client.completions.create(model=MODEL, prompt=[prompt, "What"], max_tokens=4, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1]
    for unsupported in ({"echo": True}, {"suffix": "end"}):
        (param,) = unsupported
        expect_error(
            openai.BadRequestError, 400, param,
            lambda fields=unsupported: client.completions.create(model=MODEL, prompt=prompt, **fields),
        )
    scored = client.completions.create(model=MODEL, prompt=prompt, max_tokens=2, temperature=0, logprobs=2)
    logprobs = scored.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 2


def test_errors_are_typed():
    def create(**fields):
        return lambda: client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, **fields})

    expect_error(openai.BadRequestError, 400, "temperature", create(temperature=3))
    expect_error(openai.BadRequestError, 400, "messages", create(messages=[]))
    expect_error(openai.BadRequestError, 400, "n", create(n=0))
    expect_error(openai.NotFoundError, 404, "model", create(model="no-such-model"))
    long = [{"role": "user", "content": "What is a KV cache? " * 2000}]
    error = expect_error(openai.BadRequestError, 400, "messages", create(messages=long))
    assert error.code == "context_length_exceeded", error.code


def test_request_id():
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, max_tokens=1, extra_headers={"x-request-id": "my-id-1"}
    )
    assert raw.headers["x-request-id"] == "my-id-1"
    assert raw.headers["x-phalanx-worker"]
    assert client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)._request_id


def test_async():
    async def run():
        async with openai.AsyncOpenAI(base_url=BASE, api_key="unused", max_retries=0, timeout=60) as later:

            async def whole():
                answer = await later.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
                return answer.choices[0].message.content

            async def streamed():
                text = ""
                async for chunk in await later.chat.completions.create(
                    model=MODEL, messages=QUESTION, temperature=0, stream=True
                ):
                    text += chunk.choices[0].delta.content or ""
                return text

            return await asyncio.gather(*(whole() for _ in range(8)), *(streamed() for _ in range(8)))

    assert set(asyncio.run(run())) == {PARIS}


def main():
    failed = 0
    for name, test in sorted(globals().items()):
        if name.startswith("test_"):
            try:
                test()
                print(f"good    {name}")
            except Exception:
                failed += 1
                print(f"FAILED  {name}\n{traceback.format_exc()}")
    sys.exit(1 if failed else 0)


main()
