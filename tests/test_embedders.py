"""Texts as vectors: hashed words, a model in this process, and a server."""

import asyncio
import contextlib
import json
import math
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from waits import HANG_S

from salign.config import Embedder, EverydaySource, HashingEmbedder, OpenAIEmbedder, TransformersEmbedder
from salign.config.effects import sections_in
from salign.errors import ConfigError, EngineError
from salign.society.embedders import EMBEDDERS, embed
from salign.society.sources import questions

QUESTIONS = questions(EverydaySource()) + questions(EverydaySource(split="held_out"))

# --- hashing -------------------------------------------------------------------------------------


def similarities(texts, **settings):
    rows = embed(HashingEmbedder(**settings), texts)
    return (rows @ rows.T).toarray()


def test_similarities_are_of_words_and_word_pairs():
    found = similarities(["alpha beta", "Alpha, beta gamma!", "delta"])
    # {alpha, beta, alpha beta} and those with {gamma, beta gamma}
    assert found[0] == pytest.approx([1, 3 / math.sqrt(3 * 5), 0])
    assert found.diagonal() == pytest.approx([1, 1, 1], abs=1e-12)


def test_words_are_counted():
    # {no: 3, no no: 2} and {no: 1}
    assert similarities(["No no NO", "no"])[0, 1] == pytest.approx(3 / math.sqrt(13))


def test_words_are_of_any_script():
    found = similarities(["soll ich grüßen", "SOLL ICH GRÜSSEN", "\ud83d soll", "该怎么办", "该怎么办?"])
    assert found[3, 4] == pytest.approx(1)
    assert 0 < found[0, 1] < 1
    assert 0 < found[0, 2] < 1


def test_a_hash_is_the_same_on_every_machine():
    rows = embed(HashingEmbedder(), ["alpha beta"])
    assert sorted(rows.indices.tolist()) == [2202, 11950, 45891]
    assert rows.shape == (1, 65536)
    assert rows.dtype == np.float64


def test_texts_without_words_are_similar_to_nothing():
    assert similarities(["", "alpha", "?! ...", "🙂"]).tolist() == [[0] * 4, [0, 1, 0, 0], [0] * 4, [0] * 4]


def test_of_no_texts_there_are_no_rows():
    assert embed(HashingEmbedder(num_features=7), []).shape == (0, 7)


def test_where_all_hashes_collide_all_are_alike():
    assert similarities(["alpha beta", "gamma"], num_features=1) == pytest.approx(np.ones((2, 2)))


@pytest.mark.slow
def test_similarities_are_those_of_scikit_learn():
    from sklearn.feature_extraction.text import HashingVectorizer

    def theirs(num_features):
        made = HashingVectorizer(
            n_features=num_features, ngram_range=(1, 2), token_pattern=r"\w+", alternate_sign=False
        )
        rows = made.transform(QUESTIONS)
        return (rows @ rows.T).toarray()

    many = 1 << 26  # no two of the 3574 words and pairs collide
    assert similarities(QUESTIONS, num_features=many) == pytest.approx(theirs(many), abs=1e-12)
    differences = np.abs(similarities(QUESTIONS) - theirs(HashingEmbedder().num_features))
    assert differences.max() < 0.1
    assert (differences > 1e-9).mean() < 0.05


