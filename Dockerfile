# A server of one model. Build: docker build -t monoformer .   Run: docs/serve.md, "In a container".
# The model is mounted at /model and the API keys at /run/secrets/keys, so that the image holds neither.

FROM python:3.12-slim AS build
# Another build of PyTorch than pip's own: --build-arg PIP_OPTIONS="--extra-index-url ..."
ARG PIP_OPTIONS=""
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
# Packages first: they change seldom, and are built again only then.
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
RUN mkdir monoformer && touch monoformer/__init__.py && pip install $PIP_OPTIONS -c constraints.txt '.[serve]' \
    && pip uninstall --yes monoformer
COPY monoformer monoformer
RUN pip install --no-deps .

FROM python:3.12-slim
COPY --from=build /venv /venv
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin monoformer
USER 10001
WORKDIR /home/monoformer
# Nothing is fetched while it runs, and nobody is told that it runs.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 GRADIO_ANALYTICS_ENABLED=False
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=120s --interval=15s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["monoformer", "serve"]
CMD ["/model", "--host", "0.0.0.0", "--port", "8000", "--api-key-file", "/run/secrets/keys"]
