"""Who a record is from, as text: people by their `user_id`, and rows that name nobody."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

_BLANK = " "  # `person_of` strips: a name that begins with a blank is nobody's in any file


def text_of(value: Any) -> str:
    """A user, topic or client as text; `7` and `7.0` are one (a column of whole numbers with a gap is read as floats)."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def person_of(value: Any) -> str:
    """A user as text: blanks around it and the Unicode form (NFC) do not make another person."""
    return unicodedata.normalize("NFC", text_of(value)).strip()


def is_nobody(value: Any) -> bool:
    """No user: null, NaN or blank."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()


def row_name(number: int) -> str:
    """What a record without a user is called: its row, in a form that no `user_id` of a file can have."""
    return f"{_BLANK}#{number}"


def is_named(name: str) -> bool:
    """False for ``row_name``, true for whatever ``person_of`` returns, `#7` too."""
    return not name.startswith(_BLANK)