def test_hashing_imports_neither_models_nor_clients():
    code = (
        "import sys; from salign.config import HashingEmbedder; from salign.society.embedders import embed;"
        "before = 'scipy' in sys.modules; embed(HashingEmbedder(), ['a']);"
        "print(before, {'torch', 'sklearn', 'transformers', 'aiohttp'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False set()"


# --- a model in this process ---------------------------------------------------------------------


def with_model(model, texts, device="cpu"):
    return embed(TransformersEmbedder(kind="transformers", model=str(model), device=device), texts)


@pytest.fixture(scope="module")
def tiny_encoder(tiny_model, tmp_path_factory):
    """A BERT of 2 layers that reads 24 tokens; its tokenizer ends each text and has no end token by name."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-encoder")
    words = sorted({word for question in QUESTIONS for word in question.split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=24,
        initializer_range=0.2,
    )
    BertForMaskedLM(config).save_pretrained(folder)  # without the pooler that AutoModel adds
    return folder


@pytest.fixture(params=["tiny_model", "tiny_encoder"])
def model(request):
    return request.getfixturevalue(request.param)


def test_a_row_is_the_mean_of_the_last_hidden_states(model):
    import torch
    from transformers import AutoModel, AutoTokenizer

    text = QUESTIONS[0]
    states = AutoModel.from_pretrained(model).eval()(
        input_ids=torch.tensor([AutoTokenizer.from_pretrained(model)(text)["input_ids"]])
    )
    mean = states.last_hidden_state[0].mean(0).detach().numpy()
    found = with_model(model, [text])
    assert found.dtype == np.float32
    assert found[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_a_row_depends_on_no_other_text(model):
    texts = [QUESTIONS[0], "Why?", " ".join(QUESTIONS[:2]), *QUESTIONS[1:70]]
    together = with_model(model, texts)
    assert together.shape == (72, 32)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(72), abs=1e-5)
    for number in (0, 1, 2, 40, 71):
        assert with_model(model, [texts[number]])[0] == pytest.approx(together[number], abs=1e-5)
    assert with_model(model, texts[::-1]) == pytest.approx(together[::-1], abs=1e-5)
    assert len({row.tobytes() for row in together.round(3)}) == 72


def test_a_model_says_nothing_of_texts_without_words(model):
    found = with_model(model, ["", "Why?", "?! ..."])
    assert np.linalg.norm(found, axis=1) == pytest.approx([0, 1, 0], abs=1e-5)
    assert with_model(model, ["?"]).tolist() == [[]]
    assert with_model(model, []).shape[0] == 0


def test_a_text_is_cut_where_the_model_can_read_no_more(tiny_encoder):
    first = QUESTIONS[0].split()[:5] * 5
    long, longer = " ".join(first), " ".join(first + QUESTIONS[1].split() * 9)
    assert with_model(tiny_encoder, [long]) == pytest.approx(with_model(tiny_encoder, [longer]), abs=1e-5)


def test_an_embedding_model_that_does_not_load(tiny_encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "incomplete"
    shutil.copytree(tiny_encoder, folder)
    weights = load_file(folder / "model.safetensors")
    weights.pop("bert.encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 of its weights are missing, such as encoder\.layer\.1\.output\.dense"):
        with_model(folder, ["Why?"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"society\.embedder\.model .*incomplete does not load.*safetensors"):
        with_model(folder, ["Why?"])
    with pytest.raises(ConfigError, match="neither a local folder"):
        with_model("no-such-model", ["Why?"])


def test_a_device_that_is_not_there(tiny_encoder):
    for device in ("cuda:99", "abacus"):
        with pytest.raises(ConfigError, match=rf"society\.embedder\.device '{device}' cannot be used here"):
            with_model(tiny_encoder, ["Why?"], device)


def test_an_encoder_with_a_decoder_is_refused(tiny_encoder, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path / "t5"
    config = T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    for file in tiny_encoder.glob("tokenizer*"):
        shutil.copy(file, folder)
    with pytest.raises(ConfigError, match="is an encoder-decoder model"):
        with_model(folder, ["Why?"])


# --- a server ------------------------------------------------------------------------------------


class Stub(ThreadingHTTPServer):
    """Answers each call by `reply(texts) -> (status, body)`; by default with vectors made of the texts' lengths."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[dict] = []
        self.keys: list[str] = []
        self.reply = lambda texts: (200, {"data": [vector(number, text) for number, text in enumerate(texts)]})


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.append({"path": self.path, **asked})
        self.server.keys.append(self.headers["Authorization"])
        status, body = self.server.reply(asked["input"])
        sent = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        # whoever gave up waiting has hung up
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(sent)

    def log_message(self, *args):
        pass


def vector(index: int, text: str) -> dict:
    return {"object": "embedding", "index": index, "embedding": [float(len(text)), 4.0, 0.0]}


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def section(stub: Stub, **settings) -> OpenAIEmbedder:
    url = f"http://127.0.0.1:{stub.server_port}/v1"
    return OpenAIEmbedder(
        **{"kind": "openai", "base_url": url, "model": "small", "num_retries": 0, "patience_s": 0, **settings}
    )


def test_vectors_of_a_server_get_length_1(stub):
    found = embed(section(stub), ["abc", "a", "", "?"])
    assert found.dtype == np.float32
    assert found == pytest.approx(np.array([[0.6, 0.8, 0], [1 / 17**0.5, 4 / 17**0.5, 0], [0, 0, 0], [0, 0, 0]]))
    (call,) = stub.calls
    assert call == {"path": "/v1/embeddings", "model": "small", "input": ["abc", "a"], "encoding_format": "float"}


def test_a_server_is_asked_for_256_texts_at_a_time(stub):
    texts = ["a" * (1 + number % 50) for number in range(600)]
    found = embed(section(stub), texts)
    assert [len(call["input"]) for call in stub.calls] == [256, 256, 88]
    assert found[:, 0] / found[:, 1] * 4 == pytest.approx([len(text) for text in texts], rel=1e-5)


def test_vectors_may_come_in_any_order(stub):
    stub.reply = lambda texts: (200, {"data": [vector(number, text) for number, text in enumerate(texts)][::-1]})
    assert embed(section(stub), ["abc", "a"])[0] == pytest.approx([0.6, 0.8, 0])


def test_a_server_is_asked_nothing_about_texts_without_words(stub):
    assert embed(section(stub), ["", "?"]).shape == (2, 0)
    assert stub.calls == []


def test_the_key_comes_from_the_environment(stub, monkeypatch):
    embed(section(stub), ["a"])
    monkeypatch.setenv("MY_KEY", " sk-12345678\n")
    embed(section(stub, api_key_env="MY_KEY"), ["a"])
    assert stub.keys == ["Bearer none", "Bearer sk-12345678"]
    monkeypatch.setenv("MY_KEY", "sk-ключ")
    with pytest.raises(ConfigError, match="the key in MY_KEY contains characters"):
        embed(section(stub, api_key_env="MY_KEY"), ["a"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"data": [vector(0, "a")]}, "gave 1 embeddings, not one for each of 2 texts"),
        ({"data": [vector(0, "a")] * 2}, "not one for each of 2 texts"),
        ({"data": [vector(1, "a"), vector(2, "a")]}, "not one for each of 2 texts"),
        ({"data": [vector(0, "a"), {"index": 1, "embedding": [1.0]}]}, "differ in length"),
        ({"data": [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}]}, "differ in length"),
        ({"data": [{"index": number, "embedding": [math.nan, 1.0]} for number in (0, 1)]}, "not all finite"),
        ({"data": [{"index": number, "embedding": [math.inf, 1.0]} for number in (0, 1)]}, "not all finite"),
        ({"data": [{"index": number, "embedding": ["x"]} for number in (0, 1)]}, "other than a list of embeddings"),
        ({"data": [{"index": number} for number in (0, 1)]}, "other than a list of embeddings"),
        ({"data": []}, "not one for each of 2 texts"),
        ({"data": None}, "other than a list of embeddings"),
        ([], "other than a list of embeddings"),
        ("<html>hello</html>", "other than a list of embeddings.*hello"),
    ],
)
def test_an_answer_that_is_no_embedding(stub, body, said):
    stub.reply = lambda texts: (200, body)
    with pytest.raises(EngineError, match=said) as caught:
        embed(section(stub), ["a", "b"])
    assert f"small at http://127.0.0.1:{stub.server_port}/v1" in str(caught.value)


