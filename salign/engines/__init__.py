"""What agents and judges speak through: models in the process, servers, and the journal that makes calls replayable."""
