"""URLs as they may be shown and kept: without passwords and the values of queries."""

import re

_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^@:\[\]]*)(:\d*)?")  # a host and its port


def shown(name: str) -> str:
    """`name`; of a URL, what may be written in messages, logs, cards and file names.

    A user's name and password are left out. Every value of the query is masked, since
    any may be a token (`sig`, `X-Amz-Signature`, `token`, ...), and so is the fragment.
    What is no URL is returned as it is.
    """
    scheme, separator, rest = name.partition("://")
    if not separator:
        return name
    if not _AUTHORITY.fullmatch(re.split("[/?#]", rest, maxsplit=1)[0]):
        # `user:password@host`, also where a '/', '?' or '#' in it was not quoted.
        rest = rest.rpartition("@")[2]
    rest, hash_sign, _ = rest.partition("#")
    path, question, query = rest.partition("?")
    values = [
        f"{key}=***" if equals else "***"
        for key, equals, _ in (part.partition("=") for part in query.split("&"))
    ]
    return (
        f"{scheme}://{path}"
        + (question and question + "&".join(values))
        + (hash_sign and "#***")
    )


def all_shown(text: str) -> str:
    """`text` with each URL in it as `shown`."""
    return re.sub(r"\w+://[^\s'\"]+", lambda match: shown(match[0]), text)