def test_vectors_of_different_calls_have_one_length(stub):
    stub.reply = lambda texts: (
        200,
        {"data": [{"index": number, "embedding": [1.0] * (1 + len(texts) % 2)} for number in range(len(texts))]},
    )
    with pytest.raises(EngineError, match="differ in length"):
        embed(section(stub), ["a"] * 257)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, ConfigError, r"refuses the key \(HTTP 401.*MY_KEY"),
        (403, ConfigError, r"refuses the key \(HTTP 403.*MY_KEY"),
        (404, ConfigError, r"does not know the model .*Check base_url"),
        (400, ConfigError, r"refused a call: .*texts as long"),
        (500, EngineError, r"failed after 1 retries: .*because <MY_KEY>"),
        (429, EngineError, r"failed after 1 retries"),
    ],
)
def test_a_server_that_refuses_or_fails(stub, monkeypatch, status, kind, said):
    monkeypatch.setenv("MY_KEY", "sk-12345678")
    stub.reply = lambda texts: (status, {"error": {"message": "because sk-12345678"}})
    with pytest.raises(kind, match=said) as caught:
        embed(section(stub, api_key_env="MY_KEY", num_retries=1), ["a"])
    assert "sk-12345678" not in str(caught.value)
    assert len(stub.calls) == (2 if kind is EngineError else 1)


def test_a_server_that_fails_once_is_asked_again(stub):
    answer = stub.reply
    stub.reply = lambda texts: answer(texts) if len(stub.calls) > 1 else (503, {"error": {"message": "busy"}})
    assert embed(section(stub, num_retries=1), ["abc"])[0] == pytest.approx([0.6, 0.8, 0])


def test_a_server_that_is_too_slow(stub):
    done = threading.Event()
    stub.reply = lambda texts: (200, {"data": []}) if done.wait(HANG_S) else (500, {})
    with pytest.raises(EngineError, match=r"did not answer within society\.embedder\.timeout_s = 0\.1 s, 1 times"):
        embed(section(stub, timeout_s=0.1), ["a"])
    done.set()


def test_a_server_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    nobody = OpenAIEmbedder(
        kind="openai", base_url=f"http://127.0.0.1:{port}/v1", model="small", num_retries=0, patience_s=0
    )
    with pytest.raises(EngineError, match=r"is unreachable .*1 times.*society\.embedder\.base_url"):
        embed(nobody, ["a"])


def test_a_server_on_this_machine_is_asked_without_a_proxy(stub, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert embed(section(stub), ["abc"])[0] == pytest.approx([0.6, 0.8, 0])


def test_a_server_is_asked_from_within_a_running_loop(stub):
    async def run():
        return embed(section(stub), ["abc"])

    assert asyncio.run(run())[0] == pytest.approx([0.6, 0.8, 0])


def test_each_kind_of_embedder_embeds():
    assert set(EMBEDDERS) == set(sections_in(Embedder))
