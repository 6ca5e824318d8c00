"""Asks a list of questions with the official OpenAI SDK, some at a time, and says what the caller of the SDK saw.

stdin:  {"base_url", "api_key", "concurrency", "max_retries"?, "requests": [{"kind": "chat" | "stream" | "embeddings",
        "args": {...}, "headers": {...}?}]}
stdout: {"sent": requests on the wire, "results": [...]} in the order of the requests
"""

import asyncio
import json
import sys

import openai

HEADERS = ["x-tuition-outcome", "x-tuition-calls", "x-tuition-key", "x-tuition-cost-usd", "x-should-retry"]


def headers_of(response):
    return {name: response.headers[name] for name in HEADERS if name in response.headers}


def logprobs_of(choice):
    if choice.logprobs is None or choice.logprobs.content is None:
        return None
    return [token.model_dump() for token in choice.logprobs.content]


async def chat(client, args, headers):
    response = await client.chat.completions.with_raw_response.create(**args, extra_headers=headers)
    answer = response.parse()
    choices = [
        {"text": choice.message.content, "finish": choice.finish_reason, "logprobs": logprobs_of(choice)}
        for choice in answer.choices
    ]
    usage = answer.usage.model_dump() if answer.usage else None
    return {"choices": choices, "usage": usage, "headers": headers_of(response)}


async def stream(client, args, headers):
    response = await client.chat.completions.with_raw_response.create(**args, stream=True, extra_headers=headers)
    choices, usage = {}, None
    async for chunk in response.parse():
        usage = chunk.usage.model_dump() if chunk.usage else usage
        for part in chunk.choices:
            choice = choices.setdefault(part.index, {"text": "", "finish": None, "logprobs": None})
            choice["text"] += part.delta.content or ""
            choice["finish"] = part.finish_reason or choice["finish"]
            logprobs = logprobs_of(part)
            if logprobs is not None:
                choice["logprobs"] = (choice["logprobs"] or []) + logprobs
    ordered = [choices[index] for index in sorted(choices)]
    return {"choices": ordered, "usage": usage, "headers": headers_of(response)}


async def embeddings(client, args, headers):
    response = await client.embeddings.with_raw_response.create(**args, extra_headers=headers)
    answer = response.parse()
    vectors = {item.index: item.embedding for item in answer.data}
    usage = answer.usage.model_dump() if answer.usage else None
    return {"vectors": [vectors[index] for index in range(len(vectors))], "usage": usage, "headers": headers_of(response)}


async def ask(client, request, limit):
    kinds = {"chat": chat, "stream": stream, "embeddings": embeddings}
    async with limit:
        try:
            answer = await kinds[request["kind"]](client, request["args"], request.get("headers", {}))
            return {"status": 200, **answer}
        except openai.APIStatusError as error:
            return {
                "status": error.status_code,
                "error": type(error).__name__,
                "code": error.code,
                "message": error.message,
                "headers": headers_of(error.response),
                "retries": int(error.response.request.headers["x-stainless-retry-count"]),
            }
        except openai.APIError as error:
            return {"status": None, "error": type(error).__name__, "message": str(error)}
        except Exception as error:  # a stream that breaks raises what the HTTP library raises
            return {"status": None, "error": type(error).__name__, "message": str(error)}


async def main():
    asked = json.load(sys.stdin)
    sent = 0

    async def count(_request):
        nonlocal sent
        sent += 1

    http = openai.DefaultAsyncHttpx2Client(event_hooks={"request": [count]})
    client = openai.AsyncOpenAI(
        base_url=asked["base_url"],
        api_key=asked["api_key"],
        max_retries=asked.get("max_retries", 2),
        http_client=http,
    )
    limit = asyncio.Semaphore(asked["concurrency"])
    results = await asyncio.gather(*(ask(client, request, limit) for request in asked["requests"]))
    json.dump({"sent": sent, "results": results}, sys.stdout)


asyncio.run(main())
