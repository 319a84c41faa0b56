"""Stands in for vLLM, which needs an environment of its own, at the edge of the network: `vllm serve FOLDER ...`.

It is a program on the PATH that hears vLLM's words, asks for its key, and says which folder it was given. A question
about art it answers after a thought. Of several nodes, those after the first wait for their end. What it was told is in
the folder that VLLM_STAND_IN_TOLD names; the part of the node that VLLM_STAND_IN_FAILS names fails, and
that of VLLM_STAND_IN_HANGS is never ready.
"""

import os
import sys
from pathlib import Path

VLLM = """#!{python}
import asyncio, json, os, sys, time
from aiohttp import web

flags = "--disable-uvicorn-access-log", "--headless"
folder, words = sys.argv[2], [word for word in sys.argv[3:] if word not in flags]
option = dict(zip(words[::2], words[1::2]))
rank = option.get("--node-rank")
if "VLLM_STAND_IN_TOLD" in os.environ:
    told = dict(option, pid=os.getpid(), headless="--headless" in sys.argv, address=os.environ.get("VLLM_HOST_IP"))
    with open(os.path.join(os.environ["VLLM_STAND_IN_TOLD"], "told-by-" + str(rank)), "a") as file:
        file.write(json.dumps(told) + "\\n")
if rank is not None and os.environ.get("VLLM_STAND_IN_FAILS") == rank:
    sys.exit("no room on this node")
if "--headless" in sys.argv or os.environ.get("VLLM_STAND_IN_HANGS") == rank is not None:
    time.sleep(3600)
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
