"""One conversation each with a running `kiv serve`, through the clients that people
use: the openai and ollama packages, of Python and of JavaScript, and LangChain's classes.

    python check.py [--kiv target/release/kiv]
"""

import argparse
import json
import re
import subprocess
from pathlib import Path

FACT = "The secret code of Amber Falcon is 48213."
QUESTION = "What is the secret code of Amber Falcon?"
MESSAGES = [{"role": "system", "content": FACT}, {"role": "user", "content": QUESTION}]
KEY = "a-key"
SCHEMA = {
    "type": "object",
    "properties": {"code": {"type": "integer"}},
    "required": ["code"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "open_safe", "description": "Opens the safe.", "parameters": SCHEMA},
}


def check(who: str, answer: str) -> None:
    assert answer.strip() == "48213", f"{who}: {answer!r}"
    print(f"{who}: {answer.strip()}", flush=True)


def check_code(who: str, answer: str | dict) -> None:
    """The model is no chat model: the form is what counts."""
    found = json.loads(answer) if isinstance(answer, str) else answer
    assert isinstance(found["code"], int), f"{who}: {found}"
    print(f"{who}: {found}", flush=True)


def openai(base: str, model: str) -> None:
    from openai import AuthenticationError, BadRequestError, OpenAI

    client = OpenAI(base_url=f"{base}/v1", api_key=KEY)
    assert [m.id for m in client.models.list()] == [model]
    ask = {"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 6}
    whole = client.chat.completions.create(**ask)
    check("openai", whole.choices[0].message.content)
    assert whole.usage.completion_tokens == 6
    pieces = client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    check("openai, streamed", "".join(p.choices[0].delta.content or "" for p in pieces if p.choices))
    text = client.completions.create(
        model=model, prompt=f"{FACT}\n{QUESTION}\nAnswer:", temperature=0, max_tokens=6
    )
    check("openai, completion", text.choices[0].text)
    likely = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2)
    places = likely.choices[0].logprobs.content
    check("openai, logprobs", bytes(b for place in places for b in place.bytes).decode())
    assert all(place.token == place.top_logprobs[0].token for place in places)
    ask["max_tokens"] = 60
    schema = {"type": "json_schema", "json_schema": {"name": "code", "schema": SCHEMA}}
    formed = client.chat.completions.create(**ask, response_format=schema)
    check_code("openai, schema", formed.choices[0].message.content)
    called = client.chat.completions.create(**ask, tools=[TOOL], tool_choice="required")
    call = called.choices[0].message.tool_calls[0]
    assert called.choices[0].finish_reason == "tool_calls" and call.function.name == "open_safe"
    check_code("openai, tool", call.function.arguments)
    pieces = client.chat.completions.create(
        **ask, tools=[TOOL], tool_choice="required", stream=True
    )
    calls = [c for p in pieces for c in p.choices[0].delta.tool_calls or []]
    check_code("openai, tool, streamed", "".join(c.function.arguments for c in calls))
    result = {"role": "tool", "tool_call_id": call.id, "content": "It is open."}
    said = [*MESSAGES, called.choices[0].message, result]
    after = client.chat.completions.create(**{**ask, "messages": said}, tools=[TOOL])
    assert after.choices[0].message.content is not None
    try:
        client.chat.completions.create(**{**ask, "n": 2})
        raise AssertionError("n=2 was accepted")
    except BadRequestError as error:
        assert error.body["param"] == "n", error.body
    try:
        OpenAI(base_url=f"{base}/v1", api_key="wrong").models.list()
        raise AssertionError("a wrong key was accepted")
    except AuthenticationError:
        pass


