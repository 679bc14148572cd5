"""Which configuration of a search is fitted."""

from typing import Any

from fer_scale import storage
from fer_scale.errors import InputError
from fer_scale.learning.configuration import Configuration
from fer_scale.search.rows import value


def chosen(search: str, how: str = "best", min_accuracy: float | None = None) -> Configuration:
    """The configuration of a search to fit.

    Args:
        search: its folder; local or s3://.
        how: ``best``, or ``cheapest``: of the trials whose price was measured and that are accurate enough, the one
            with most images a second.
        min_accuracy: what is enough, 0 to 1; None takes those that val cannot tell from the best.

    Raises:
        InputError: no search, none accurate enough, or options that do not go together.
    """
    if how not in ("best", "cheapest"):
        raise InputError(f"--pick {how}", "best or cheapest", "name one of them")
    if min_accuracy is not None and how != "cheapest":
        raise InputError("--min-accuracy without --pick cheapest", "both", "add --pick cheapest")
    if min_accuracy is not None and not 0 <= min_accuracy <= 1:
        raise InputError(f"--min-accuracy {min_accuracy:g}", "a share from 0 to 1, as 0.8", "correct it")
    path = storage.join(search, "leaderboard.json")
    if not storage.exists(path):
        raise InputError(
            f"--from {search}", "a search (a folder with leaderboard.json)", "make one with: fer-scale tune"
        )
    board = storage.read_json(path)["trials"]
    if not board:
        raise InputError(f"{path} without a scored trial", "at least one", "search again with a larger --time-budget")
    chosen = board[0] if how == "best" else _cheapest(board, min_accuracy, search)
    return Configuration.from_dict(chosen["configuration"])


def _cheapest(board: list[dict[str, Any]], min_accuracy: float | None, search: str) -> dict[str, Any]:
    priced = [row for row in board if row.get("images_per_second")]
    if not priced:
        expected = "a search whose leaders' prices were measured, as a search that came to its end has them"
        raise InputError(f"--pick cheapest from {search}", expected, "go on with it: fer-scale tune ... --resume")
    if min_accuracy is None:
        enough = [row for row in priced if row["tie"] or row is board[0]]
    else:
        enough = [row for row in priced if value(row) >= min_accuracy]
    if not enough:
        best = max(priced, key=value)
        raise InputError(
            f"--min-accuracy {min_accuracy:g}",
            f"at most {value(best):.4f}, the best there is (trial {best['trial_id']}, {best['family']})",
            "ask for less, or search longer",
        )
    return max(enough, key=lambda row: (row["images_per_second"], value(row)))
