"""Reads the two Dockerfiles of this project as values: steps that make layers, and the image's configuration.

Limits: FROM, ARG, ENV, LABEL, COPY, RUN, WORKDIR, USER and ENTRYPOINT, one stage, no options, no `RUN --mount`, no
heredoc; anything else is refused with its line, never skipped. Source: Docker docs, "Dockerfile reference".
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.cluster.problem import ClusterProblem


@dataclass(frozen=True)
class Instruction:
    """One instruction, its continuation lines joined."""

    line: int
    """Where it starts, counted from 1."""
    word: str
    text: str


@dataclass(frozen=True)
class Run:
    """A shell command in the image so far; what it changes is a layer."""

    command: str
    environment: tuple[tuple[str, str], ...]
    """ENV and ARG values that the command sees, sorted."""


@dataclass(frozen=True)
class Copy:
    """Files of the context in the image; they are a layer."""

    source: str
    """Relative to the context: a file or a folder."""
    target: str
    """Absolute: the copy itself, not the folder that it is put into."""


@dataclass(frozen=True)
class Recipe:
    """What a Dockerfile says."""

    base: str
    """The image after FROM, or `scratch`."""
    steps: tuple[Run | Copy, ...]
    config: dict[str, object] = field(default_factory=dict)
    """Env, Labels, User, WorkingDir, Entrypoint. Source: OCI image spec, "Image Configuration"."""


def read_recipe(text: str, arguments: Mapping[str, str], environment: Mapping[str, str]) -> Recipe:
    """The Dockerfile's recipe with these build arguments.

    `environment` is the base image's. Raises ClusterProblem for an instruction outside the limits above.
    """
    reader = _Reader(dict(arguments), dict(environment))
    for instruction in parse(text):
        reader.take(instruction)
    return reader.recipe()


def parse(text: str) -> Iterator[Instruction]:
    """The instructions, without comments and empty lines."""
    start, joined = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not line.strip():
            continue
        start = start or number
        joined += line.removesuffix("\\") if line.endswith("\\") else line
        if not line.endswith("\\"):
            word, _, rest = joined.strip().partition(" ")
            yield Instruction(start, word.upper(), rest.strip())
            start, joined = 0, ""


def substitute(text: str, values: Mapping[str, str]) -> str:
    """`$NAME` and `${NAME}` replaced; an unknown name is empty, as in a shell."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: values.get(match[1] or match[2], ""), text)


class _Reader:
    """Takes one instruction after the other."""

    def __init__(self, given: dict[str, str], environment: dict[str, str]) -> None:
        self.given = given
        self.environment = environment
        self.arguments: dict[str, str] = {}
        self.base = ""
        self.steps: list[Run | Copy] = []
        self.labels: dict[str, str] = {}
        self.rest: dict[str, object] = {}

    def take(self, instruction: Instruction) -> None:
        handler = getattr(self, f"_{instruction.word.lower()}", None)
        if handler is None or instruction.text.startswith("--"):
            shown = f"{instruction.word} {instruction.text}".split("\n")[0][:60]
            raise ClusterProblem(f"Dockerfile line {instruction.line}: `{shown}` is not understood; see dockerfile.py.")
        handler(instruction.text)

    def recipe(self) -> Recipe:
        env = [f"{name}={value}" for name, value in self.environment.items()]
        config = {"Env": env, **({"Labels": self.labels} if self.labels else {}), **self.rest}
        return Recipe(self.base, tuple(self.steps), config)

    def _values(self) -> dict[str, str]:
        return {**self.arguments, **self.environment}

    def _from(self, text: str) -> None:
        self.base = substitute(text, self.arguments)
        self.arguments = {}  # As Docker has it: what is declared before FROM is for FROM alone.

    def _arg(self, text: str) -> None:
        name, _, default = text.partition("=")
        if name in self.given or default:
            self.arguments[name] = self.given.get(name, default)

    def _env(self, text: str) -> None:
        self.environment.update(_pairs(substitute(text, self._values())))

    def _label(self, text: str) -> None:
        self.labels.update(_pairs(substitute(text, self._values())))

    def _copy(self, text: str) -> None:
        source, target = text.split()
        self.steps.append(Copy(source, target))

    def _run(self, text: str) -> None:
        self.steps.append(Run(text, tuple(sorted(self._values().items()))))

    def _workdir(self, text: str) -> None:
        self.rest["WorkingDir"] = text

    def _user(self, text: str) -> None:
        self.rest["User"] = text

    def _entrypoint(self, text: str) -> None:
        self.rest["Entrypoint"] = json.loads(text)


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in shlex.split(text))
