"""How a command ends: its result on stdout, or one line on stderr and an exit code."""

import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from fer_scale.errors import FerScaleError, InputError

DEBUG_HINT = "run again with --debug for the traceback"


def explain(error: Exception, debug: bool) -> int:
    """Say what went wrong in one line, with the traceback before it on request; the exit code, 2 or 1."""
    ours = own_error(error)
    if debug:
        traceback.print_exception(error)
    if isinstance(ours, InputError):
        return fail(str(ours), 2)
    if ours is not None:
        return fail(str(ours), 1)
    return fail(f"{type(error).__name__}: {error}" + ("" if debug else f" ({DEBUG_HINT})"), 1)


def fail(message: str, code: int) -> int:
    """One line on stderr; gives the exit code back."""
    line = " ".join(message.split())
    print(f"fer-scale: {line}", file=sys.stderr, flush=True)
    return code


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C came before it: where it hits the wait for a lock, Python raises that the lock was not held."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def own_error(error: BaseException | None) -> FerScaleError | None:
    """The error of ours within those that Ray wraps around what was raised on another process."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None)
        if isinstance(error, FerScaleError) and not isinstance(cause, FerScaleError):
            return error
        error = cause if isinstance(cause, BaseException) else error.__cause__
    return None


def show(result: Mapping[str, Any], as_json: bool) -> None:
    """Print what a verb returned: one line of JSON, or its plain facts for a person."""
    if as_json:
        print(json.dumps(_plain(result)), flush=True)
        return
    facts = {key: text for key, value in result.items() if (text := _text(value))}
    width = max(map(len, facts), default=0)
    for key, text in facts.items():
        print(f"{key.replace('_', ' '):<{width}}  {text}")
    sys.stdout.flush()


def _text(value: Any) -> str:
    """A fact, or a few of them, as an interval; empty for what is more than that."""
    if isinstance(value, list | tuple):
        parts = [_text(one) for one in value if not isinstance(one, list | tuple)]
        return ", ".join(parts) if len(parts) == len(value) and all(parts) else ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value) if isinstance(value, str | int) else ""


def _plain(value: Any) -> Any:
    """The value in what JSON has: no NaN, keys as text, numpy's numbers as Python's, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    convert: Callable[[], Any] | None = getattr(value, "tolist", None)
    return _plain(convert()) if convert is not None else str(value)
