"""Prometheus metrics of `ddpm generate`, set by the driver and served by Ray's node agent."""

from ray.util.metrics import Counter, Gauge

from pipeline.cluster import metric_tag


class Telemetry:
    """Counters of this invocation, gauges of the samples folder; the tag `job` holds its URI."""

    def __init__(self, job: str) -> None:
        tags = ("job",)
        self._samples = Counter("ddpm_generate_samples_total", "samples committed by this driver", tags)
        self._failed = Counter("ddpm_generate_failed_total", "samples committed as failed", tags)
        self._shards = Counter("ddpm_generate_shards_total", "shards committed by this driver", tags)
        self._retries = Counter("ddpm_generate_errors_total", "errors of shards and passes", tags)
        self._done = Gauge("ddpm_generate_samples_done", "samples of the folder that are committed or finished", tags)
        self._total = Gauge("ddpm_generate_samples_planned", "samples of the folder", tags)
        self._speed = Gauge("ddpm_generate_images_per_second", "all actors together, since this driver started", tags)
        for metric in (self._samples, self._failed, self._shards, self._retries, self._done, self._total, self._speed):
            metric.set_default_tags({"job": metric_tag(job)})

    def committed(self, samples: int, failed: int) -> None:
        """Count one shard of this invocation."""
        self._shards.inc()
        self._samples.inc(samples)
        if failed:
            self._failed.inc(failed)

    def error(self) -> None:
        """Count an error of a shard or a pass, retried or final."""
        self._retries.inc()

    def at(self, done: int, total: int, images_per_second: float) -> None:
        """Set the gauges of progress."""
        self._done.set(done)
        self._total.set(total)
        self._speed.set(images_per_second)
