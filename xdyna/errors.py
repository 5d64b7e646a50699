"""The one exception that the command turns into a single line and exit status 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what the user gave: its message is one line with what was got, what was wanted and where."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def near_matches(name: str, known: Iterable[str]) -> str:
    """End of an 'unknown name' message: ``; did you mean a, b?`` or the whole list when nothing is near."""
    known = sorted(known)
    near = get_close_matches(name, known, n=3)
    return f"; did you mean {', '.join(near)}?" if near else f"; known: {', '.join(known)}"
