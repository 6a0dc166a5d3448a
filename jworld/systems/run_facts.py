"""Facts that must be equal in all processes of a training run."""

from jworld.data import pipeline
from jworld.parallel import agreement
from jworld.systems.training_job import TrainingJob


def of_job(job: TrainingJob, *, overwrite: bool) -> dict[str, str]:
    """Return the facts that are known before data are read: arguments, and the resolved config."""
    arguments = {"--workdir": str(job.workdir), "--overwrite": str(overwrite), "--accept-data": str(job.accept_data)}
    return arguments | agreement.of_config(job.config.to_dict())


def of_data(dataset: pipeline.BatchIterator) -> dict[str, str]:
    """Return the facts about the data: identity, number of records and order of the batches."""
    return {f"data: {name}": str(value) for name, value in dataset.get_state().items()}
