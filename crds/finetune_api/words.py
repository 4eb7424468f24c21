"""Text that may have come from anywhere, made fit for a status, an Event or a log line. Pure."""


def one_line(text: str) -> str:
    """The text on one line: every run of blanks and control characters becomes one blank."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shortened(text: str, length: int) -> str:
    """The text, cut to `length` characters with an ellipsis where it is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"


def as_word(text: str) -> str:
    """The text as a reason, a CamelCase word, whoever has given it; Unknown where nothing of it can be one."""
    letters = "".join(c for c in text if c.isascii() and c.isalnum()).lstrip("0123456789")
    return letters[:128] or "Unknown"