def responses(base: str, model: str) -> None:
    from openai import BadRequestError, OpenAI

    client = OpenAI(base_url=f"{base}/v1", api_key=KEY)
    ask = {"model": model, "input": QUESTION, "instructions": FACT, "temperature": 0}
    whole = client.responses.create(**ask, max_output_tokens=6)
    check("openai, response", whole.output_text)
    assert whole.status == "incomplete" and whole.usage.output_tokens == 6
    with client.responses.stream(**ask, max_output_tokens=6) as events:
        pieces = [e.delta for e in events if e.type == "response.output_text.delta"]
    check("openai, response, streamed", "".join(pieces))
    events = list(client.responses.create(**ask, max_output_tokens=6, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    check("openai, response, last event", events[-1].response.output_text)
    ask["max_output_tokens"] = 60
    formed = client.responses.create(
        **ask, text={"format": {"type": "json_schema", "name": "code", "schema": SCHEMA}}
    )
    check_code("openai, response, schema", formed.output_text)
    tool = {"type": "function", "strict": True, **TOOL["function"]}
    called = client.responses.create(**ask, tools=[tool], tool_choice="required")
    (call,) = called.output
    assert call.type == "function_call" and call.name == "open_safe"
    check_code("openai, response, tool", call.arguments)
    events = client.responses.create(**ask, tools=[tool], tool_choice="required", stream=True)
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    check_code("openai, response, tool, streamed", done[0].arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "It is open."}
    said = [{"role": "user", "content": QUESTION}, call, result]
    after = client.responses.create(**{**ask, "input": said}, tools=[tool])
    assert after.output
    try:
        client.responses.create(**ask, previous_response_id=whole.id)
        raise AssertionError("previous_response_id was accepted")
    except BadRequestError as error:
        assert error.body["param"] == "previous_response_id", error.body


def ollama(base: str, model: str) -> None:
    from ollama import Client, ResponseError

    client = Client(host=base, headers={"Authorization": f"Bearer {KEY}"})
    assert [m.model for m in client.list().models] == [model]
    options = {"temperature": 0, "num_predict": 6}
    whole = client.chat(model=model, messages=MESSAGES, options=options)
    check("ollama", whole.message.content)
    pieces = client.chat(model=model, messages=MESSAGES, options=options, stream=True)
    check("ollama, streamed", "".join(p.message.content for p in pieces))
    text = client.generate(model=model, prompt=f"{FACT}\n{QUESTION}", options=options)
    check("ollama, generate", text.response)
    options["num_predict"] = 60
    formed = client.chat(model=model, messages=MESSAGES, options=options, format=SCHEMA)
    check_code("ollama, schema", formed.message.content)
    call = {"function": {"name": "open_safe", "arguments": {"code": 48213}}}
    said = [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "open_safe", "content": "It is open."},
    ]
    after = client.chat(model=model, messages=said, tools=[TOOL], options=options)
    assert after.message.content is not None
    assert client.show(model).modelinfo["general.architecture"] == "qwen3"
    try:
        client.chat(model="no-such-model", messages=MESSAGES)
        raise AssertionError("an unknown model was accepted")
    except ResponseError as error:
        assert error.status_code == 404, error


def langchain(base: str, model: str) -> None:
    from langchain_ollama import ChatOllama
    from langchain_openai import ChatOpenAI

    messages = [("system", FACT), ("human", QUESTION)]
    chat = ChatOpenAI(base_url=f"{base}/v1", api_key=KEY, model=model, temperature=0, max_tokens=6)
    check("langchain, openai", chat.invoke(messages).content)
    check("langchain, openai, streamed", "".join(p.content for p in chat.stream(messages)))
    chat.max_tokens = 60
    called = chat.bind_tools([TOOL], tool_choice="open_safe").invoke(messages)
    check_code("langchain, openai, tool", called.tool_calls[0]["args"])
    schema = {"title": "code", "description": "The code.", **SCHEMA}
    formed = chat.with_structured_output(schema, method="json_schema").invoke(messages)
    check_code("langchain, openai, schema", formed)
    chat = ChatOllama(
        base_url=base,
        model=model,
        temperature=0,
        num_predict=6,
        client_kwargs={"headers": {"Authorization": f"Bearer {KEY}"}},
    )
    check("langchain, ollama", chat.invoke(messages).content)
    check("langchain, ollama, streamed", "".join(p.content for p in chat.stream(messages)))


def javascript(base: str, model: str) -> None:
    script = Path(__file__).with_name("check.mjs")
    subprocess.run(["node", script, base, KEY, model], check=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kiv", default="target/release/kiv")
    args = parser.parse_args()
    command = [args.kiv, "serve", "--port", "0", "--api-key", KEY, "--alias", "tiny"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            found = re.search(r"listening on (http://\S+)", line)
            if found:
                break
        else:
            raise SystemExit("kiv serve did not start")
        for client in (openai, responses, ollama, langchain, javascript):
            client(found[1], "tiny")
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 0, "kiv serve did not stop cleanly"


main()
