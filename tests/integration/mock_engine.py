"""An OpenAI-compatible engine without a model, as a process of its own.

    python mock_engine.py --port 8765 --ms-per-call 5

What it answers is a function of the payload alone. How it misbehaves is not: it counts requests as they come.
`/stats` says how often, and when, each payload was answered, and how many requests are being answered.
"""

import argparse
import asyncio
import hashlib
import json
import math
import time
from typing import Any

from aiohttp import web

WORDS = "ask listen first then tell the truth kindly keep your word help and wait for their answer".split()


class Engine:
    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._num_requests = 0
        self._in_flight = 0
        self._answered: dict[bytes, list[float]] = {}
        self._over = asyncio.Event()
        self._slots = asyncio.Semaphore(args.slots)

    def _every(self, number: int) -> bool:
        return number > 0 and self._num_requests % number == 0

    async def chat(self, request: web.Request) -> web.Response:
        args, body = self._args, await request.read()
        self._num_requests += 1
        if self._num_requests == args.refuse_at:
            return web.json_response({"error": {"message": "the quota is used up"}}, status=402)
        slow = 10 if self._every(args.slow_every) else 1
        fails = self._every(args.fail_every)
        said = answer(json.loads(body), args)
        ms = args.ms_per_call + args.ms_per_token * said["usage"]["completion_tokens"]
        self._in_flight += 1
        try:
            if self._every(args.hang_every):
                await self._over.wait()
            async with self._slots:
                await asyncio.sleep(slow * ms / 1000)
        finally:
            self._in_flight -= 1
        if fails:
            return web.json_response({"error": {"message": "injected failure"}}, status=500)
        self._answered.setdefault(body, []).append(time.time())
        if args.exchange_at and self._num_requests >= args.exchange_at:
            said["model"] = "other"
            said["choices"][0]["message"]["content"] += " So says another."
        return web.json_response(said)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self._args.model}]})

    async def stats(self, request: web.Request) -> web.Response:
        answered = [{"payload": json.loads(body), "times": times} for body, times in self._answered.items()]
        return web.json_response({"answered": answered, "in_flight": self._in_flight})

    async def end(self, app: web.Application) -> None:
        self._over.set()


def answer(payload: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """A chat completion: words, a rating in words where one is asked for, or the probabilities of the digits."""
    digest = hashlib.blake2b(json.dumps(payload, sort_keys=True).encode(), digest_size=32).digest()
    asked = payload["messages"][-1]["content"]
    text = " ".join(WORDS[byte % len(WORDS)] for byte in digest[: 6 + digest[0] % 20]) + f" ({digest.hex()[:8]})"
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if payload.get("logprobs"):
        weights = [1 + byte for byte in digest[:7]]
        top = [
            {"token": str(digit), "logprob": math.log(weight / sum(weights))}
            for digit, weight in enumerate(weights, start=1)
        ]
        text, choice["logprobs"] = "4", {"content": [{"token": "4", "logprob": -1.0, "top_logprobs": top}]}
    elif "Rating:" in asked:
        garbled = args.garble_every and digest[1] % args.garble_every == 0
        text = "I would rather not say." if garbled else f"Rating: {1 + digest[2] % 7} Reason: {text}"
    choice["message"] = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": len(asked) // 4, "completion_tokens": len(text.split())}
    return {"id": "mock", "object": "chat.completion", "model": args.model, "choices": [choice], "usage": usage}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="mock")
    parser.add_argument("--ms-per-call", type=float, default=0.0)
    parser.add_argument("--ms-per-token", type=float, default=0.0, help="of the reply, beside that")
    parser.add_argument("--slots", type=int, default=1 << 16, help="replies that are made at a time")
    parser.add_argument("--slow-every", type=int, default=0, help="every so many requests, one takes ten times as long")
    parser.add_argument("--fail-every", type=int, default=0, help="... one is answered with HTTP 500")
    parser.add_argument("--hang-every", type=int, default=0, help="... one is never answered")
    parser.add_argument("--refuse-at", type=int, default=0, help="this request is answered with HTTP 402")
    parser.add_argument("--exchange-at", type=int, default=0, help="from this request on another model answers")
    parser.add_argument("--garble-every", type=int, default=0, help="of so many payloads, one gets no rating")
    args = parser.parse_args()
    engine = Engine(args)
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/v1/chat/completions", engine.chat)
    app.router.add_get("/v1/models", engine.models)
    app.router.add_get("/health", engine.models)
    app.router.add_get("/stats", engine.stats)
    app.on_shutdown.append(engine.end)
    web.run_app(app, host="127.0.0.1", port=args.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
