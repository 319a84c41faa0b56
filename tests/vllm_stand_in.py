"""Stands in for vLLM, which needs an environment of its own, at the edge of the network: `vllm serve FOLDER ...`.

It is a program on the PATH that hears vLLM's words, asks for its key, and says which folder it was given. A question
about art it answers after a thought.
"""

import os
import sys
from pathlib import Path

VLLM = """#!{python}
import asyncio, json, os, sys
from aiohttp import web

folder, words = sys.argv[2], [word for word in sys.argv[3:] if word != "--disable-uvicorn-access-log"]
option = dict(zip(words[::2], words[1::2]))
model = option["--served-model-name"]
assert os.path.isfile(os.path.join(folder, "config.json"))

async def models(request):
    return web.json_response({{"data": [{{"id": model}}]}})

async def complete(request):
    asked = await request.json()
    assert request.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
    await asyncio.sleep(float(os.environ.get("VLLM_STAND_IN_S", "0")))
    text = "<think>Hm.</think>" * ("art" in asked["messages"][-1]["content"]) + "I am " + os.path.basename(folder)
    if "--tensor-parallel-size" in option:
        text += " on GPUs " + os.environ["CUDA_VISIBLE_DEVICES"]
    choice = {{"message": {{"content": text}}, "finish_reason": "length"}}
    return web.json_response({{"model": asked["model"], "choices": [choice]}})

app = web.Application()
app.router.add_get("/v1/models", models)
app.router.add_post("/v1/chat/completions", complete)
web.run_app(app, host=option["--host"], port=int(option["--port"]), print=None)
"""


def path_with_vllm(folder: Path) -> str:
    """The PATH by which `vllm` is found in a folder that is made for it."""
    folder.mkdir()
    (folder / "vllm").write_text(VLLM.format(python=sys.executable))
    (folder / "vllm").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
