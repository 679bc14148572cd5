"""The command line: arguments become calls of the functions that `fer_scale` exports, one command a verb.

Neither torch nor Ray is imported before a verb runs, so that `fer-scale --help` answers at once.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

import fer_scale
from fer_scale.arguments import pairs, settings, words
from fer_scale.errors import InputError
from fer_scale.outcome import explain, fail, interrupted, show

HOW_TO_GO_ON = {
    "ingest": "stopped; nothing was written, so the same command starts again",
    "tune": "stopped; the same command with --resume goes on",
    "train": "stopped; the same command with --resume goes on",
    "evaluate": "stopped; nothing was written, so the same command starts again",
    "label": "stopped; the same command goes on",
    "certify": "stopped; nothing was measured, so the same command starts again",
    "serve": "stopped serving",
    "doctor": "stopped; nothing stays of it, so the same command looks again",
}
UNHEALTHY = 2
"""What `doctor` leaves with when it found a problem: as for any other wrong input, the user can mend it."""

app = typer.Typer(
    name="fer-scale",
    help="Search, fit, label and serve facial expression networks, on a laptop or a Ray cluster.",
    epilog="Start with: fer-scale ingest faces/ store && fer-scale tune store --out search --time-budget 10m",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn at random.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="End stdout with the result as one line of JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that is not empty.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")]


@dataclass(frozen=True)
class Call:
    """A verb and its arguments, as the command line gave them; run by `main`."""

    verb: str
    arguments: dict[str, Any]
    json: bool
    debug: bool


@app.callback(invoke_without_command=True)
def _program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"fer-scale {fer_scale.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command(epilog="Example: fer-scale ingest faces/ store --classes happy,sad,surprised,neutral")
def ingest(
    source: Annotated[str, typer.Argument(help="Folder, zip, tar, CSV or Parquet; may be s3://.", metavar="SOURCE")],
    store: Annotated[str, typer.Argument(help="The face store to make.", metavar="STORE")],
    classes: Annotated[str, typer.Option(help="The classes, in order.")] = "happy,sad,surprised,neutral",
    rename: Annotated[list[str] | None, typer.Option(help="OLD=NEW,... for the source's labels.")] = None,
    others: Annotated[str, typer.Option(help="What becomes of further classes: drop or other.")] = "drop",
    split_column: Annotated[str | None, typer.Option(help="Column with the split.")] = None,
    split_map: Annotated[list[str] | None, typer.Option(help="VALUE=SPLIT,... of the column's values.")] = None,
    image_column: Annotated[str, typer.Option(help="Column with the picture.")] = "image",
    label_column: Annotated[str, typer.Option(help="Column with the class.")] = "label",
    id_column: Annotated[str | None, typer.Option(help="Column with a unique name.")] = None,
    votes: Annotated[str | None, typer.Option(help="CSV or Parquet with annotators' votes by id.")] = None,
    votes_classes: Annotated[str | None, typer.Option(help="A,B,...: what they voted for, in order.")] = None,
    label_from_votes: Annotated[bool, typer.Option("--label-from-votes", help="Most votes make the label.")] = False,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep repeats that lie within one split.")
    ] = False,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> Call:
    """Read labelled faces into a face store: checked, without repeats across splits, split in four."""
    arguments = dict(locals())
    arguments["classes"] = words(classes)
    arguments["votes_classes"] = words(votes_classes)
    arguments["rename"] = pairs(rename, "--rename")
    arguments["split_map"] = pairs(split_map, "--split-map")
    return _call("ingest", arguments)


@app.command(epilog="Example: fer-scale tune store --out search --time-budget 40m")
def tune(
    store: Annotated[str, typer.Argument(help="A face store.", metavar="STORE")],
    out: Annotated[str, typer.Option(help="The search to make.")],
    families: Annotated[list[str] | None, typer.Option(help="A,B,...: these families only.")] = None,
    time_budget: Annotated[str, typer.Option(help="Wall time, as 2h, 40m or 90s.")] = "40m",
    max_trials: Annotated[int | None, typer.Option(min=1, help="At most so many trials.")] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE is not searched; NAME=A,B and NAME=LOW..HIGH are searched within."),
    ] = None,
    space: Annotated[str | None, typer.Option(help="TOML or JSON file with the same.", metavar="FILE")] = None,
    cpus_per_trial: Annotated[float, typer.Option(help="CPUs of a trial.")] = 1,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="Share of a GPU of a trial.", show_default="1 where there are GPUs")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of one core; the table says what a million images cost.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="Decoded faces that trials share, as 8GB; a larger store is streamed.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> Call:
    """Search the network that reads these faces best, over six families."""
    arguments = dict(locals())
    arguments["families"] = words(families)
    arguments["fix"] = settings(fix)
    return _call("tune", arguments)


@app.command(epilog="Example: fer-scale train store --from search --out bundle --time-budget 20m")
def train(
    store: Annotated[str, typer.Argument(help="A face store.", metavar="STORE")],
    out: Annotated[str, typer.Option(help="The model bundle to make.")],
    from_search: Annotated[
        str | None, typer.Option("--from", help="Fit the winner of this search.", metavar="SEARCH")
    ] = None,
    pick: Annotated[str, typer.Option(help="Of the search: best, or cheapest that is accurate enough.")] = "best",
    min_accuracy: Annotated[
        float | None, typer.Option(help="What is enough for cheapest, as 0.8.", show_default="a tie with the best")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Fit this family's reference configuration.")] = None,
    config: Annotated[str | None, typer.Option(help="Fit a configuration, JSON; a bundle's config.json too.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the faces; 24 without a budget.")] = None,
    time_budget: Annotated[str | None, typer.Option(help="Wall time, as 2h, 40m or 90s.")] = None,
    workers: Annotated[str, typer.Option(help="Workers that fit together: 4, or 2..8 as there is room.")] = "1",
    init_from: Annotated[str | None, typer.Option(help="Bundle whose weights to start from.")] = None,
    test_time_flip: Annotated[
        bool, typer.Option("--test-time-flip", help="Average with the mirrored picture, at twice the compute.")
    ] = False,
    memory_limit: Annotated[
        str | None, typer.Option(help="Decoded faces that a worker keeps, as 8GB; a larger store is streamed.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> Call:
    """Fit one network on one or many workers and write its model bundle."""
    return _call("train", dict(locals()))


@app.command(epilog="Example: fer-scale evaluate bundle other-bundle store --out report")
def evaluate(
    paths: Annotated[list[str], typer.Argument(help="Model bundles, then the face store.", metavar="BUNDLE... STORE")],
    out: Annotated[str, typer.Option(help="The report to make.")],
    split: Annotated[str, typer.Option(help="The split to measure on.")] = "test",
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> Call:
    """Measure one or several bundles on a split, side by side, in one HTML report."""
    arguments = dict(locals())
    *bundles, store = arguments.pop("paths")
    if not bundles:
        raise InputError(f"only {store!r} was given", "one or more bundles, then a store", "name both")
    return _call("evaluate", {"bundles": bundles, "store": store, **arguments})


@app.command(epilog="Example: fer-scale label bundle s3://bucket/faces s3://bucket/labels")
def label(
    bundle: Annotated[str, typer.Argument(help="A model bundle.", metavar="BUNDLE")],
    source: Annotated[
        str, typer.Argument(help="Images: a folder, archive, CSV or Parquet; may be s3://.", metavar="SOURCE")
    ],
    out: Annotated[str, typer.Argument(help="Where labels, errors and the report go.", metavar="OUT")],
    image_column: Annotated[str, typer.Option(help="Column with the picture.")] = "image",
    id_column: Annotated[str | None, typer.Option(help="Column with a unique name.")] = None,
    uri_column: Annotated[str | None, typer.Option(help="Column of a manifest with paths or s3:// of images.")] = None,
    include: Annotated[str | None, typer.Option(help="Only files like this, as '*.jpg'.")] = None,
    faces: Annotated[str, typer.Option(help="crop takes an image as it is; detect labels every face in it.")] = "crop",
    workers: Annotated[int | None, typer.Option(min=1, help="Workers.", show_default="one a CPU")] = None,
    engine: Annotated[str, typer.Option(help="What infers: auto, onnx or torch.")] = "auto",
    requests_per_second: Annotated[
        float | None, typer.Option(help="Most requests to S3 in a second.", show_default="no limit")
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Accept labels of which at most this share is wrong, as 0.05.")
    ] = None,
    first: Annotated[str | None, typer.Option(help="Bundle of a smaller model, asked first.", metavar="BUNDLE")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Accuracy that --first may cost.", show_default="0.005 with --first")
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Try once more what stands in the errors table.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Label a sample, write nothing, say what the whole would take.")
    ] = False,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of the cluster; a dry run says what the run would cost.")
    ] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> Call:
    """Give every image of a folder or bucket a label with calibrated confidence, exactly once."""
    return _call("label", dict(locals()))


@app.command(epilog="Example: fer-scale certify labels, then: fer-scale certify labels --answers answers.csv")
def certify(
    run: Annotated[str, typer.Argument(help="The output of label.", metavar="RUN")],
    sample: Annotated[int, typer.Option(min=1, help="Labels to draw.")] = 200,
    answers: Annotated[
        str | None, typer.Option(help="The CSV of the sample, filled in: measure the error.", metavar="FILE")
    ] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> Call:
    """Measure how many labels of a run are wrong, on a random sample that a person judges."""
    return _call("certify", dict(locals()))


@app.command(epilog="Example: fer-scale serve bundle --port 8000")
def serve(
    bundle: Annotated[str, typer.Argument(help="A model bundle.", metavar="BUNDLE")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that answer.")] = 1,
    token_file: Annotated[str | None, typer.Option(help="File with the token that requests must bear.")] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Largest request, in bytes.")] = 8 * 2**20,
    max_images: Annotated[int, typer.Option(min=1, help="Most images in a request.")] = 64,
    max_error: Annotated[
        float | None, typer.Option(help="Say which labels are accepted, as label --max-error does.")
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> Call:
    """Answer HTTP requests with labels: POST /v1/predict, and a page to try it."""
    return _call("serve", dict(locals()))


@app.command(epilog="Example: fer-scale doctor --storage s3://bucket/scratch --cpus 64 --gpus 8")
def doctor(
    storage: Annotated[
        str | None, typer.Option(help="Folder, local or s3://, that every machine has to read and write.")
    ] = None,
    cpus: Annotated[float, typer.Option(help="CPUs wanted at the same time.")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs wanted at the same time.")] = 0,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> Call:
    """Say whether the cluster is fit for the other verbs, and what mends it where not; exit code 2 where not."""
    return _call("doctor", dict(locals()))


def _call(verb: str, arguments: dict[str, Any]) -> Call:
    return Call(verb, arguments, arguments.pop("json"), arguments.pop("debug"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code: 0, 1, 2 or 130.

    Args:
        arguments: what follows the program's name; None takes them from `sys.argv`.
    """
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def job(verb: str) -> None:
    """What jobs/<verb>.py does: the verb's command, with the script's arguments."""
    main([verb, *sys.argv[1:]])


