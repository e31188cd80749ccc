"""A generation job's progress as Prometheus metrics of the driver; Ray's node agent serves them."""

from ray.util.metrics import Counter, Gauge

__all__ = ["Telemetry"]


class Telemetry:
    """Counters of what this invocation made, gauges of where the job stands; every one has the tag `job`."""

    def __init__(self, job: str) -> None:
        self._samples = Counter("ddpm_generate_samples_total", "samples committed by this driver", ("job",))
        self._failed = Counter("ddpm_generate_failed_total", "samples committed as failed", ("job",))
        self._shards = Counter("ddpm_generate_shards_total", "shards committed by this driver", ("job",))
        self._retries = Counter("ddpm_generate_errors_total", "errors of shards and rounds that were met", ("job",))
        self._done = Gauge("ddpm_generate_samples_done", "samples of the job that are committed or finished", ("job",))
        self._total = Gauge("ddpm_generate_samples_planned", "samples of the job", ("job",))
        self._speed = Gauge("ddpm_generate_images_per_second", "over all actors, since this driver began", ("job",))
        for metric in (self._samples, self._failed, self._shards, self._retries, self._done, self._total, self._speed):
            metric.set_default_tags({"job": job})

    def committed(self, samples: int, failed: int) -> None:
        """A shard of this invocation."""
        self._shards.inc()
        self._samples.inc(samples)
        if failed:
            self._failed.inc(failed)

    def error(self) -> None:
        """A shard or a round that will be tried again, or ends the job."""
        self._retries.inc()

    def at(self, done: int, total: int, images_per_second: float) -> None:
        """Where the job stands."""
        self._done.set(done)
        self._total.set(total)
        self._speed.set(images_per_second)
