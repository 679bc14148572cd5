"""Which of a source's labels become which class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from fer_scale.errors import InputError

OTHER = "other"


@dataclass(frozen=True)
class Labels:
    """The classes asked for, the labels renamed, and what happens to all other labels."""

    asked: tuple[str, ...]
    rename: Mapping[str, str]
    keep_others: bool

    @classmethod
    def of(cls, asked: Sequence[str], rename: Mapping[str, str], others: str) -> "Labels":
        """Check the user's wishes.

        Raises:
            InputError: fewer than two classes, one named twice, or ``others`` is neither drop nor other.
        """
        names = tuple(name.strip() for name in ([asked] if isinstance(asked, str) else asked))
        if others not in ("drop", OTHER):
            raise InputError(f"others={others}", "drop or other", "choose one of them")
        if not all(names) or len(set(names)) != len(names) or (others == OTHER and OTHER in names):
            raise InputError(f"classes {','.join(names)}", "names that differ", "name each class once")
        if len(names) + (others == OTHER) < 2:
            raise InputError(f"one class only ({','.join(names)})", "two classes or more", "name them with --classes")
        return cls(names, dict(rename), others == OTHER)

    @property
    def classes(self) -> list[str]:
        """All classes of the store, in order."""
        return [*self.asked, *([OTHER] if self.keep_others else [])]

    def place(self, label: str) -> int | None:
        """Place of a raw label's class in `classes`, or None where it is not asked for."""
        name = self.rename.get(label, label)
        if name in self.asked:
            return self.asked.index(name)
        return len(self.asked) if self.keep_others else None

    def check(self, seen: Mapping[str, int], kept: Mapping[str, int] | None = None) -> None:
        """See that every class has pictures.

        Args:
            seen: rows by raw label.
            kept: rows by class that are left after checks; without it, what ``seen`` promises.

        Raises:
            InputError: a class has none; the line names the labels that were seen.
        """
        if kept is None:
            places = {self.place(label) for label, count in seen.items() if label and count}
            kept = {name: int(place in places) for place, name in enumerate(self.classes)}
        missing = [name for name in self.classes if not kept.get(name)]
        if not missing:
            return
        named = sorted(((count, label) for label, count in seen.items() if label), reverse=True)
        listed = ", ".join(f"{label} {count}" for count, label in named[:12]) or "none"
        spare = [label for _, label in named if self.place(label) is None]
        near = [*get_close_matches(missing[0], spare, n=1, cutoff=0.4), *spare][:1]
        example = f"rename one with --rename {near[0]}={missing[0]}" if near else "add pictures"
        raise InputError(
            f"class {', '.join(map(repr, missing))} has no image (labels seen: {listed})",
            "at least one image of each class",
            f"{example}, or name other --classes",
        )