def run(arguments: list[str]) -> int:
    """`main`, but the exit code is returned."""
    call: Call | None = None
    told = False

    def stop(*_: object) -> None:
        """As after Ctrl-C, for `ray job stop` and schedulers; said at once: Ray kills a job three seconds later."""
        nonlocal told
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not told:
            told = True
            os.write(2, f"fer-scale: {_how_to_go_on(call)}\n".encode())  # print must not interrupt a print
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        if "--version" in arguments:  # after a verb, too
            arguments = ["--version"]
        call = app(arguments, prog_name="fer-scale", standalone_mode=False)
        if not isinstance(call, Call):
            return call or 0  # the help or the version
        result: Mapping[str, Any] = getattr(fer_scale, call.verb)(**call.arguments)
        show(result, call.json)
        return 0 if result.get("healthy", True) else UNHEALTHY
    except KeyboardInterrupt:
        return 130 if told else fail(_how_to_go_on(call), 130)
    except typer.TyperException as error:
        return fail(f"{error.format_message()} See fer-scale --help.", 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has gone
        return 1
    except Exception as error:
        if interrupted(error):
            return 130 if told else fail(_how_to_go_on(call), 130)
        return explain(error, "--debug" in arguments)


def _how_to_go_on(call: Call | None) -> str:
    return HOW_TO_GO_ON[call.verb] if call else "stopped"
