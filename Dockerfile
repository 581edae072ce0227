# Two images from one file: `--target api` holds no torch, `--target worker` does.
# For a CPU or CUDA build of torch, set TORCH_INDEX to the PyTorch index of that build.
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_WAIT_POLICY=PASSIVE ORT_DISABLE_TELEMETRY=1
RUN useradd --create-home --uid 10001 featherweight && install -d -o featherweight /data
WORKDIR /srv
COPY pyproject.toml README.md ./
COPY app ./app
COPY migrations ./migrations

FROM base AS api
RUN pip install .
USER featherweight
VOLUME /data
EXPOSE 8000
CMD ["featherweight", "api"]

FROM base AS worker
ARG TORCH_INDEX=""
COPY worker ./worker
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[worker]'
USER featherweight
VOLUME /data
CMD ["featherweight", "worker"]
