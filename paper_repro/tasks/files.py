"""Finding a task's files: in the folder that is named, or in the usual places, with a message that helps where they are missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paper_repro.errors import DataError


@dataclass(frozen=True)
class Layout:
    """Files that stand together.

    Parameters
    ----------
    files : mapping
        For each part the names that its file (or folder) may have, relative to one folder; any of them may end in ``.gz`` if `compressed`.
    inside : tuple of str
        Folders below the one that is named, in which the files may stand: as they come out of an archive.
    compressed : bool
    """

    files: Mapping[str, Sequence[str]]
    inside: tuple[str, ...] = ("",)
    compressed: bool = False

    def find(self, folder: Path) -> dict[str, Path | None]:
        """Return the path of each part in `folder`, None where there is none."""
        return {part: self._path(folder, names) for part, names in self.files.items()}

    def _path(self, folder: Path, names: Sequence[str]) -> Path | None:
        endings = ("", ".gz") if self.compressed else ("",)
        candidates = (folder / f"{name}{ending}" for name in names for ending in endings)
        return next((path for path in candidates if path.exists()), None)

    def shown(self, part: str) -> str:
        """Return the usual name of a part's file."""
        return self.files[part][0] + ("[.gz]" if self.compressed else "")


@dataclass(frozen=True)
class Files:
    """The files of a task.

    Parameters
    ----------
    title : str
        The name of the data.
    layouts : mapping
        By name, the ways in which the files may stand; the first that is complete is read.
    places : tuple of Path
        Folders that are looked in where none is named.
    how : str
        How to get the files.
    """

    title: str
    layouts: Mapping[str, Layout]
    places: tuple[Path, ...]
    how: str

    def find(self, data_dir: Path | None = None) -> tuple[str, dict[str, Path]]:
        """Return the name of the layout that was found, and the path of each part.

        Raises
        ------
        DataError
            If no folder has all parts; the message says where they were looked for and how to get them.
        """
        missing: dict[str, None] = {}  # layouts share folders, and each is said once
        for place in self.places if data_dir is None else (data_dir,):
            for name, layout in self.layouts.items():
                for inside in layout.inside:
                    folder = place / inside
                    found = layout.find(folder)
                    complete = {part: path for part, path in found.items() if path is not None}
                    if len(complete) == len(found):
                        return name, complete
                    if folder.is_dir():
                        missing |= {f"{folder}/{layout.shown(part)}": None for part in found if part not in complete}
                    else:
                        missing[f"{_outermost_missing(place, inside)}/ (no such folder)"] = None
        raise DataError(
            f"{self.title} was not found. Looked for, and did not find:\n  " + "\n  ".join(missing) + f"\n{self.how}"
        )


def _outermost_missing(place: Path, inside: str) -> Path:
    """Return the first folder on the way from `place` to what is `inside` it that is not there."""
    folder = place
    for name in Path(inside).parts:
        if not folder.is_dir():
            break
        folder /= name
    return folder
