"""The series that a job asks for: its workload, sweep and data set, as its settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmbench.errors import InputError, SampleError, UnreachablePointError
from vlmbench.models.protocol import VisionLanguageModel
from vlmbench.records.attempts import MOST_DEATHS, Attempts
from vlmbench.request import Output
from vlmbench.runner.arms import arms
from vlmbench.runner.plan import REFERENCE, Knobs, Series, dataset_series, sweep_series

if TYPE_CHECKING:
    from vlmbench.data.protocol import Samples
    from vlmbench.session.job import Job


_REFERENCE_TRIES = 20


def make_series(
    job: Job, samples: Samples, model: VisionLanguageModel, attempts: Attempts | None = None
) -> list[Series]:
    """The series that workload, sweep and data set make.

    Args:
        model: answers what it can be asked; nothing is generated.
        attempts: names the samples that are looked at on disk; one in which a process died is no reference.

    Raises:
        InputError: the data set has no sample of the configured number.
        ConfigError: the sweep has no points, or leaves vision tokens to a model that reaches fewer than three counts.
    """
    settings = job.settings
    measurement = settings.measurement
    policy = settings.output.policy
    forced = policy == "forced" or (policy == "auto" and model.facts["weights"] == "random")
    knobs = Knobs(
        output=Output(max_new_tokens=settings.output.tokens, forced=forced),
        prompt_tokens=measurement.prompt_tokens,
        image_size=None if measurement.image_size is None else (measurement.image_size[0], measurement.image_size[1]),
        seed=settings.seed,
        batch=measurement.batch,
    )
    sweep = job.build("sweep")
    if (settings.workload == "controlled" or sweep.auto is not None) and measurement.base_sample >= len(samples):
        raise InputError(
            f"'measurement.base_sample' must be below the data set's {len(samples)} samples "
            f"(got {measurement.base_sample})"
        )
    if sweep.auto is not None:
        sweep = sweep.found(model.vision_counts(knobs.request(samples[measurement.base_sample]), sweep.auto))
    points = arms(sweep.points(), job.build("intervention"), controls=measurement.controls)
    if settings.workload == "controlled":
        stopping = job.build("measurement.stopping")
        base = measurement.base_sample
        return sweep_series(
            samples, base, knobs, sweep, stopping=stopping, bare_every=measurement.bare_every, points=points
        )
    attempts = attempts or Attempts(job.directory)  # not open: it names nothing
    reference = _reference(samples, knobs, model, attempts) if measurement.reference else None
    return [
        series
        for point in points
        for series in dataset_series(
            samples,
            knobs,
            repeats=measurement.repeats,
            bare_every=measurement.bare_every,
            reference=reference,
            point=point,
        )
    ]


def _reference(samples: Samples, knobs: Knobs, model: VisionLanguageModel, attempts: Attempts) -> int | None:
    """The sample that is repeated: the first usable one from the middle of the data set on."""
    middle = len(samples) // 2
    for index in range(middle, min(middle + _REFERENCE_TRIES, len(samples))):
        try:
            sample = samples[index]
            if attempts.deaths(REFERENCE, sample.sample_id) >= MOST_DEATHS:
                continue
            with attempts.foresight(REFERENCE, sample.sample_id):
                model.prepare(knobs.request(sample))
        except (SampleError, UnreachablePointError, MemoryError):
            continue
        return index
    return None
