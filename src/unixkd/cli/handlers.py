"""What each command does; `main` has parsed the options."""

from unixkd.cli.compare import compare, demo, show_report
from unixkd.cli.distill import distill
from unixkd.cli.evaluate import evaluate
from unixkd.cli.export import export
from unixkd.cli.plan import plan
from unixkd.cli.predict import predict_images
from unixkd.cli.train import train

HANDLERS = {
    "demo": demo,
    "train": train,
    "distill": distill,
    "evaluate": evaluate,
    "predict": predict_images,
    "compare": compare,
    "plan": plan,
    "report": show_report,
    "export": export,
}
"""Every command by name: options -> None."""
