"""An artifact that answers and is measured, by the templates and settings of its run."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import overload

from finetune_api.evaluation import Evaluation, Generation
from finetune_api.metrics import Metric
from finetune_api.names import FailureClass

from finetune_trainer.answers import check_labels
from finetune_trainer.chat_template import ChatWriter
from finetune_trainer.compute import Compute
from finetune_trainer.effective import sequence_length
from finetune_trainer.errors import RunError
from finetune_trainer.generate import Prompt, Stops, generate
from finetune_trainer.held_out import HeldOut, dataset_like, held_out
from finetune_trainer.log import Log
from finetune_trainer.measure import Engine, ask, make_engine, question
from finetune_trainer.model import end_ids
from finetune_trainer.model_config import position_limit, read_config
from finetune_trainer.restore import Reach, Restored, restore
from finetune_trainer.tokens import RowTokenizer
from finetune_trainer.vocabulary import load_chat_writer, load_tokenizer


@dataclass(frozen=True)
class Measured:
    """What an artifact was found to be, on the rows of a file."""

    rows: int
    generated_rows: int
    empty_rows: int
    """Rows left out, since they have no reference."""
    values: dict[Metric, float]


@dataclass(frozen=True)
class Speaker:
    """An artifact, loaded."""

    restored: Restored
    engine: Engine
    tokenizer: RowTokenizer
    stops: Stops

    @overload
    def answer(self, prompts: str, generation: Generation | None = None, seed: int | None = None) -> str: ...
    @overload
    def answer(
        self, prompts: list[str], generation: Generation | None = None, seed: int | None = None
    ) -> list[str]: ...
    def answer(
        self, prompts: str | list[str], generation: Generation | None = None, seed: int | None = None
    ) -> str | list[str]:
        """The continuation of a whole prompt as a text, of a list of them as a list in its order.

        As `generation` and `seed` say, else as in the run. Raises RunError (InvalidData, PromptInvalid) for a prompt
        that is empty or leaves no room.
        """
        texts = [prompts] if isinstance(prompts, str) else prompts
        for number, text in enumerate(texts, 1):
            _check_text(number, text)
        answers = self.continued([self.tokenizer.prompt_ids(text) for text in texts], generation, seed)
        return answers[0] if isinstance(prompts, str) else answers

    def continued(
        self, prompts: Sequence[Prompt], generation: Generation | None = None, seed: int | None = None
    ) -> list[str]:
        """As `answer`, of prompts that are ids already."""
        training = self.restored.spec.training
        for number, prompt in enumerate(prompts, 1):
            _check_room(number, len(prompt), self.stops.position_limit)
        with self.engine.compute.autocast():
            return generate(
                self.engine.inner,
                prompts,
                generation or training.generation,
                self.stops,
                training.hyperparameters.eval_batch_size,
                training.hyperparameters.seed if seed is None else seed,
                self.decode,
            )

    def prompts(self, file: str, like: str | None) -> HeldOut:
        """The rows of a file, of any length and with or without a reference, read as the run's dataset `like`."""
        return held_out(self.restored.spec, file, like, self.tokenizer, None, self._chat_writer)

    def measure(self, file: str, like: str | None, evaluation: Evaluation) -> Measured:
        """Measure it on the rows of a file, read as the run's dataset `like`, as training would have done.

        Raises RunError (InvalidData) for whatever is wrong with a row.
        """
        spec = self.restored.spec
        limit = sequence_length(spec.training.hyperparameters.max_seq_length, self.stops.position_limit)
        found = held_out(spec, file, like, self.tokenizer, limit, self._chat_writer)
        dataset = dataset_like(spec, like).model_copy(update={"uri": file})
        training = spec.training.model_copy(update={"evaluation": evaluation, "datasets": [dataset]})
        check_labels(found.references, training)
        asked = question(training, found.rows, found.references, self.stops, self.decode)
        return Measured(len(found.rows), len(asked.references), found.empty, ask(self.engine, asked).values)

    def _chat_writer(self) -> ChatWriter:
        specials, today = list(self.tokenizer.specials.values()), datetime.now(UTC).date()
        return load_chat_writer(
            self.restored.files.model.folder, specials, self.restored.template_date or today, self.restored.trusted
        )

    def decode(self, ids: list[int]) -> str:
        """A text without special tokens."""
        return str(self.tokenizer.tokenizer.decode(ids, skip_special_tokens=True))


def load_speaker(place: str, reach: Reach, compute: Compute, log: Log) -> Speaker:
    """Restore the artifact at a URI or in a folder. Raises RunError as `restore` does."""
    restored = restore(place, reach, compute)
    files = restored.files
    tokenizer = RowTokenizer(*load_tokenizer(files.model.folder, restored.trusted))
    # The artifact's own generation_config.json holds every end that the run knew.
    ends = [*end_ids(files.folder, [tokenizer.end_id]), *end_ids(files.model.folder, [tokenizer.end_id])]
    stops = Stops(list(dict.fromkeys(ends)), position_limit(read_config(files.model.folder, files.model.uri)))
    packing = restored.spec.training.hyperparameters.packing
    return Speaker(restored, make_engine(restored.model, compute, packing, log.warn), tokenizer, stops)


def _check_text(number: int, text: str) -> None:
    """A command line may hold any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"prompt {number} is not UTF-8, at its character {error.start + 1}"
        raise RunError(FailureClass.INVALID_DATA, "PromptInvalid", message, "Write it in UTF-8.") from error


def _check_room(number: int, tokens: int, limit: int | None) -> None:
    if tokens and (limit is None or tokens < limit):
        return
    what = f"has {tokens} tokens, and the model's limit is {limit}, answer included" if tokens else "is empty"
    remedy = "Shorten it." if tokens else "Give at least 1 character."
    raise RunError(FailureClass.INVALID_DATA, "PromptInvalid", f"prompt {number} {what}", remedy)
