# One image for head, workers and drivers: the exact Ray of constraints.txt, and this program.
#   docker build -t registry.example.com/ddpm-pipeline:0.1.0-ray2.60.0 .
# For CPU nodes: --build-arg RAY_IMAGE=rayproject/ray:2.60.0-py311-cpu
ARG RAY_IMAGE=rayproject/ray:2.60.0-py311-gpu
FROM ${RAY_IMAGE}

COPY --chown=ray:users pyproject.toml constraints.txt README.md LICENSE /home/ray/ddpm/
COPY --chown=ray:users pipeline /home/ray/ddpm/pipeline
COPY --chown=ray:users jobs /home/ray/ddpm/jobs
RUN pip install --no-cache-dir --constraint /home/ray/ddpm/constraints.txt "/home/ray/ddpm[digits,schedule,trackers]"

# The day of a nightly run is computed with `date`, which takes an unknown zone for UTC without a word.
RUN test -e /usr/share/zoneinfo/Europe/Berlin && pip check && ddpm --help

ENV RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
