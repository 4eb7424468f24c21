"""Which files a folder or a glob means. Pure: names in, names out.

A folder that holds parts (train, validation, test; as sub-folders or in the files' names) means the part of the
dataset's role, or the only one there is: never all of them, since nobody wants to train on the test rows.
"""

import re

from finetune_api.names import FailureClass
from finetune_api.sources import Format, Role

from finetune_trainer.errors import RunError, quoted
from finetune_trainer.formats import format_of_name

PART_NAMES = {
    Role.TRAIN: frozenset({"train", "training"}),
    Role.DEV: frozenset({"dev", "valid", "validation", "val", "eval"}),
    Role.TEST: frozenset({"test", "testing"}),
}

METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""Files that `datasets` writes beside the rows."""


def is_glob(path: str) -> bool:
    """Whether the path is a pattern."""
    return "*" in path or "?" in path


def matching(pattern: str, names: list[str]) -> list[str]:
    """The names that match, in order: `*` and `?` stay within one folder, `**` does not."""
    kinds = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    expression = re.compile("".join(kinds.get(piece, re.escape(piece)) for piece in pieces), re.DOTALL)
    return sorted(name for name in names if expression.fullmatch(name))


def files_of_folder(names: list[str], role: Role, wanted: Format, where: str) -> list[str]:
    """The data files of a folder, in order. `wanted` may be `auto`; `where` names dataset and folder.

    Raises RunError (InvalidData) where there is none, or more than one part or format could be meant.
    """
    found = _data_files(names, wanted)
    if not found:
        kind = "data file" if wanted is Format.AUTO else f"{wanted} file"
        others = f"; it holds {quoted(sorted(names), most=5)}" if names else ""
        raise _unclear("DatasetNotFound", f"{where}: the folder holds no {kind}{others}")
    chosen = _part(found, role, where)
    formats = sorted({str(format_of_name(name)) for name in chosen})
    if len(formats) > 1:
        raise _unclear("FilesUnclear", f"{where}: the folder holds files of formats {quoted(formats)}")
    return sorted(chosen)


def _data_files(names: list[str], wanted: Format) -> list[str]:
    visible = [name for name in names if not any(part.startswith((".", "_")) for part in name.split("/"))]
    kinds = {name: format_of_name(name) for name in visible if name.rpartition("/")[2] not in METADATA}
    if wanted is not Format.AUTO:
        return [name for name, kind in kinds.items() if kind is wanted]
    rows = [name for name, kind in kinds.items() if kind not in (None, Format.TEXT)]
    return rows or [name for name, kind in kinds.items() if kind is Format.TEXT]  # README.txt is no row.


def _part(names: list[str], role: Role, where: str) -> list[str]:
    """The files of the one part that is meant."""
    here = [name for name in names if "/" not in name]
    if here:
        return _chosen(_grouped(here), role, where)
    folders: dict[str, list[str]] = {}
    for name in names:
        folder, _, rest = name.partition("/")
        folders.setdefault(folder, []).append(rest)
    folder = _key(list(folders), role, where)
    return [f"{folder}/{name}" for name in _part(folders[folder], role, f"{where}/{folder}")]


def _grouped(names: list[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_part_word(name) or "", []).append(name)
    return groups


def _chosen(groups: dict[str, list[str]], role: Role, where: str) -> list[str]:
    if len(groups) > 1 and "" in groups:
        names = [name for group in groups.values() for name in group]
        raise _unclear("FilesUnclear", f"{where}: the folder holds parts and other files: {quoted(sorted(names))}")
    return groups[_key(list(groups), role, where)]


def _key(keys: list[str], role: Role, where: str) -> str:
    if len(keys) == 1:
        return keys[0]
    meant = [key for key in keys if _part_word(key) in PART_NAMES[role]]
    if len(meant) == 1:
        return meant[0]
    raise _unclear(
        "FilesUnclear", f"{where}: the folder holds parts {quoted(sorted(keys))}, and role {role} names none"
    )


def _part_word(name: str) -> str | None:
    """The one word of a file's or folder's name that names a part."""
    words = set(re.split(r"[^a-z]+", name.lower())) & frozenset().union(*PART_NAMES.values())
    return words.pop() if len(words) == 1 else None


def _unclear(reason: str, message: str) -> RunError:
    remedy = "Name a file, a folder of files of one part, or a glob such as *.jsonl in datasets[].uri."
    return RunError(FailureClass.INVALID_DATA, reason, message, remedy)
