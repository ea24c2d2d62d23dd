"""Lists and reasons in error messages."""

import itertools
from collections.abc import Iterable


def listed(names: Iterable[str], separator: str = ", ", *, most: int = 200) -> str:
    """Names for an error message, on one line: the first few, and how many more there are.

    Args:
      most: characters of the names that are listed; longer names, which may be whole texts, are cut.

    >>> listed(["query", "key", "value"])
    'query, key, value'
    >>> listed((f"layer_{i}" for i in range(100)), most=20)
    'layer_0, layer_1, and 98 more'
    """
    texts = [shorten(" ".join(name.split()), most) for name in names]
    ends = itertools.accumulate(len(text) + len(separator) for text in texts)
    num = max(1, sum(end <= most + len(separator) for end in ends))
    return separator.join(texts[:num]) + (f"{separator}and {len(texts) - num} more" if num < len(texts) else "")


def reason(error: BaseException, most: int = 200) -> str:
    """What an error says, on one line of at most this many characters, or else its type.

    >>> reason(OSError("no\\nroute")), reason(KeyboardInterrupt())
    ('no route', 'KeyboardInterrupt')
    """
    return shorten(" ".join(str(error).split()), most) or type(error).__name__


def shorten(text: str, most: int) -> str:
    """A text of at most this many characters, its middle cut out if it is longer.

    >>> shorten("a message that goes on and on, and what to do", 24)
    'a message t...what to do'
    """
    if len(text) <= most:
        return text
    end = (most - 3) // 2
    return f"{text[: most - 3 - end]}...{text[-end:]}"
