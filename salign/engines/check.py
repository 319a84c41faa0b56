"""What a run's engines need, looked for before anything starts: models, programs and servers."""

from collections.abc import Iterable
from typing import Literal

from salign import models
from salign.config import Config, EngineSection, ScriptedEngine, TransformersEmbedder
from salign.engines import scorers
from salign.engines.kinds import kind_of
from salign.errors import ConfigError

Template = Literal["chat", "alpaca"]


def models_of(config: Config) -> tuple[str, ...]:
    """Every model that a run's processes load, the base first."""
    return _loaded(config, config.engines().values(), (config.model,))


def models_of_society(config: Config) -> tuple[str, ...]:
    """Those that its shards load."""
    return _loaded(config, (one for place, one in config.engines().items() if not place.startswith("evaluate.")))


def _loaded(config: Config, engines: Iterable[EngineSection], also: Iterable[str] = ()) -> tuple[str, ...]:
    named = [*also, *(kind_of(section).model_of(section, config.model) for section in engines)]
    named += [model for section in config.scorers().values() for model in scorers.models_of(section)]
    named.append(_of_embedder(config))
    return tuple(dict.fromkeys(name for name in named if name is not None))


def _of_embedder(config: Config) -> str | None:
    embedder = config.society.embedder
    return embedder.model or config.model if isinstance(embedder, TransformersEmbedder) else None


def check_engines(config: Config, *, fetch: bool, here: bool = False) -> None:
    """Makes sure that the models and the programs that serve them are there.

    Args:
        config: The run's.
        fetch: The run is about to start: the embedded model is downloaded.
        here: It will run on this machine: servers must answer, and chat templates are tried.

    Raises:
        ConfigError: A model, a program or a served name does not exist.
        EngineError: A server is unreachable.
    """
    if config.generations.num > 1 and not isinstance(config.engine, ScriptedEngine):
        _check_generations(config)
    templates: list[tuple[str, Template | None]] = [(config.model, config.train.template)]
    for section in dict.fromkeys(config.engines().values()):
        kind = kind_of(section)
        kind.check(section, config.model, fetch=fetch, here=here)
        if kind.is_in_process:
            templates.append((kind.model_of(section, config.model) or config.model, "chat"))
    for place, scorer in config.scorers().items():
        scorers.check_scorer(place, scorer)
        templates += [(model, None) for model in scorers.models_of(scorer)]
    embedder = _of_embedder(config)
    if embedder is not None:
        templates.append((embedder, None))
    for model, template in dict.fromkeys(templates):
        _check_model(model, template, fetch=fetch, here=here)


def _check_generations(config: Config) -> None:
    """Makes sure that the run's engine can speak through a model that the run trains."""
    kind = kind_of(config.engine)
    try:
        kind.answering_for(config.engine, str(config.run.root / "model"))  # any folder that is not there yet
    except ConfigError:
        raise ConfigError(
            f"generations.num {config.generations.num}: engine.kind {config.engine.kind} cannot speak through a model "
            f"that the run trains: {kind.why_not_trained}. Set engine={{kind: transformers}}, or "
            "engine={kind: server, program: vllm}, which serves the folder of any model."
        ) from None


def _check_model(model: str, template: Template | None, *, fetch: bool, here: bool) -> None:
    """Makes sure that a model which this process loads is there, and that its chat template can be used."""
    if fetch and model in models.EMBEDDED:
        models.resolve(model)
    else:
        models.check_name(model)
    # A login node is spared torch: there the first job tries the templates.
    if here and template is not None and models.find_local(model) is not None:
        models.load_tokenizer(model, template)
