"""UTF-8 text of a file as it is needed, with the lines and columns that a message names."""

from codecs import getincrementaldecoder
from collections.abc import Iterator
from typing import BinaryIO

from finetune_trainer.errors import RowError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

BLOCK_BYTES = 256 * 1024
"""Read at once, at first; a value that spans blocks doubles it, so that the time stays linear."""

MOST_ROW_BYTES = 64 * 1024 * 1024
"""No row is so long; a file of one line is more often of another format, and would have to fit into memory."""

BLANKS = " \t\r\n"


def lines_of(file: BinaryIO) -> Iterator[str | RowError]:
    """Decoded lines with their line feed; a RowError in place of one that is not UTF-8 or, as the last, too long."""
    for number, raw in enumerate(iter(lambda: file.readline(MOST_ROW_BYTES + 1), b""), start=1):
        if len(raw) > MOST_ROW_BYTES:
            yield RowError(f"the line is longer than {MOST_ROW_BYTES // 2**20} MiB", line=number)
            return
        data = raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw
        try:
            yield data.decode("utf-8")
        except UnicodeDecodeError as error:
            yield not_utf8(data, error.start, number)


def not_utf8(line: bytes, start: int, number: int) -> RowError:
    """What is wrong with byte `start`, from 0, of line `number`."""
    if number == 1 and line.startswith(UTF16_MARKS):
        return RowError("the file is UTF-16: save it as UTF-8", line=1)
    return RowError(f"byte {start + 1} of the line is not UTF-8", line=number)


class TextStream:
    """The text of a file from the last value on: `text[position:]` is what was read and not yet used."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.text = ""
        self.position = 0
        self._decoder = getincrementaldecoder("utf-8-sig")()
        self._lines, self._column = 0, 0
        """Line feeds before `text`, and characters between the last of them and `text`."""
        self._bytes_lines, self._bytes_column = 0, 0
        """The same in bytes, before the block that is read next."""
        self._block = BLOCK_BYTES

    @property
    def line(self) -> int:
        """The line of `position`, from 1."""
        return self.place(self.position)[0]

    def place(self, position: int) -> tuple[int, int]:
        """Line and column, from 1, of a position in `text`."""
        feeds, last = self.text.count("\n", 0, position), self.text.rfind("\n", 0, position)
        column = position - last if feeds else self._column + position + 1
        return self._lines + feeds + 1, column

    def next_character(self) -> str:
        """Skip blanks, forget what is behind, and tell the character at `position`; empty at the end of the file."""
        while True:
            while self.position < len(self.text):
                if self.text[self.position] not in BLANKS:
                    if self.position > BLOCK_BYTES:
                        self._forget()
                    return self.text[self.position]
                self.position += 1
            self._forget()
            self._block = BLOCK_BYTES
            if not self.more():
                return ""

    def more(self) -> bool:
        """Read a block behind `text`; False at the end of the file. Raises RowError for what is not UTF-8."""
        block = self.file.read(self._block)
        self._block *= 2
        held = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise self._not_utf8(error, held) from error
        self._count_bytes(block)
        self.text += text
        return bool(block)

    def _forget(self) -> None:
        line, column = self.place(self.position)
        self._lines, self._column = line - 1, column - 1
        self.text, self.position = self.text[self.position :], 0

    def _count_bytes(self, block: bytes) -> None:
        feeds = block.count(b"\n")
        self._bytes_lines += feeds
        self._bytes_column = len(block) - block.rfind(b"\n") - 1 if feeds else self._bytes_column + len(block)

    def _not_utf8(self, error: UnicodeDecodeError, held: int) -> RowError:
        """`held` bytes of the block before belong to the error's object."""
        data = error.object
        feeds, last = data.count(b"\n", 0, error.start), data.rfind(b"\n", 0, error.start)
        start = error.start - last - 1 if feeds else self._bytes_column - held + error.start
        return not_utf8(data, start, self._bytes_lines + feeds + 1)
